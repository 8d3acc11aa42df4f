"""Unlabelled images in tar shards in WebDataset's layout, for target sets too large for a folder of files.

A shard is an uncompressed tar of images; other members (captions, JSON) are skipped. `index.json` next to the shards
lists the number of images in each, so that the image at a position of the infinite stream is a function of the
position, as for files. The root is a folder, or an address that WebDataset can open (`https://` with curl, `gs://` with
gsutil), from which each shard is fetched as a whole, once per machine, when it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.batch import Sample
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.folders import ends_in, is_clutter
from uda_seg.data.images import HEAD, SUFFIXES, image_of, may_be_deep, spread, used_bits
from uda_seg.data.integrity import check_image, read_file
from uda_seg.data.parallel import in_threads
from uda_seg.data.sampling import Draw, Pick, generator
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.storage.fetched import FetchedFiles
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import first_line, open_file, unsealed, write_sealed, written_whole

INDEX = "index.json"
OPEN_TABLES = 64  # shards whose tables of contents a process caches: 16 bytes per image
KEEP_EVERY = 32  # shards between two saves of an index under construction
ROOM = "make room or choose another folder"
_NAME = re.compile(r"[\w.-]+\.tar")  # plain file names only: a remote index must not inject paths or commands


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
        content = _fetch_small(f"{root}/{INDEX}") if is_address(root) else _content_of(Path(root) / INDEX)
    except OSError as error:
        raise UserError(f"{root} has no {INDEX} that says how many images its shards hold: {cure}") from error
    shards = _parsed(content, f"{root}/{INDEX}", f"delete it, then {cure}")
    strange = [shard.name for shard in shards if not _NAME.fullmatch(shard.name) or shard.images < 1]
    if strange or not shards:
        what = f"{strange[0]!r}, which is no name of a shard with images" if strange else "no shard"
        raise UserError(f"{root}/{INDEX} lists {what}: delete it, then {cure}")
    return shards


def _content_of(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def _parsed(content: bytes, name: str, cure: str) -> list[Shard]:
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
    with _open(path) as file:
        return _members(file, str(path))


def _open(path: Path) -> BinaryIO:
    try:
        return open_file(path)
    except OSError as error:
        raise Damaged(f"{path} cannot be opened: {error.strerror or error}") from error


def _members(file: BinaryIO, name: str) -> list[tuple[str, int, int]]:
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
    return found


def _is_image(name: str) -> bool:
    return ends_in(name, ".*") and not any(is_clutter(part) for part in PurePosixPath(name).parts)


class ShardDataset:
    """The images of all shards, numbered consecutively.

    Args:
        root: folder or address of the shards.
        option: its key in the configuration, for messages.
        count: use the first `count` images; None: all.
        bits: used bits per channel of 16-bit images; None: determined from the first images.
        cache_bytes: maximum bytes of fetched shards on this machine's disk; the least recently opened are deleted.
        cure: cure for a missing index, for the message.

    Attributes:
        shards: the shards in use, the last one possibly in part.
        depth: None, as shards contain only images.
    """

    depth = None
    labeled = False

    def __init__(
        self, root: str, option: str, *, count: int | None, cache_bytes: int, cure: str, bits: int | None = None
    ) -> None:
        self.option, self._bits = option, bits
        root = root.removeprefix("file://")
        self.root = root.rstrip("/") if is_address(root) else str(Path(root).expanduser())
        self._fetched = FetchedFiles(self.root, cache_bytes)
        if not is_address(root) and not Path(self.root).is_dir():
            raise UserError(f"no folder {self.root}: set {option}.root to the folder or address of the shards")
        self.shards = _first(read_index(self.root, cure), count)
        self.ends: NDArray[np.int64] = np.cumsum([shard.images for shard in self.shards])
        self._table = functools.lru_cache(maxsize=OPEN_TABLES)(self._read_table)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._table = functools.lru_cache(maxsize=OPEN_TABLES)(self._read_table)

    def read(self, index: int) -> Sample:
        """Decode the image at `index`, as RGB.

        Raises:
            UserError: it cannot be read; names the shard and the member.
        """
        content, name = self._content(index), self._name(index)
        shard, place = self._place(index)
        if not content:
            raise Damaged(f"{name} is cut off: {self._cure(shard)}")
        said = self.shards[shard].sums[8 * place : 8 * place + 8]
        if said and _sum(content) != said:
            raise Damaged(f"{name} is damaged: {self._cure(shard)}")
        # Only evaluated if needed, because it may fetch the first shard.
        return Sample(image_of(content, self.bits if may_be_deep(content[:HEAD]) else None, name))

    def _place(self, index: int) -> tuple[int, int]:
        """Return the shard of an image, and its index in the shard."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - (int(self.ends[shard - 1]) if shard else 0)

    def _name(self, index: int) -> str:
        shard, place = self._place(index)
        return f"image {place} of {self.root}/{self.shards[shard].name}"

    def _content(self, index: int, count: int = -1) -> bytes:
        """Read the first bytes of an image's file, -1 for all; empty if the shard is truncated."""
        shard, place = self._place(index)
        start, size = self._table(shard)[place]
        wanted = size if count < 0 else min(count, size)
        with self._open(shard) as file:
            file.seek(start)
            content = file.read(wanted)
        return content if len(content) == wanted else b""

    @functools.cached_property
    def bits(self) -> int | None:
        """Used bits per channel of 16-bit images, determined from the first shard; None for 8-bit images."""
        if self._bits is not None:
            return self._bits
        sample = [functools.partial(self._content, index) for index in spread(range(self.shards[0].images))]
        return used_bits(sample, f"{self.option}.bits")

    def _cure(self, shard: int) -> str:
        here = self._fetched.folder / self.shards[shard].name
        return f"delete {here}, it is fetched again" if is_address(self.root) else "copy or pack the shard again"

    def _read_table(self, shard: int) -> NDArray[np.int64]:
        with self._open(shard) as file:
            found = _members(file, f"{self.root}/{self.shards[shard].name}")
        promised = self.shards[shard].images
        whole = shard < len(self.shards) - 1  # of the last shard possibly only the first images are used
        if len(found) < promised or (whole and len(found) > promised):
            raise UserError(
                f"{self.root}/{self.shards[shard].name} holds {len(found)} images, but {INDEX} says {promised}: it was "
                f"changed since; delete {INDEX} and prepare the shards again"
            )
        return np.array([(start, size) for _, start, size in found], np.int64)

    def _open(self, shard: int) -> BinaryIO:
        """Open the shard's file, fetching it if necessary."""
        name, size = self.shards[shard].name, self.shards[shard].bytes
        return self._fetched.open(name, size) if is_address(self.root) else _open(Path(self.root) / name)


def _first(shards: Sequence[Shard], count: int | None) -> list[Shard]:
    """Return the shards with the first `count` images."""
    kept, left = [], count if count is not None else sum(shard.images for shard in shards)
    for shard in shards:
        if left > 0:
            kept.append(replace(shard, images=min(shard.images, left)))
        left -= shard.images
    return kept


@dataclass(frozen=True)
class ShardOrder:
    """Passes over the shards; each rank has its own shards and shuffles the images of `window` shards together.

    Position p belongs to rank p mod W (`uda_seg.data.sampling`), which reads every W-th shard of an order drawn once
    from the seed: no two ranks train on the same shard, and each machine's cache serves all passes. Every pass visits
    the rank's shards in a new order, `window` at a time, and the images of a window in random order, so that at most
    `window` shards are open. A rank whose shards contain fewer images starts its next pass earlier.

    Args:
        sizes: number of images of each shard.
        seed: seed of the run.
        domain: id of the domain.
        window: number of shards shuffled together.
    """

    sizes: tuple[int, ...]
    seed: int
    domain: int
    window: int

    def pick(self, position: int, world_size: int) -> Pick:
        """Return the image at `position` of the stream shared by `world_size` ranks.

        Raises:
            UserError: there are fewer shards than ranks.
        """
        local, rank = divmod(position, world_size)
        number, place = divmod(local, _own_shards(self, rank, world_size)[1])
        ends = _pass(self, rank, world_size, number)[1]
        window = int(np.searchsorted(ends, place, side="right"))
        return Pick(
            int(_window(self, rank, world_size, number, window)[place - (int(ends[window - 1]) if window else 0)])
        )


@functools.lru_cache(maxsize=64)
def _own_shards(order: ShardOrder, rank: int, world_size: int) -> tuple[NDArray[np.int64], int]:
    """Return a rank's shards and their number of images."""
    if len(order.sizes) < world_size:
        raise UserError(
            f"{len(order.sizes)} shards cannot be shared by {world_size} ranks: pack the images into more of them "
            "(pack.images=N for N images each)"
        )
    drawn = generator(order.seed, order.domain, Draw.SHARDS, 0).permutation(len(order.sizes))[rank::world_size]
    return drawn, sum(order.sizes[shard] for shard in drawn)


@functools.lru_cache(maxsize=8)
def _pass(order: ShardOrder, rank: int, world_size: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a rank's shards in the order of a pass, and the end of each window."""
    rng = generator(order.seed, order.domain, Draw.SHARDS, 1 + number * world_size + rank)
    shards = rng.permutation(_own_shards(order, rank, world_size)[0])
    ends = np.cumsum([order.sizes[s] for s in shards])
    last = np.minimum(np.arange(order.window, len(shards) + order.window, order.window), len(shards)) - 1
    return shards, ends[last]


@functools.lru_cache(maxsize=8)
def _window(order: ShardOrder, rank: int, world_size: int, number: int, window: int) -> NDArray[np.int64]:
    """Return the images of a window in order."""
    shards = _pass(order, rank, world_size, number)[0][window * order.window : (window + 1) * order.window]
    first = np.cumsum((0, *order.sizes))
    images = np.concatenate([np.arange(first[s], first[s] + order.sizes[s]) for s in shards])
    rng = generator(order.seed, order.domain, Draw.WINDOW, (number * world_size + rank) * len(order.sizes) + window)
    shuffled: NDArray[np.int64] = rng.permutation(images)
    return shuffled


def open_shards(domain: DomainSettings, settings: DataSettings, option: str) -> ShardDataset:
    """Open the shards of `domain` for `data.reader=shards`.

    Raises:
        UserError: no root, no folder or no index; names the command that helps.
    """
    cure = f"run {prepare_command(settings)} data.reader=shards"
    if domain.root is None:
        raise UserError(f"{option}.root is not set: set it to the folder or address of the shards, then {cure}")
    room, window = settings.shards.cache_gb, settings.shards.window
    found = ShardDataset(
        domain.root, option, count=domain.count, bits=domain.bits, cache_bytes=int(room * 1e9), cure=cure
    )
    together = sum(sorted(shard.bytes for shard in found.shards)[-window:]) / 1e9
    if is_address(found.root) and room < together:
        raise UserError(
            f"data.shards.cache_gb={room:g} does not hold the data.shards.window={window} shards that are read by "
            f"turns ({together:.3g} GB): every image would fetch its shard again; make it larger, or the window smaller"
        )
    return found


def index_shards(root: str) -> list[Shard]:
    """Read every image of a folder's shards completely, and write `index.json`.

    Shards that an earlier or interrupted call has read are skipped if their size is unchanged.

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
    known = {(s.name, s.bytes): s for s in (*_known(folder / INDEX), *_known(part)) if s.sums}
    shards: list[Shard] = []
    for shard in in_threads(functools.partial(_check_shard, known=known), paths, "shards"):
        shards.append(shard)
        if len(shards) % KEEP_EVERY == 0:
            _write_index(part, shards)
    _write_index(folder / INDEX, shards)
    part.unlink(missing_ok=True)
    return shards


def _known(path: Path) -> Iterator[Shard]:
    """Yield the shards of an index file, if it exists and is valid."""
    with contextlib.suppress(OSError, Damaged):
        yield from _parsed(_content_of(path), str(path), "")


def _check_shard(path: Path, known: dict[tuple[str, int], Shard]) -> Shard:
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if (path.name, size) in known:
        return known[path.name, size]
    if not _NAME.fullmatch(path.name):
        raise UserError(f"{path}: name shards with letters, digits, '_', '-' and '.' alone")
    found, sums = contents(path), []
    with _open(path) as file:
        for name, start, length in found:
            file.seek(start)
            content = file.read(length)
            check_image(content, f"{path}: {name}")
            sums.append(_sum(content))
    if not found:
        raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)}): take it out of the folder")
    return Shard(path.name, len(found), size, "".join(sums))


def _sum(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def _write_index(path: Path, shards: Sequence[Shard]) -> None:
    write_sealed(path, {"shards": [asdict(shard) for shard in shards]}, ROOM)


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
    _write_index(out / INDEX, shards)
    return shards


def _pack_one(dataset: SegmentationDataset, indices: range, path: Path) -> Shard:
    from webdataset.writer import TarWriter

    names = [_member(index, dataset.names[index]) for index in indices]
    if path.exists():
        if [name for name, _, _ in contents(path)] != [f"{key}.{suffix}" for key, suffix in names]:
            raise UserError(f"{path} holds other images: delete it, or choose another pack.out=FOLDER")
        return _check_shard(path, {})
    sums = []
    with written_whole(path, ROOM) as part, TarWriter(str(part), encoder=False, mtime=0.0, format="PAX_FORMAT") as tar:
        for index, (key, suffix) in zip(indices, names, strict=True):
            content = read_file(dataset.image_path(index))
            check_image(content, str(dataset.image_path(index)))
            tar.write({"__key__": key, suffix: content})
            sums.append(_sum(content))
    return Shard(path.name, len(names), os.path.getsize(path), "".join(sums))


def _member(index: int, name: str) -> tuple[str, str]:
    """Build a unique key and a suffix for the shard; in WebDataset a key ends at the first dot."""
    stem, _, suffix = name.rpartition(".")
    return f"{index:09d}_{re.sub(r'[^A-Za-z0-9_-]', '_', stem)}", suffix.lower()
