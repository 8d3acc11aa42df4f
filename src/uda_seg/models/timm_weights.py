"""Models of timm: their names, weights files in timm's or the authors' naming, and the normalisation of images."""

from __future__ import annotations

import difflib
import io
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import timm
from timm.models import load_state_dict
from torch import Tensor
from torch.nn import Module

from uda_seg.errors import UserError
from uda_seg.models.hub import described, fetch
from uda_seg.models.segmentor import Encoder
from uda_seg.models.weights import check_tensors, read_tensors, split_missing

log = logging.getLogger(__name__)


def created(name: str, weights: str | Path | None, allow_missing: Sequence[str], cure: str, **options: Any) -> Module:
    """Create a timm model with initial weights.

    Args:
        name: a timm model, optionally with the tag of its weights, e.g. "convnext_tiny.fb_in22k".
        weights: None for a random start (nothing is downloaded), a file of weights as timm or as the model's authors
            name them, "imagenet" to let timm download its default, "timm:TAG" for those of a tag ("timm:fb_in22k", or
            prefixed with the model's name), "hub:OWNER/REPOSITORY" for another repository of timm weights. Downloads
            are cached by the hub.
        allow_missing: names of the model's tensors or modules that the file may lack.
        cure: of a model that cannot be created even at random.
        options: further arguments of `timm.create_model`.

    Raises:
        UserError: no such model, or weights that are unavailable or do not fit.
    """
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"timm knows no model {name!r} (model.encoder.name); nearest: {_nearest(name)}")
    if weights == "builtin":
        raise UserError("pretrained=builtin is of model=daformer_small: say pretrained=imagenet, null or a file")
    said, own = str(weights), weights == "imagenet"
    if said.startswith("timm:"):
        name, own = _tagged(name, said.removeprefix("timm:")), True
    elif said.startswith("hub:"):
        weights = fetch(said.removeprefix("hub:"))
        _refuse_other_images(name, said, described(said.removeprefix("hub:"), weights))
    try:
        start = {} if weights is None or own else _checked(name, str(weights), allow_missing)
        with redirect_stdout(io.StringIO()):  # the filter of DINOv3's files prints what they do not need
            model = _any_size(name, pretrained=weights is not None, pretrained_cfg_overlay=start, **options)
        wanted = model.state_dict()
        check_tensors(wanted, wanted, Path(str(weights)))
    except UserError:
        raise
    except Exception as error:  # a download fails in as many ways as there are network stacks
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"timm model {name!r}: {reason}; {_cure(weights, own, cure)}") from error
    if weights is not None:
        source = "timm's own source" if own else weights
        log.info("encoder weights: %d tensors of timm's %s from %s", len(wanted), name, source)
    return model


def describe_images(encoder: Encoder, model: Module) -> None:
    """Set the mean and standard deviation of the encoder's images from the description of the timm model's weights."""
    about: Any = model.pretrained_cfg
    encoder.mean, encoder.std = tuple(about["mean"]), tuple(about["std"])


def _any_size(name: str, **options: Any) -> Module:
    """Create a timm model for images of any size, also where timm fixes the size (ViT, Swin)."""
    any_size = "dynamic_img_size"
    try:
        return timm.create_model(name, **(options | {any_size: True}))
    except TypeError as error:
        if any_size not in str(error):
            raise
    return timm.create_model(name, **options)


def _nearest(name: str) -> str:
    """List the models of the nearest names, or else those with a word of it (the authors say `dinov2_vitb14`)."""
    model, known = name.split(".")[0].lower(), timm.list_models()
    words = sorted(re.findall("[a-z]{2,}[0-9]*", model), key=len, reverse=True)
    found = (difflib.get_close_matches(model, [n for n in known if word in n], n=3, cutoff=0.2) for word in words)
    near = difflib.get_close_matches(model, known, n=3) or next(filter(None, found), [])
    return ", ".join(near) or "none"


def _tagged(name: str, tag: str) -> str:
    """Return `model.tag`, timm's name of the weights.

    Raises:
        UserError: timm has no such tag, or its images are normalised in another way than those of `name`, by which a
            checkpoint builds the network again.
    """
    model, known = name.split(".")[0], timm.list_pretrained(f"{name.split('.')[0]}.*")
    full = tag if tag.startswith(f"{model}.") else f"{model}.{tag}"
    if full not in known:
        near = difflib.get_close_matches(full, known, n=3, cutoff=0.3)
        raise UserError(
            f"pretrained=timm:{tag}: timm has no such weights of {model}; nearest: {', '.join(near) or 'none'}"
        )
    one, other = (timm.get_pretrained_cfg(each) for each in (name, full))
    if one is not None and other is not None and (one.mean, one.std) != (other.mean, other.std):
        raise UserError(
            f"pretrained=timm:{tag}: its mean and std are not those of {name}: say model.encoder.name={full} "
            "pretrained=imagenet, so that the checkpoint knows them too"
        )
    return full


def _refuse_other_images(name: str, said: str, about: Mapping[str, Any]) -> None:
    """Raise UserError if a hub repository's images are normalised in another way than those of `name`.

    Args:
        name: timm model, by which a checkpoint builds the network again.
        said: `hub:OWNER/REPOSITORY`.
        about: the repository's description as timm writes it; others say nothing of the images.
    """
    own, theirs = timm.get_pretrained_cfg(name), about.get("pretrained_cfg", about)
    wanted = [theirs.get(key) for key in ("mean", "std")] if isinstance(theirs, Mapping) else [None]
    if own is None or None in wanted or wanted == [list(own.mean), list(own.std)]:
        return
    model = name.split(".")[0]
    alike = [
        tag
        for tag in timm.list_pretrained(f"{model}.*")
        if (cfg := timm.get_pretrained_cfg(tag)) is not None and [list(cfg.mean), list(cfg.std)] == wanted
    ]
    near = difflib.get_close_matches(said.rpartition("/")[2], alike, n=1, cutoff=0)
    cure = f"say model.encoder.name={near[0]}, whose are," if near else "say pretrained=FILE, model.mean and model.std"
    raise UserError(
        f"pretrained={said}: its images have mean {wanted[0]} and std {wanted[1]}, which are not those of {name}: "
        f"{cure} so that the checkpoint knows them too"
    )


def _checked(name: str, path: str, allow_missing: Sequence[str]) -> dict[str, Any]:
    """Return timm's arguments for loading a file; raises KeyError if it would leave a tensor at its random start."""
    read_tensors(Path(path))  # verifies the checksums, which timm does not
    found = load_state_dict(path)
    model = timm.create_model(name, num_classes=0)
    wanted, given = model.state_dict(), _renamed(name, model, found)
    missing, allowed = split_missing([key for key in wanted if key not in given], wanted, allow_missing)
    if missing:
        raise KeyError(f"{len(missing)} tensors missing, first {missing[0]}")
    for key, tensor in wanted.items():
        if key in given and given[key].shape != tensor.shape:
            raise ValueError(f"{key} is {tuple(given[key].shape)}, the model wants {tuple(tensor.shape)}")
    if not allowed:
        return {"file": path}
    log.warning("%s: %d tensors LEFT UNTRAINED as allowed, first %s", path, len(allowed), allowed[0])
    return {"state_dict": {**found, **{key: wanted[key] for key in allowed}}}


def _renamed(name: str, model: Module, found: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Rename and resample a file's tensors as timm does when it loads them: official files have names of their own."""
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return found
    with redirect_stdout(io.StringIO()):
        scale = {"adapt_layer_scale": True} if name.startswith("deit3") else {}
        renamed: Mapping[str, Tensor] = rename(dict(found), model, **scale)
    return renamed


def _cure(weights: str | Path | None, own: bool, cure: str) -> str:
    if weights is None:
        return cure
    if own:
        return "run once with network access, give a file, or pretrained=null"
    return f"pretrained={weights} must hold the timm weights of this model"
