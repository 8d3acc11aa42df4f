"""Any timm backbone that gives a feature pyramid."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import cast

import timm
from timm.layers.format import Format
from timm.models import FeatureInfo, load_state_dict
from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.models.segmentor import Encoder

log = logging.getLogger(__name__)


class TimmEncoder(Encoder):
    """The stages of a timm model at stride 4 and coarser (a plain ViT gives maps of one stride).

    Args:
        name: a timm model, e.g. "convnext_tiny".
        weights: None for a random start (nothing is downloaded), a file of the model's timm weights, or
            "imagenet" to let timm download its own.

    Raises:
        UserError: no such model, no features, or the weights cannot be had or do not fit.
    """

    def __init__(self, name: str, weights: str | Path | None = None) -> None:
        super().__init__()
        if not timm.is_model(name.split(".")[0]):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise UserError(f"timm knows no model {name!r} (model.encoder.name); nearest: {', '.join(near) or 'none'}")
        if weights == "builtin":
            raise UserError("pretrained=builtin is of model=daformer_small: say pretrained=imagenet, null or a file")
        file = {} if weights in (None, "imagenet") else {"file": str(weights)}
        try:
            if file:
                _check_complete(name, str(weights))
            self.body = timm.create_model(
                name, features_only=True, pretrained=weights is not None, pretrained_cfg_overlay=file
            )
        except Exception as error:  # a download fails in as many ways as there are network stacks
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"timm model {name!r}: {reason}; {_cure(weights)}") from error
        self._channels_last = getattr(self.body, "output_fmt", None) == Format.NHWC  # Swin and its like
        info = cast(FeatureInfo, self.body.feature_info)
        self._kept = [index for index, stride in enumerate(info.reduction()) if stride >= 4]
        self.channels = tuple(info.channels()[index] for index in self._kept)
        self.strides = tuple(info.reduction()[index] for index in self._kept)
        if weights is not None:
            self.pretrained = True
            log.info(
                "encoder weights: timm %s from %s",
                name,
                "timm's own source" if weights == "imagenet" else weights,
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> one map [B, C_i, H / stride_i, W / stride_i] per stage."""
        maps = self.through(self.body, x)
        kept = [maps[index] for index in self._kept]
        return [x.movedim(-1, 1) for x in kept] if self._channels_last else kept


def _check_complete(name: str, path: str) -> None:
    """Raise KeyError where timm itself would leave a tensor that the file lacks at its random start."""
    found = load_state_dict(path)
    missing = [key for key in timm.create_model(name, num_classes=0).state_dict() if key not in found]
    if missing:
        raise KeyError(f"{len(missing)} tensors missing, first {missing[0]}")


def _cure(weights: str | Path | None) -> str:
    if weights is None:
        return "choose another model.encoder.name: this one gives no feature pyramid"
    if weights == "imagenet":
        return "run once with network access, give a file, or pretrained=null"
    return f"pretrained={weights} must hold the timm weights of this model"
