"""Class mixing: half of the source's classes are pasted over the target.

ClassMix: Olsson et al. 2021; across domains: DACS, Tranheden et al. 2021.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from uda_seg.ops.reduction import Reduction, same

LABEL_VALUES = 256  # labels are uint8, so a table of 256 columns covers every value


def draw_classes(
    label: Tensor,
    num_classes: int,
    per: Literal["image", "image_and_ignore", "batch"] = "image",
    generator: torch.Generator | None = None,
    maximum: Reduction = same,
) -> Tensor:
    """Draw the classes of each source image to paste: half of those present, rounded up.

    Args:
        label: uint8 [B, H, W], source train ids.
        num_classes: labels >= it (255 = ignore) are not classes.
        per: "image" draws from the classes of the image itself, as DACS describes. "batch" is a quirk of the released
            code of DAFormer and its successors: every image draws from the labels of the whole batch, ignore among
            them, so an image may give fewer than half of its own classes. "image_and_ignore" is that of CorDA's
        code: the image's own labels, ignore among them.
        generator: of the label's device; None = that device's default generator.
        maximum: reduces a tensor to its maximum over the ranks that share a batch.

    Returns:
        bool [B, 256], true where pixels of that label value are pasted.
    """
    batch = label.shape[0]
    offset = LABEL_VALUES * torch.arange(batch, device=label.device).unsqueeze(1)
    present = torch.zeros(batch * LABEL_VALUES, dtype=torch.bool, device=label.device)
    present = present.index_fill_(0, (label.flatten(1) + offset).flatten(), True).view(batch, LABEL_VALUES)
    if per == "batch":
        present = maximum(present.any(0, keepdim=True).to(torch.uint8)).bool().expand(batch, -1)
    elif per == "image":
        present[:, num_classes:] = False
    half = (present.sum(1, keepdim=True) + 1) // 2
    scores = torch.rand(present.shape, generator=generator, device=label.device)
    # Absent labels score below every draw, so the top-ranked labels are a uniform permutation of those present.
    rank = scores.masked_fill(~present, -1.0).argsort(1, descending=True).argsort(1)
    return rank < half


def class_mask(label: Tensor, keep: Tensor) -> Tensor:
    """Look up every pixel's label in the drawn table.

    Args:
        label: uint8 [B, H, W].
        keep: bool [B, 256] of `draw_classes`.

    Returns:
        bool [B, 1, H, W], true where the source pixel goes on top.
    """
    return keep.gather(1, label.flatten(1).long()).view_as(label).unsqueeze(1)


def class_mix(source: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Paste the kept source pixels over the target (ClassMix, Olsson et al. 2021, eq. 1).

    Args:
        source: [B, C, H, W], image, label, one-hot, weight or depth.
        target: [B, C, H, W], same dtype.
        keep: bool [B, 1, H, W], true where the source pixel goes on top.

    Returns:
        [B, C, H, W]; a pixel comes from exactly one of the two, never a blend.
    """
    return torch.where(keep, source, target)
