"""Language head of LC-MSM: correlation of class texts with every pixel (Kim et al., Pattern Recognition 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uda_seg.models.daformer import DAFormerHead, classifier
from uda_seg.ops.losses import IGNORE
from uda_seg.ops.prototypes import nearest
from uda_seg.options.constraints import Channels, Dilations, FractionBelowOne, Temperature

KernelStart = Literal["random", "identity"]


class LanguageHead(DAFormerHead):
    """A wide DAFormer decoder whose classifier also sees the correlation of each pixel with each class text.

    Args:
        channels: channels of the encoder's stages.
        num_classes: C, also the number of texts.
        width: channels of the fused map and of the projected texts.
        dilations: as in `DAFormerHead`.
        dropout: as in `DAFormerHead`, over fused channels and correlations together.
        temperature: divides cosine similarities. Constant: the released code never trains it.
        correlation: False leaves out text entirely, the control for the contribution of text.
        spatial_start: initial kernel of the spatial block, see `SpatialBlock`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: Channels = 512,
        dilations: Dilations = (1, 6, 12, 18),
        dropout: FractionBelowOne = 0.1,
        temperature: Temperature = 0.07,
        correlation: bool = True,
        spatial_start: KernelStart = "random",
    ) -> None:
        super().__init__(channels, num_classes, width, dilations, dropout)
        self.temperature = temperature
        self.correlation = correlation
        if correlation:
            self.spatial_block = SpatialBlock(spatial_start)
            self.conv_seg = classifier(width + num_classes, num_classes)

    def shaped_like(self, plain: DAFormerHead) -> bool:
        """Return whether `start_from` can copy a plain head."""
        return (plain.width, plain.dilations) == (self.width, self.dilations)

    @torch.no_grad()
    def start_from(self, plain: DAFormerHead) -> None:
        """Initialise from a plain head of the same shape; the classifier's weights on the correlation start at zero.

        Raises:
            ValueError: the shapes differ.
        """
        if not self.shaped_like(plain):
            raise ValueError("only a plain head of the same width and dilations can be copied")
        self.embed_layers.load_state_dict(plain.embed_layers.state_dict())
        self.fuse_layer.load_state_dict(plain.fuse_layer.state_dict())
        self.conv_seg.weight.zero_()
        self.conv_seg.weight[:, : self.width] = plain.conv_seg.weight
        assert self.conv_seg.bias is not None
        assert plain.conv_seg.bias is not None
        self.conv_seg.bias.copy_(plain.conv_seg.bias)

    def classify(self, fused: Tensor, text: Tensor | None = None) -> Tensor:
        """Compute logits from the fused map and the projected class texts.

        Args:
            fused: [B, width, h, w].
            text: [C, width], the projected texts, not normalised; unused without correlation.

        Returns:
            Logits [B, C, h, w].

        Raises:
            ValueError: the head correlates, but no text was given.
        """
        if not self.correlation:
            return super().classify(fused)
        if text is None:
            raise ValueError("LanguageHead needs text=[C, width] unless it was built with correlation=False")
        refined = self.spatial_block(correlate(fused, text, self.temperature))
        return super().classify(torch.cat([fused, refined], dim=1))


def correlate(fused: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Compute cosine similarity / temperature of pixels [B, D, h, w] and texts [C, D], [B, C, h, w]."""
    with torch.autocast(fused.device.type, enabled=False):  # bfloat16 would be off by 0.03 at this scale
        pixels = F.normalize(fused.float(), dim=1)
        return torch.einsum("bdhw,cd->bchw", pixels, F.normalize(text.float(), dim=1)) / temperature


@torch.no_grad()
def correlation_health(head: LanguageHead, fused: Tensor, text: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Measure whether the correlation C passes the spatial block and tells classes apart.

    Args:
        head: the language head.
        fused: its map [B, D, h, w].
        text: projected [K, D].
        label: uint8 [B, H, W].

    Returns:
        0-dim values by name: `lcmsm/passed`, share of g(C) that the block's ReLU passes (where it is 0, no gradient
        reaches the text); `lcmsm/spread` and `lcmsm/refined_spread`, standard deviation over classes, mean over pixels,
        of C and of C'; `lcmsm/accuracy`, share of labelled pixels whose class has the largest C (no loss asks for it).
    """
    maps = correlate(fused, text, head.temperature)
    label = nearest(label, maps.shape[-2:])
    return {
        "lcmsm/passed": (head.spatial_block.apply_once(maps) > 0).float().mean(),
        "lcmsm/spread": maps.std(dim=1).mean(),
        "lcmsm/refined_spread": head.spatial_block(maps).std(dim=1).mean(),
        "lcmsm/accuracy": (maps.argmax(dim=1) == label).sum() / (label != IGNORE).sum(),
    }


class SpatialBlock(nn.Module):
    """A smoothing of the correlation maps C: g(relu(g(C))) with g(X) = conv3x3(X) + max over classes of X.

    It has ten weights: one single-channel kernel with bias, shared by all classes and both applications. Differences
    between classes pass only through the kernel, twice: on smooth maps they are multiplied by its squared sum.

    Args:
        start: initial kernel: "random" is PyTorch's default, whose sum has mean 0 and standard deviation 0.6;
            "identity" passes the maps unchanged.
    """

    def __init__(self, start: KernelStart = "random") -> None:
        super().__init__()
        convolution = nn.Conv2d(1, 1, 3, padding=1)
        if start == "identity":
            nn.init.dirac_(convolution.weight)
            nn.init.zeros_(cast(Tensor, convolution.bias))
        self.depthwise = nn.ModuleDict({"depthwise": convolution})

    def forward(self, correlation: Tensor) -> Tensor:
        """Map [B, C, h, w] to [B, C, h, w]."""
        return self.apply_once(F.relu(self.apply_once(correlation)))

    def apply_once(self, x: Tensor) -> Tensor:
        """Compute g(X) of [B, C, h, w]."""
        smoothed: Tensor = self.depthwise["depthwise"](x.flatten(0, 1).unsqueeze(1))
        return smoothed.reshape(x.shape) + x.amax(dim=1, keepdim=True)
