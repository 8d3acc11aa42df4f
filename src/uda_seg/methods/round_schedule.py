"""Schedule of the rounds of self-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uda_seg.errors import Damaged


@dataclass(frozen=True)
class RoundSchedule:
    """Schedule of rounds: equally spaced after the warm-up.

    Args:
        steps: length of the run.
        warmup: fraction of the steps before the first round.
        rounds: number of rounds, at most one per step.
    """

    steps: int
    warmup: float
    rounds: int

    @property
    def first(self) -> int:
        """First step of the first round."""
        return round(self.warmup * self.steps)

    def at(self, step: int) -> int | None:
        """Return the round of `step`; None in the warm-up and after the end."""
        if not self.first <= step < self.steps:
            return None
        return (step - self.first) * self.rounds // (self.steps - self.first)

    def span(self, step: int) -> tuple[int, int] | None:
        """Return the number and the first step of the round of `step`."""
        current = self.at(step)
        if current is None:
            return None
        return current, self.first - (-current * (self.steps - self.first) // self.rounds)

    @classmethod
    def restored(cls, state: object) -> RoundSchedule:
        """Rebuild a schedule from its values in a checkpoint; raises Damaged if they are nonsense."""
        values = state if isinstance(state, Mapping) else {}
        steps, warmup, rounds = (values.get(key) for key in ("steps", "warmup", "rounds"))
        if not (isinstance(steps, int) and isinstance(warmup, int | float) and isinstance(rounds, int) and rounds > 0):
            raise Damaged("the checkpoint is damaged, rounds is nonsense: resume from another one, or use init=")
        return cls(steps, warmup, rounds)
