"""Projection head for contrastive losses on the fused map (T2S-DA's g; an option of BiCL)."""

from __future__ import annotations

from torch import Tensor, nn

from uda_seg.models.daformer import ConvBN
from uda_seg.models.segmentor import Segmentor

WIDTH = 256  # as in the papers; capped by the width of the fused map


class ProjectionHead(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU, then 1x1: [B, inputs, h, w] -> [B, width, h, w]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(ConvBN(inputs, width, 3), ConvBN(width, width, 3), nn.Conv2d(width, width, 1))


def attach_projection(segmentor: Segmentor, width: int | None = None) -> int:
    """Attach a projection of the main head's fused map as `projection` and return its channels.

    Args:
        segmentor: before its teacher is copied, so that the teacher averages the projection too.
        width: channels D; default: those of the fused map, at most 256.
    """
    inputs = segmentor.head().width
    width = width or min(WIDTH, inputs)
    segmentor.attach("projection", ProjectionHead(inputs, width))
    return width


def project(segmentor: Segmentor, fused: Tensor) -> Tensor:
    """Apply the attached projection to a fused map: [B, D, h, w], not normalised."""
    projected: Tensor = segmentor.heads["projection"](fused)
    return projected
