"""A/B timing: two functions, alternately."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

BLOCK_SECONDS = 0.2  # minimum length of a timed block, far above the clock's resolution and a scheduler's time slice


@dataclass(frozen=True)
class Row:
    """One comparison of A (ours) with B.

    Attributes:
        name: name of the measurement.
        a: label of A.
        a_value: value of A in `unit`, the median over pairs.
        b: label of B.
        b_value: value of B in `unit`, the median over pairs.
        unit: unit of both values.
        ratio: median over pairs of a/b or b/a, whichever has the limit; for a rate, A's value.
        limit: target of the ratio; None: only reported.
        bound: `at most` or `at least`.
    """

    name: str
    a: str
    a_value: float
    b: str
    b_value: float
    unit: str
    ratio: float
    limit: float | None = None
    bound: Literal["at most", "at least"] = "at least"

    @property
    def target(self) -> str | None:
        """The limit as text."""
        return None if self.limit is None else f"{self.bound} {self.limit:g}"

    @property
    def met(self) -> bool | None:
        """True if the ratio meets the limit; None without a limit."""
        if self.limit is None:
            return None
        return self.ratio <= self.limit if self.bound == "at most" else self.ratio >= self.limit

    def record(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self) | {"target": self.target, "met": self.met}


@dataclass(frozen=True)
class Pairs:
    """Seconds of A and B, pair by pair."""

    a: Sequence[float]
    b: Sequence[float]

    @property
    def a_over_b(self) -> float:
        """Median of the pairs' ratios: other load that slows down one pair affects both of its halves."""
        return statistics.median(a / b for a, b in zip(self.a, self.b, strict=True))

    @property
    def b_over_a(self) -> float:
        """Speed-up of A: median of the pairs' ratios."""
        return statistics.median(b / a for a, b in zip(self.a, self.b, strict=True))

    @property
    def a_ms(self) -> float:
        """Median of A in milliseconds."""
        return 1e3 * statistics.median(self.a)

    @property
    def b_ms(self) -> float:
        """Median of B in milliseconds."""
        return 1e3 * statistics.median(self.b)


def alternate(a: Callable[[], object], b: Callable[[], object], pairs: int, block: float = BLOCK_SECONDS) -> Pairs:
    """Time A, B, A, B, ..., after one warm-up call each; a timed block repeats calls for at least `block` seconds.

    Args:
        a: the first of each pair.
        b: the second.
        pairs: number of pairs.
        block: minimum seconds per block.

    Returns:
        Seconds per call.
    """
    calls = [(work, _calls(work, block)) for work in (a, b)]
    seconds = [[_seconds(work, count) for work, count in calls] for _ in range(pairs)]
    return Pairs([pair[0] for pair in seconds], [pair[1] for pair in seconds])


def _calls(work: Callable[[], object], block: float) -> int:
    work()
    return max(1, round(block / _seconds(work, 1)))


def _seconds(work: Callable[[], object], count: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        work()
    synchronize()
    return (time.perf_counter() - start) / count


def synchronize() -> None:
    """Wait for all queued work of the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
