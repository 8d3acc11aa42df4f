"""How to measure: two things in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

BLOCK_SECONDS = 0.2  # a timed block is at least this long: far above the clock's resolution and a scheduler's slice


@dataclass(frozen=True)
class Row:
    """One comparison of A (ours) with B.

    Attributes:
        name: of the measurement.
        a: what A is.
        a_value: its figure in `unit`, the median over the pairs.
        b: what B is.
        b_value: its figure in `unit`, the median over the pairs.
        unit: of both.
        ratio: median over the pairs of a/b or b/a, whichever the limit is on; of a rate, A's own figure.
        limit: the ratio that is aimed at; None: only reported.
        bound: whether the ratio has to stay `at most` or reach `at least` the limit.
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
        """The limit in words."""
        return None if self.limit is None else f"{self.bound} {self.limit:g}"

    @property
    def met(self) -> bool | None:
        """Whether the ratio keeps to the limit; None where there is none."""
        if self.limit is None:
            return None
        return self.ratio <= self.limit if self.bound == "at most" else self.ratio >= self.limit

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"target": self.target, "met": self.met}


@dataclass(frozen=True)
class Pairs:
    """Seconds that A and B took, pair by pair."""

    a: Sequence[float]
    b: Sequence[float]

    @property
    def a_over_b(self) -> float:
        """Median of the pairs' ratios: a neighbour that slows one pair down slows both of its halves."""
        return statistics.median(a / b for a, b in zip(self.a, self.b, strict=True))

    @property
    def b_over_a(self) -> float:
        """How many times faster A is: median of the pairs' ratios."""
        return statistics.median(b / a for a, b in zip(self.a, self.b, strict=True))

    @property
    def a_ms(self) -> float:
        """Median of A, milliseconds."""
        return 1e3 * statistics.median(self.a)

    @property
    def b_ms(self) -> float:
        """Median of B, milliseconds."""
        return 1e3 * statistics.median(self.b)


def alternate(a: Callable[[], object], b: Callable[[], object], pairs: int, block: float = BLOCK_SECONDS) -> Pairs:
    """Time A, B, A, B, ...; both are called once before, and as often in a block as fills `block` seconds.

    Args:
        a: the first of each pair.
        b: the second.
        pairs: how many pairs.
        block: seconds.

    Returns:
        Seconds of one call.
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
    """Wait until the GPU, where there is one, has done all it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
