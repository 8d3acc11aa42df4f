"""Class prototypes: the mean feature of a class (masked average pooling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ClassSums:
    """Features summed by class; sums of images, batches and ranks add up, means do not.

    Attributes:
        total: float32 [..., K, D].
        count: float32 [..., K], how many pixels each class has.
    """

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """The prototypes [..., K, D]; zero for a class without a pixel."""
        return self.total / self.count.clamp_min(1.0).unsqueeze(-1)

    @property
    def present(self) -> Tensor:
        """Bool [..., K], which classes have a pixel."""
        return self.count > 0


def class_sums(features: Tensor, label: Tensor, num_classes: int) -> ClassSums:
    """Sum the features of every class in every image, by one scatter: no loop over classes, no mask per class.

    Args:
        features: [B, D, h, w]; gradients flow into them. Summed in float32.
        label: uint8 [B, h, w] at the features' resolution; labels at or above `num_classes` belong to no class.
        num_classes: K.

    Returns:
        Sums over each image, [B, K, D] and [B, K].
    """
    batch, width = features.shape[:2]
    pixels = features.float().flatten(2).transpose(1, 2).reshape(-1, width)
    rows = num_classes + 1  # the last one takes what has no class
    offset = rows * torch.arange(batch, device=label.device).unsqueeze(1)
    index = (label.flatten(1).clamp(max=num_classes).long() + offset).flatten()
    total = torch.zeros(batch * rows, width, device=features.device).index_add(0, index, pixels)
    count = torch.zeros(batch * rows, device=features.device).index_add(0, index, torch.ones_like(pixels[:, 0]))
    return ClassSums(total.view(batch, rows, width)[:, :-1], count.view(batch, rows)[:, :-1])


def nearest(plane: Tensor, size: Sequence[int], exact: bool = True) -> Tensor:
    """Sample a plane [B, H, W] (labels, weights) at another resolution (h, w): [B, h, w].

    Args:
        plane: what is sampled.
        size: (h, w).
        exact: at the pixel centres; false: at the corners towards the first pixel, half a cell off, as PyTorch's older
            `nearest` does, and with it the released BiCL.
    """
    if plane.shape[-2:] == tuple(size):
        return plane
    mode = "nearest-exact" if exact else "nearest"
    return F.interpolate(plane.unsqueeze(1), size=tuple(size), mode=mode)[:, 0]


def crowding(prototypes: Tensor, present: Tensor) -> Tensor:
    """Mean cosine between the prototypes [K, D], unit vectors, of different present classes [K]; NaN below two."""
    with torch.autocast(prototypes.device.type, enabled=False):
        cosine = prototypes @ prototypes.T
    pairs = (present.unsqueeze(0) & present.unsqueeze(1)).float().fill_diagonal_(0.0)
    return (cosine * pairs).sum() / pairs.sum()
