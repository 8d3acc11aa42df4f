"""Encoders from timm backbones with feature maps."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
from timm.layers.format import Format
from timm.models import FeatureInfo, load_state_dict
from torch import Tensor
from torch.nn import Module

from uda_seg.errors import UserError
from uda_seg.models.hub import fetch
from uda_seg.models.segmentor import Encoder
from uda_seg.models.weights import check_tensors, read_tensors, split_missing
from uda_seg.options.constraints import FilePath, Text

log = logging.getLogger(__name__)


class TimmEncoder(Encoder):
    """The stages of a timm model at stride 4 and coarser (a plain ViT has maps of a single stride).

    Transformers that timm restricts to one image size accept any size here if the architecture allows it (ViT, Swin).

    Args:
        name: a timm model, e.g. "convnext_tiny".
        weights: None for a random start (nothing is downloaded), a file of the model's timm weights,
            "imagenet" to let timm download its default, "timm:TAG" for those of a tag ("timm:fb_in22k_ft_in1k", or
            prefixed with the model's name), "hub:OWNER/REPOSITORY" for another repository of timm weights. Downloads
            are cached by the hub.
        allow_missing: names of the timm model's tensors or modules that the file may lack.

    Raises:
        UserError: no such model, no feature maps, or weights that are unavailable or do not fit.
    """

    def __init__(self, name: Text, weights: FilePath | Path | None = None, allow_missing: Sequence[Text] = ()) -> None:
        super().__init__()
        if not timm.is_model(name.split(".")[0]):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise UserError(f"timm knows no model {name!r} (model.encoder.name); nearest: {', '.join(near) or 'none'}")
        if weights == "builtin":
            raise UserError("pretrained=builtin is of model=daformer_small: say pretrained=imagenet, null or a file")
        said, own = str(weights), weights == "imagenet"
        if said.startswith("timm:"):
            name, own = _tagged(name, said.removeprefix("timm:")), True
        elif said.startswith("hub:"):
            weights = fetch(said.removeprefix("hub:"))
        try:
            start = {} if weights is None or own else _checked(name, str(weights), allow_missing)
            self.body = _created(name, pretrained=weights is not None, pretrained_cfg_overlay=start)
            wanted = self.body.state_dict()
            check_tensors(wanted, wanted, Path(str(weights)))
        except UserError:
            raise
        except Exception as error:  # a download fails in as many ways as there are network stacks
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"timm model {name!r}: {reason}; {_cure(weights, own)}") from error
        self._channels_last = getattr(self.body, "output_fmt", None) == Format.NHWC  # Swin and similar
        info = cast(FeatureInfo, self.body.feature_info)
        self._kept = [index for index, stride in enumerate(info.reduction()) if stride >= 4]
        self.channels = tuple(info.channels()[index] for index in self._kept)
        self.strides = tuple(info.reduction()[index] for index in self._kept)
        self.smallest = max(self.strides)  # some models down-sample without padding
        if weights is not None:
            self.pretrained = True
            source = "timm's own source" if own else weights
            log.info("encoder weights: %d tensors of timm's %s from %s", len(self.body.state_dict()), name, source)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode normalised images [B, 3, H, W] into one map [B, C_i, H / stride_i, W / stride_i] per stage."""
        maps = self.through(self.body, x)
        kept = [maps[index] for index in self._kept]
        return [x.movedim(-1, 1) for x in kept] if self._channels_last else kept


def _created(name: str, **options: Any) -> Module:
    """Create a timm feature extractor for images of any size, also where timm fixes the size (ViT, Swin)."""
    any_size = "dynamic_img_size"
    try:
        return timm.create_model(name, features_only=True, **(options | {any_size: True}))
    except TypeError as error:
        if any_size not in str(error):
            raise
    return timm.create_model(name, features_only=True, **options)


def _tagged(name: str, tag: str) -> str:
    """Return `model.tag`, timm's name of the weights; raises UserError if timm has no such tag."""
    model, known = name.split(".")[0], timm.list_pretrained(f"{name.split('.')[0]}.*")
    full = tag if tag.startswith(f"{model}.") else f"{model}.{tag}"
    if full not in known:
        near = difflib.get_close_matches(full, known, n=3, cutoff=0.3)
        raise UserError(
            f"pretrained=timm:{tag}: timm has no such weights of {model}; nearest: {', '.join(near) or 'none'}"
        )
    return full


def _checked(name: str, path: str, allow_missing: Sequence[str]) -> dict[str, Any]:
    """Return timm's arguments for loading a file; raises KeyError if it would leave a tensor at its random start."""
    read_tensors(Path(path))  # verifies the checksums, which timm does not
    found = load_state_dict(path)
    model = timm.create_model(name, num_classes=0).state_dict()
    missing, allowed = split_missing([key for key in model if key not in found], model, allow_missing)
    if missing:
        raise KeyError(f"{len(missing)} tensors missing, first {missing[0]}")
    if not allowed:
        return {"file": path}
    log.warning("%s: %d tensors LEFT UNTRAINED as allowed, first %s", path, len(allowed), allowed[0])
    return {"state_dict": {**found, **{key: model[key] for key in allowed}}}


def _cure(weights: str | Path | None, own: bool) -> str:
    if weights is None:
        return "choose another model.encoder.name: this one gives no feature pyramid"
    if own:
        return "run once with network access, give a file, or pretrained=null"
    return f"pretrained={weights} must hold the timm weights of this model"
