"""HRDA: context at low and detail at high resolution, with a learnt scale attention (Hoyer et al., ECCV 2022).

One encoder and one decoder process the whole image at half resolution and a window of it at full resolution. The
attention, predicted from the low resolution, weights the two per class and position.
"""

from __future__ import annotations

import fractions
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.models.daformer import ConvBN, DAFormerHead
from uda_seg.models.inference import window_starts
from uda_seg.models.segmentor import (
    Backend,
    Encoder,
    Features,
    Head,
    HeadBuilder,
    Prediction,
    Segmentor,
    resize,
)
from uda_seg.ops.losses import cross_entropy
from uda_seg.options.constraints import (
    Channels,
    Colour,
    Count,
    Deviation,
    Fraction,
    FractionBelowOne,
    Interval,
    PixelPair,
)

Size = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A window of an image of `size` (H, W); all values in pixels."""

    top: int
    left: int
    height: int
    width: int
    size: Size

    def at(self, size: Sequence[int]) -> tuple[slice, slice]:
        """Return the rows and columns that the box covers in a map (h, w) of the whole image.

        Boxes adjacent in the image are adjacent in the map, even where sizes are not divisible.
        """
        rows = _cells(self.top, self.height, self.size[0], size[0])
        return rows, _cells(self.left, self.width, self.size[1], size[1])

    def cut(self, image: Tensor) -> Tensor:
        """Crop the box from a map [..., h, w] of any resolution."""
        return image[(..., *self.at(image.shape[-2:]))]

    def place(self, part: Tensor, size: Sequence[int]) -> Tensor:
        """Place a map [B, C, h, w] of the box into a zero map of the whole image [B, C, *size]."""
        rows, columns = self.at(size)
        part = resize(part, (rows.stop - rows.start, columns.stop - columns.start))
        return F.pad(part, (columns.start, size[1] - columns.stop, rows.start, size[0] - rows.stop))


def _cells(start: int, length: int, pixels: int, cells: int) -> slice:
    first, last = (2 * edge * cells + pixels for edge in (start, start + length))  # rounds half up, in integers
    return slice(first // (2 * pixels), last // (2 * pixels))


def draw_box(size: Size, detail: Size, multiple: int, offsets: Literal["all", "released"] = "all") -> Box:
    """Draw a random window, shared by the batch, with PyTorch's CPU generator.

    Args:
        size: (H, W) of the image.
        detail: (h, w) of the window; clipped to the image.
        multiple: corner coordinates are multiples of it in pixels, so that windows align with low-resolution cells.
        offsets: `all` valid ones; `released` leaves out the last if it is a multiple: at most 504 for a window of 512
            in 1024 pixels.
    """

    def draw(whole: int, part: int) -> int:
        choices = (whole - part) // multiple + 1 if offsets == "all" else max((whole - part + 1) // multiple, 1)
        return multiple * int(torch.randint(choices, ()))

    height, width = min(detail[0], size[0]), min(detail[1], size[1])
    return Box(draw(size[0], height), draw(size[1], width), height, width, size)


def blend(context: Tensor, detail: Tensor, attention: Tensor) -> Tensor:
    """Z = up((1 - A) Z_LR) + up(A) Z_HR (section 3.3); the context is attenuated before up-sampling.

    Args:
        context: Z_LR, float32 [B, C, h, w].
        detail: Z_HR [B, C, h', w'], zero where there is none.
        attention: A, [B, C or 1, h, w] in [0, 1], zero where there is no detail.

    Returns:
        [B, C, h', w'].
    """
    size = detail.shape[-2:]
    return resize((1 - attention) * context, size) + resize(attention, size) * detail


class ScaleAttention(DAFormerHead):
    """A small DAFormer head with a 1x1 convolution as fusion: stages -> logits of the attention.

    Args:
        channels: channels of the encoder's stages.
        outputs: number of classes, or 1.
        width: channels of each embedding and of the fused map.
        dropout: of channels, before the last convolution.
    """

    def __init__(
        self, channels: Sequence[int], outputs: int, width: int = 256, dropout: FractionBelowOne = 0.1
    ) -> None:
        super().__init__(channels, outputs, width, (1,), dropout)
        self.fuse_layer = ConvBN(width * len(channels), width, 1)


class HRDAHead(Head):
    """The main decoder together with the scale attention of all decoders, named as in the published weights.

    As a head it delegates to the decoder.
    """

    parts = ()  # its own methods only delegate

    def __init__(self, head: Head, scale_attention: ScaleAttention) -> None:
        super().__init__()
        self.width = head.width
        self.head = head
        self.scale_attention = scale_attention

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Fuse the stages with the decoder, [B, width, h, w]."""
        return self.head.fuse(stages)

    def classify(self, fused: Tensor, **context: Tensor | None) -> Tensor:
        """Map [B, width, h, w] to the decoder's logits [B, C, h, w]."""
        return self.head.classify(fused, **context)


@dataclass
class ContextView(Features):
    """Features of the whole image at low resolution, and the attention A, float32 [B, C or 1, h, w] in [0, 1]."""

    attention: Tensor

    def attention_of(self, logits: Tensor) -> Tensor:
        """Select A of the class predicted by logits [B, C, h', w'] at every position, [B, 1, h, w], for display."""
        if self.attention.shape[1] == 1:
            return self.attention
        said = resize(logits.float(), self.attention.shape[-2:]).argmax(1, keepdim=True)
        return self.attention.gather(1, said)


@dataclass
class DetailView(Features):
    """Features of a window of the image at full resolution, and its box."""

    box: Box


@dataclass
class BlendedPrediction(Prediction):
    """Blended logits of the whole image, and logits of the detail [B, C, h, w] for a loss of their own.

    Attributes:
        detail: Z_HR.
        box: window of the detail.
        share: weight of the detail's loss (0.1).
    """

    detail: Tensor
    box: Box
    share: float

    def loss(self, label: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute 0.9 CE(Z, y) + 0.1 CE(Z_HR, y in the box) with pixel weights, 0-dim float32."""
        own = self.box.cut(label)
        own_weight = None if weight is None else self.box.cut(weight.expand(label.shape))
        detail = cross_entropy(resize(self.detail.float(), own.shape[-2:]), own, own_weight)
        return (1 - self.share) * super().loss(label, weight) + self.share * detail


class HRDASegmentor(Segmentor):
    """A Segmentor that processes every image at two resolutions.

    Every segmentation head is applied at both resolutions, blended, and trained with the additional loss on the detail;
    all share the main head's scale attention. `features` and `decode` cover the low resolution only, and so do the
    losses on features: the feature distance (as published), projections and contrast, and depth heads (our choice, to
    bound memory).

    In training the detail is one random window per forward; at test and for the teacher's labels, windows slide over
    the whole image and their logits are averaged.

    Args:
        encoder: a feature pyramid.
        head: builder of the segmentation head "main".
        num_classes: number of output classes C.
        mean: see Segmentor.
        std: see Segmentor.
        channel_order: see Segmentor.
        activation_checkpointing: see Segmentor.
        compile: see Segmentor.
        compile_backend: see Segmentor.
        channels_last: see Segmentor.
        context_scale: scale of the low resolution (0.5).
        detail: height and width of the detail window in pixels (512 of crops of 1024); clipped to the image.
        detail_loss: weight of the loss on the detail (0.1).
        detail_multiple: corners of random windows are multiples of it: pixels per cell of the low resolution's logits
            (8; ours for DeepLab, whose cells are twice as large: 16), and of a vision transformer's patch (ours).
        detail_offsets: valid corners of random windows, see `draw_box`.
        detail_stride: pixels from one sliding window to the next, vertical and horizontal; default: half a window.
        detail_windows: sliding windows per image in one forward; None: all, as released. Fewer save memory and give the
            same logits, unless batch norm uses batch statistics.
        attention_width: channels of the scale attention (256).
        attention: `class` predicts one map per class, `shared` a single one.
        fixed_attention: constant A instead of a learnt one, as a control: 0 uses only the low resolution, 1 the high.

    Raises:
        UserError: sizes that are not pairs, or a stride that leaves gaps.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: HeadBuilder,
        num_classes: int,
        mean: Colour | None = None,
        std: Deviation | None = None,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        activation_checkpointing: bool = False,
        compile: bool = False,
        compile_backend: Backend = "inductor",
        channels_last: bool = False,
        context_scale: Annotated[float, Interval(0.05, 1)] = 0.5,
        detail: PixelPair = (512, 512),
        detail_loss: Fraction = 0.1,
        detail_multiple: Count = 8,
        detail_offsets: Literal["all", "released"] = "all",
        detail_stride: PixelPair | None = None,
        detail_windows: Count | None = None,
        attention_width: Channels = 256,
        attention: Literal["class", "shared"] = "class",
        fixed_attention: Fraction | None = None,
    ) -> None:
        def pair(channels: Sequence[int], num_classes: int) -> HRDAHead:
            outputs = num_classes if attention == "class" else 1
            decoder = cast(Head, head(channels=channels, num_classes=num_classes))
            return HRDAHead(decoder, ScaleAttention(channels, outputs, attention_width))

        super().__init__(
            encoder,
            pair,
            num_classes,
            mean,
            std,
            channel_order,
            activation_checkpointing,
            compile=compile,
            compile_backend=compile_backend,
            channels_last=channels_last,
        )
        self.context_scale, self.detail_loss = context_scale, detail_loss
        self.detail = _pair("model.detail", detail)
        self.stride = _pair("model.detail_stride", detail_stride or [max(1, side // 2) for side in self.detail])
        if self.stride[0] > self.detail[0] or self.stride[1] > self.detail[1]:
            raise UserError(
                f"model.detail_stride={list(self.stride)} is larger than model.detail={list(self.detail)}: "
                "pixels between two windows would have no detail"
            )
        self.multiple, self.offsets = detail_multiple, detail_offsets
        self.windows, self.fixed_attention = detail_windows, fixed_attention

    @property
    def smallest(self) -> int:
        """Smallest height and width in pixels of an image, so that its low resolution suffices for the encoder."""
        enough = self.encoder.smallest
        return next(side for side in itertools.count(enough) if round(side * self.context_scale) >= enough)

    @property
    def aligned(self) -> int:
        """Pixels between possible corners of random windows, in which patches begin where those of the image do."""
        return math.lcm(self.multiple, self.encoder.patch)

    @property
    def patch(self) -> int:
        """Side in pixels of the smallest squares that are whole tokens at both resolutions; 1 without tokens."""
        if self.encoder.patch == 1:
            return 1
        return self.encoder.patch * fractions.Fraction(self.context_scale).limit_denominator(20).denominator

    def head(self, name: str = "main") -> Head:
        """Return the decoder of this name, without the attention."""
        head = super().head(name)
        return head.head if isinstance(head, HRDAHead) else head

    def encoder_input(self, image: Tensor) -> Tensor:
        """Down-sample images [B, 3, H, W] to the low resolution and normalise them."""
        height, width = image.shape[-2:]
        small = (max(1, round(height * self.context_scale)), max(1, round(width * self.context_scale)))
        return self.normalize(resize(image, small))

    def attend(self, features: Features) -> Tensor:
        """Predict the attention A, float32 [B, C or 1, h, w] in [0, 1], from low-resolution features."""
        if self.fixed_attention is not None:
            finest = features.stages[0]
            return finest.new_full((len(finest), 1, *finest.shape[-2:]), self.fixed_attention, dtype=torch.float32)
        logits: Tensor = cast(HRDAHead, self.heads["main"]).scale_attention(features.stages)
        return torch.sigmoid(logits.float())

    def canvas(self, context: Tensor) -> Size:
        """Compute the size (h, w) of blended logits from low-resolution logits."""
        height, width = context.shape[-2:]
        return round(height / self.context_scale), round(width / self.context_scale)

    # ------------------------------------------------------------------ training

    def views(self, image: Tensor) -> list[Features]:
        """Encode the whole image at low resolution, and a newly drawn window at full resolution."""
        context = self.features(image)
        box = draw_box((image.shape[2], image.shape[3]), self.detail, self.aligned, self.offsets)
        detail = self.encoder(self.normalize(box.cut(image)))
        return [ContextView(context.stages, self.attend(context)), DetailView(detail, box)]

    def combine(self, views: Sequence[Features], logits: Sequence[Tensor]) -> BlendedPrediction:
        """Blend a head's logits of the two views; the attention is zero outside of the window."""
        context, detail = views
        assert isinstance(context, ContextView)
        assert isinstance(detail, DetailView)
        low, high = (x.float() for x in logits)
        attention = resize(context.attention, low.shape[-2:])
        inside = torch.zeros_like(attention)
        inside[(..., *detail.box.at(inside.shape[-2:]))] = 1.0
        placed = detail.box.place(high, self.canvas(low))
        return BlendedPrediction(blend(low, placed, attention * inside), high, detail.box, self.detail_loss)

    # ------------------------------------------------------------------ test and pseudo-labels

    def logits(self, image: Tensor, head: str, **context: Tensor | None) -> Tensor:
        """Compute blended logits [B, C, h, w] of whole images [B, 3, H, W], with detail everywhere."""
        features = self.features(image)
        low = self.decode(features, head, **context)[0].float()
        attention = resize(self.attend(features), low.shape[-2:])
        return blend(low, self.sliding(image, self.canvas(low), head, **context), attention)

    def sliding(self, image: Tensor, size: Size, head: str, **context: Tensor | None) -> Tensor:
        """Average float32 logits [B, C, *size] of overlapping detail windows of images [B, 3, H, W]."""
        whole = (image.shape[2], image.shape[3])
        height, width = min(self.detail[0], whole[0]), min(self.detail[1], whole[1])
        rows, columns = window_starts(whole[0], height, self.stride[0]), window_starts(whole[1], width, self.stride[1])
        boxes = [Box(top, left, height, width, whole) for top in rows for left in columns]
        total = torch.zeros(image.shape[0], self.num_classes, *size, device=image.device)
        count = torch.zeros(size, device=image.device)
        step = self.windows or len(boxes)
        for group in (boxes[first : first + step] for first in range(0, len(boxes), step)):
            windows = torch.cat([box.cut(image) for box in group])
            logits = self.decode(Features(self.encoder(self.normalize(windows))), head, **context)[0].float()
            for box, part in zip(group, logits.reshape(len(group), -1, *logits.shape[1:]), strict=True):
                there = box.at(size)
                total[(..., *there)] += resize(part, count[there].shape)
                count[there] += 1
        return total / count


def _pair(key: str, size: Sequence[int]) -> Size:
    if len(size) != 2:
        raise UserError(f"{key}={list(size)} is no size: give [height,width] in pixels")
    return size[0], size[1]
