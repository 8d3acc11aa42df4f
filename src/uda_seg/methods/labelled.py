"""Images with labels, as the losses of self-training read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uda_seg.data.batch import DomainBatch
from uda_seg.ops.image import to_float


@dataclass(frozen=True)
class Labelled:
    """Images with labels, weights and optional depth.

    Attributes:
        image: [B, 3, H, W] in [0, 1].
        label: uint8 [B, H, W].
        weight: per-pixel loss weights [B, H, W]; None: all 1.
        depth: inverse depth [B, 1, H, W], 1.0 = invalid; None for methods without depth.
        pasted: for mixtures, bool [B, 1, H, W], true for source pixels.
    """

    image: Tensor
    label: Tensor
    weight: Tensor | None = None
    depth: Tensor | None = None
    pasted: Tensor | None = None


def labelled(batch: DomainBatch) -> Labelled:
    """Convert a source batch to `Labelled`."""
    assert batch.label is not None, "the source has labels"
    return Labelled(to_float(batch.image), batch.label, depth=batch.depth)


def half_of_each(source: Labelled, target: Labelled) -> Labelled:
    """Take the first half of both batches, at least one image of each; source pixels have weight 1."""
    assert target.weight is not None
    own, other = max(1, len(source.image) // 2), max(1, len(target.image) // 2)
    return Labelled(
        torch.cat([source.image[:own], target.image[:other]]),
        torch.cat([source.label[:own], target.label[:other]]),
        torch.cat([torch.ones_like(source.label[:own], dtype=target.weight.dtype), target.weight[:other]]),
    )
