"""Block masking of images, as in MIC (Hoyer et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from uda_seg.methods.options.self_training import MaskingOptions
from uda_seg.methods.settings import Plan
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.masking import draw_block_mask, mask_image


def mask_blocks(image: Tensor, segmentor: Segmentor, plan: Plan, options: MaskingOptions) -> Tensor:
    """Fill random blocks of [B, 3, H, W] with the mean colour (zero after normalisation)."""
    patch = segmentor.encoder.patch  # of a transformer, which would see the rest of a patch masked in part
    size, block = (image.shape[-2], image.shape[-1]), patch * max(1, round(options.mask_block * plan.crop[0] / patch))
    visible = draw_block_mask(len(image), size, block, options.mask_ratio, device=image.device)
    return mask_image(image, visible, segmentor.mean_colour)
