"""Distillation of features from a foundation model (VFM-UDA++, Englert et al. 2025)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

COSINE, SMOOTH_L1 = 0.9, 0.1  # VFM-UDA++, as in AM-RADIO (Ranzinger et al., CVPR 2024, section 3.4)


def distillation(student: Tensor, reference: Tensor) -> Tensor:
    """Compute 0.9 (1 - cos) + 0.1 smooth-L1 between the features of every cell, averaged over cells.

    The cosine is over channels; smooth-L1 (Huber, quadratic below 1) is averaged over channels.

    Args:
        student: [B, D, h, w], trained features.
        reference: [B, D, h, w], of the frozen foundation model.

    Returns:
        float32, 0-dim.
    """
    student, reference = student.float(), reference.float()
    cosine = F.cosine_similarity(student, reference, dim=1).mean()
    return COSINE * (1 - cosine) + SMOOTH_L1 * F.smooth_l1_loss(student, reference)
