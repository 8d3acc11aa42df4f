"""Block masking of images (MIC, Hoyer et al. 2023, sec. 3.2; LC-MSM masks source and mixed images)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_block_mask(
    batch: int,
    size: tuple[int, int],
    block: int,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw one block mask per image: a block stays visible where U(0, 1) > ratio.

    Args:
        batch: number of images B.
        size: (H, W) in pixels.
        block: side of a block in pixels; the grid is round(H / block) x round(W / block), at least 1 x 1.
        ratio: expected share of masked blocks, in [0, 1].
        generator: of `device`; None = that device's default generator.
        device: of the mask.

    Returns:
        bool [B, 1, H, W], true = visible.
    """
    grid = (max(1, round(size[0] / block)), max(1, round(size[1] / block)))
    visible = torch.rand(batch, 1, *grid, generator=generator, device=device) > ratio
    return F.interpolate(visible.to(torch.uint8), size=size, mode="nearest").bool()


def mask_image(image: Tensor, visible: Tensor, fill: Tensor) -> Tensor:
    """Fill masked pixels with one colour; the mean colour is 0 after normalisation, as in the papers.

    Args:
        image: [B, 3, H, W].
        visible: bool [B, 1, H, W].
        fill: [3], colour of the masked pixels, in the image's range.

    Returns:
        [B, 3, H, W].
    """
    return torch.where(visible, image, fill.to(image.dtype).view(1, -1, 1, 1))
