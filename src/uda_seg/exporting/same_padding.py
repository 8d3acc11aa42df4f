"""Convolutions of timm's "same" padding (TensorFlow's), for graphs that take any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn


class SameConvolution(nn.Module):
    """Convolution of timm's "same" padding without a decision about the size.

    timm pads by a number that depends on the size, so sizes behind it become formulas that double in length with every
    stride. Here the padding is constant, and the rows and columns that the strided windows cover are chosen from it.
    """

    def __init__(self, convolution: Conv2dSame) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', ceil(H / stride), ceil(W / stride)]."""
        own = self.convolution
        for axis, kernel, stride, dilation in zip((2, 3), own.kernel_size, own.stride, own.dilation, strict=True):
            x = covered(x, axis, dilation * (kernel - 1), stride)
        return F.conv2d(x, own.weight, own.bias, own.stride, 0, own.dilation, own.groups)


def covered(x: Tensor, axis: int, reach: int, stride: int) -> Tensor:
    """Select what the windows of a convolution cover along one axis, zeros where they leave the image.

    Args:
        x: [B, C, H, W].
        axis: 2 for rows, 3 for columns.
        reach: length of a window minus 1; at least the stride minus 1.
        stride: between windows.
    """
    size, before = x.shape[axis], reach // 2
    length = ((size + stride - 1) // stride - 1) * stride + reach + 1
    first = before - (length - size) // 2  # "same" puts the odd zero behind
    padding = (before, reach - before)
    x = F.pad(x, padding if axis == 3 else (0, 0, *padding))
    return x.index_select(axis, torch.arange(length, device=x.device) + first)


def without_same_padding(network: nn.Module) -> None:
    """Replace, in place, the convolutions of timm's "same" padding whose windows touch."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv2dSame) and _touch(child):
                setattr(module, name, SameConvolution(child))


def _touch(convolution: Conv2dSame) -> bool:
    sizes = zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
    return all(dilation * (kernel - 1) + 1 >= stride for kernel, stride, dilation in sizes)
