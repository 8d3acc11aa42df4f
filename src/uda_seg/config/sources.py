"""Folders of configuration outside the package: on the command line, and of installed plugins."""

from __future__ import annotations

import importlib.resources
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from uda_seg.config.schema import CONF, key_of
from uda_seg.errors import UserError
from uda_seg.options.validate import shown

KEY = "hydra.searchpath"


def searchpath_in(overrides: Sequence[str]) -> list[str]:
    """Read `hydra.searchpath` from overrides; the first one counts, as for Hydra.

    Raises:
        UserError: not a list.
    """
    for override in overrides:
        if key_of(override) == KEY:
            value = OverridesParser.create().parse_override(override).value()
            if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
                raise UserError(f"{shown(override)} must be a list: {KEY}=[file://FOLDER]")
            return value
    return []


def with_folder(overrides: Sequence[str], folder: Path | None) -> list[str]:
    """Add a folder given by `--config-dir` to the overrides' `hydra.searchpath`."""
    if folder is None:
        return list(overrides)
    paths = [f"file://{folder}", *searchpath_in(overrides)]
    said = ",".join(QuotedString(path, Quote.single).with_quotes() for path in paths)
    return [f"{KEY}=[{said}]", *(o for o in overrides if key_of(o) != KEY)]


def choices_in(group: str, folders: Iterable[Path]) -> list[str]:
    """List the choices of a group; those in a folder `parts` are chosen along with others."""
    roots = [folder / group for folder in folders]
    files = {p.relative_to(root).with_suffix("") for root in roots for p in root.rglob("*.yaml")}
    return sorted(file.as_posix() for file in files if "parts" not in file.parts[:-1])


def searched(paths: Sequence[str]) -> list[Path]:
    """Resolve the entries of `hydra.searchpath` to folders.

    Args:
        paths: `file://FOLDER`, or `pkg://PACKAGE.FOLDER` of an importable package.

    Raises:
        UserError: a folder does not exist, which Hydra would only warn about.
    """
    return [_folder(path) for path in paths]


def registered() -> list[Path]:
    """Return the folders added by SearchPathPlugins of installed packages, without Hydra's own."""
    entries = create_config_search_path(str(CONF)).get_path()
    ours = ("hydra", "main", "schema")
    return [
        _folder(str(e.path)) for e in entries if e.provider not in ours and not str(e.path).startswith("structured")
    ]


def _folder(path: str) -> Path:
    scheme, separator, rest = path.partition("://")
    if not separator or scheme == "file":
        folder: Path | None = Path(rest or path).absolute()
    elif scheme == "pkg":
        folder = _of_package(rest)
    else:
        raise UserError(f"{KEY}: {shown(path)} is none: give file://FOLDER or pkg://PACKAGE.FOLDER")
    if folder is None or not folder.is_dir():
        raise UserError(f"{KEY}: {shown(path)}: there is no such folder")
    return folder


def _of_package(name: str) -> Path | None:
    """Locate the folder of `a.b.conf` or `a.b/conf`; None without such a package."""
    try:
        found = importlib.resources.files(name.replace("/", "."))
    except (ImportError, TypeError, ValueError):
        return None
    # A folder without Python files is a namespace package, which may have several locations.
    place = next(iter(getattr(found, "_paths", [found])))
    return Path(str(place))


def make_importable(folders: Iterable[Path]) -> None:
    """Append the parents of given configuration folders to `sys.path`, so that packages next to them are found."""
    for folder in folders:
        if (place := str(folder.parent)) not in sys.path:
            sys.path.append(place)
