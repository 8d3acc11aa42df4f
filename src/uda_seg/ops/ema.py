"""The mean teacher's exponential moving average (Tarvainen & Valpola 2017)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def ema_decay(step: int, alpha: float) -> float:
    """Compute the decay of update `step` (0-based): min(1 - 1 / (step + 1), alpha).

    Update 0 copies the student; then the teacher is the plain mean of all students so far, until the decay
    reaches alpha.
    """
    return min(1.0 - 1.0 / (step + 1), alpha)


@torch.no_grad()
def ema_update(teacher: Iterable[Tensor], student: Iterable[Tensor], decay: float) -> None:
    """Move the teacher in place: teacher = decay * teacher + (1 - decay) * student, in one fused call.

    Args:
        teacher: parameters, and buffers if these are averaged too.
        student: the tensors to follow, of the same order, shapes and dtypes. Integer tensors (batch norm's counter) are
            copied.
        decay: in [0, 1], from `ema_decay`.
    """
    pairs = list(zip(teacher, student, strict=True))
    moving = [pair for pair in pairs if pair[0].is_floating_point()]
    if moving:
        torch._foreach_lerp_([t for t, _ in moving], [s for _, s in moving], 1.0 - decay)
    for t, s in pairs:
        if not t.is_floating_point():
            t.copy_(s)
