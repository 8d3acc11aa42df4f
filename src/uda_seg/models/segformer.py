"""The all-MLP decoder of SegFormer (Xie et al., NeurIPS 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uda_seg.models.daformer import ConvBN, LinearEmbedding, classifier
from uda_seg.models.segmentor import Head, resize
from uda_seg.options.constraints import Channels, FractionBelowOne


class SegFormerHead(Head):
    """Linear embedding of every stage, concatenation at the finest resolution, one 1x1 fusion.

    Parameter names and the order of concatenation (coarse to fine) match the published checkpoints.

    Args:
        channels: channels of the encoder's stages.
        num_classes: C.
        width: channels of each embedding and of the fused map (768 for MiT-B2 to B5, 256 for B0 and B1).
        dropout: of channels, before the classifier.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, width: Channels = 768, dropout: FractionBelowOne = 0.1
    ) -> None:
        super().__init__()
        self.width = width
        self.stages = len(channels)
        for stage, inputs in enumerate(channels, start=1):
            self.add_module(f"linear_c{stage}", LinearEmbedding(inputs, width))
        self.linear_fuse = ConvBN(width * len(channels), width, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = classifier(width, num_classes)

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Fuse the stages into [B, width, h, w] at the finest stage's resolution."""
        size = stages[0].shape[-2:]
        embedded = [
            resize(getattr(self, f"linear_c{stage}")(stages[stage - 1]), size) for stage in range(self.stages, 0, -1)
        ]
        fused: Tensor = self.linear_fuse(torch.cat(embedded, dim=1))
        return fused

    def classify(self, fused: Tensor) -> Tensor:
        """Map the fused map [B, width, h, w] to logits [B, C, h, w]."""
        logits: Tensor = self.linear_pred(self.dropout(fused))
        return logits
