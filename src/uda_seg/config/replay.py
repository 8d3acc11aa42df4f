"""Description of a run in its checkpoint, and replay of its configuration."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import OmegaConf

from uda_seg.config.former import released_bicl, with_todays_names
from uda_seg.config.schema import CONF, Config, Origin, groups, key_of
from uda_seg.config.sources import KEY, choices_in, registered, searched, searchpath_in
from uda_seg.data.custom import classes_of, contents
from uda_seg.errors import UserError
from uda_seg.options.validate import defaults, leaves, nearest, shown

FORMAT = 1  # version of the description


def describe(config: Config) -> dict[str, Any]:
    """Describe a configuration for its checkpoint: group choices and plain overrides that compose the same network."""
    overrides: list[str] = []
    origin = config.origin
    if origin is None:
        origin = Origin.of(HydraConfig.get()) if HydraConfig.initialized() else Origin({}, [])
    resolved = OmegaConf.create(asdict(config))
    for override in origin.overrides:
        key = key_of(override)
        if key not in groups():
            # Interpolations may refer to this machine's environment, so their values are stored.
            named = "${" in override
            overrides.append(f"{key}={OmegaConf.select(resolved, key)}" if named else override)
    return {
        "format": FORMAT,
        "version": importlib.metadata.version("uda_seg"),
        "choices": dict(origin.choices),
        "overrides": overrides,
        "classes": config.data.classes,
        "class_names": list(classes_of(config.data).names),
        "described": contents(config.data),
        "method": method_name(config),
        "class": str(config.method["_target_"]),  # to be told, never to be imported
        "options": method_options(config),
        "seed": config.seed,
    }


def method_name(config: Config) -> str:
    """Return the name of the method's class."""
    return str(config.method["_target_"]).rpartition(".")[2]


def method_options(config: Config) -> dict[str, Any]:
    """Return all options of the method as plain values, including defaults."""
    given = {name: value for name, value in config.method.items() if name != "_target_"}
    return defaults(get_class(config.method["_target_"])) | given


# Not replayed: paths, launcher, initial weights, and outputs.
_NOT_REPLAYED = re.compile(
    r"^(init|resume|overwrite|checkpoint|input|output|pretrained|trainer|logger|callbacks|sweep|debug)$"
    r"|^(submission|export|official|out|fix|unpack)$|^(hydra|trainer|logger|callbacks|streets|pack|bench|convert)[./]"
    r"|^model\..*weights$"
)


def replay(checkpoint: Mapping[str, Any], given: list[str]) -> list[str]:
    """Return overrides that compose the checkpoint's network; given ones win, and `data=` replaces all of its data.

    An experiment is replayed by its values, because its file would take precedence over `data=`. Its choices (method,
    model, evaluator) are among the stored ones.

    Raises:
        UserError: an override that names code: a checkpoint may contain values, never classes.
    """
    said, keys = with_todays_names(checkpoint["uda_seg"]), {key_of(o) for o in given}
    left_out = re.compile(_NOT_REPLAYED.pattern + (r"|^data\." if "data" in keys else ""))
    stored = [*(f"{group}={choice}" for group, choice in said["choices"].items()), *said["overrides"]]
    for override in stored:  # Hydra would read " hydra.searchpath" as the key that it is not called here
        if not re.fullmatch(r"[\w./-]+", key_of(override)):
            raise UserError(f"the checkpoint asks for {shown(override)}, which is no override: not loaded")
    stored = [o for o in stored if not left_out.search(key_of(o))]
    for override in stored:
        # As a whole word: folders may be called `new_target_images`.
        if (re.search(r"\b_target_\b", override) or "${" in override) and key_of(override) not in keys:
            raise UserError(
                f"the checkpoint asks for {override}, which names code: not loaded; if it is yours, give this override "
                "again on the command line"
            )
    _refuse_strangers(said, keys, given)
    if isinstance(described := said.get("described"), Mapping):
        stored = _with_contents(stored, described, keys)
    own = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    values: list[str] = []
    if "experiment" not in keys and (experiment := said["choices"].get("experiment")) in own:
        stored.remove(f"experiment={experiment}")
        values = [o for o in _said_by(str(experiment)) if not left_out.search(key_of(o))]
    if not any(key_of(o) == "method._target_" for o in values):
        values += released_bicl(stored)
    return [o for o in ("++model.encoder.weights=null", *values, *stored) if key_of(o) not in keys] + given


def _refuse_strangers(said: Mapping[str, Any], given: set[str], overrides: Sequence[str]) -> None:
    """Refuse a method, network or data set of a checkpoint that is not available here, and name its class."""
    folders = [CONF, *registered(), *searched(searchpath_in(overrides))]
    for group in ("method", "model", "data"):
        choice = said["choices"].get(group)
        if choice is None or group in given or choice in choices_in(group, folders):
            continue
        name = f" (class {shown(said['class'])})" if group == "method" and isinstance(said.get("class"), str) else ""
        raise UserError(
            f"the checkpoint was trained with {group}={shown(choice)}{name}, and there is no such {group} here; "
            f"{nearest(choice, choices_in(group, folders))}; if it is of another package, install that, or say where "
            f"its YAML files lie: {KEY}=[file://FOLDER]"
        )


# Keys of custom class sets and data sets.
_DESCRIBED = re.compile(r"data\.(class_set|(source|target|(more_sources|more_targets|validation)\.[\w-]+)\.custom)")


def _with_contents(stored: list[str], described: Mapping[str, Any], given: set[str]) -> list[str]:
    """Replace files of custom data sets and classes in the overrides by their stored contents.

    Raises:
        UserError: a description that refers to the machine's environment, or names code.
    """
    touched = {"class_set" if g.startswith("data.class_set") else "custom" for g in given if _DESCRIBED.match(g)}
    for key, content in described.items():
        text = json.dumps(content)
        if "${" in text or "_target_" in text:
            raise UserError(f"the checkpoint describes {key} by {text}: not loaded")
        # Overrides cannot have other keys, and a given `custom` may be followed by others.
        if not _DESCRIBED.fullmatch(key) or "data" in given or key.rpartition(".")[2] in touched:
            continue
        stored = [o for o in stored if key_of(o) != key and not key_of(o).startswith(f"{key}.")]
        # Characters that Hydra would interpret, or take as the end of the value, are written as JSON escapes.
        stored.append("++{}='{}'".format(key, text.replace("'", "\\u0027").replace("$", "\\u0024")))
    return stored


def _said_by(experiment: str) -> list[str]:
    """Return the values of an experiment's file, and of those it extends, as overrides; later ones win."""
    tree: Any = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml"))
    parents = [entry for entry in tree.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    own = [f"++{key}={json.dumps(value)}" for key, value in leaves(tree) if not isinstance(value, Mapping)]
    return [*(override for parent in parents for override in _said_by(parent)), *own]
