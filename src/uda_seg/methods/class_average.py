"""What a method remembers of every class from batch to batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ClassAverage(nn.Module):
    """Moving averages, one per class, of batch means: value <- momentum * value + (1 - momentum) * mean.

    Only classes that the batch has anything of move. The value is a buffer, so that a resumed run goes on where it
    stopped. It moves once a step, from sums over the micro-batches and ranks, so that neither changes the result.

    Args:
        shape: of the value, [K] or [K, D].
        momentum: share of the old value that stays, in [0, 1]; 1 never moves it.
        start: the value before the first batch.
    """

    value: Tensor

    def __init__(self, shape: Sequence[int], momentum: float, start: float = 0.0) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.full(tuple(shape), start))
        self.pending: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def after(self, total: Tensor, count: Tensor) -> Tensor:
        """What the value would be after a batch of these sums, like the value, and counts, [K]."""
        count = count.reshape(-1, *[1] * (total.dim() - 1))
        mean = total / count.where(count > 0, 1.0)
        return torch.where(count > 0, torch.lerp(mean, self.value, self.momentum), self.value)

    @torch.no_grad()
    def observe(self, total: Tensor, count: Tensor) -> None:
        """Add the sums, like the value, and counts, [K], of a micro-batch on this rank."""
        before = self.pending or (torch.zeros_like(total), torch.zeros_like(count))
        self.pending = (before[0] + total, before[1] + count)

    def move(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move by what was observed since the last call; `reduce` adds or averages a tensor over the ranks."""
        if self.pending is not None:
            total, count = (reduce(part) for part in self.pending)
            self.value.copy_(self.after(total, count))
            self.pending = None
