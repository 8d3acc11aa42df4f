"""The folders of a data set: what lies in them, and where they are when they are not where they should be."""

from __future__ import annotations

import itertools
import os
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from uda_seg.data.specs import DatasetSpec


def fixed(pattern: str) -> tuple[str, tuple[str, ...]]:
    """A folder pattern as the folder before its first star and the parts from there on."""
    parts = pattern.split("/")
    stars = next((i for i, part in enumerate(parts) if "*" in part), len(parts))
    return "/".join(parts[:stars]), tuple(parts[stars:])


def holds(root: Path, place: tuple[str, str], labeled: bool) -> bool:
    """Whether a pair of folder patterns, or the images' alone, is there under `root`."""
    return all(any(p.is_dir() for p in root.glob(pattern)) for pattern in (place if labeled else place[:1]))


def nearby_root(spec: DatasetSpec, root: Path, split: str, labeled: bool) -> Path | None:
    """The folder up to two levels above or below `root` that the data set lies in, None where there is none."""
    below = [*root.glob("*/"), *root.glob("*/*/")] if root.is_dir() else []
    for folder in itertools.chain(root.absolute().parents[:2], sorted(below)):
        for place in spec.places(split):
            # Many data sets have a folder of such a name; this one's images end as they should.
            if holds(folder, place, labeled) and next(folder.glob(f"{place[0]}/**/*{spec.image_suffix}"), None):
                return folder
    return None


def packed_files(root: Path, prepare: str) -> str | None:
    """What to do about a missing folder where the files are still packed; None: they are not."""
    packed = sorted(name for suffix in ("zip", "rar", "7z", "tar*", "tgz") for name in root.glob(f"*.{suffix}"))
    if not packed or not prepare:
        return None
    by_hand = "" if packed[0].suffix == ".zip" else f"unpack {packed[0].name} there (unrar, 7z or tar), then "
    return f"{root} holds packed files only: {by_hand}run {prepare}"


def scan(folder: Path, suffix: str, within: tuple[str, ...] = ()) -> list[str]:
    """Files under `folder` whose names end in `suffix`, relative to it with forward slashes, sorted.

    Those alone whose first folders match the patterns of `within`, one by one.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        relative = PurePosixPath(Path(place).relative_to(folder).as_posix())
        depth = len(relative.parts)
        if depth < len(within):
            folders[:] = [name for name in folders if fnmatch(name, within[depth])]
        else:
            prefix = f"{relative}/" if depth else ""
            # A Mac's archives hold a `._name.png` beside each name.png, which is no image.
            found += [prefix + name for name in names if name.endswith(suffix) and not name.startswith(".")]
    return sorted(found)
