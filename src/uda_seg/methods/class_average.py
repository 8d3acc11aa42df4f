"""Per-class moving averages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ClassAverage(nn.Module):
    """Moving averages, one per class, of batch means: value <- momentum * value + (1 - momentum) * mean.

    Only classes present in the batch are updated. The value is a buffer, so a resumed run continues from it. It is
    updated once per step, from sums over micro-batches and ranks, so that neither changes the result.

    Args:
        shape: shape of the value, [K] or [K, D].
        momentum: weight of the old value, in [0, 1]; 1 never changes it.
        start: initial value.
    """

    value: Tensor

    def __init__(self, shape: Sequence[int], momentum: float, start: float = 0.0) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.full(tuple(shape), start))
        self.pending: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def after(self, total: Tensor, count: Tensor) -> Tensor:
        """Compute the value after a batch with these sums, shaped like the value, and counts, [K]."""
        count = count.reshape(-1, *[1] * (total.dim() - 1))
        mean = total / count.where(count > 0, 1.0)
        return torch.where(count > 0, torch.lerp(mean, self.value, self.momentum), self.value)

    @torch.no_grad()
    def observe(self, total: Tensor, count: Tensor) -> None:
        """Add the sums, shaped like the value, and counts, [K], of a micro-batch on this rank."""
        before = self.pending or (torch.zeros_like(total), torch.zeros_like(count))
        self.pending = (before[0] + total, before[1] + count)

    def move(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Update the value with all observations since the last call; `reduce` sums or averages over ranks."""
        if self.pending is not None:
            total, count = (reduce(part) for part in self.pending)
            self.value.copy_(self.after(total, count))
            self.pending = None
