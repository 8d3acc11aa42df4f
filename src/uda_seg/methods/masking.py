"""Block masking of images, as in MIC (Hoyer et al. 2023)."""

from __future__ import annotations

import math

from torch import Tensor

from uda_seg.methods.options.self_training import MaskingOptions
from uda_seg.methods.settings import Plan
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.masking import draw_block_mask, mask_image


def mask_blocks(image: Tensor, segmentor: Segmentor, plan: Plan, options: MaskingOptions) -> Tensor:
    """Fill random blocks of [B, 3, H, W] with the mean colour (zero after normalisation).

    A transformer would still see the rest of a patch that is masked in part. For one, blocks are whole patches at every
    resolution it sees, and those at the lower and right border are cut off.
    """
    patch, (height, width) = segmentor.patch, image.shape[-2:]
    block = patch * max(1, round(options.mask_block * plan.crop[0] / patch))
    size = (height, width) if patch == 1 else (math.ceil(height / block) * block, math.ceil(width / block) * block)
    visible = draw_block_mask(len(image), size, block, options.mask_ratio, device=image.device)
    return mask_image(image, visible[..., :height, :width], segmentor.mean_colour)
