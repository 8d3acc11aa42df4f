"""The losses that self-training shares: weighted cross-entropy and the thing-class feature distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.ops import IGNORE as IGNORE
from uda_seg.ops.image import upload
from uda_seg.ops.reduction import Reduction, same


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Pixel-weighted cross-entropy (DAFormer, Hoyer et al. 2022, sec. 3.1), in float32 even under autocast.

    The mean is over *all* B * H * W pixels: ignored pixels give 0 but stay in the denominator, and weights
    are not normalised. So a batch with few sure pixels pulls weakly, which is the point of the weight.

    Args:
        logits: [B, C, H, W].
        label: uint8 [B, H, W], 255 = ignore.
        weight: [B, H, W] or broadcastable to it (a 0-dim quality too); None = 1.

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
    """Distance of the student's features from the ImageNet network's on thing classes (DAFormer, sec. 3.3).

    The L2 norm over channels, averaged over the masked cells; 0 (with zero gradient) where the mask is empty. The cells
    are those of the whole batch, hence the reduction: ranks have different numbers of them.

    Args:
        student: [B, D, h, w], features that are trained.
        reference: [B, D, h, w], features of the frozen ImageNet network.
        label: uint8 [B, H, W], source labels; a cell is H // h by W // w pixels.
        things: class ids that count.
        min_ratio: the share of its cell's pixels that the commonest class needs for the cell to count (0.75).
        num_classes: labels at or above it are "ignore", which can win a cell too and then leaves it out.
        mean: takes a 0-dim tensor to its mean over ranks.

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
