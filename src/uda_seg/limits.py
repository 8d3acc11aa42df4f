"""What a value may be where its type alone does not say: limits that stand in the annotation of what they limit."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included unless `open_low`, `open_high`."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a number, NaN included; None for one that lies inside."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return None if above and below else str(self)

    def __str__(self) -> str:
        """The range as a message says it."""
        low = f"{'greater than' if self.open_low else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return f"must be {low}"
        if not (self.open_low or self.open_high):
            return f"must lie between {self.low:g} and {self.high:g}"
        return f"must be {low} and {'below' if self.open_high else 'at most'} {self.high:g}"


@dataclass(frozen=True)
class OneOf:
    """One of a few names; None stands for null."""

    names: tuple[str | None, ...]

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a name, and the nearest right one; None for one of them."""
        if value in self.names:
            return None
        words = ["null" if name is None else str(name) for name in self.names]
        close = difflib.get_close_matches(str(value), words, n=1, cutoff=0.5)
        return f"is none of {', '.join(words)}" + (f"; did you mean {close[0]}?" if close else "")


Positive = Annotated[float, Interval(0, open_low=True)]
NotNegative = Annotated[float, Interval(0)]
Fraction = Annotated[float, Interval(0, 1)]
PositiveFraction = Annotated[float, Interval(0, 1, open_low=True)]
FractionBelowOne = Annotated[float, Interval(0, 1, open_high=True)]
Count = Annotated[int, Interval(1)]
CountOrZero = Annotated[int, Interval(0)]
BitDepth = Annotated[int, Interval(8, 16)]


class _Term:
    """Marks the weight of a loss term among the options of a method."""


# What `sweep=optuna` looks for, whatever an option is called.
LossWeight = Annotated[float, Interval(0), _Term]


def is_loss_weight(annotation: Any) -> bool:
    """Whether an option is annotated as the weight of a loss term."""
    return _Term in getattr(annotation, "__metadata__", ())
