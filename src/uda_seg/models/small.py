"""Compact residual encoder that trains from scratch in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from torch import Tensor, nn

from uda_seg.models.segmentor import Encoder
from uda_seg.models.weights import load_encoder
from uda_seg.options.constraints import Blocks, FilePath, Interval, Length, Text

# Trained on randomised rendered worlds by scripts/make_encoder_start.py.
BUILTIN = Path(__file__).with_name("small_random_worlds.pt")


class ResidualEncoder(Encoder):
    """Basic residual blocks (He et al., CVPR 2016) at strides 4, 8, 16 and 32.

    A 2x2 stem halves the image before the first 3x3 convolution, because layers at full resolution would dominate the
    time on a CPU and add little to a decoder at stride 4.

    Args:
        widths: channels per stage.
        blocks: residual blocks per stage, at least one.
        weights: a file of weights, or None for a random start.
        allow_missing: names of tensors or modules that the file may lack.
    """

    strides = (4, 8, 16, 32)
    smallest = 2  # set by the stem
    builtin = BUILTIN
    first_stage = ("stem", "stages.0")

    def __init__(
        self,
        widths: Annotated[Sequence[Annotated[int, Interval(2, 2**13)]], Length(4, 4)] = (32, 64, 128, 192),
        blocks: Annotated[Sequence[Blocks], Length(4, 4)] = (1, 2, 2, 2),
        weights: FilePath | Path | None = None,
        allow_missing: Sequence[Text] = (),
    ) -> None:
        super().__init__()
        self.channels = tuple(widths)
        stem = widths[0] // 2
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, stem, 2, 2, bias=False))
        self.stem.add_module("norm", nn.BatchNorm2d(stem))
        self.stem.add_module("activate", nn.ReLU(inplace=True))
        inputs = (stem, *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(ResidualBlock(before, width, 2), *(ResidualBlock(width, width) for _ in range(n - 1)))
            for before, width, n in zip(inputs, self.channels, blocks, strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if weights is not None:
            load_encoder(self, weights, allow_missing)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode normalised images [B, 3, H, W] into four maps [B, widths_i, H / stride, W / stride]."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            for block in stage.children():
                x = self.through(block, x)
            maps.append(x)
        return maps


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut, projected where shapes change."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.activate = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != width:
            # Average pooling uses all four pixels, where a strided 1x1 convolution skips three (ResNet-D, He et al.,
            # CVPR 2019).
            self.shortcut.add_module("pool", nn.AvgPool2d(stride, ceil_mode=True))
            self.shortcut.add_module("conv", nn.Conv2d(inputs, width, 1, bias=False))
            self.shortcut.add_module("norm", nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, width, ceil(H / stride), ceil(W / stride)]."""
        out = self.activate(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out)) + self.shortcut(x)
        result: Tensor = self.activate(out)
        return result
