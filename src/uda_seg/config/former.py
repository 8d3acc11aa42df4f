"""What older versions called a method's options, for checkpoints that state them and for whoever still gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uda_seg.config.schema import key_of

BASE = "method.base"  # of T2S-DA, which now has a choice of `method=` for each base
BASES = {"dacs": "t2sda_dacs", "daformer": "t2sda", "mic": "t2sda_mic"}


def former(key: str) -> str | None:
    """Say what a former key is called now, in words that follow it; None if it never was one."""
    return f"is now part of the method: method={' | '.join(BASES.values())}" if key == BASE else None


def with_todays_names(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint's description with T2S-DA's former option `base` as the choice that it is now."""
    if said["choices"].get("method") != "t2sda":
        return said
    given = [o.partition("=")[2] for o in said["overrides"] if key_of(o) == BASE]
    base = given[-1] if given else _options(said).get("base")
    method = BASES.get(base, "t2sda") if isinstance(base, str) else "t2sda"
    overrides = [o for o in said["overrides"] if key_of(o) != BASE]
    return {**said, "choices": {**said["choices"], "method": method}, "overrides": overrides}


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
