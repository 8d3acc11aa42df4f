"""Selection of confident predictions as pseudo-labels, per class and per image (CCM, Li et al., ECCV 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.ops.losses import IGNORE

LEVELS = 2**15  # levels 0..LEVELS - 1 fit int16; LEVELS itself is a threshold that no pixel reaches
NATS = 32.0  # certainty of the highest level


class Certainty(NamedTuple):
    """A prediction with a finely quantised confidence.

    Attributes:
        label: uint8 [B, H, W], the most probable class.
        level: int16 [B, H, W] in 0..LEVELS - 1: -log(1 - p) of its probability p, in steps of NATS / LEVELS. It has the
            order of p and still separates 0.9999 from 0.99999.
    """

    label: Tensor
    level: Tensor


@torch.no_grad()
def certainty(logits: Tensor) -> Certainty:
    """Label every pixel by the arg max of logits [B, K, H, W], K > 1, and quantise its confidence."""
    logits = logits.float()
    label = logits.argmax(1)
    others = logits.scatter(1, label.unsqueeze(1), -torch.inf).logsumexp(1)
    nats = logits.logsumexp(1) - others
    level = (nats * (LEVELS / NATS)).clamp(0, LEVELS - 1)
    return Certainty(label.to(torch.uint8), level.to(torch.int16))


def histogram(label: Tensor, level: Tensor, num_classes: int) -> Tensor:
    """Count pixels by class and level, int64 [K, LEVELS]; both of any one shape; labels >= K are skipped."""
    code = label.flatten().clamp(max=num_classes).long() * LEVELS + level.flatten().long()
    return torch.bincount(code, minlength=(num_classes + 1) * LEVELS).view(-1, LEVELS)[:num_classes]


def top_share(counts: Tensor, share: float) -> Tensor:
    """Find the highest level at or above which at least `share` of each row's pixels lie.

    Args:
        counts: int64 [..., LEVELS].
        share: in [0, 1]; at 0 no pixel reaches the level.

    Returns:
        int64 [...]; LEVELS, which no pixel reaches, for a row without pixels.
    """
    above = counts.flip(-1).cumsum(-1).flip(-1)  # number of pixels at or above each level, non-increasing
    enough = (above > 0) & (above >= share * above[..., :1])
    highest = enough.sum(-1) - 1
    return torch.where(highest >= 0, highest, LEVELS) if share > 0 else torch.full_like(highest, LEVELS)


def select(label: Tensor, level: Tensor, class_level: Tensor, image_level: Tensor) -> Tensor:
    """Keep a label where it reaches the threshold of its class or of its image, and set 255 elsewhere.

    Args:
        label: uint8 [B, H, W], 255 = ignore.
        level: int16 [B, H, W].
        class_level: int64 [K].
        image_level: int64 [B].

    Returns:
        uint8 [B, H, W].
    """
    wanted = F.pad(class_level, (0, IGNORE + 1 - len(class_level)), value=LEVELS)[label.long()]
    sure = (level >= wanted) | (level >= image_level.view(-1, 1, 1))
    return label.masked_fill(~sure, IGNORE)
