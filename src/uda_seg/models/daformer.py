"""The DAFormer decoder: context-aware fusion of all stages (Hoyer et al., CVPR 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uda_seg.models.segmentor import Head, resize
from uda_seg.options.constraints import Channels, Dilations, FractionBelowOne

DILATIONS = (1, 6, 12, 18)


class DAFormerHead(Head):
    """Linear embedding of every stage, then a depthwise-separable ASPP over their concatenation.

    Args:
        channels: channels of the encoder's stages.
        num_classes: C.
        width: channels of each embedding, of each ASPP branch and of the fused map.
        dilations: one per ASPP branch; 1 means a 1x1 convolution. No image pooling.
        dropout: of channels, before the classifier.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: Channels = 256,
        dilations: Dilations = DILATIONS,
        dropout: FractionBelowOne = 0.1,
    ) -> None:
        super().__init__()
        self.width = width
        self.dilations = tuple(dilations)
        self.embed_layers = nn.ModuleList(LinearEmbedding(inputs, width) for inputs in channels)
        self.fuse_layer: nn.Module = SeparableASPP(width * len(channels), width, dilations)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(width, num_classes)

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Fuse the stages into [B, width, h, w] at the finest stage's resolution."""
        size = stages[0].shape[-2:]
        embedded = [resize(embed(x), size) for embed, x in zip(self.embed_layers, stages, strict=True)]
        fused: Tensor = self.fuse_layer(torch.cat(embedded, dim=1))
        return fused

    def classify(self, fused: Tensor) -> Tensor:
        """Map the fused map [B, width, h, w] to logits [B, C, h, w]."""
        logits: Tensor = self.conv_seg(self.dropout(fused))
        return logits


class LinearEmbedding(nn.Module):
    """A linear layer over channels, [B, C, h, w] -> [B, width, h, w]; no norm, no activation."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to [B, width, h, w]."""
        out: Tensor = self.proj(x.flatten(2).transpose(1, 2))
        return out.transpose(1, 2).reshape(*out.shape[::2], *x.shape[-2:])


class ConvBN(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; keeps the resolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activate = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class SeparableConvBN(nn.Sequential):
    """Dilated 3x3 depthwise, then 1x1 pointwise, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvBN(inputs, inputs, 3, dilation, groups=inputs)
        self.pointwise_conv = ConvBN(inputs, outputs, 1)


class SeparableASPP(nn.Module):
    """Atrous spatial pyramid without image pooling: parallel branches, concatenation, 3x3 bottleneck."""

    def __init__(self, inputs: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            ConvBN(inputs, width, 1) if dilation == 1 else SeparableConvBN(inputs, width, dilation)
            for dilation in dilations
        )
        self.bottleneck = ConvBN(width * len(dilations), width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, h, w] to [B, width, h, w]."""
        out: Tensor = self.bottleneck(torch.cat([branch(x) for branch in self.aspp_modules], dim=1))
        return out


def classifier(inputs: int, num_classes: int) -> nn.Conv2d:
    """Build a 1x1 convolution to logits, initialised with weights N(0, 0.01) and bias 0."""
    conv = nn.Conv2d(inputs, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
