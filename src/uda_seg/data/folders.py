"""Folders of a data set: listing files, and finding misplaced folders."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from uda_seg.data.images import SUFFIXES
from uda_seg.data.specs import DatasetSpec
from uda_seg.errors import UserError

# Files left by operating systems, in lower case.
_CLUTTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"),
}
_KINDS_SHOWN, _NAMES_SHOWN = 5, 3


def fixed(pattern: str) -> tuple[str, tuple[str, ...]]:
    """Split a folder pattern at its first wildcard into the fixed folder and the remaining parts."""
    parts = pattern.split("/")
    stars = next((i for i, part in enumerate(parts) if "*" in part), len(parts))
    return "/".join(parts[:stars]), tuple(parts[stars:])


def holds(root: Path, place: tuple[str, str], labeled: bool) -> bool:
    """Return whether a pair of folder patterns, or only the images' pattern, exists under `root`."""
    return all(any(p.is_dir() for p in matching(root, pattern)) for pattern in (place if labeled else place[:1]))


def matching(root: Path, pattern: str) -> Iterable[Path]:
    """List the paths under `root` that match a folder pattern; an empty one means `root` itself."""
    return root.glob(pattern) if pattern else [root]


def nearby_root(spec: DatasetSpec, root: Path, split: str, labeled: bool) -> Path | None:
    """Find the data set up to two levels above or below `root`; None if it is not there."""
    places = [place for place in spec.places(split) if place[0]]  # any folder could be one without folders of its own
    around = [*root.glob("*/"), *root.glob("*/*/")] if root.is_dir() else []
    for folder in itertools.chain(root.absolute().parents[:2], sorted(around)):
        for place in places:
            # Many data sets have a folder of this name, so the images' suffix is checked too.
            if holds(folder, place, labeled) and next(folder.glob(f"{place[0]}/**/*{spec.image_suffix}"), None):
                return folder
    return None


def packed_files(root: Path, prepare: str) -> str | None:
    """Suggest a cure for a missing folder whose files are still packed; None if they are not."""
    packed = sorted(name for suffix in ("zip", "rar", "7z", "tar*", "tgz") for name in root.glob(f"*.{suffix}"))
    if not packed or not prepare:
        return None
    by_hand = "" if packed[0].suffix == ".zip" else f"unpack {packed[0].name} there (unrar, 7z or tar), then "
    return f"{root} holds packed files only: {by_hand}run {prepare}"


def scan(folder: Path, suffix: str, within: tuple[str, ...] = ()) -> list[str]:
    """List files under `folder` with this suffix (`ends_in`), relative to it with forward slashes, sorted.

    Only files whose first folders match the patterns of `within`, one by one.
    """
    return [name for name in files_below(folder, within) if ends_in(name, suffix)]


def files_below(folder: Path, within: tuple[str, ...] = (), without: Path | None = None) -> list[str]:
    """List all files under `folder`, relative to it, sorted; links to folders are followed, except cycles.

    Hidden files and folders and those left by operating systems are skipped.

    Args:
        folder: Folder to search.
        within: Patterns of the first folders, one by one.
        without: A folder to skip.

    Raises:
        UserError: a folder that cannot be read.
    """
    found: list[str] = []
    passed = None if without is None else without.resolve()

    def enter(place: Path, prefix: str, depth: int, above: frozenset[tuple[int, int]]) -> None:
        try:
            entries, here = list(os.scandir(place)), _identity(place)
        except OSError as error:
            raise UserError(f"cannot look into the folder {place}: {error.strerror or error}") from error
        if here in above or (passed is not None and place.resolve() == passed):
            return  # `above`: a link to one of its parents
        for entry in entries:
            if is_clutter(entry.name):
                continue
            if _is_folder(entry):
                if depth >= len(within) or fnmatch(entry.name, within[depth]):
                    enter(place / entry.name, f"{prefix}{entry.name}/", depth + 1, above | {here})
            elif depth >= len(within):
                found.append(prefix + entry.name)

    above = folder.absolute().resolve().parents if folder.is_dir() else ()
    enter(folder, "", 0, frozenset(map(_identity, above)))
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_clutter(name: str) -> bool:
    """Return whether a file or folder is hidden or left by an operating system (macOS: `._name.png`, `__MACOSX`)."""
    return name.startswith(".") or name.lower() in _CLUTTER


def ends_in(name: str, suffix: str) -> bool:
    """Return whether a name has this suffix, case-insensitively; a final `.*` matches any image extension."""
    lower, suffix = name.lower(), suffix.lower()
    if suffix.endswith(".*"):
        return lower.endswith(tuple(suffix[:-2] + kind for kind in SUFFIXES))
    return lower.endswith(suffix)


def without_end(name: str, suffix: str) -> str:
    """Remove a suffix that the name `ends_in`."""
    if suffix.endswith(".*"):
        return name[: len(name) - len(PurePosixPath(name).suffix) - len(suffix[:-2])]
    return name[: len(name) - len(suffix)]


def composed(name: str) -> str:
    """Return a name with its accents as single characters; macOS may write them as letter and accent."""
    return unicodedata.normalize("NFC", name)


def kinds_of(names: Sequence[str]) -> str:
    """Summarise files by kind: `3 files (2 .jpg, 1 .txt): a.jpg, b.jpg, notes.txt`."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "without a suffix" for name in names)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_KINDS_SHOWN))
    more = ", ..." if len(kinds) > _KINDS_SHOWN else ""
    first = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"{len(names)} file{'s' if len(names) > 1 else ''} ({listed}{more}): {first}"


def twins(names: Sequence[str], suffix: str) -> tuple[str, str] | None:
    """Find the first two names that are equal without their suffixes (as `composed`); None if all differ."""
    seen: dict[str, str] = {}
    for name in names:
        if (first := seen.setdefault(composed(without_end(name, suffix)), name)) != name:
            return first, name
    return None
