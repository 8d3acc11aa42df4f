"""A minimal segmentation head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uda_seg.models.segmentor import Head, resize


class LinearHead(Head):
    """A linear classifier over all stages of the encoder, resized to the finest one.

    Args:
        channels: channels of the encoder's stages, fine to coarse.
        num_classes: number of output classes.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.width = sum(channels)
        self.classifier = nn.Conv2d(self.width, num_classes, 1)

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Join the stages, each [B, channels, h, w], to [B, D, h, w] at the size of the first."""
        return torch.cat([resize(stage, stages[0].shape[-2:]) for stage in stages], 1)

    def classify(self, fused: Tensor, **context: Tensor | None) -> Tensor:
        """Map the fused map to logits [B, C, h, w]."""
        logits: Tensor = self.classifier(fused)
        return logits
