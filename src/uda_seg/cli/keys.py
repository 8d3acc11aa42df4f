"""Valid keys and choices of overrides, from the package's configuration and an additional folder."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from uda_seg.cli.arguments import as_override
from uda_seg.config.former import former
from uda_seg.config.keys import belongs_to
from uda_seg.config.replay import said_by
from uda_seg.config.schema import CONF, Config, accepted, can_name_a_class, has_target
from uda_seg.config.sources import KEY, choices_in, registered, searched
from uda_seg.data.settings import NAMED
from uda_seg.errors import UserError
from uda_seg.options.validate import class_of, leaves, nearest, options, shown
from uda_seg.storage.files import read_yaml


@dataclass(frozen=True)
class Places:
    """Search path of configuration files: the package, other packages, and given folders.

    Attributes:
        paths: of `hydra.searchpath`.
        folders: all of them.
    """

    paths: tuple[str, ...] = ()
    folders: tuple[Path, ...] = (CONF,)

    @classmethod
    def of(cls, folder: Path | None = None, paths: Sequence[str] = ()) -> Places:
        """Build the search path after checking that every file in the given folders' groups is YAML.

        Args:
            folder: of `--config-dir`.
            paths: of `hydra.searchpath`.

        Raises:
            UserError: an invalid file, with its defect, or a folder that does not exist.
        """
        paths = [*([] if folder is None else [f"file://{folder}"]), *paths]
        given = searched(paths)
        places = cls(tuple(paths), (CONF, *registered(), *given))
        for place in given:
            for group in ("", *places.groups()):
                for path in sorted((place / group).glob("*.yaml")):
                    read_yaml(path)
        return places

    def groups(self) -> set[str]:
        """Return the names of all groups."""
        inside = (path for folder in self.folders for path in folder.iterdir() if path.is_dir())
        return {path.name for path in inside} - {"hydra"}

    def choices(self, group: str) -> list[str]:
        """List the choices of a group."""
        return choices_in(group, self.folders)

    def said_by(self, group: str, name: str | None) -> list[tuple[str, Any]]:
        """List the keys and values of a group's file, of the first folder that has it; none without one."""
        files = (folder / group / f"{name}.yaml" for folder in self.folders)
        return next((said_by(file) for file in files if name is not None and file.is_file()), [])

    def overrides(self) -> list[str]:
        """Return the overrides that add the given folders to Hydra's search path."""
        if not self.paths:
            return []
        return [f"{KEY}=[{','.join(as_override('', path)[1:] for path in self.paths)}]"]


def check_keys(
    tree: Mapping[str, Any], overrides: Sequence[Override], chosen: Sequence[str] = (), kind: type[Config] = Config
) -> set[str]:
    """Refuse keys that the configuration does not have, in every form of override.

    Args:
        tree: plain values of the chosen files.
        overrides: overrides of keys, not of groups.
        chosen: overrides of groups, for messages.
        kind: schema of the command's configuration.

    Returns:
        The keys that the schema or a class has but no file sets.

    Raises:
        UserError: an unknown key; names the nearest valid one.
    """
    tree = _with_added_sets(tree, overrides)
    values = dict(leaves(tree))
    present = set(values)
    tree = _with_classes(tree, overrides)
    settable = present.union(accepted(tree, kind=kind))
    fixed = {*accepted({}, kind=kind)} - {"data.validation", "data.more_sources", "data.more_targets"}
    for override in overrides:
        key = str(override.key_or_group)
        known = present if override.is_delete() else settable
        if key not in known and not override.is_delete():  # it may name things freely
            known = settable.union(accepted(tree, key, kind))
        if override.is_delete() and key in settable - present:
            raise UserError(f"{key} is set by no file: there is nothing to delete")
        if key not in known and (said := belongs_to(key, kind) or former(key)):
            raise UserError(f"{shown(key)} {said}")
        if key not in known:
            where = f" with {' '.join(chosen)}" if chosen else ""
            raise UserError(f"{shown(key)} is no key of the configuration{where}; {nearest(key, known)}")
        if override.is_delete() and values[key] is None:
            raise UserError(f"{key} is null already: there is nothing to delete")
        if override.is_delete() and key in fixed:
            raise UserError(f"~{key} would only bring back its default: write {key}=... with a value, or leave it out")
        if override.value() == {} and values.get(key):
            raise UserError(f"{key}={{}} would change nothing: give the keys below it one by one")
        if key in ("data.source", "data.target") and isinstance(override.value(), list):
            others = f"data.more_{key.partition('.')[2]}s.NAME"
            raise UserError(f"{key} is one domain, not a list: name the others, +{others}={{dataset: ...}}")
        _check_parents(values, key, overrides)
    return {str(o.key_or_group) for o in overrides} - present


def check_files(
    tree: Mapping[str, Any], choices: Mapping[str, str], overrides: Sequence[Override], places: Places
) -> None:
    """Refuse released behaviours, presets and recipes whose file sets what the chosen method or network does not have.

    Args:
        tree: plain values of the chosen files.
        choices: the file of each group.
        overrides: overrides of keys, not of groups.
        places: where the files are.

    Raises:
        UserError: an option that is not there, or the class of another method, in place of the chosen one.
    """
    deleted = {str(o.key_or_group) for o in overrides if o.is_delete()}
    nodes = {key: node for key, node in leaves(_with_classes(tree, overrides)) if has_target(node)}
    for group in ("preset", "quirks", "experiment"):
        for key, value in places.said_by(group, choices.get(group)):
            where, _, option = key.rpartition(".")
            if key == "method._target_" and group == "quirks":
                _check_same_method(value, choices, places)
            known = options(nodes[where]["_target_"], where) if where in nodes and key not in deleted else None
            if known is None or option in {"_target_", "_partial_", *known} or "**" in known:
                continue
            part = where.partition(".")[0]
            raise UserError(
                f"{group}={choices[group]} sets {key}, which {part}={choices[part]} does not have: choose another "
                f"{part}= or {group}=, or leave it out: ~{key}"
            )


def _check_same_method(target: str, choices: Mapping[str, str], places: Places) -> None:
    """Raise UserError if a file of `quirks` has the class of another method than the chosen one."""
    own = dict(places.said_by("method", choices.get("method"))).get("method._target_")
    if own is not None and not issubclass(class_of(target, "method"), class_of(own, "method")):
        raise UserError(
            f"quirks={choices['quirks']} are those of {target.rpartition('.')[2]}, not of method={choices['method']}: "
            "leave one of them out"
        )


def _with_added_sets(tree: Mapping[str, Any], overrides: Sequence[Override]) -> Mapping[str, Any]:
    """Add the named domains of `+` overrides to the tree, so that their keys are known."""
    names = [str(o.key_or_group).split(".") for o in overrides if o.is_add() or o.is_force_add()]
    added = [name[1:3] for name in names if name[0] == "data" and len(name) > 2 and name[1] in NAMED]
    if not added:
        return tree
    whole: Any = copy.deepcopy(tree)
    for group, name in added:
        whole.setdefault("data", {}).setdefault(group, {}).setdefault(name, {})
    return whole  # type: ignore[no-any-return]


def _with_classes(tree: Mapping[str, Any], overrides: Sequence[Override]) -> Mapping[str, Any]:
    """Return the tree with the classes that overrides name, so that their options are known."""
    whole: Any = None
    for override in overrides:
        key, value = str(override.key_or_group), None if override.is_sweep_override() else override.value()
        node = {"_target_": value} if key.endswith("._target_") else value
        key = key.removesuffix("._target_")
        if override.is_delete() or not isinstance(node, dict) or "_target_" not in node:
            continue
        if can_name_a_class(key) or has_target(dict(leaves(tree)).get(key)):
            whole = copy.deepcopy(tree) if whole is None else whole
            *parents, name = key.split(".")
            place = functools.reduce(lambda inner, part: inner.setdefault(part, {}), parents, whole)
            kept = place.get(name) if isinstance(place.get(name), dict) else {}
            place[name] = {**kept, **node}
    return tree if whole is None else whole


def _check_parents(values: Mapping[str, Any], key: str, overrides: Sequence[Override]) -> None:
    """Raise UserError if a key is inside a value that is not a mapping, which Hydra would replace."""
    given = {str(o.key_or_group): o for o in overrides if not o.is_delete()}
    for parent in _parents(key):
        value = values.get(parent)
        if parent in given and not isinstance(given[parent].value(), dict | None):
            raise UserError(f"{shown(given[parent].input_line)} has no keys below it: leave out {key}, or this")
        if parent not in given and isinstance(value, str):
            cure = f"set {parent}={{...}} as a whole, or what it is taken from"
            raise UserError(f"{key} lies in {parent}={shown(value)}, which is no mapping of its own: {cure}")


def _parents(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))
