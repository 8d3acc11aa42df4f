"""Encoders from timm backbones with feature maps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers.format import Format
from timm.models import FeatureInfo
from timm.models._features import FeatureListNet
from torch import Tensor, nn

from uda_seg.models.norm import batch_norms
from uda_seg.models.segmentor import Encoder
from uda_seg.models.timm_weights import created, describe_images
from uda_seg.models.trunk import adapt
from uda_seg.options.constraints import CountOrZero, FilePath, Text

log = logging.getLogger(__name__)


class TimmEncoder(Encoder):
    """The stages of a timm model at stride 4 and coarser (a plain ViT has maps of one stride: see `models.vit`).

    Transformers that timm restricts to one image size accept any size here if the architecture allows it (ViT, Swin).
    Mean and standard deviation of the images are those that timm states for the weights.

    Args:
        name: a timm model, e.g. "convnext_tiny", optionally with the tag of its weights.
        weights: see `timm_weights.created`.
        allow_missing: names of the timm model's tensors or modules that the file may lack.
        freeze: true: nothing of the model is trained; a number: a plain ViT's embeddings and first blocks are not.
        lora: adapters of a plain ViT, see `models.lora`; the rest of it is frozen.

    Raises:
        UserError: no such model, no feature maps, or weights that are unavailable or do not fit.
    """

    def __init__(
        self,
        name: Text,
        weights: FilePath | Path | None = None,
        allow_missing: Sequence[Text] = (),
        freeze: bool | CountOrZero = False,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        cure = "choose another model.encoder.name: this one gives no feature pyramid"
        self.body = created(name, weights, allow_missing, cure, features_only=True)
        self.pretrained, self.loaded_from = weights is not None, None if weights is None else str(weights)
        describe_images(self, self.body)
        self._channels_last = getattr(self.body, "output_fmt", None) == Format.NHWC  # Swin and similar
        info = cast(FeatureInfo, self.body.feature_info)
        self._kept = [index for index, stride in enumerate(info.reduction()) if stride >= 4]
        self.channels = tuple(info.channels()[index] for index in self._kept)
        self.strides = tuple(info.reduction()[index] for index in self._kept)
        if len(set(self.strides)) == 1:
            log.warning(
                "model.encoder.name=%s: timm's maps of it all have stride %d, as the head's then; model=vit makes a "
                "pyramid of a plain vision transformer", name, self.strides[0],
            )  # fmt: skip
        self.smallest = max(self.strides)  # some models down-sample without padding
        adapt(self, freeze, lora)

    @property
    def trunk(self) -> nn.Module:
        """The timm model: all of the encoder."""
        return cast(nn.Module, getattr(self.body, "model", self.body))  # timm wraps transformers whole

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode normalised images [B, 3, H, W] into one map [B, C_i, H / stride_i, W / stride_i] per stage."""
        maps = self._recomputing(x) if self.activation_checkpointing else self.body(x)
        kept = [maps[index] for index in self._kept]
        return [x.movedim(-1, 1) for x in kept] if self._channels_last else kept

    def _recomputing(self, x: Tensor) -> list[Tensor]:
        """Run the model with activation checkpointing of its blocks, or as a whole where they cannot be told apart."""
        maps: list[Tensor]
        if isinstance(self.body, FeatureListNet) and batch_norms(self.body):
            return self._by_block(self.body, x)
        # timm's own checkpoints of blocks would update batch norm's running statistics twice.
        own = [] if batch_norms(self.body) else [m for m in self.body.modules() if _recomputes_blocks(m)]
        for module in own:
            module.grad_checkpointing = torch.is_grad_enabled()  # type: ignore[assignment]
        maps = self.body(x) if own else self.through(self.body, x)
        return maps

    def _by_block(self, body: FeatureListNet, x: Tensor) -> list[Tensor]:
        maps = []
        for name, stage in body.items():
            for block in stage.children() if type(stage) is nn.Sequential else [stage]:
                # Activations alone may work in place, on what a checkpoint of theirs would have to keep.
                x = self.through(block, x) if any(True for _ in block.parameters()) else block(x)
            if name in body.return_layers:
                maps.append(x)
        return maps


def _recomputes_blocks(module: nn.Module) -> bool:
    return hasattr(module, "grad_checkpointing") and not isinstance(module, FeatureListNet)
