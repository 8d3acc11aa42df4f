"""Colour jitter and blur as the released codes draw and apply them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uda_seg.ops.augment import StrongDraw, draw_strong

Apply = Callable[[Tensor, StrongDraw], Tensor]  # to images [B, 3, H, W]


def draw_as_released(images: int, device: torch.device, strength: float, together: bool) -> StrongDraw:
    """Draw order and blur per image for mixtures, which are augmented one by one, or both per batch if `together`."""
    return draw_strong(images, device=device, strength=strength, own_order=not together, own_sigma=not together)


def jittered_as_bgr(apply: Apply) -> Apply:
    """Return what applies a draw to the channels in OpenCV's order, as the released DACS and CorDA do."""
    return lambda image, draw: apply(image.flip(1), draw).flip(1)
