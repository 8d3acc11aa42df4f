"""Writing shards: indexing those in a folder, and packing the files of a data set into new ones."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from pathlib import Path

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.images import SUFFIXES
from uda_seg.data.integrity import check_image, read_file
from uda_seg.data.parallel import in_threads
from uda_seg.data.storage.shard_index import (
    INDEX,
    NAME,
    ROOM,
    Shard,
    checksum,
    content_of,
    contents,
    is_address,
    open_shard,
    parsed,
    write_index,
)
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import spare_name, written_whole

log = logging.getLogger(__name__)

KEEP_EVERY = 32  # shards between two saves of an index under construction


def index_shards(root: str) -> list[Shard]:
    """Read every image of a folder's shards completely, and write `index.json`.

    Shards that an earlier or interrupted call has read are skipped if their size is unchanged and they are not newer
    than its index. Another file of the index's name is kept under another one.

    Raises:
        UserError: no folder, no shard, a damaged shard or image, or a shard without images.
    """
    if is_address(root):
        raise UserError(f"{root} is an address: index the shards in a folder, and upload {INDEX} with them")
    folder = Path(root).expanduser()
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        packed = (
            "; compressed ones cannot be read at any place: unpack them to .tar" if any(folder.glob("*.t*gz")) else ""
        )
        raise UserError(f"{folder} has no shard *.tar{packed}")
    part = folder / f".{INDEX}.part"
    known = _known(folder / INDEX) | _known(part)
    shards: list[Shard] = []
    for shard in in_threads(functools.partial(_check_shard, known=known), paths, "shards"):
        shards.append(shard)
        if len(shards) % KEEP_EVERY == 0:
            write_index(part, shards)
    _write_index(folder, shards)
    part.unlink(missing_ok=True)
    return shards


def _known(path: Path) -> dict[tuple[str, int], Shard]:
    """Return the shards of an index by name and size, if it exists and is valid, without those that are newer."""
    with contextlib.suppress(OSError, Damaged):
        written = path.stat().st_mtime_ns
        shards = [shard for shard in parsed(content_of(path), str(path), "") if shard.sums]
        return {(s.name, s.bytes): s for s in shards if _is_older(path.with_name(s.name), written)}
    return {}


def _is_older(path: Path, written: int) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns <= written
    return False


def _write_index(folder: Path, shards: list[Shard]) -> None:
    """Write a folder's index; a file of its name that is none, such as other tools', is renamed."""
    path = folder / INDEX
    try:
        parsed(content_of(path), str(path), "")
    except FileNotFoundError:
        pass
    except Damaged:
        other = spare_name(path, "other")
        os.rename(path, other)
        log.warning("%s was no index of uda_seg, or damaged: it is kept as %s", path, other.name)
    write_index(path, shards)


def _check_shard(path: Path, known: dict[tuple[str, int], Shard]) -> Shard:
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if (path.name, size) in known:
        return known[path.name, size]
    if not NAME.fullmatch(path.name):
        raise UserError(f"{path}: name shards with letters, digits, '_', '-' and '.' alone")
    found, sums = contents(path), []
    with open_shard(path) as file:
        for name, start, length in found:
            file.seek(start)
            content = file.read(length)
            check_image(content, f"{path}: {name}")
            sums.append(checksum(content))
    if not found:
        raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)}): take it out of the folder")
    return Shard(path.name, len(found), size, "".join(sums))


def pack(dataset: SegmentationDataset, out: Path, images: int) -> list[Shard]:
    """Copy the image files of a data set unchanged into shards of `images` each, and index them.

    An interrupted call continues with the first missing shard. Labels and depth are not copied.

    Args:
        dataset: source of the images.
        out: folder of the shards; empty, or that of an interrupted call.
        images: images per shard.

    Raises:
        UserError: a damaged image, a folder with other shards, or a full disk.
    """
    starts = range(0, len(dataset), images)
    names = {start: f"images-{number:06d}.tar" for number, start in enumerate(starts)}
    strange = sorted({path.name for path in out.glob("*.tar")} - set(names.values()))
    if strange:
        raise UserError(f"{out} holds {strange[0]}, which is not of this data: choose another pack.out=FOLDER")

    def write(start: int) -> Shard:
        return _pack_one(dataset, range(start, min(start + images, len(dataset))), out / names[start])

    shards = list(in_threads(write, starts, "packing"))
    _write_index(out, shards)
    return shards


def _pack_one(dataset: SegmentationDataset, indices: range, path: Path) -> Shard:
    from webdataset.writer import TarWriter

    names = [_member(index, dataset.names[index]) for index in indices]
    if path.exists():
        if [name for name, _, _ in contents(path)] != [f"{key}.{suffix}" for key, suffix in names]:
            raise UserError(f"{path} holds other images: delete it, or choose another pack.out=FOLDER")
        return _check_packed(dataset, indices, path)
    sums = []
    with written_whole(path, ROOM) as part, TarWriter(str(part), encoder=False, mtime=0.0, format="PAX_FORMAT") as tar:
        for index, (key, suffix) in zip(indices, names, strict=True):
            content = read_file(dataset.image_path(index))
            check_image(content, str(dataset.image_path(index)))
            tar.write({"__key__": key, suffix: content})
            sums.append(checksum(content))
    return Shard(path.name, len(names), os.path.getsize(path), "".join(sums))


def _check_packed(dataset: SegmentationDataset, indices: range, path: Path) -> Shard:
    """Return what a shard of an earlier call holds; raise UserError if a file has changed since."""
    shard = _check_shard(path, {})
    for place, index in enumerate(indices):
        if checksum(read_file(dataset.image_path(index))) != shard.sums[8 * place : 8 * place + 8]:
            raise UserError(
                f"{path} holds another content of {dataset.image_path(index)}: delete the shard to pack it again, or "
                "choose another pack.out=FOLDER"
            )
    return shard


def _member(index: int, name: str) -> tuple[str, str]:
    """Build a unique key and a suffix for the shard; in WebDataset a key ends at the first dot."""
    stem, _, suffix = name.rpartition(".")
    return f"{index:09d}_{re.sub(r'[^A-Za-z0-9_-]', '_', stem)}", suffix.lower()
