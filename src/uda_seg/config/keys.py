"""Keys: which command reads which, what older versions called them, and their defaults, below the files of `conf/`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from uda_seg.config.commands import COMMANDS
from uda_seg.config.settings import Config
from uda_seg.data.settings import DomainSettings


def own_keys(kind: type[Config]) -> set[str]:
    """Return the top-level keys that a command has besides those of training."""
    return {f.name for f in fields(kind)} - {f.name for f in fields(Config)}


def primary(kind: type[Config]) -> str:
    """Return the name of a schema's primary configuration; that of training for one that is no command's."""
    return next((name for name, found in COMMANDS.items() if found is kind), "config")


def kind_of(tree: Iterable[Any]) -> type[Config]:
    """Tell a command's schema by the keys of its composed configuration."""
    return next((kind for kind in COMMANDS.values() if kind is not Config and own_keys(kind) <= {*tree}), Config)


def belongs_to(key: str, kind: type[Config]) -> str | None:
    """Name the commands that read a key which this one does not, in words that follow it; None if there are none."""
    name = key.partition(".")[0]
    owners = [f"uda_seg.{command}" for command, found in COMMANDS.items() if name in own_keys(found)]
    if not owners or name in own_keys(kind):
        return None
    command = "train" if kind is Config else primary(kind)
    said = f"is read by {', '.join(owners)}, not by uda_seg.{command}"
    if key == "checkpoint":
        return f"{said}: to begin with its weights say init=..., to continue its run resume=..."
    return said


# Keys of older versions -> their names now.
RENAMED = {
    "text": "method.text",
    "masking.weight": "method.mask_weight",
    "masking.ratio": "method.mask_ratio",
    "model.recompute": "model.activation_checkpointing",
}


def renamed(key: str) -> str | None:
    """Say what a key of older versions is called now, in words that follow it; None if it is none."""
    found = [now for before, now in RENAMED.items() if f"{before}.".startswith(f"{key}.")]
    return f"is now {' and '.join(found)}" if found and key not in ("model", "method") else None


def plain_defaults(kind: type[Config]) -> dict[str, Any]:
    """Return the defaults of a command's own keys, of `Config` of all keys, as plain values.

    They are composed below the files of `conf/`, which say only what differs. The network, the method, and the name and
    data sets of `data` have none.
    """
    tree = asdict(kind(model={}, method={}))
    if kind is not Config:
        return {key: tree[key] for key in own_keys(kind)}
    for key in ("model", "method"):
        del tree[key]
    del tree["callbacks"]["others"]
    tree["data"]["target"] = asdict(DomainSettings())
    tree["data"]["name"] = tree["data"]["source"]["dataset"] = tree["data"]["target"]["dataset"] = MISSING
    return tree


def _stored(kind: type[Config]) -> DictConfig:
    """Return the defaults with room for options that no file of a network or method states; `parse` knows them."""
    tree = OmegaConf.create(plain_defaults(kind))
    for key in ("model", "method") if kind is Config else ():
        tree[key] = {}
        OmegaConf.set_struct(tree[key], False)
    return tree


for _name, _kind in COMMANDS.items():
    ConfigStore.instance().store(f"{_name}_defaults", _stored(_kind), provider="uda_seg")
