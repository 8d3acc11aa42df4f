"""Losses of self-training: pixel-weighted cross-entropy and the thing-class feature distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.ops import IGNORE as IGNORE
from uda_seg.ops.image import upload
from uda_seg.ops.reduction import Reduction, same


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Compute pixel-weighted cross-entropy (DAFormer, Hoyer et al. 2022, sec. 3.1), in float32 also under autocast.

    The mean is over *all* B * H * W pixels: ignored pixels contribute 0 but stay in the denominator, and weights are
    not normalised. A batch with few confident pixels therefore has a small loss, as the weight intends.

    Args:
        logits: [B, C, H, W].
        label: uint8 [B, H, W], 255 = ignore.
        weight: broadcastable to [B, H, W] (also a 0-dim quality); None = 1.

    Returns:
        float32, 0-dim.
    """
    loss = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE, reduction="none")
    return loss.mean() if weight is None else (loss * weight).mean()


def feature_distance(
    student: Tensor,
    reference: Tensor,
    label: Tensor,
    things: Sequence[int],
    min_ratio: float,
    num_classes: int,
    mean: Reduction = same,
) -> Tensor:
    """Compute the feature distance of the student to the ImageNet network on thing classes (DAFormer, sec. 3.3).

    The L2 norm over channels, averaged over the masked cells; 0 with zero gradient if the mask is empty. The mean is
    over the cells of the whole batch, whose number differs between ranks, hence the reduction.

    Args:
        student: [B, D, h, w], trained features.
        reference: [B, D, h, w], features of the frozen ImageNet network.
        label: uint8 [B, H, W], source labels; a cell is H // h by W // w pixels.
        things: ids of the thing classes.
        min_ratio: minimum share of a cell's pixels that its most frequent class must cover (0.75).
        num_classes: labels >= it are "ignore"; a cell where "ignore" is the most frequent is left out.
        mean: reduces a 0-dim tensor to its mean over ranks.

    Returns:
        float32, 0-dim.
    """
    mask = _thing_cells(label, student.shape[-2:], things, min_ratio, num_classes)
    distance = torch.linalg.vector_norm(student.float() - reference.float(), dim=1)
    total: Tensor = (distance * mask).sum()
    count = mean(mask.sum().float())
    return total / torch.where(count > 0, count, 1.0)


def _thing_cells(label: Tensor, size: torch.Size, things: Sequence[int], min_ratio: float, num_classes: int) -> Tensor:
    """Find the cells [B, h, w] (bool) that are mostly one thing class."""
    batch, (h, w) = label.shape[0], size
    cell_h, cell_w = label.shape[1] // h, label.shape[2] // w
    pixels = label[:, : h * cell_h, : w * cell_w].clamp(max=num_classes).long()
    cells = pixels.view(batch, h, cell_h, w, cell_w).transpose(2, 3).flatten(3)
    count = torch.zeros(batch, h, w, num_classes + 1, device=label.device)
    count.scatter_add_(3, cells, torch.ones((), device=label.device).expand_as(cells))
    most, winner = count.max(3)
    is_thing = torch.zeros(num_classes + 1, dtype=torch.bool)
    is_thing[list(things)] = True
    return upload(is_thing, label.device)[winner] & (most >= min_ratio * cell_h * cell_w)
