"""Photometric losses of self-supervised depth (Monodepth2, Godard et al., ICCV 2019, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ssim_distance(x: Tensor, y: Tensor) -> Tensor:
    """Compute (1 - SSIM) / 2, clamped to [0, 1], of images [B, C, H, W] in [0, 1]; 3x3 means, reflected border."""
    x, y = (F.pad(image, (1, 1, 1, 1), mode="reflect") for image in (x, y))
    mean_x, mean_y = F.avg_pool2d(x, 3, 1), F.avg_pool2d(y, 3, 1)
    variance_x = F.avg_pool2d(x * x, 3, 1) - mean_x**2
    variance_y = F.avg_pool2d(y * y, 3, 1) - mean_y**2
    covariance = F.avg_pool2d(x * y, 3, 1) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return ((1 - similarity) / 2).clamp(0.0, 1.0)


def photometric_error(prediction: Tensor, target: Tensor, alpha: float = 0.85) -> Tensor:
    """Compute alpha (1 - SSIM) / 2 + (1 - alpha) |difference|, averaged over channels.

    Args:
        prediction: float32 [B, 3, H, W] in [0, 1].
        target: as `prediction`.
        alpha: weight of the SSIM term.

    Returns:
        [B, 1, H, W].
    """
    error = alpha * ssim_distance(prediction, target) + (1 - alpha) * (prediction - target).abs()
    return error.mean(1, keepdim=True)


def least_error(warped: Sequence[Tensor], unwarped: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Take the per-pixel minimum over the other views, with auto-masking.

    A pixel that an unwarped view explains better (it moves with the camera, or has no texture) is masked: its error has
    no gradient with respect to depth.

    Args:
        warped: errors [B, 1, H, W], one per view.
        unwarped: errors of the unwarped views; empty switches auto-masking off.

    Returns:
        The minimum [B, 1, H, W], and a bool mask [B, 1, H, W], true where a warped view attains it.
    """
    errors = torch.cat([*unwarped, *warped], dim=1)
    least, which = errors.min(dim=1, keepdim=True)
    return least, which >= len(unwarped)


def smoothness(disparity: Tensor, image: Tensor) -> Tensor:
    """Compute edge-aware smoothness |grad d*| exp(-|grad I|), d* = d / mean d, averaged per axis and summed.

    Args:
        disparity: [B, 1, H, W], positive.
        image: [B, 3, H, W] in [0, 1], of the same size.

    Returns:
        0-dim.
    """
    normal = disparity / (disparity.mean((2, 3), keepdim=True) + 1e-7)
    total = torch.zeros((), device=disparity.device)
    for axis in (2, 3):
        edge = image.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + (normal.diff(dim=axis).abs() * torch.exp(-edge)).mean()
    return total
