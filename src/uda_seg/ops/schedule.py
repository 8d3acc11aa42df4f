"""Schedules of learning rate and weight decay."""

from __future__ import annotations

import math


def warmup_poly(step: int, steps: int, warmup_steps: int, power: float = 1.0, warmup_ratio: float = 1e-6) -> float:
    """Compute the factor on the base learning rate: polynomial decay to 0 times a linear warm-up (DAFormer).

    (1 - t/T)^power * [1 - (1 - t/W)(1 - ratio)  while t < W].

    Args:
        step: t, 0-based.
        steps: T, the length of training; beyond it the factor is 0.
        warmup_steps: W; 0 = none.
        power: of the decay.
        warmup_ratio: the warm-up's factor at step 0.
    """
    decay: float = (1.0 - min(step, steps) / steps) ** power
    if step < warmup_steps:
        decay *= 1.0 - (1.0 - step / warmup_steps) * (1.0 - warmup_ratio)
    return decay


def cosine_to_zero(step: int, steps: int) -> float:
    """Compute the factor (1 + cos(pi t / T)) / 2 for 0-based step t of T; beyond T it is 0."""
    return (1.0 + math.cos(math.pi * min(step, steps) / steps)) / 2
