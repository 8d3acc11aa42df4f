"""Check that two checkouts train identically: every method's weights after a few CPU steps, bit for bit.

    git worktree add /elsewhere/before COMMIT
    python scripts/same_numbers.py /elsewhere/before . [METHOD ...]

Run it before and after changes that must not affect numbers. Each training is a separate process with one thread and
the same network, data and seed; HRDA represents networks with two resolutions. Exits with 1 if a tensor differs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SMALL = ["data=streets", "steps=3", "data.crop=[64,64]", "data.source.count=8", "data.target.count=8"]
SMALL += ["data.validation.target.count=2", "data.source_batch=2", "data.target_batch=2", "evaluator.times=1"]
SMALL += ["trainer=cpu", "trainer.precision=32-true", "pretrained=null", "statistics_batches=1"]
MORE = {"bicl": ["method.warmup=0"], "lcmsm": ["method.text=file"]}


def trained(checkout: Path, method: str, overrides: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """Return the final weights and buffers of a checkout's `train`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "uda_seg.train", f"method={method}", *SMALL, *MORE.get(method, []), *overrides]
    subprocess.run([*command, f"hydra.run.dir={folder}"], check=True, env=environment, stdout=subprocess.DEVNULL)
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    weights: dict[str, torch.Tensor] = content["state_dict"]
    return weights


def different(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """List the tensors that differ in any bit, or exist in only one of the two."""
    names = sorted(before.keys() | after.keys())
    return [n for n in names if n not in before or n not in after or not torch.equal(before[n], after[n])]


def main() -> int:
    """Compare the named methods, or all, of both checkouts, and return the number of methods that differ."""
    first, second = (Path(argument).resolve() for argument in sys.argv[1:3])
    methods = sys.argv[3:] or sorted(path.stem for path in (first / "conf" / "method").glob("*.yaml"))
    runs = [(method, []) for method in methods] + [("mic", ["model=hrda_small"])] * ("mic" in methods)
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for number, (method, overrides) in enumerate(runs):
            pair = [
                trained(checkout, method, overrides, Path(place, side, str(number)))
                for side, checkout in (("before", first), ("after", second))
            ]
            names = different(*pair)
            wrong += bool(names)
            said = f"{len(pair[0])} tensors, {len(names)} differ {names[:3]}"
            print(method, *overrides, said, flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
