"""DeepLab-V2 on ResNet-101 at output stride 8 (Chen et al., TPAMI 2018): the network of BiCL and CorDA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from uda_seg.models.segmentor import Encoder, Head
from uda_seg.models.weights import load_encoder
from uda_seg.options.constraints import Blocks, Dilations, FilePath, Interval, Length, Text

EXPANSION = 4


class ResNet101(Encoder):
    """ResNet-101 with dilation instead of stride in the last two stages: maps at strides 4, 8, 8, 8.

    Args:
        stem: "caffe" (the papers' DeepLab-V2) has one 7x7 convolution, a max-pool with ceil mode, and the stride of a
            block on its first 1x1 convolution; "v1c" has three 3x3 convolutions, the stride on the 3x3 convolution, and
            half the dilation in the first block of a dilated stage.
        blocks: bottlenecks per stage; default: ResNet-101's.
        width: channels of the first stage's 3x3 convolutions.
        freeze_norm: do not train batch norm's scale and shift; its running statistics are still updated.
        weights: a file of ImageNet or COCO weights, or None for a random start. The papers' DeepLab-V2 starts from
            `DeepLab_resnet_pretrained_init-f81d91e8.pth` (ImageNet) or `resnet101COCO-41f33a49.pth`, both in the Caffe
            layout.
        allow_missing: names of tensors or modules that the file may lack.
    """

    strides = (4, 8, 8, 8)

    def __init__(
        self,
        stem: Literal["caffe", "v1c"] = "caffe",
        blocks: Annotated[Sequence[Blocks], Length(4, 4)] = (3, 4, 23, 3),
        width: Annotated[int, Interval(2, 2**11)] = 64,
        freeze_norm: bool = False,
        weights: FilePath | Path | None = None,
        allow_missing: Sequence[Text] = (),
    ) -> None:
        super().__init__()
        if stem not in ("caffe", "v1c"):
            raise ValueError(f"stem must be 'caffe' or 'v1c', not {stem!r}")
        caffe = stem == "caffe"
        self.first_stage = ("conv1", "bn1", "layer1") if caffe else ("stem", "layer1")
        self.channels = tuple(width * EXPANSION * 2**stage for stage in range(4))
        if caffe:
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
        else:
            self.stem = _deep_stem(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=caffe)
        inputs = width
        for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
            first = dilation if caffe else max(dilation // 2, 1)
            layer = nn.Sequential(Bottleneck(inputs, width << stage, stride, first, caffe))
            inputs = self.channels[stage]
            for _ in range(blocks[stage] - 1):
                layer.append(Bottleneck(inputs, width << stage, 1, dilation, caffe))
            self.add_module(f"layer{stage + 1}", layer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(not freeze_norm)
        self.imagenet = f"resnet101_{stem}.pth"
        if weights is not None:
            load_encoder(self, weights, allow_missing)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode normalised images [B, 3, H, W] into the maps of the four stages."""
        x = self.stem(x) if hasattr(self, "stem") else self.relu(self.bn1(self.conv1(x)))
        x = self.maxpool(x)
        maps = []
        for stage in range(1, 5):
            for block in getattr(self, f"layer{stage}"):
                x = self.through(block, x)
            maps.append(x)
        return maps


class Bottleneck(nn.Module):
    """1x1, dilated 3x3, 1x1 with batch norm around a shortcut, projected where shapes change."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, stride_first: bool) -> None:
        super().__init__()
        outputs = width * EXPANSION
        before, inside = (stride, 1) if stride_first else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, before, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, inside, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, 4 * width, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class DeepLabV2Head(Head):
    """The DeepLab-V2 classifier on the last stage: dilated 3x3 convolutions whose logits are summed.

    The fused map is the last stage itself.

    Args:
        channels: channels of the encoder's stages.
        num_classes: C.
        dilations: one per convolution: (6, 12, 18, 24) in the papers; CorDA's released code returns from inside its
            loop and uses only (6, 12).
    """

    def __init__(self, channels: Sequence[int], num_classes: int, dilations: Dilations = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.width = channels[-1]
        self.dilations = tuple(dilations)
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(self.width, num_classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for module in self.conv2d_list.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Return the last stage, [B, channels[-1], h, w]."""
        return stages[-1]

    def branches(self, fused: Tensor) -> Tensor:
        """Compute the logits of every dilation, [B, dilations, C, h, w], from [B, channels[-1], h, w]."""
        return torch.stack([conv(fused) for conv in self.conv2d_list], dim=1)

    def classify(self, fused: Tensor) -> Tensor:
        """Map the last stage [B, channels[-1], h, w] to logits [B, C, h, w]."""
        return self.branches(fused).sum(dim=1)


def _deep_stem(width: int) -> nn.Sequential:
    stem = nn.Sequential()
    for inputs, outputs, stride in ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1)):
        stem.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
        stem.append(nn.BatchNorm2d(outputs))
        stem.append(nn.ReLU(inplace=True))
    return stem
