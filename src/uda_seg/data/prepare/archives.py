"""Official ZIP archives of data sets: selecting the required files and unpacking them safely."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from uda_seg.data.depth_layouts import LAYOUTS
from uda_seg.data.parallel import in_threads
from uda_seg.data.specs import DatasetSpec
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import CHUNK, first_line, open_file, spare_name, written_whole

log = logging.getLogger(__name__)

DEEPEST = 3  # maximum number of folders in front of the data set's own in a ZIP, as in bdd100k/images/...
ROOM = "make room there, or unpack the files on another disk and set the root to it"


@dataclass(frozen=True)
class Member:
    """A file in a ZIP.

    Args:
        archive: The ZIP.
        name: Name in the ZIP.
        target: Path under the data set's root, with forward slashes.
        size: Unpacked size in bytes.
    """

    archive: Path
    name: str
    target: str
    size: int


def find_archives(root: Path) -> list[Path]:
    """Find the ZIPs in a data set's folder."""
    return sorted(root.glob("*.zip"))


def folders_of(spec: DatasetSpec, dataset: str) -> frozenset[str]:
    """Collect the top-level folders of a data set's images, labels and depth, over all splits and alternatives.

    Alternatives that only prepend the archive's name to an official folder are left out: files go to the official one.
    SYNTHIA-SEQS' sequences have no common name and must be unpacked by hand (they are RARs anyway).
    """
    depth = [layout.folder for layout in LAYOUTS.get(dataset, ())]
    found = set()
    for split in spec.splits:
        official, *others = spec.places(split)
        more = [p for place in others for p in place if not p.endswith(tuple(f"/{own}" for own in official))]
        patterns = [*official, *more, *(folder.format(split=split) for folder in depth)]
        found |= {pattern.split("/")[0] for pattern in patterns}
    return frozenset(found - {"*"})


def lacks_folders(spec: DatasetSpec, split: str, root: Path, members: Sequence[Member]) -> bool:
    """Return whether images or labels of a split are in ZIPs, but in none of their possible folders."""
    for patterns in zip(*spec.places(split), strict=True):
        there = any(folder.is_dir() for pattern in patterns for folder in root.glob(pattern))
        if not there and any(_lies_in(member.target, pattern) for member in members for pattern in patterns):
            return True
    return False


def _lies_in(target: str, pattern: str) -> bool:
    parts, wanted = target.split("/")[:-1], pattern.split("/")
    return len(parts) >= len(wanted) and all(map(fnmatch, parts, wanted))


def list_members(archives: Sequence[Path], folders: frozenset[str]) -> list[Member]:
    """List the files of the ZIPs that belong to one of `folders`, at whatever depth these are in the ZIP.

    Raises:
        UserError: a ZIP that cannot be read or would write outside of the root; nothing has been unpacked then.
    """
    return [member for archive in archives for member in _members(archive, folders)]


def _members(archive: Path, folders: frozenset[str]) -> list[Member]:
    try:
        with open_file(archive) as content, zipfile.ZipFile(content) as file:
            infos = [info for info in file.infolist() if not info.is_dir()]
            if strange := [info.filename for info in infos if not _named_twice(content, info)]:
                raise zipfile.BadZipFile(f"{strange[0]!r} has another name where it lies")
    except Exception as error:  # a damaged central directory can raise anything
        raise UserError(
            f"{archive} cannot be read as a ZIP ({first_line(error)}): it is cut off or damaged, copy it again"
        ) from error
    paths = [(info, _safe(archive, info)) for info in infos]
    levels = [level for _, path in paths for level in _levels(path, folders)]
    if not levels:
        return []
    level = min(levels)  # in images/images/a.png the first images/ counts
    return [
        Member(archive, info.filename, "/".join(path.parts[level:]), info.file_size)
        for info, path in paths
        if len(path.parts) > level + 1 and path.parts[level] in folders and path.parts[0] != "__MACOSX"
    ]


def _named_twice(content: BinaryIO, info: zipfile.ZipInfo) -> bool:
    """Return whether the name in a ZIP's central directory, which has no checksum, matches the local header."""
    content.seek(info.header_offset + 26)  # in the local header, which has 30 bytes
    length = int.from_bytes(content.read(4)[:2], "little")
    return content.read(length) == info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _levels(path: PurePosixPath, folders: frozenset[str]) -> list[int]:
    return [level for level, part in enumerate(path.parts[:-1][: DEEPEST + 1]) if part in folders]


def _safe(archive: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    """Return a ZIP member's path; raises UserError for links and for paths outside of the destination."""
    name = info.filename.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name:
        raise UserError(
            f"{archive} holds the file name {info.filename!r}, which leads out of its folder: do not use it"
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"{archive} holds the link {info.filename!r}: do not use it, or unpack it by hand")
    return path


def missing_members(members: Sequence[Member], root: Path) -> list[Member]:
    """List the files that are not yet under `root` with the same size."""
    return [member for member in members if _size(root / member.target) != member.size]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def unpack(members: Sequence[Member], root: Path) -> None:
    """Unpack files on all cores; each is written atomically and only if its checksum is correct.

    Raises:
        UserError: a full disk, or a damaged ZIP; unpacked files are kept, and unpacking can be continued.
    """
    needed, free = sum(member.size for member in members), shutil.disk_usage(root).free
    if needed > free:
        raise UserError(f"{root} has room for {free / 1e9:.1f} GB, its ZIPs unpack to {needed / 1e9:.1f} GB: {ROOM}")
    _make_way(members, root)
    for archive in dict.fromkeys(member.archive for member in members):
        own = [member for member in members if member.archive == archive]
        with zipfile.ZipFile(archive) as file:
            for _ in in_threads(partial(_extract, file, root), own, f"unpacking {archive.name}"):
                pass
    log.info("unpacked %d files into %s", len(members), root)


def _make_way(members: Sequence[Member], root: Path) -> None:
    """Rename files that are in the place of those to unpack: they may have been changed by hand."""
    found = [path for member in members if os.path.lexists(path := root / member.target)]
    for path in found:
        os.rename(path, spare_name(path, "replaced"))
    if found:
        log.warning(
            "%d files in %s differ in size from those in its ZIPs: they are renamed, the first to %s",
            len(found),
            root,
            f"{found[0].name}.replaced",
        )


def _extract(file: zipfile.ZipFile, root: Path, member: Member) -> None:
    with written_whole(root / member.target, ROOM) as part, part.open("wb") as target:
        for piece in _pieces(file, member):  # piece by piece: a small ZIP may unpack to more than fits in memory
            target.write(piece)


def _pieces(file: zipfile.ZipFile, member: Member) -> Iterator[bytes]:
    """Yield the content of a ZIP member in pieces, the last one after verifying the checksum."""
    try:
        with file.open(member.name) as content:
            while piece := content.read(CHUNK):
                yield piece
    except (NotImplementedError, RuntimeError) as error:  # unsupported compression, or a password
        raise UserError(f"{member.archive}: {member.name}: {error}: unpack it by hand, with 7z") from error
    except Exception as error:  # damaged data can raise anything
        said = first_line(error)
        raise Damaged(f"{member.archive}: {member.name} is damaged ({said}): copy the ZIP again") from error
