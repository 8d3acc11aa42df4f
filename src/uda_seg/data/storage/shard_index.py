"""The list of a folder's shards, `index.json`, and the table of contents of a single one."""

from __future__ import annotations

import json
import os
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from uda_seg.data.folders import ends_in, is_clutter
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import first_line, open_file, unsealed, write_sealed

INDEX = "index.json"
ROOM = "make room or choose another folder"
NAME = re.compile(r"[\w.-]+\.tar")  # plain file names only: a remote index must not inject paths or commands


@dataclass(frozen=True)
class Shard:
    """A tar: file name, number of images, size in bytes, and the CRC-32 of every image in eight hexadecimal digits.

    The checksums are "" for an index of an earlier version.
    """

    name: str
    images: int
    bytes: int
    sums: str = ""


def is_address(root: str) -> bool:
    """Return whether the root is remote, an address such as `https://...`."""
    return "://" in root


def read_index(root: str, cure: str) -> list[Shard]:
    """Read the shards listed in `index.json`.

    Args:
        root: folder or address.
        cure: cure for a missing index, for the message.

    Raises:
        UserError: the index is missing or invalid.
    """
    try:
        content = _fetch_small(f"{root}/{INDEX}") if is_address(root) else content_of(Path(root) / INDEX)
    except OSError as error:
        raise UserError(f"{root} has no {INDEX} that says how many images its shards hold: {cure}") from error
    shards = parsed(content, f"{root}/{INDEX}", f"move it away, then {cure}")
    strange = [shard.name for shard in shards if not NAME.fullmatch(shard.name) or shard.images < 1]
    if strange or not shards:
        what = f"{strange[0]!r}, which is no name of a shard with images" if strange else "no shard"
        raise UserError(f"{root}/{INDEX} lists {what}: delete it, then {cure}")
    return shards


def content_of(path: Path) -> bytes:
    """Read a small file."""
    with open_file(path) as file:
        return file.read()


def parsed(content: bytes, name: str, cure: str) -> list[Shard]:
    """Parse the content of an index."""
    try:
        found = unsealed(json.loads(content.decode()), frozenset(("shards",)), name, cure)["shards"]
        shards = [Shard(str(s["name"]), int(s["images"]), int(s["bytes"]), str(s.get("sums", ""))) for s in found]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Damaged(f"{name} is damaged: {cure}") from error
    if any(s.sums and (len(s.sums) != 8 * s.images or not re.fullmatch("[0-9a-f]*", s.sums)) for s in shards):
        raise Damaged(f"{name} is damaged, it has other checksums than images: {cure}")
    return shards


def _fetch_small(address: str) -> bytes:
    from webdataset.gopen import gopen  # takes a second to import, which those who read files need not wait for

    try:
        with gopen(address) as stream:
            return bytes(stream.read())
    except ValueError as error:  # no handler for this kind of address
        cure = "give https://... (needs curl), gs://... (needs gsutil) or a folder"
        raise UserError(f"{address} cannot be opened: {error}; {cure}") from error


def contents(path: Path) -> list[tuple[str, int, int]]:
    """List (name, offset, bytes) of every image in a shard, in order, reading only the headers.

    Raises:
        Damaged: the shard is truncated, compressed, or not a tar.
    """
    with open_shard(path) as file:
        return members_of(file, str(path))


def open_shard(path: Path) -> BinaryIO:
    """Open a shard in a folder; raises Damaged if that fails."""
    try:
        return open_file(path)
    except OSError as error:
        raise Damaged(f"{path} cannot be opened: {error.strerror or error}") from error


def members_of(file: BinaryIO, name: str) -> list[tuple[str, int, int]]:
    """List (name, offset, bytes) of every image of an open shard; raises Damaged."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            found = [(m.name, m.offset_data, m.size) for m in tar if m.isfile() and _is_image(m.name)]
            # A damaged header silently ends the list; zeros must follow the last one.
            file.seek(tar.offset)
            rest, size = file.read(tarfile.BLOCKSIZE), file.seek(0, os.SEEK_END)
    except Exception as error:  # a damaged header can raise anything
        raise Damaged(
            f"{name} is no whole, uncompressed tar ({first_line(error)}): copy or pack the shard again"
        ) from error
    if any(rest) or any(start + length > size for _, start, length in found):
        raise Damaged(f"{name} is damaged behind its image {len(found)}: copy or pack the shard again")
    _check_samples([member for member, _, _ in found], name)
    return found


def _check_samples(members: Sequence[str], name: str) -> None:
    """Raise UserError if a sample has several images, one of which may be its label map or its depth.

    In WebDataset, a sample's members have one name up to its first dot.
    """
    samples: dict[str, str] = {}
    for member in members:
        place = PurePosixPath(member)
        key = str(place.with_name(place.name.partition(".")[0]))
        if key in samples:
            raise UserError(
                f"{name} holds {samples[key]} and {member}, two images of one sample, of which all would be taken for "
                "photographs: pack the photographs alone, with no dot in their names but that of the suffix"
            )
        samples[key] = member


def _is_image(name: str) -> bool:
    return ends_in(name, ".*") and not any(is_clutter(part) for part in PurePosixPath(name).parts)


def checksum(content: bytes) -> str:
    """Return the CRC-32 in eight hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"


def write_index(path: Path, shards: Sequence[Shard]) -> None:
    """Write an index, sealed with its digest."""
    write_sealed(path, {"shards": [asdict(shard) for shard in shards]}, ROOM)
