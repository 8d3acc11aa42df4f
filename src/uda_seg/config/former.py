"""Names of options and choices in older versions, for checkpoints that state them and for messages."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from uda_seg.config.keys import RENAMED, plain_defaults, renamed
from uda_seg.config.schema import Config, key_of
from uda_seg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD
from uda_seg.options.validate import leaves

BASE = "method.base"  # of T2S-DA, which now has a choice of `method=` for each base
BASES = {"dacs": "t2sda_dacs", "daformer": "t2sda", "mic": "t2sda_mic"}

# (group, former choice) -> its name now.
CHOICES = {("experiment", "bicl_ladder"): "bicl_ablation"}

# Options of BiCL that its release alone has now, with the values of the paper's method.
RELEASED_BICL = "uda_seg.methods.released.bicl.ReleasedBiCL"
PLAIN_BICL = {
    "feature": "fused", "absent": "masked", "entropy_weight": 0.0, "entropy_kind": "double_softmax",
    "resolution": "features", "source_ce": "all", "encoder_updates": "once", "stem": "shared",
}  # fmt: skip


def former(key: str) -> str | None:
    """Say what a former key is called now, in words that follow it; None if it never was one."""
    if key == BASE:
        return f"is now part of the method: method={' | '.join(BASES.values())}"
    if key.removeprefix("method.") in PLAIN_BICL:
        return "is an option of BiCL's release alone: add quirks=bicl"
    return renamed(key)


def with_todays_names(said: Mapping[str, Any], given: Collection[str] = ()) -> Mapping[str, Any]:
    """Return a checkpoint's description with today's choices and keys, of which T2S-DA's former option `base` is one.

    Args:
        said: the description.
        given: keys that are given anew, instead of the checkpoint's.
    """
    choices = {group: CHOICES.get((group, name), name) for group, name in said["choices"].items()}
    said = {**said, "choices": choices, "overrides": _overrides(said, given)}
    if said["choices"].get("method") != "t2sda":
        return said
    bases = [o.partition("=")[2] for o in said["overrides"] if key_of(o) == BASE]
    base = bases[-1] if bases else _options(said).get("base")
    method = BASES.get(base, "t2sda") if isinstance(base, str) else "t2sda"
    overrides = [o for o in said["overrides"] if key_of(o) != BASE]
    return {**said, "choices": {**said["choices"], "method": method}, "overrides": overrides}


def _overrides(said: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Return the checkpoint's overrides with the keys of older versions translated.

    Some were no option of a method but variables that its file read; they are left out for other methods.
    """
    found = []
    known = {f"method.{name}" for name in _options(said)} if "method" not in given else set()
    stored = {key_of(o) for o in said["overrides"]}
    defaults = {**dict(leaves(plain_defaults(Config))), "data.target": None}
    for override in said["overrides"]:
        key = key_of(override)
        if override.startswith("~") and not isinstance(defaults.get(key, {}), Mapping):  # which meant the default
            override = f"++{key}={json.dumps(defaults[key])}"
        parts = {key: override.partition("=")[2]}
        if key == "masking" and isinstance(values := OverridesParser.create().parse_override(override).value(), dict):
            parts = {f"{key}.{name}": json.dumps(value) for name, value in values.items()}
        for before, value in parts.items():
            now = RENAMED.get(before)
            if now is None:
                found.append(override)
            elif now not in stored and (now in known or not now.startswith("method.")):
                found.append(f"++{now}={value}")
    return found


def released_bicl(overrides: Sequence[str]) -> list[str]:
    """Return overrides that select the class of BiCL's release, for a checkpoint of `method=bicl` with its options.

    Args:
        overrides: of the checkpoint; choices of groups are among them.
    """
    given = {key_of(o): o.partition("=")[2] for o in overrides}
    moved = {f"method.{name}" for name in PLAIN_BICL if name != "feature"}
    if given.get("method") != "bicl" or not (moved & given.keys() or given.get("method.feature") == "logits"):
        return []
    plain = [f"++method.{name}={value}" for name, value in PLAIN_BICL.items() if f"method.{name}" not in given]
    return [f"++method._target_={RELEASED_BICL}", *plain]


def todays_method(said: Mapping[str, Any]) -> str:
    """Return the name of a checkpoint's method, for BiCL that of its release if an option differs from the paper's."""
    options = {name: value for name, value in _options(said).items() if name in PLAIN_BICL}
    if options.get("feature") in ("backbone", "projection"):  # the paper's method has these too
        del options["feature"]
    released = any(value != PLAIN_BICL[name] for name, value in options.items())
    return "ReleasedBiCL" if said.get("method") == "BiCL" and released else str(said.get("method"))


def with_former_mean(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint's description with ImageNet's mean and deviation for timm's networks of format 1.

    They had no other, unless it was given; today's networks have those of their weights.
    """
    if said.get("format", 1) > 1 or said["choices"].get("model") != "timm":
        return said
    given = {key_of(o) for o in said["overrides"]}
    former = {"model.mean": IMAGENET_MEAN, "model.std": IMAGENET_STD}
    kept = [f"++{key}={list(value)}" for key, value in former.items() if key not in given]
    return {**said, "overrides": [*kept, *said["overrides"]]}


def todays_options(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a checkpoint's method was trained with, by today's names.

    T2S-DA had the weights of all bases, and used those of its `base`.
    """
    options = dict(_options(said))
    base = options.pop("base", None) if said.get("method") == "T2SDA" else None
    if base == "dacs":
        options["feature_distance"] = 0.0
    if base in ("dacs", "daformer"):
        options["mask_weight"] = 0.0
    return options


def _options(said: Mapping[str, Any]) -> Mapping[str, Any]:
    found = said.get("options")
    return found if isinstance(found, Mapping) else {}
