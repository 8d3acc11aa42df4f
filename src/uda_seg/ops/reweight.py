"""Class weights from per-class performance without target labels (T2S-DA's dynamic re-weighting)."""

from __future__ import annotations

import torch
from torch import Tensor


def class_weights(score: Tensor, power: float) -> Tensor:
    """Compute w_c = ((1 - r_c) / max_j (1 - r_j))^power in [0, 1]: 1 for the worst class, and for all at power 0.

    Args:
        score: float32 [K], r_c in [0, 1], the performance of each class.
        power: beta.
    """
    lack = (1.0 - score).clamp_min(1e-6)
    return (lack / lack.max()) ** power


def confidence_by_class(logits: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum the largest softmax values of logits [B, K, h, w] per predicted class, and count the pixels.

    Returns:
        Two float32 [K].
    """
    confidence, label = logits.float().softmax(1).max(1)
    return _by_class(label, confidence, num_classes), _by_class(label, torch.ones_like(confidence), num_classes)


def overlap_by_class(logits: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Count intersection and union of predictions [B, K, h, w] (logits) and label uint8 [B, h, w], each float32 [K]."""
    valid = (label < num_classes).float()
    predicted, true = logits.argmax(1), label.clamp(max=num_classes - 1).long()
    both = _by_class(true, valid * (predicted == true), num_classes)
    return both, _by_class(true, valid, num_classes) + _by_class(predicted, valid, num_classes) - both


def share_by_class(label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Count the pixels of each class in label uint8 [B, h, w], and of all classes, each float32 [K]."""
    valid = (label < num_classes).float()
    count = _by_class(label.clamp(max=num_classes - 1).long(), valid, num_classes)
    return count, count.sum().expand(num_classes)


def _by_class(label: Tensor, value: Tensor, num_classes: int) -> Tensor:
    total = torch.zeros(num_classes, device=label.device)
    return total.index_add(0, label.flatten(), value.flatten())
