"""Cost of a training step next to busy processes, such as a second run or another user."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from uda_seg.bench.measure import Pairs, Row, synchronize
from uda_seg.bench.session import WARM_UP, prepare
from uda_seg.config.commands import BenchConfig

# Number of neighbours, and the limit of a step's time relative to a step alone: on two cores, two threads and k
# neighbours each get 2 / (2 + k) of a core. More cores leave more room.
LIMITS = {1: 1.5, 2: 2.0}

# Reports its start, and ends with its parent, however that ends.
NEIGHBOUR = """
import os, sys
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


def measure_busy(config: BenchConfig) -> list[Row]:
    """Time a step of the configured method alternately alone, next to one busy process, and next to two."""
    bench = config.bench
    config = replace(config, logger=replace(config.logger, kind="csv", log_every=bench.steps))
    blocks = [count for _ in range(bench.pairs) for count in (0, *LIMITS)]
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, Path(folder), WARM_UP + bench.steps * len(blocks) + 1)
        timed = Beside(blocks, bench.steps)
        session.trainer.callbacks.append(timed)  # type: ignore[attr-defined]
        session.fit()
    rows = []
    for count, limit in LIMITS.items():
        pairs = Pairs(timed.seconds[count], timed.seconds[0])
        beside = f"beside {count} busy process{'es' if count > 1 else ''}"
        rows.append(
            Row(f"busy/{count}", beside, pairs.a_ms, "alone", pairs.b_ms, "ms", pairs.a_over_b, limit, "at most")
        )
    return rows


class Beside(pl.Callback):
    """Starts neighbours block by block and times the training's steps.

    It runs in the trainer's own thread: with a second computing thread OpenMP would have more threads than cores and
    change its wait policy.

    Args:
        blocks: number of neighbours of each block.
        steps: steps per block.

    Attributes:
        seconds: seconds per step of each block, by number of neighbours.
    """

    def __init__(self, blocks: list[int], steps: int) -> None:
        self.blocks, self.steps = iter(blocks), steps
        self.seconds: dict[int, list[float]] = {count: [] for count in blocks}
        self.stack = ExitStack()
        self.count: int | None = None
        self.began = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a block and begin the next (Lightning hook)."""
        if batch_idx + 1 < WARM_UP or (batch_idx + 1 - WARM_UP) % self.steps:
            return
        synchronize()
        if self.count is not None:
            self.seconds[self.count].append((time.perf_counter() - self.began) / self.steps)
        self.stack.close()
        self.count = next(self.blocks, None)
        self.stack.enter_context(neighbours(self.count or 0))
        self.began = time.perf_counter()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop all neighbours (Lightning hook)."""
        self.stack.close()


@contextmanager
def neighbours(count: int) -> Iterator[list[int]]:
    """Run busy processes within the block and yield their process ids."""
    with ExitStack() as stack:
        started: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            call = [sys.executable, "-S", "-c", NEIGHBOUR, str(os.getpid())]
            started.append(stack.enter_context(subprocess.Popen(call, stdout=subprocess.PIPE)))
            stack.callback(started[-1].kill)  # runs before the process's own exit, which waits for it to end
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield [process.pid for process in started]
