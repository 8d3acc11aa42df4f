"""Time and memory of training steps of several configurations, one after another in one process.

    python scripts/measure_steps.py --common 'data=streets trainer=gpu' --output steps.jsonl \
        'method=dacs preset=dinov2b' 'method=dacs preset=dinov2b model.compile=true'

Every configuration is built as `train` builds it and trained for three steps of warm-up and `--steps` timed ones, with
loader and logging. Each writes one JSON line when it is done; one that fails (too little memory, say) writes its error
and the next one begins.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from uda_seg.bench.measure import synchronize
from uda_seg.bench.session import WARM_UP, prepare
from uda_seg.bench.turns import Trained, seconds_per_step
from uda_seg.config.commands import BenchConfig
from uda_seg.config.compose import composed
from uda_seg.methods.base import UDAModule

BLOCKS = 3  # the median of three is not moved by a single disturbance


def main() -> None:
    """Measure the configurations on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configurations", nargs="+", help="overrides, separated by blanks")
    parser.add_argument("--common", default="", help="overrides of all configurations")
    parser.add_argument("--steps", type=int, default=15, help=f"timed steps, in {BLOCKS} blocks")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, appended to")
    options = parser.parse_args()
    for configuration in options.configurations:
        result = {"configuration": configuration, "common": options.common}
        try:
            result |= measure([*options.common.split(), *configuration.split()], options.steps // BLOCKS)
        except Exception as error:  # the next configuration may well fit
            result["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        with options.output.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(overrides: list[str], block: int) -> dict[str, Any]:
    """Train some steps and return their time, the rate, and the memory."""
    config = composed(overrides, BenchConfig)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as closing:
        start = time.perf_counter()
        session = prepare(config, Path(folder), WARM_UP + BLOCKS * block + 1)
        side = Trained(session)
        closing.callback(side.close)
        side.warm_up()
        synchronize()
        ready = time.perf_counter() - start
        seconds = [seconds_per_step(side, block) for _ in range(BLOCKS)]
    step = statistics.median(seconds)
    return {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__,
        "precision": session.trainer.precision,
        "step_ms": round(1e3 * step, 2),
        "blocks_ms": [round(1e3 * value, 2) for value in seconds],
        "images_per_s": round(side.images / step, 2),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if gpu else None,
        "saved_mib": None if side.saved_bytes is None else round(side.saved_bytes / 2**20, 1),
        "ready_s": round(ready, 1),
        **parameters(session.module),
    }


def parameters(module: UDAModule) -> dict[str, float]:
    """Count millions of weights, trained ones and all of the student's."""
    weights = list(module.segmentor.parameters())
    trained = sum(w.numel() for w in weights if w.requires_grad)
    return {"trained_m": round(trained / 1e6, 1), "weights_m": round(sum(w.numel() for w in weights) / 1e6, 1)}


if __name__ == "__main__":
    main()
