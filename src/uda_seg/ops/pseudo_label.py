"""Pseudo-labels and their quality (DACS, Tranheden et al. 2021; DAFormer, Hoyer et al. 2022, sec. 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PseudoLabel(NamedTuple):
    """A teacher's prediction for a batch.

    Attributes:
        label: uint8 [B, H, W], the most probable class; not thresholded.
        confidence: float32 [B, H, W], its probability.
        quality: float32, 0-dim in [0, 1], the share of all B * H * W pixels with confidence >= threshold.
    """

    label: Tensor
    confidence: Tensor
    quality: Tensor


@torch.no_grad()
def pseudo_label(logits: Tensor, threshold: float) -> PseudoLabel:
    """Label a batch by the arg max of the softmax and weight it by the share of confident pixels.

    Args:
        logits: [B, C, H, W], any float type; compared in float32 (bfloat16 is too coarse near 0.968).
        threshold: tau of the papers, 0.968.
    """
    logits = logits.float()
    best, label = logits.max(1)
    confidence = (best - logits.logsumexp(1)).exp()  # the largest softmax value, without the whole softmax
    return PseudoLabel(label.to(torch.uint8), confidence, (confidence >= threshold).float().mean())
