"""Valid keys and choices of overrides, from the package's configuration and an additional folder."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from uda_seg.cli.arguments import as_override
from uda_seg.config.schema import CONF, accepted
from uda_seg.errors import UserError
from uda_seg.options.validate import leaves, nearest, shown
from uda_seg.storage.files import read_yaml


@dataclass(frozen=True)
class Places:
    """Search path of configuration files: a given folder, then the package."""

    folder: Path | None = None

    @classmethod
    def of(cls, folder: Path | None) -> Places:
        """Build the search path after checking that every file in the folder's groups is YAML.

        Raises:
            UserError: an invalid file; names the defect.
        """
        places = cls(folder)
        if folder is not None:
            for group in ("", *places.groups()):
                for path in sorted((folder / group).glob("*.yaml")):
                    read_yaml(path)
        return places

    def groups(self) -> set[str]:
        """Return the names of all groups."""
        folders = [CONF] if self.folder is None else [CONF, self.folder]
        return {path.name for folder in folders for path in folder.iterdir() if path.is_dir() and path.name != "hydra"}

    def choices(self, group: str) -> list[str]:
        """List the choices of a group."""
        roots = [folder / group for folder in (CONF, self.folder) if folder is not None]
        return sorted({p.relative_to(root).with_suffix("").as_posix() for root in roots for p in root.rglob("*.yaml")})

    def overrides(self) -> list[str]:
        """Return the overrides that add the folder to Hydra's search path."""
        if self.folder is None:
            return []
        return [as_override("hydra.searchpath", f"file://{self.folder}").replace("=", "=[", 1) + "]"]


def check_keys(tree: Mapping[str, Any], overrides: Sequence[Override], chosen: Sequence[str] = ()) -> set[str]:
    """Refuse keys that the configuration does not have, in every form of override.

    Args:
        tree: plain values of the chosen files.
        overrides: overrides of keys, not of groups.
        chosen: overrides of groups, for messages.

    Returns:
        The keys that the schema or a class has but no file sets.

    Raises:
        UserError: an unknown key; names the nearest valid one.
    """
    tree = _with_added_sets(tree, overrides)
    values = dict(leaves(tree))
    present = set(values)
    settable = present.union(accepted(tree))
    for override in overrides:
        key = str(override.key_or_group)
        known = present if override.is_delete() else settable
        if key not in known and not override.is_delete():  # it may name things freely
            known = settable.union(accepted(tree, key))
        if key not in known:
            where = f" with {' '.join(chosen)}" if chosen else ""
            raise UserError(f"{shown(key)} is no key of the configuration{where}; {nearest(key, known)}")
        if override.is_delete() and values[key] is None:
            raise UserError(f"{key} is null already: there is nothing to delete")
        _check_parents(values, key, overrides)
    return {str(o.key_or_group) for o in overrides} - present


def _with_added_sets(tree: Mapping[str, Any], overrides: Sequence[Override]) -> Mapping[str, Any]:
    """Add the validation sets of `+` overrides to the tree, so that their keys are known."""
    names = [str(o.key_or_group).split(".") for o in overrides if o.is_add() or o.is_force_add()]
    added = [name[2] for name in names if name[:2] == ["data", "validation"] and len(name) > 2]
    if not added:
        return tree
    whole: Any = copy.deepcopy(tree)
    sets = whole.setdefault("data", {}).setdefault("validation", {})
    for name in added:
        sets.setdefault(name, {})
    return whole  # type: ignore[no-any-return]


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
