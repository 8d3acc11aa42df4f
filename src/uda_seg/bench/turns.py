"""Two trainings in one process, interleaved in blocks of steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

import pytorch_lightning as pl
import torch
from torch import nn

from uda_seg.bench.measure import Pairs, Row, synchronize
from uda_seg.bench.memory import SavedBytes, SavedPeak
from uda_seg.bench.session import WARM_UP, Session


class Side(Protocol):
    """A training that advances on demand.

    Attributes:
        images: images per step.
        saved_bytes: peak bytes of autograd's saved tensors in the warm-up; None if not counted.
    """

    images: int
    saved_bytes: int | None

    def warm_up(self) -> None:
        """Run the untimed first steps."""

    def advance(self, steps: int) -> None:
        """Take some steps."""

    def close(self) -> None:
        """End the training."""


class _Wait(pl.Callback):
    """Blocks the trainer's thread after the requested number of steps until more are requested."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.left, self.closed = 0, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count down the requested steps (Lightning hook)."""
        self.left -= 1
        if self.left == 0:
            self.done.release()
            self.go.acquire()
        trainer.should_stop = self.closed


class Trained:
    """A session under Lightning, whose trainer runs in its own thread while `advance` waits for it.

    A step includes loading, transfer, hooks and logging.

    Args:
        session: session with more steps than will be requested.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.images = session.data.images_per_step
        self.saved_bytes: int | None = None
        self._wait = _Wait()
        self._error: BaseException | None = None
        self._counts = SavedPeak(WARM_UP)
        compiled = session.module.segmentor.backend is not None  # the counting hooks would be compiled too
        callbacks = [self._wait] if compiled or torch.cuda.is_available() else [self._counts, self._wait]
        session.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._fit, daemon=True)

    def _fit(self) -> None:
        self._wait.go.acquire()
        try:
            self.session.fit()
        except BaseException as error:
            self._error = error
        self._wait.done.release()

    def warm_up(self) -> None:
        """Start the trainer and run the first steps."""
        self._thread.start()
        self.advance(WARM_UP)
        self.saved_bytes = self._counts.peak or None

    def advance(self, steps: int) -> None:
        """Take some steps.

        Raises:
            BaseException: raised by the trainer.
            RuntimeError: the training has ended.
        """
        self._wait.left = steps
        self._wait.go.release()
        self._wait.done.acquire()
        if self._error is not None:
            raise self._error
        if self._wait.left > 0:
            raise RuntimeError(f"the training ended {self._wait.left} steps before it was told to")

    def close(self) -> None:
        """End the trainer's thread."""
        self._wait.closed = True
        self._wait.go.release()
        if self._thread.ident is not None:
            self._thread.join()


class Looped:
    """A plain loop.

    Args:
        step: runs one step.
        module: module whose parameters do not count as memory of a step.
        images: images per step.
        log: open file of the loop.
    """

    def __init__(self, step: Callable[[], object], module: nn.Module, images: int, log: TextIO) -> None:
        self.step, self.module, self.images, self.log = step, module, images, log
        self.saved_bytes: int | None = None

    def warm_up(self) -> None:
        """Take the first steps."""
        if torch.cuda.is_available():
            return self.advance(WARM_UP)
        with SavedBytes([*self.module.parameters(), *self.module.buffers()]) as saved:
            self.advance(WARM_UP)
        self.saved_bytes = saved.peak
        return None

    def advance(self, steps: int) -> None:
        """Take some steps."""
        for _ in range(steps):
            self.step()

    def close(self) -> None:
        """Close the log."""
        self.log.close()


@dataclass(frozen=True)
class Comparison:
    """Results of two trainings.

    Attributes:
        a: label of the first.
        b: label of the second.
        pairs: seconds per step.
        images: images per step of each.
        peak_bytes: peak memory of each in the warm-up: allocated on a GPU, elsewhere saved by autograd.
    """

    a: str
    b: str
    pairs: Pairs
    images: tuple[int, int]
    peak_bytes: tuple[int | None, int | None]

    def rows(self, name: str, limit: float | None = None, faster: bool = False) -> list[Row]:
        """Build rows of ms per step, images/s and MiB as ratios of A to B, or B to A for the step if `faster`.

        Args:
            name: name of the comparison.
            limit: limit of the step's ratio, a minimum if `faster`, else a maximum.
            faster: report the speed-up of A.
        """
        pairs = self.pairs
        ratio = pairs.b_over_a if faster else pairs.a_over_b
        bound: Literal["at least", "at most"] = "at least" if faster else "at most"
        rows = [Row(f"{name}/step", self.a, pairs.a_ms, self.b, pairs.b_ms, "ms", ratio, limit, bound)]
        rates = [1e3 * images / ms for images, ms in zip(self.images, (pairs.a_ms, pairs.b_ms), strict=True)]
        relative = pairs.b_over_a * self.images[0] / self.images[1]
        rows.append(Row(f"{name}/images", self.a, rates[0], self.b, rates[1], "images/s", relative))
        first, second = self.peak_bytes
        if first and second:
            mib = [peak / 2**20 for peak in (first, second)]
            rows.append(Row(f"{name}/peak", self.a, mib[0], self.b, mib[1], "MiB", first / second))
        return rows


class Turns:
    """Context that warms up two trainings, times them alternately and closes both."""

    def __init__(self) -> None:
        self.sides: list[Side] = []
        self.peaks: list[int | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for side in self.sides:
            side.close()

    def add(self, make: Callable[[], Side]) -> None:
        """Build a training and warm it up, attributing newly allocated memory to it."""
        gpu = torch.cuda.is_available()
        before = torch.cuda.memory_allocated() if gpu else 0
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        side = make()
        self.sides.append(side)
        side.warm_up()
        self.peaks.append(torch.cuda.max_memory_allocated() - before if gpu else side.saved_bytes)

    def compare(self, labels: tuple[str, str], pairs: int, block: int) -> Comparison:
        """Time `pairs` blocks of `block` steps of each."""
        a, b = self.sides
        seconds = [(seconds_per_step(a, block), seconds_per_step(b, block)) for _ in range(pairs)]
        timed = Pairs([pair[0] for pair in seconds], [pair[1] for pair in seconds])
        return Comparison(*labels, timed, (a.images, b.images), (self.peaks[0], self.peaks[1]))


def seconds_per_step(side: Side, steps: int) -> float:
    """Time some steps of a training, the work queued on a GPU included, in seconds per step."""
    synchronize()
    start = time.perf_counter()
    side.advance(steps)
    synchronize()
    return (time.perf_counter() - start) / steps
