"""CorDA's two-task decoder for segmentation and inverse depth (Wang et al., ICCV 2021).

As in PAD-Net (Xu et al., CVPR 2018), each task first computes its own features and an initial prediction; then it
receives the other task's features through an attention, and predicts again. The two domains' depth has different
sources and scales, so each domain has its own last layer in both places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.deeplab import EXPANSION, Bottleneck, DeepLabV2Head
from uda_seg.models.segmentor import Head, resize

WIDTH = 256  # of both tasks' features in the paper's network
DILATIONS = (6, 12, 18, 24)


@dataclass
class Tasks:
    """Predictions of the decoder: logits [B, C, h, w] and inverse depths [B, 1, h, w], linear, in autocast's precision.

    Attributes:
        segmentation: final logits.
        source_depth: final inverse depth on the source's scale.
        target_depth: final inverse depth on the target's scale.
        initial_segmentation: logits before the exchange between tasks.
        initial_source_depth: inverse depth before the exchange.
        initial_target_depth: inverse depth before the exchange.
    """

    segmentation: Tensor
    source_depth: Tensor
    target_depth: Tensor
    initial_segmentation: Tensor
    initial_source_depth: Tensor
    initial_target_depth: Tensor

    def resized(self, size: Sequence[int], align_corners: bool = False) -> Tasks:
        """Resize all maps bilinearly to (H, W)."""
        return Tasks(*(resize(getattr(self, f.name).float(), size, align_corners) for f in fields(self)))


class Attention(nn.Module):
    """Attention on the features passed to the other task: conv3x3(F) * sigmoid(conv3x3(F)), without bias or norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, width, h, w] to [B, width, h, w]."""
        result: Tensor = self.conv(features) * torch.sigmoid(self.gate(features))
        return result


class TwoTaskHead(Head):
    """Initial predictions, task-feature correlation in both directions, final predictions.

    The input is the main head's fused map: for DeepLab-V2 the encoder's last stage, as in the paper; for other decoders
    the fusion of all stages, because the last stage of a pyramid is too coarse for depth.

    Args:
        main: the segmentor's main head; not registered as a submodule.
        num_classes: C.
        width: channels of each task's features, a multiple of 4; default: the fused map's, at most 256.
        dilations: of the final heads, one 3x3 convolution each, summed; default: the main head's.
        correlation: False exchanges no features, as a control.
        initial: source of the initial segmentation: a 1x1 convolution on the task's "features" (the released SYNTHIA
            model), or the "main" head's own classifier (the released GTA model).
        start: inverse depth that all four untrained depth predictions are biased to; 0 keeps PyTorch's default bias
            initialisation near zero (released).
    """

    reads = ("main",)
    parts = ("classify", "segmentations", "tasks")  # `fuse` is the main head's

    def __init__(
        self,
        main: Head,
        num_classes: int,
        width: int | None = None,
        dilations: Sequence[int] | None = None,
        correlation: bool = True,
        initial: Literal["features", "main"] = "features",
        start: float = 0.0,
    ) -> None:
        super().__init__()
        self.main = (main,)  # in a tuple, so that its weights are registered only under `heads.main`
        self.width = main.width
        width = width or min(WIDTH, main.width // EXPANSION * EXPANSION)
        of_main: Sequence[int] = getattr(main, "dilations", DILATIONS)
        rates = dilations or of_main
        self.segmentation_features, self.depth_features = (task_features(main.width, width) for _ in range(2))
        self.initial_segmentation = nn.Conv2d(width, num_classes, 1) if initial == "features" else None
        self.initial_source_depth, self.initial_target_depth = (nn.Conv2d(width, 1, 1) for _ in range(2))
        self.to_segmentation = Attention(width) if correlation else None
        self.to_depth = Attention(width) if correlation else None
        self.segmentation = DeepLabV2Head([width], num_classes, rates)
        self.source_depth, self.target_depth = (DeepLabV2Head([width], 1, rates) for _ in range(2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        for bias in self.depth_biases() if start > 0 else ():
            nn.init.constant_(bias, start)

    def depth_biases(self) -> list[Tensor]:
        """List one bias per depth prediction; the other biases of a sum over dilations stay near zero."""
        finals = [head.conv2d_list[0] for head in (self.source_depth, self.target_depth)]
        convs = [self.initial_source_depth, self.initial_target_depth, *finals]
        return [conv.bias for conv in convs if isinstance(conv, nn.Conv2d) and conv.bias is not None]

    @torch.no_grad()
    def start_from(self, main: DAFormerHead) -> None:
        """Initialise segmentation to reproduce a trained main head of the same width; the depth task is unchanged.

        The residual branches of the task's features start at zero, so that the map, which follows a ReLU, passes
        unchanged; the depth task's message starts at zero; the classifier is the main head's, at the centre of one
        kernel.

        Raises:
            ValueError: the features are narrower than the main head's map.
        """
        if self.segmentation.width != main.width:
            raise ValueError(f"features of width {self.segmentation.width} cannot pass a map of width {main.width}")
        for block in self.segmentation_features:
            assert isinstance(block, Bottleneck)
            nn.init.zeros_(block.bn3.weight)
        if self.to_segmentation is not None:
            nn.init.zeros_(self.to_segmentation.conv.weight)
        for parameter in self.segmentation.parameters():
            nn.init.zeros_(parameter)
        centre, theirs = self.segmentation.conv2d_list[0], main.conv_seg
        assert isinstance(centre, nn.Conv2d)
        assert centre.bias is not None
        assert theirs.bias is not None
        centre.weight[:, :, 1, 1] = theirs.weight[:, :, 0, 0]
        centre.bias.copy_(theirs.bias)

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Fuse the stages with the main head, [B, D, h, w]."""
        return self.main[0].fuse(stages)

    def classify(self, fused: Tensor) -> Tensor:
        """Compute only the final logits [B, C, h, w], as needed at test."""
        return self.segmentation.classify(self.correlated(self.segmentation_features(fused), fused)[0])

    def segmentations(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the final and the initial logits [B, C, h, w], without depth."""
        own = self.segmentation_features(fused)
        final = self.segmentation.classify(self.correlated(own, fused)[0])
        return final, self.initial_logits(own, fused)

    def initial_logits(self, own: Tensor, fused: Tensor) -> Tensor:
        """Compute the initial logits [B, C, h, w] from the task's own features or with the main head."""
        if self.initial_segmentation is None:
            return self.main[0].classify(fused)
        logits: Tensor = self.initial_segmentation(own)
        return logits

    def tasks(self, fused: Tensor) -> Tasks:
        """Compute all predictions from the main head's map [B, D, h, w]."""
        own = self.segmentation_features(fused)
        segmentation, depth, own_depth = self.correlated(own, fused)
        return Tasks(
            self.segmentation.classify(segmentation),
            self.source_depth.classify(depth),
            self.target_depth.classify(depth),
            self.initial_logits(own, fused),
            self.initial_source_depth(own_depth),
            self.initial_target_depth(own_depth),
        )

    def correlated(self, segmentation: Tensor, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange features between the tasks: F_S + A(F_D), F_D + A(F_S), and F_D before the exchange."""
        depth: Tensor = self.depth_features(fused)
        if self.to_segmentation is None or self.to_depth is None:
            return segmentation, depth, depth
        return segmentation + self.to_segmentation(depth), depth + self.to_depth(segmentation), depth


def task_features(inputs: int, width: int) -> nn.Sequential:
    """Build two residual bottlenecks, [B, inputs, h, w] -> [B, width, h, w]; the first projects its shortcut."""
    inner = width // EXPANSION
    return nn.Sequential(Bottleneck(inputs, inner, 1, 1, True), Bottleneck(width, inner, 1, 1, True))
