"""Description of a run in its checkpoint, and replay of its configuration."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import OmegaConf

from uda_seg.config.former import released_bicl, with_former_mean, with_todays_names
from uda_seg.config.keys import belongs_to
from uda_seg.config.schema import CONF, Config, Origin, groups, key_of
from uda_seg.config.sources import KEY, choices_in, registered, searched, searchpath_in
from uda_seg.data.custom import classes_of, contents
from uda_seg.errors import UserError
from uda_seg.options.validate import defaults, leaves, nearest, shown

FORMAT = 2  # version of the description; 2: timm's networks have the mean and deviation of their weights


def describe(config: Config) -> dict[str, Any]:
    """Describe a configuration for its checkpoint: group choices and plain overrides that compose the same network."""
    overrides: list[str] = []
    origin = config.origin
    if origin is None:
        origin = Origin.of(HydraConfig.get()) if HydraConfig.initialized() else Origin({}, [])
    for override in origin.overrides:
        key = key_of(override)
        if key not in groups():
            # Interpolations may refer to this machine's environment, so their values are stored.
            named = "${" in override
            overrides.append(f"{key}={OmegaConf.select(OmegaConf.create(asdict(config)), key)}" if named else override)
    if origin.choices.get("evaluator") == "slide_crop":  # the crop of training, also where other data have another
        overrides += [f"evaluator.window={config.evaluator.window}", f"evaluator.stride={config.evaluator.stride}"]
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
    r"^(init|resume|overwrite|checkpoint|input|output|serve|pretrained|trainer|logger|callbacks|sweep|debug)$"
    r"|^(submission|export|official|out|runs|report|fix|unpack|format|push)$"
    r"|^(hydra|trainer|logger|callbacks|streets|pack|bench|convert|export|report)[./]"
    r"|^predict\.(?!(size|bits)$)|^model\..*weights$"
)


def replay(checkpoint: Mapping[str, Any], given: list[str], kind: type[Config] = Config) -> list[str]:
    """Return overrides that compose the checkpoint's network; given ones win, and `data=` replaces all of its data.

    Settings of other commands than that of `kind`, which older checkpoints may have, are left out.

    An experiment is replayed by its values, and the released behaviours that it chooses, because their files would take
    precedence over `data=`. Its choices (method, model, evaluator) are among the stored ones.

    Raises:
        UserError: an override that names code: a checkpoint may contain values, never classes.
    """
    keys = {key_of(o) for o in given}
    said = with_former_mean(with_todays_names(checkpoint["uda_seg"], keys))
    left_out = re.compile(
        _NOT_REPLAYED.pattern
        + (r"|^data\." if "data" in keys else "")
        + (r"|^evaluator\.(window|stride)$" if "evaluator" in keys else "")
    )
    stored = [*(f"{group}={choice}" for group, choice in said["choices"].items()), *said["overrides"]]
    for override in stored:  # Hydra would read " hydra.searchpath" as the key that it is not called here
        if not re.fullmatch(r"[\w./-]+", key_of(override)):
            raise UserError(f"the checkpoint asks for {shown(override)}, which is no override: not loaded")
    stored = [o for o in stored if not left_out.search(key_of(o)) and belongs_to(key_of(o), kind) is None]
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
    values = []
    for group, choice in _by_values(said["choices"]).items():
        stored = [o for o in stored if o != f"{group}={choice}"]
        if not {group, "experiment"} & keys:
            said_there = [o for o in _said_by(group, choice) if not left_out.search(key_of(o))]
            values += [o for o in said_there if belongs_to(key_of(o), kind) is None]
    if not any(key_of(o) == "method._target_" for o in values):
        values += released_bicl(stored)
    return [o for o in (*_trunk(said, keys), *values, *stored) if key_of(o) not in keys] + given


def _trunk(said: Mapping[str, Any], given: set[str]) -> list[str]:
    """Return the override of the encoder's weights: none, as the checkpoint has them, or those of its frozen trunk.

    A name means the same weights everywhere; a path is that of this machine, which only the user can tell.

    Raises:
        UserError: the trunk was a file, and none is given.
    """
    trunk = said.get("trunk")
    if trunk is None:
        return ["++model.encoder.weights=null"]
    if given & {"pretrained", "model.encoder.weights"}:
        return []
    if trunk["weights"] is None:
        raise UserError(
            f"the checkpoint holds what was trained, not its frozen trunk, which was the file {shown(trunk['file'])}: "
            "add pretrained=FILE"
        )
    return [f"++model.encoder.weights={trunk['weights']}"]


def _by_values(choices: Mapping[str, str]) -> dict[str, str]:
    """Return the choices that are replayed by their values: group -> file, in the order of their precedence.

    Checkpoints of older versions have none of `quirks`, as experiments had these values themselves.
    """
    experiment = choices.get("experiment")
    found = {"quirks": choices.get("quirks") or _quirks_of(experiment), "experiment": experiment}
    return {group: name for group, name in found.items() if name is not None and _is_ours(group, name)}


def _is_ours(group: str, name: str) -> bool:
    return name in {path.stem for path in (CONF / group).glob("*.yaml")}


def _quirks_of(experiment: str | None) -> str | None:
    """Return the released behaviours that an experiment's file chooses, or one that it extends."""
    if experiment is None or not _is_ours("experiment", experiment):
        return None
    tree: Any = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    for entry in tree.get("defaults", []):
        found = _quirks_of(entry) if isinstance(entry, str) else entry.get("override /quirks")
        if found is not None:
            return str(found)
    return None


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


def _said_by(group: str, name: str) -> list[str]:
    """Return the values of a file, and of those it extends, as overrides; later ones win."""
    values = said_by(CONF / group / f"{name}.yaml")
    return [f"++{key}={json.dumps(value)}" for key, value in values if not isinstance(value, Mapping)]


def said_by(file: Path) -> list[tuple[str, Any]]:
    """List the keys and values of a file, and of those of its folder that it extends; later ones win."""
    tree: Any = OmegaConf.to_container(OmegaConf.load(file))
    parents = [entry for entry in tree.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    extended = (file.parent / f"{parent}.yaml" for parent in parents)
    return [*(pair for parent in extended if parent.is_file() for pair in said_by(parent)), *leaves(tree)]
