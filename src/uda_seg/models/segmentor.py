"""The network as every method sees it: plain images in, logits out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uda_seg.errors import UserError
from uda_seg.limits import Colour, Deviation
from uda_seg.models.norm import frozen_statistics
from uda_seg.ops.losses import cross_entropy

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Backend = Literal["inductor", "aot_eager", "eager"]  # of torch.compile


class Encoder(nn.Module):
    """A pyramid of features.

    Attributes:
        channels: channels of each stage, fine to coarse.
        strides: input pixels per feature cell of each stage.
        smallest: height and width in pixels below which some layer has less than its kernel to work on.
        pretrained: whether it starts from weights that know natural images: any that were loaded but the built-in ones,
            which know renderings alone (set by `weights.load_encoder`). DAFormer's feature distance needs such.
        imagenet: name of the file that `pretrained=imagenet` loads, None where there is none.
        builtin: the file that `pretrained=builtin` loads, None where there is none.
        first_stage: dotted names of the modules that the first map comes from; empty where they cannot be told apart.
        recompute: in training, keep no activations inside of blocks, but compute them again where the backward pass
            wants them (Chen et al. 2016): more time for less memory, the same gradients.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    smallest: int = 1
    pretrained: bool = False
    imagenet: str | None = None
    builtin: Path | None = None
    first_stage: tuple[str, ...] = ()
    recompute: bool = False

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> one map per stage, fine to coarse."""

    def through(self, block: nn.Module, *inputs: Any) -> Any:
        """What a block makes of its inputs: what `recompute` is about."""
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*inputs)
        # The second time the block sees the same batch, so batch norm must not remember it again.
        contexts = lambda: (nullcontext(), frozen_statistics(block))  # noqa: E731
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


class Head(nn.Module):
    """Stages -> one fused map -> logits; the two halves are apart because methods work on the fused map.

    Attributes:
        width: channels D of the fused map.
        reads: names of the segmentor's other heads that this one computes with.
        parts: the methods that others call: what is compiled.
    """

    width: int
    reads: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("fuse", "classify")
    # fuse(stages) -> [B, D, h, w];  classify(fused, **context) -> logits [B, C, h, w]
    fuse: Callable[[list[Tensor]], Tensor]
    classify: Callable[..., Tensor]

    def forward(self, stages: list[Tensor], **context: Tensor | None) -> Tensor:
        """Logits [B, C, h, w] from the encoder's stages."""
        return self.classify(self.fuse(stages), **context)

    def compile_parts(self, **options: Any) -> None:
        """Compile what is called in place, as `nn.Module.compile` does with `forward`; options: of `torch.compile`."""
        for name in set(self.parts) - vars(self).keys():
            setattr(self, name, torch.compile(getattr(self, name), **options))

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled methods: a copy's would run on this head's weights."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name not in self.parts}


HeadBuilder = Callable[..., nn.Module]


@dataclass
class Features:
    """What the encoder saw: its stages, fine to coarse, each [B, channels, h, w].

    The fused map is a head's, and there may be several: `decode` and `supervise` give it.
    """

    stages: list[Tensor]


@dataclass
class Prediction:
    """Logits [B, C, h, w] as they are trained; `loss` knows what else a network learns from (HRDA's detail)."""

    logits: Tensor
    align_corners: bool = field(default=False, kw_only=True)

    def loss(self, label: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross-entropy, 0-dim float32, with the logits up-sampled bilinearly to the label's size.

        Args:
            label: [B, H, W] train ids, 255 = ignore.
            weight: [B, H, W] per-pixel weights, or what can be broadcast to it; None for 1.
        """
        return cross_entropy(resize(self.logits.float(), label.shape[-2:], self.align_corners), label, weight)


@dataclass
class Supervision:
    """A supervised forward: the loss (0-dim, float32) and the maps it came from, all with gradient.

    `features` and `fused` are of the whole image, in a network that also looks at details.
    """

    loss: Tensor
    logits: Tensor
    features: Features
    fused: Tensor


class Segmentor(nn.Module):
    """Normalisation, one encoder and one or more named heads.

    Args:
        encoder: a feature pyramid.
        head: the segmentation head "main", as a module or as a builder called with `channels`, `num_classes`.
        num_classes: number of output classes C.
        mean: of red, green and blue, in the scale of the images ([0, 1]).
        std: as `mean`; 1 / 255 gives the 0-255 scale of Caffe weights.
        channel_order: what the encoder's weights expect; images always come as RGB.
        recompute: save memory in training, see `Encoder`.
        align_corners: up-sample logits with the corner cells' centres on the corner pixels, as the released BiCL and
            CorDA do, whose maps of 65 cells for 512 pixels lie so; otherwise cells are areas.
        compile: run training steps through `torch.compile`, see `models.compilation`.
        compile_backend: of it; `inductor` makes kernels, the others are for finding out what fails.
        channels_last: keep maps in memory pixel by pixel, which some convolutions are faster with. (Token encoders and
            what follows them do by themselves.) Weights stay as they are, so neither state nor optimiser changes.

    Raises:
        UserError: both `compile` and `recompute`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        head: HeadBuilder,
        num_classes: int,
        mean: Colour = IMAGENET_MEAN,
        std: Deviation = IMAGENET_STD,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        recompute: bool = False,
        align_corners: bool = False,
        compile: bool = False,
        compile_backend: Backend = "inductor",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order must be 'rgb' or 'bgr', not {channel_order!r}")
        self.encoder = encoder
        if compile and recompute:
            raise UserError(
                "model.compile=true cannot trace model.recompute=true (blocks computed anew): leave one of them out"
            )
        self.encoder.recompute = recompute
        self.backend: Backend | None = compile_backend if compile else None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.num_classes = num_classes
        self.channel_order, self.align_corners = channel_order, align_corners
        self.heads = nn.ModuleDict()
        self.eval_head = "main"
        self.attach("main", head)
        # Constants of the network, not state: official checkpoints do not hold them.
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    def attach(self, name: str, head: nn.Module | HeadBuilder) -> nn.Module:
        """Add a head under `heads.<name>` (before a teacher is copied, so that the teacher owns it too).

        Args:
            name: a new name.
            head: a module, or a builder called with `channels` (of the encoder) and `num_classes`.

        Returns:
            The module that was attached.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.heads:
            raise ValueError(f"a head named {name!r} is already attached")
        if not isinstance(head, nn.Module):
            head = head(channels=self.encoder.channels, num_classes=self.num_classes)
        self.heads[name] = head
        return head

    @property
    def smallest(self) -> int:
        """Height and width in pixels that an image must have; smaller ones are padded at test."""
        return self.encoder.smallest

    def head(self, name: str = "main") -> Head:
        """The decoder of this name, without what a network may have put around it."""
        return cast(Head, self.heads[name])

    @property
    def mean_colour(self) -> Tensor:
        """The RGB colour [3], in [0, 1], that normalisation maps to zero: it fills masked pixels."""
        return self.mean.flatten()

    def normalize(self, image: Tensor) -> Tensor:
        """RGB in [0, 1], [B, 3, H, W] float -> the encoder's own scale and channel order."""
        normalized = (image - self.mean) / self.std
        ordered = normalized.flip(1) if self.channel_order == "bgr" else normalized
        return ordered.contiguous(memory_format=self.memory_format)

    def encoder_input(self, image: Tensor) -> Tensor:
        """What the encoder gets to see of whole images [B, 3, H, W]: normalised, and maybe smaller."""
        return self.normalize(image)

    def features(self, image: Tensor) -> Features:
        """Encode RGB images in [0, 1], [B, 3, H, W] float."""
        return Features(self.encoder(self.encoder_input(image)))

    def decode(self, features: Features, head: str = "main", **context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits [B, C, h, w] and fused map [B, D, h, w] of one head, both at the head's resolution."""
        module = self.head(head)
        fused = module.fuse(features.stages)
        return module.classify(fused, **context), fused

    def views(self, image: Tensor) -> list[Features]:
        """All that a training forward encodes of images [B, 3, H, W] in [0, 1], the whole image first."""
        return [self.features(image)]

    def combine(self, views: Sequence[Features], logits: Sequence[Tensor]) -> Prediction:
        """One prediction of some head's logits of every view, in the order of `views`."""
        return Prediction(logits[0], align_corners=self.align_corners)

    def supervise(
        self,
        image: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        head: str = "main",
        **context: Tensor | None,
    ) -> Supervision:
        """Cross-entropy of one head, with the logits up-sampled bilinearly to the label's size.

        Args:
            image: [B, 3, H, W] RGB in [0, 1].
            label: [B, H', W'] train ids, 255 = ignore.
            weight: [B, H', W'] per-pixel weights, or None for 1.
            head: which head is supervised.
            context: further inputs of the head's classifier (the language head's `text`).
        """
        views = self.views(image)
        decoded = [self.decode(features, head, **context) for features in views]
        prediction = self.combine(views, [logits for logits, _ in decoded])
        return Supervision(prediction.loss(label, weight), prediction.logits, views[0], decoded[0][1])

    def logits(self, image: Tensor, head: str, **context: Tensor | None) -> Tensor:
        """Logits [B, C, h, w] of whole images [B, 3, H, W], as at test, at the head's own resolution."""
        return self.decode(self.features(image), head, **context)[0]

    def predict(self, image: Tensor, head: str | None = None, **context: Tensor | None) -> Tensor:
        """Float32 logits [B, C, H, W] at the image's size, of `head` (default: `eval_head`)."""
        logits = self.logits(image, head or self.eval_head, **context).float()
        return resize(logits, image.shape[-2:], self.align_corners)

    def forward(self, image: Tensor) -> Tensor:
        """`predict` with the head used at test: what an exported model computes."""
        return self.predict(image)


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear to (H, W), with half-pixel centres or aligned corners, [B, C, h, w] -> [B, C, H, W]."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
