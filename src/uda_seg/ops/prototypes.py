"""Class prototypes: the mean feature of a class (masked average pooling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ClassSums:
    """Features summed per class; unlike means, sums can be added over images, batches and ranks.

    Attributes:
        total: float32 [..., K, D].
        count: float32 [..., K], number of pixels per class.
    """

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """The prototypes [..., K, D]; zero for a class without a pixel."""
        return self.total / self.count.clamp_min(1.0).unsqueeze(-1)

    @property
    def present(self) -> Tensor:
        """Classes with at least one pixel, bool [..., K]."""
        return self.count > 0


def class_sums(features: Tensor, label: Tensor, num_classes: int) -> ClassSums:
    """Sum features per class and image by one scatter, without a loop over classes.

    Args:
        features: [B, D, h, w], differentiable; summed in float32.
        label: uint8 [B, h, w] at the features' resolution; labels >= `num_classes` belong to no class.
        num_classes: K.

    Returns:
        Sums per image, [B, K, D] and [B, K].
    """
    batch, width = features.shape[:2]
    pixels = features.float().flatten(2).transpose(1, 2).reshape(-1, width)
    rows = num_classes + 1  # the last row collects pixels without a class
    offset = rows * torch.arange(batch, device=label.device).unsqueeze(1)
    index = (label.flatten(1).clamp(max=num_classes).long() + offset).flatten()
    total = torch.zeros(batch * rows, width, device=features.device).index_add(0, index, pixels)
    count = torch.zeros(batch * rows, device=features.device).index_add(0, index, torch.ones_like(pixels[:, 0]))
    return ClassSums(total.view(batch, rows, width)[:, :-1], count.view(batch, rows)[:, :-1])


def nearest(plane: Tensor, size: Sequence[int], exact: bool = True) -> Tensor:
    """Resample a plane [B, H, W] (labels, weights) to [B, h, w] by nearest neighbour.

    Args:
        plane: labels or weights.
        size: (h, w).
        exact: sample at cell centres ("nearest-exact"); false samples at the top-left corners, half a cell off, like
            PyTorch's older "nearest" and hence the released BiCL.
    """
    if plane.shape[-2:] == tuple(size):
        return plane
    mode = "nearest-exact" if exact else "nearest"
    return F.interpolate(plane.unsqueeze(1), size=tuple(size), mode=mode)[:, 0]


def crowding(prototypes: Tensor, present: Tensor) -> Tensor:
    """Average the cosine between unit prototypes [K, D] of different present classes [K]; NaN for fewer than two."""
    with torch.autocast(prototypes.device.type, enabled=False):
        cosine = prototypes @ prototypes.T
    pairs = (present.unsqueeze(0) & present.unsqueeze(1)).float().fill_diagonal_(0.0)
    return (cosine * pairs).sum() / pairs.sum()
