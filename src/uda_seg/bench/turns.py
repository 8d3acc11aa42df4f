"""Two trainings in one process, some steps of the one, some of the other, and so on."""

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
    """A training that takes steps when told to.

    Attributes:
        images: that a step reads.
        saved_bytes: the most that autograd held at once in the warm-up; None where it was not counted.
    """

    images: int
    saved_bytes: int | None

    def warm_up(self) -> None:
        """Take the first steps, which nobody times."""

    def advance(self, steps: int) -> None:
        """Take some steps."""

    def close(self) -> None:
        """End the training."""


class _Wait(pl.Callback):
    """Lets the trainer's thread go on for as many steps as it was told, then waits to be told again."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.left, self.closed = 0, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One step less to go."""
        self.left -= 1
        if self.left == 0:
            self.done.release()
            self.go.acquire()
        trainer.should_stop = self.closed


class Trained:
    """A session under Lightning. Its trainer has a thread of its own, which works while `advance` waits for it.

    A step is all there is of it: loading, transfer, hooks and logging.

    Args:
        session: of more steps than it will be told to take.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.images = session.data.images_per_step
        self.saved_bytes: int | None = None
        self._wait = _Wait()
        self._error: BaseException | None = None
        self._counts = SavedPeak(WARM_UP)
        compiled = session.module.segmentor.backend is not None  # counting would be compiled too
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
        """Start, and take the first steps."""
        self._thread.start()
        self.advance(WARM_UP)
        self.saved_bytes = self._counts.peak or None

    def advance(self, steps: int) -> None:
        """Take some steps.

        Raises:
            BaseException: what the trainer raised.
            RuntimeError: it has come to its end.
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
        step: takes one.
        module: whose parameters are no memory that a step needs.
        images: that a step reads.
        log: the loop's open file.
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
    """What two trainings took.

    Attributes:
        a: label of the first.
        b: label of the second.
        pairs: seconds of a step.
        images: that a step of each reads.
        peak_bytes: of each; on a GPU the most it had allocated in its warm-up, elsewhere the most that autograd saved.
    """

    a: str
    b: str
    pairs: Pairs
    images: tuple[int, int]
    peak_bytes: tuple[int | None, int | None]

    def rows(self, name: str, limit: float | None = None, faster: bool = False) -> list[Row]:
        """Milliseconds a step, images a second, MiB: ratios of A to B; with `faster` how often A's step goes into B's.

        Args:
            name: of the comparison.
            limit: that the ratio of the steps has to reach, if `faster`, or to keep.
            faster: see above.
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
    """Takes two trainings through their warm-ups and times them in turns; a context, which ends both."""

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
        """Build a training and warm it up; what it allocates beyond what is there already is its own."""
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
        seconds = [(_seconds(a, block), _seconds(b, block)) for _ in range(pairs)]
        timed = Pairs([pair[0] for pair in seconds], [pair[1] for pair in seconds])
        return Comparison(*labels, timed, (a.images, b.images), (self.peaks[0], self.peaks[1]))


def _seconds(side: Side, steps: int) -> float:
    synchronize()
    start = time.perf_counter()
    side.advance(steps)
    synchronize()
    return (time.perf_counter() - start) / steps
