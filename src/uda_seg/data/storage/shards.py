"""Unlabelled images in tar shards in WebDataset's layout, for target sets too large for a folder of files.

A shard is an uncompressed tar of images; other members (captions, JSON) are skipped. `index.json` next to the shards
lists the number of images in each, so that the image at a position of the infinite stream is a function of the
position, as for files. The root is a folder, or an address that WebDataset can open (`https://` with curl, `gs://` with
gsutil), from which each shard is fetched as a whole, once per machine, when it is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.batch import Sample
from uda_seg.data.images import HEAD, image_of, may_be_deep, spread, used_bits
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.storage.fetched import FetchedFiles
from uda_seg.data.storage.shard_index import (
    INDEX,
    Shard,
    checksum,
    is_address,
    members_of,
    open_shard,
    read_index,
)
from uda_seg.errors import Damaged, UserError

OPEN_TABLES = 64  # shards whose tables of contents a process caches: 16 bytes per image


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
        content, name = self.image_content(index), self.file_name(index)
        shard, place = self._place(index)
        if not content:
            raise Damaged(f"{name} is cut off: {self._cure(shard)}")
        said = self.shards[shard].sums[8 * place : 8 * place + 8]
        if said and checksum(content) != said:
            raise Damaged(f"{name} is damaged: {self._cure(shard)}")
        # Only evaluated if needed, because it may fetch the first shard.
        return Sample(image_of(content, self.bits if may_be_deep(content[:HEAD]) else None, name))

    def _place(self, index: int) -> tuple[int, int]:
        """Return the shard of an image, and its index in the shard."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - (int(self.ends[shard - 1]) if shard else 0)

    def file_name(self, index: int) -> str:
        """Name the image at `index` and its shard, for messages."""
        shard, place = self._place(index)
        return f"image {place} of {self.root}/{self.shards[shard].name}"

    def image_content(self, index: int, count: int = -1) -> bytes:
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
        sample = [functools.partial(self.image_content, index) for index in spread(range(self.shards[0].images))]
        return used_bits(sample, f"{self.option}.bits")

    def _cure(self, shard: int) -> str:
        here = self._fetched.folder / self.shards[shard].name
        return f"delete {here}, it is fetched again" if is_address(self.root) else "copy or pack the shard again"

    def _read_table(self, shard: int) -> NDArray[np.int64]:
        with self._open(shard) as file:
            found = members_of(file, f"{self.root}/{self.shards[shard].name}")
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
        return self._fetched.open(name, size) if is_address(self.root) else open_shard(Path(self.root) / name)


def _first(shards: Sequence[Shard], count: int | None) -> list[Shard]:
    """Return the shards with the first `count` images."""
    kept, left = [], count if count is not None else sum(shard.images for shard in shards)
    for shard in shards:
        if left > 0:
            kept.append(replace(shard, images=min(shard.images, left)))
        left -= shard.images
    return kept


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
