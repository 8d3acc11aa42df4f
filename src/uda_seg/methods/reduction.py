"""Reductions of gradients, statistics and batch-level values over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn


def with_gradient(optimizer: Any) -> list[nn.Parameter]:
    """List parameters with a gradient from the optimiser, as walking two large networks takes milliseconds."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


class RankModule(pl.LightningModule):
    """Base module whose n ranks compute the same as one process, if batch-level values are reduced by these methods.

    Attributes:
        norms: batch-norm layers including the teacher's, set when training starts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[nn.modules.batchnorm._BatchNorm] = []

    def reduce_gradients(self, optimizer: Any) -> None:
        """Average gradients over ranks with a single all-reduce of one flat buffer, whatever the number of terms.

        Batch norm's running statistics, including the teacher's, are part of the buffer. Each rank's come from its own
        images, and their mean equals that of a single process that sees all of these batches. All ranks thus have the
        same state after every step, and any of them can validate or save.
        """
        if self.trainer.world_size == 1:
            return
        # All ranks run the same terms, so the same parameters have gradients; the others must not be decayed.
        trained = with_gradient(optimizer)
        statistics = [s for norm in self.norms for s in (norm.running_mean, norm.running_var) if s is not None]
        tensors = [*(p.grad for p in trained if p.grad is not None), *statistics]
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.trainer.world_size
        pieces: tuple[Tensor, ...] = torch.split(flat, [t.numel() for t in tensors])
        for parameter, piece in zip(trained, pieces, strict=False):
            parameter.grad = piece.view_as(parameter)
        for buffer, piece in zip(statistics, pieces[len(trained) :], strict=True):
            buffer.copy_(piece.view_as(buffer))

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """Average a batch-level quantity over ranks, so that n ranks compute the same as one process."""
        return value if self.trainer.world_size == 1 else self.sum_over_ranks(value) / self.trainer.world_size

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Sum over ranks."""
        if self.trainer.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def mean_of_known(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Average 0-dim values over ranks, skipping NaN, such as that of an absent class."""
        if self.trainer.world_size == 1 or not values:
            return values
        mine = torch.stack([value.float() for value in values.values()])
        known = ~mine.isnan()
        total, count = self.mean_over_ranks(torch.stack([mine.where(known, 0.0), known.float()]))
        return dict(zip(values, (total / count).unbind(), strict=True))

    def max_over_ranks(self, value: Tensor) -> Tensor:
        """Reduce a batch-level quantity to its maximum over ranks."""
        if self.trainer.world_size > 1:
            value = value.clone()
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value
