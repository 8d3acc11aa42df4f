"""Networks for self-supervised depth: a U-Net disparity decoder and a pose network.

After Monodepth2 (Godard et al., ICCV 2019), on any encoder of this package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uda_seg.models.segmentor import Encoder, Head


class DepthHead(Head):
    """A decoder of encoder stages to sigmoid disparity, used as the segmentor's only head.

    From coarse to fine, each level applies a convolution, up-sampling, and a convolution over the result and the
    encoder's stage; two more levels without a skip connection lead to full resolution.

    Args:
        channels: channels of the encoder's stages.
        num_classes: 1; an argument of every head.
        widths: channels of the decoder at full resolution and each level below, finest first.
        start: disparity that an untrained network predicts everywhere. Monodepth2's 0.5 is a depth of a fifth of a
            unit; 0.05, two units, is closer to street scenes, so training starts within reach of the right match.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        start: float = 0.05,
    ) -> None:
        super().__init__()
        levels = [*reversed(channels[:-1]), 0, 0]  # channels of each level's skip connection, coarse to fine
        outputs = [widths[min(len(levels) - 1 - i, len(widths) - 1)] for i in range(len(levels))]
        inputs = [channels[-1], *outputs[:-1]]
        self.width = outputs[-1]
        self.before = nn.ModuleList(ReflectConv(i, o) for i, o in zip(inputs, outputs, strict=True))
        self.after = nn.ModuleList(ReflectConv(o + skip, o) for o, skip in zip(outputs, levels, strict=True))
        self.disparity = nn.ModuleList(nn.Conv2d(o, num_classes, 3) for o in outputs)
        for conv in self.disparity:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.bias, math.log(start / (1 - start)))

    def maps(self, stages: list[Tensor]) -> list[Tensor]:
        """Compute the decoder's features at every level, finest first, the finest at full resolution."""
        skips: list[Tensor | None] = [*reversed(stages[:-1]), None, None]
        x, found = stages[-1], []
        for before, after, skip in zip(self.before, self.after, skips, strict=True):
            x = before(x)
            size = (2 * x.shape[2], 2 * x.shape[3]) if skip is None else skip.shape[-2:]
            x = F.interpolate(x, size=size, mode="nearest")
            x = after(x if skip is None else torch.cat([x, skip], dim=1))
            found.append(x)
        return found[::-1]

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Decode the stages into features [B, D, H, W]."""
        return self.maps(stages)[0]

    def classify(self, fused: Tensor) -> Tensor:
        """Map features [B, D, H, W] to disparity [B, 1, H, W] in [0, 1]."""
        return self._disparity(fused, -1)

    def disparities(self, stages: list[Tensor], scales: int) -> list[Tensor]:
        """Predict disparity in [0, 1] at the `scales` finest levels, finest first, [B, 1, H / 2^s, W / 2^s]."""
        maps = self.maps(stages)[:scales]
        return [self._disparity(features, -1 - i) for i, features in enumerate(maps)]

    def _disparity(self, features: Tensor, level: int) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 has only two significant digits
            return torch.sigmoid(self.disparity[level](F.pad(features.float(), (1, 1, 1, 1), mode="reflect")))


class ReflectConv(nn.Module):
    """3x3 convolution with reflected border, then ELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H, W]."""
        return F.elu(self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect")))


class PoseNetwork(nn.Module):
    """Camera motion between two frames, from an encoder of both images stacked.

    Args:
        encoder: its first convolution is widened to two stacked images; weights are tiled and halved.
        width: channels of the three convolutions after the encoder.
    """

    def __init__(self, encoder: Encoder, width: int = 256) -> None:
        super().__init__()
        self.encoder = encoder
        widen_input(encoder, 2)
        self.squeeze = nn.Conv2d(encoder.channels[-1], width, 1)
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.motion = nn.Conv2d(width, 6, 1)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Predict axis-angle [B, 3] and translation [B, 3] between consecutive normalised frames [B, 3, H, W]."""
        x = F.relu(self.squeeze(self.encoder(torch.cat([first, second], dim=1))[-1]))
        for conv in self.mix:
            x = F.relu(conv(x))
        motion = 0.01 * self.motion(x).mean((2, 3)).float()
        return motion[:, :3], motion[:, 3:]


def widen_input(encoder: nn.Module, images: int) -> None:
    """Widen the first convolution to several stacked images; for equal images its output stays the same."""
    for module in encoder.modules():
        for name, conv in module.named_children():
            if isinstance(conv, nn.Conv2d) and conv.in_channels == 3:
                wide = nn.Conv2d(
                    3 * images, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,  # type: ignore[arg-type]
                    bias=conv.bias is not None,
                )  # fmt: skip
                with torch.no_grad():
                    wide.weight.copy_(conv.weight.repeat(1, images, 1, 1) / images)
                    if conv.bias is not None and wide.bias is not None:
                        wide.bias.copy_(conv.bias)
                setattr(module, name, wide)
                return
    raise ValueError("the encoder has no convolution over three channels")
