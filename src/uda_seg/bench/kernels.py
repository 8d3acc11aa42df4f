"""How much of a step is spent in matrix products, convolutions and attention."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from uda_seg.bench.measure import synchronize
from uda_seg.bench.session import WARM_UP, prepare
from uda_seg.config import Config

# In names of operators; a GPU's kernels are counted by the operator that started them, Inductor's own by their name.
MATRIX = ("mm", "linear", "convolution", "conv2d", "attention", "triton_tem")


class _Profiled(pl.Callback):
    """Records `steps` steps after the warm-up."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self.recorder = profile(activities=activities)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin and end between two steps."""
        synchronize()
        if trainer.global_step == WARM_UP:
            self.recorder.start()
        if trainer.global_step == WARM_UP + self.steps:
            self.recorder.stop()


def matrix_ms(config: Config, steps: int = 2) -> float:
    """Milliseconds a step in matrix kernels of the configured method, on the device it runs on."""
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, Path(folder), WARM_UP + steps)
        profiled = _Profiled(steps)
        session.trainer.callbacks.append(profiled)  # type: ignore[attr-defined]
        session.fit()
    events = profiled.recorder.key_averages()
    return sum(_own_us(event) for event in events if is_matrix(event.key)) / (1e3 * steps)


def is_matrix(name: str) -> bool:
    """Whether an operator of this name multiplies matrices: a part of the name, between underscores, says so."""
    words = name.lower().replace("::", "_").replace("conv2d", "convolution").split("_")
    return any(word in MATRIX or word.endswith("mm") for word in words) or "triton_tem" in name


def _own_us(event: FunctionEventAvg) -> float:
    return float(event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total)
