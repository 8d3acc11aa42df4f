"""Losses and weights on inverse depth (CorDA, Wang et al., ICCV 2021).

Throughout, z is inverse depth: z >= 1, and exactly 1.0 where depth is unknown or infinite.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from uda_seg.ops.reduction import Reduction, same

INVALID = 1.0
Z_SCALE = 655.36  # z = 655.36 / (metres + 0.01): 655.35 m, the farthest that 16-bit centimetres hold, gives exactly 1.0


def inverse_depth(metres: Tensor) -> Tensor:
    """Convert metres (float, any shape) to z; unknown depth (<= 0, inf, NaN) and 655.35 m or more give exactly 1.0."""
    known = torch.isfinite(metres) & (metres > 0)
    z = Z_SCALE / (metres.clamp(0.0, Z_SCALE - 0.01) + 0.01)
    return torch.where(known, z, torch.full_like(z, INVALID)).clamp_min(INVALID)


def berhu(prediction: Tensor, z: Tensor, maximum: Reduction = same, mean: Reduction = same) -> Tensor:
    """Compute the inverse Huber loss of inverse depth: linear up to c, a fifth of the largest error, then quadratic.

    The largest error and the number of pixels are taken over the whole batch on all ranks, hence the reductions.

    Args:
        prediction: [B, 1, H, W].
        z: [B, 1, H, W]; pixels of exactly 1.0 are skipped.
        maximum: reduces a 0-dim tensor to its maximum over ranks.
        mean: reduces a 0-dim tensor to its mean over ranks.

    Returns:
        float32, 0-dim: the mean over valid pixels; 0, with zero gradient, where there is none.
    """
    valid = z != INVALID
    error = torch.where(valid, (prediction.float() - z).abs(), 0.0)
    c = 0.2 * maximum(error.detach().amax())
    square = (error**2 + c**2) / (2 * c).clamp_min(torch.finfo(c.dtype).tiny)
    count = mean(valid.sum().float())
    total: Tensor = torch.where(error <= c, error, square).sum()
    return total / torch.where(count > 0, count, 1.0)


@torch.no_grad()
def agreement(source_depth: Tensor, target_depth: Tensor, z: Tensor) -> Tensor:
    """Compare the two domains' depth decoders: clip(relu(1 - |D_s - D_t| / z) + 0.001 + [z invalid], 0, 1).

    Args:
        source_depth: [B, 1, H, W], the source decoder's inverse depth.
        target_depth: [B, 1, H, W], the target decoder's.
        z: [B, 1, H, W], the reference inverse depth; where it is 1.0 (invalid) the agreement is 1.

    Returns:
        float32 [B, H, W] in [0.001, 1], no gradient; one minus it is the adaptation difficulty.
    """
    near = torch.relu(1 - (source_depth.float() - target_depth.float()).abs() / z) + 1e-3
    return (near + (z == INVALID)).clamp(0.0, 1.0)[:, 0]


@torch.no_grad()
def discrepancy_weight(agreed: Tensor, share: Literal["own", "batch_mean"] = "own", mean: Reduction = same) -> Tensor:
    """Turn the agreement into a pixel weight by dividing it by its mean over the whole batch.

    Args:
        agreed: [B, H, W] of `agreement`.
        share: "own" weights each image by its own map; "batch_mean", the effect of a broadcast in the released code,
            weights every image by the average of all maps at the same position.
        mean: reduces a tensor to its mean over ranks.

    Returns:
        float32 [B, H, W], mean 1 over the batch, no gradient.
    """
    average = mean(agreed.mean())
    weight = mean(agreed.mean(0, keepdim=True)).expand_as(agreed) if share == "batch_mean" else agreed
    return weight / average


def log_scaled(z: Tensor) -> Tensor:
    """Map z to [0, 1] for display: logarithmic, 0 where it is invalid or farthest, 1 at one metre."""
    return z.detach().clamp(INVALID, Z_SCALE).log() / math.log(Z_SCALE)
