"""The segmentation network: RGB images in, logits out."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uda_seg.errors import UserError
from uda_seg.models.norm import frozen_statistics
from uda_seg.ops.losses import cross_entropy
from uda_seg.options.constraints import Colour, Deviation

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Backend = Literal["inductor", "aot_eager", "eager"]  # backends of torch.compile


class Encoder(nn.Module):
    """Base class of encoders that return a feature pyramid.

    Attributes:
        channels: channels of each stage, fine to coarse.
        strides: stride of each stage in input pixels.
        smallest: minimum height and width of the input in pixels.
        pretrained: true if weights trained on natural images were loaded, that is any but the built-in ones, which were
            trained on renderings (set by `weights.load_encoder`). DAFormer's feature distance requires it.
        untrained: what starts at random and is part of the last map, in words for a message; empty if nothing does.
        imagenet: name of the file that `pretrained=imagenet` loads, None if there is none.
        builtin: the file that `pretrained=builtin` loads, None if there is none.
        first_stage: dotted names of the modules that compute the first map; empty if they cannot be separated.
        activation_checkpointing: recompute blocks in the backward pass (Chen et al. 2016), with equal gradients.
        patch: side in pixels of the tokens that a vision transformer sees; 1 for other encoders.
        mean: of red, green and blue in [0, 1] that the weights were trained with; None: ImageNet's.
        std: as `mean`.
        loaded_from: the name or file that the weights were loaded from; None for a random start.
        frozen: dotted names of the modules whose own tensors are frozen and which stay in eval mode (set by
            `trunk.adapt`).
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    smallest: int = 1
    patch: int = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pretrained: bool = False
    untrained: str = ""
    imagenet: str | None = None
    builtin: Path | None = None
    first_stage: tuple[str, ...] = ()
    activation_checkpointing: bool = False
    loaded_from: str | None = None
    frozen: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules except the frozen ones, which have no dropout and keep their statistics."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).training = False
        return self

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode normalised images [B, 3, H, W] into one map per stage, fine to coarse."""

    def renamed(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename tensors of a weights file that another library has named; by default none."""
        return tensors

    def through(self, block: nn.Module, *inputs: Any) -> Any:
        """Run a block, with activation checkpointing if `activation_checkpointing` is set."""
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        # The recomputation sees the same batch again, so batch norm must not update its running statistics twice.
        contexts = lambda: (nullcontext(), frozen_statistics(block))  # noqa: E731
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


class Head(nn.Module):
    """Base class of heads: stages -> fused map -> logits, in two steps because methods work on the fused map.

    Attributes:
        width: channels D of the fused map.
        reads: names of the segmentor's other heads that this one uses.
        parts: names of the methods called from outside, which are compiled.
    """

    width: int
    reads: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("fuse", "classify")
    # fuse(stages) -> [B, D, h, w];  classify(fused, **context) -> logits [B, C, h, w]
    fuse: Callable[[list[Tensor]], Tensor]
    classify: Callable[..., Tensor]

    def forward(self, stages: list[Tensor], **context: Tensor | None) -> Tensor:
        """Compute logits [B, C, h, w] from the encoder's stages."""
        return self.classify(self.fuse(stages), **context)

    def compile_parts(self, **options: Any) -> None:
        """Compile the methods in `parts` in place, like `nn.Module.compile`; options are those of `torch.compile`."""
        for name in set(self.parts) - vars(self).keys():
            setattr(self, name, torch.compile(getattr(self, name), **options))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out compiled methods, which in a copy would still run on this head's weights."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name not in self.parts}


HeadBuilder = Callable[..., nn.Module]


@dataclass
class Features:
    """Output of the encoder: its stages, fine to coarse, each [B, channels, h, w].

    Fused maps belong to heads and are returned by `decode` and `supervise`.
    """

    stages: list[Tensor]


@dataclass
class Prediction:
    """Logits [B, C, h, w] in training; subclasses add further terms to `loss` (HRDA's detail)."""

    logits: Tensor
    align_corners: bool = field(default=False, kw_only=True)

    def loss(self, label: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute cross-entropy, 0-dim float32, with logits up-sampled bilinearly to the label's size.

        Args:
            label: [B, H, W] train ids, 255 = ignore.
            weight: per-pixel weights, broadcastable to [B, H, W]; None for 1.
        """
        return cross_entropy(resize(self.logits.float(), label.shape[-2:], self.align_corners), label, weight)


@dataclass
class Supervision:
    """A supervised forward: the loss (0-dim, float32) and its intermediate maps, all differentiable.

    `features` and `fused` cover the whole image, also in networks with detail windows.
    """

    loss: Tensor
    logits: Tensor
    features: Features
    fused: Tensor


class Segmentor(nn.Module):
    """Segmentation network: normalisation, one encoder and one or more named heads.

    Args:
        encoder: a feature pyramid.
        head: the segmentation head "main": a module, or a builder called with `channels` and `num_classes`.
        num_classes: number of output classes C.
        mean: of red, green and blue, in the range of the images ([0, 1]); None: the encoder's own, which those of timm
            and ViTs read from their weights' description, else ImageNet's. One that contradicts them is logged.
        std: as `mean`; 1 / 255 gives the 0-255 range of Caffe weights.
        channel_order: channel order of the encoder's weights; images are always RGB.
        activation_checkpointing: see `Encoder`.
        align_corners: up-sample logits with `align_corners=True`, as the released BiCL and CorDA do, whose maps of 65
            cells per 512 pixels fit it.
        compile: compile training steps with `torch.compile`, see `models.compilation`.
        compile_backend: its backend; `inductor` generates kernels, the others serve debugging.
        channels_last: store activations channels-last, which speeds up some convolutions. (Token encoders and the
            layers after them use it anyway.) Weights keep their layout, so state dict and optimiser are unaffected.

    Raises:
        UserError: both `compile` and `activation_checkpointing` are set.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        head: HeadBuilder,
        num_classes: int,
        mean: Colour | None = None,
        std: Deviation | None = None,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        activation_checkpointing: bool = False,
        align_corners: bool = False,
        compile: bool = False,
        compile_backend: Backend = "inductor",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order must be 'rgb' or 'bgr', not {channel_order!r}")
        self.encoder = encoder
        if compile and activation_checkpointing:
            raise UserError(
                "model.compile=true cannot trace model.activation_checkpointing=true: leave one of them out"
            )
        self.encoder.activation_checkpointing = activation_checkpointing
        self.backend: Backend | None = compile_backend if compile else None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.num_classes = num_classes
        self.channel_order, self.align_corners = channel_order, align_corners
        self.heads = nn.ModuleDict()
        self.eval_head = "main"
        self.attach("main", head)
        # Non-persistent, because official checkpoints do not contain them.
        for name, given, own, usual in (
            ("mean", mean, encoder.mean, IMAGENET_MEAN),
            ("std", std, encoder.std, IMAGENET_STD),
        ):
            chosen = _told(name, given, own) or usual
            self.register_buffer(name, torch.tensor(list(chosen)).view(1, 3, 1, 1), persistent=False)

    def attach(self, name: str, head: nn.Module | HeadBuilder) -> nn.Module:
        """Add a head under `heads.<name>`; call it before the teacher is copied, so that the teacher has the head too.

        Args:
            name: a new name.
            head: a module, or a builder called with `channels` (of the encoder) and `num_classes`.

        Returns:
            The attached module.

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
        """Minimum height and width of an image in pixels; smaller images are padded at test."""
        return self.encoder.smallest

    def head(self, name: str = "main") -> Head:
        """Return the head of this name, without a wrapper that a subclass may add."""
        return cast(Head, self.heads[name])

    @property
    def patch(self) -> int:
        """Side in pixels of the squares of an image that a vision transformer sees as whole tokens; otherwise 1."""
        return self.encoder.patch

    @property
    def mean_colour(self) -> Tensor:
        """RGB colour [3] in [0, 1] that normalisation maps to zero; fills masked pixels."""
        return self.mean.flatten()

    def normalize(self, image: Tensor) -> Tensor:
        """Normalise RGB in [0, 1], float [B, 3, H, W], to the encoder's range and channel order."""
        normalized = (image - self.mean) / self.std
        ordered = normalized.flip(1) if self.channel_order == "bgr" else normalized
        return ordered.contiguous(memory_format=self.memory_format)

    def encoder_input(self, image: Tensor) -> Tensor:
        """Prepare whole images [B, 3, H, W] for the encoder: normalise and, in some networks, down-sample them."""
        return self.normalize(image)

    def features(self, image: Tensor) -> Features:
        """Encode RGB images in [0, 1], [B, 3, H, W] float."""
        return Features(self.encoder(self.encoder_input(image)))

    def decode(self, features: Features, head: str = "main", **context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute logits [B, C, h, w] and fused map [B, D, h, w] of one head, both at the head's resolution."""
        module = self.head(head)
        fused = module.fuse(features.stages)
        return module.classify(fused, **context), fused

    def views(self, image: Tensor) -> list[Features]:
        """Encode all views of images [B, 3, H, W] in [0, 1] for training, the whole image first."""
        return [self.features(image)]

    def combine(self, views: Sequence[Features], logits: Sequence[Tensor]) -> Prediction:
        """Combine a head's logits of every view, in the order of `views`, into one prediction."""
        return Prediction(logits[0], align_corners=self.align_corners)

    def supervise(
        self,
        image: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        head: str = "main",
        **context: Tensor | None,
    ) -> Supervision:
        """Compute the cross-entropy of one head, with logits up-sampled bilinearly to the label's size.

        Args:
            image: [B, 3, H, W] RGB in [0, 1].
            label: [B, H', W'] train ids, 255 = ignore.
            weight: [B, H', W'] per-pixel weights, or None for 1.
            head: name of the supervised head.
            context: further inputs of the head's classifier (the language head's `text`).
        """
        views = self.views(image)
        decoded = [self.decode(features, head, **context) for features in views]
        prediction = self.combine(views, [logits for logits, _ in decoded])
        return Supervision(prediction.loss(label, weight), prediction.logits, views[0], decoded[0][1])

    def logits(self, image: Tensor, head: str, **context: Tensor | None) -> Tensor:
        """Compute test-time logits [B, C, h, w] of whole images [B, 3, H, W] at the head's resolution."""
        return self.decode(self.features(image), head, **context)[0]

    def predict(self, image: Tensor, head: str | None = None, **context: Tensor | None) -> Tensor:
        """Compute float32 logits [B, C, H, W] at the image's size with `head` (default: `eval_head`)."""
        logits = self.logits(image, head or self.eval_head, **context).float()
        return resize(logits, image.shape[-2:], self.align_corners)

    def forward(self, image: Tensor) -> Tensor:
        """Run `predict` with the head used at test; this is the forward of an exported model."""
        return self.predict(image)


def _told(name: str, given: Sequence[float] | None, own: Sequence[float] | None) -> Sequence[float] | None:
    """Return the given mean or std, else the encoder's own, and log a contradiction between the two."""
    if given is not None and own is not None and not torch.allclose(torch.tensor(list(given)), torch.tensor(list(own))):
        log.warning(
            "model.%s=%s, but the encoder's weights were trained with %s: leave it out, unless the images are not RGB "
            "in [0, 1]", name, list(given), list(own),
        )  # fmt: skip
    return own if given is None else given


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize [B, C, h, w] bilinearly to (H, W), with half-pixel centres or aligned corners."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
