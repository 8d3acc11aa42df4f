"""Disk cache of a domain's images, labels and depth, decoded and resized once for training.

A folder contains one plane of a data set: `data.bin` with the pixels of all images, concatenated, and `index.json` with
their sizes and checksums. The file is memory-mapped, so that a crop reads only its own rows. The folder's name contains
a digest of the files' names, sizes and times and of the resize, so that any change leads to another folder. It is
written under a temporary name and renamed when complete; an interrupted one is continued.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.batch import Sample
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.parallel import in_threads
from uda_seg.data.transforms import Resize
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import CACHE, open_file, read_json, unsealed, write_sealed
from uda_seg.storage.lock import FolderLock
from uda_seg.storage.owner import Owner

log = logging.getLogger(__name__)

VERSION = 1  # version of the format, part of every digest
CURE = "move it away, then run python -m uda_seg.prepare again"
KEYS = frozenset(("shapes", "disk", "sums"))  # keys of an index
SYNC = 64  # images between two syncs, after which they count as done
Pixels = NDArray[Any]
Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class Plane:
    """A kind of content to cache: images, labels or depth.

    Args:
        name: image, label or depth.
        kind: dtype.
        channels: Channels per pixel.
        folder: Final folder.
        decode: Returns the resized plane of an image, [H, W] or [H, W, 3].
    """

    name: str
    kind: np.dtype[Any]
    channels: int
    folder: Path
    decode: Callable[[int], Pixels]

    def nbytes(self, shapes: Sizes) -> NDArray[np.int64]:
        """Compute the bytes of every image, int64 [N], from (H, W), int64 [N, 2]."""
        area: NDArray[np.int64] = shapes.prod(axis=1) * self.channels * self.kind.itemsize
        return area


def planes(dataset: SegmentationDataset, resize: Resize | None, cache: Path, disk: Sizes | None = None) -> list[Plane]:
    """List the planes of `dataset`: images, and labels and depth if it was opened with them.

    `disk`, (H, W) of every image file, int64 [N, 2], is only needed to decode depth, which takes the image's size.
    """
    keep: Callable[[Pixels], Pixels] = lambda array: array  # noqa: E731
    rule: list[Any] | None = None if resize is None else [list(resize.box), resize.keep_ratio]
    if rule is not None and resize is not None and resize.filter != Resize.filter:  # not part of older digests
        rule.append(resize.filter)
    image, plane, depth = (resize.image, resize.plane, resize.inverse_depth) if resize else (keep, keep, keep)
    count, files = len(dataset), dataset.depth

    def described(name: str, kind: type, channels: int, paths: list[str], how: Any, decode: Any) -> Plane:
        digest = _digest([VERSION, dataset.names, rule, how, [_stamp(path) for path in paths]])
        folder = cache / "resized" / f"{dataset.root.name}-{dataset.split}-{name}-{digest}"
        return Plane(name, np.dtype(kind), channels, folder, decode)

    images = [f"{dataset.image_root}/{name}" for name in dataset.names]
    scaled = [] if dataset.bits in (None, 16) else [dataset.bits]
    found = [described("image", np.uint8, 3, images, scaled, lambda i: image(dataset.read_image(i)))]
    if dataset.labeled:
        labels = [f"{dataset.label_root}/{dataset.label_name(n, dataset.encoding)}" for n in dataset.names]
        how = [dataset.spec.title, dataset.classes.name, dataset.encoding.identity]
        how += [sorted(merged.items()) for merged in dataset.classes.merged.values()]
        found.append(described("label", np.uint8, 1, labels, how, lambda i: plane(dataset.read_upright_label(i))))
    if files is not None:
        how = [files.encoding.title, resize.depth if resize else ""]
        paths = [str(files.paths[i]) for i in range(count)] + images  # depth is resampled to the image's size first
        sizes = [] if disk is None else [(int(height), int(width)) for height, width in disk]
        found.append(described("depth", np.float32, 1, paths, how, lambda i: depth(files.read(i, sizes[i]))))
    return found


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class PlaneFile:
    """A finished plane, memory-mapped on first access; pickled copies map it again.

    A process verifies an image's checksum on first access, 0.2 ms per MB; afterwards it reads only the rows of a crop.

    Raises:
        Damaged: the folder is damaged; names it and the cure.
    """

    def __init__(self, plane: Plane, count: int) -> None:
        self.folder, self.kind, self.channels = plane.folder, plane.kind, plane.channels
        try:
            content = read_json(self.folder / "index.json", CURE)
            known = KEYS if "sums" in content else KEYS - {"sums"}  # missing in files of earlier versions
            index = unsealed(content, known, self.folder / "index.json", CURE)
            self.disk, self.shapes = (np.array(index[key], np.int64).reshape(-1, 2) for key in ("disk", "shapes"))
            self.sums = np.array(index["sums"], np.uint32) if "sums" in index else None
            with open_file(self.folder / "data.bin") as file:
                size = os.fstat(file.fileno()).st_size
        except (Damaged, OSError, ValueError, TypeError, OverflowError) as error:
            raise Damaged(self._damaged()) from error
        self.offsets = _offsets(plane.nbytes(self.shapes))
        counts = [len(array) for array in (self.disk, self.shapes, self.sums) if array is not None]
        if any(number != count for number in counts) or size != self.offsets[-1] or (self.shapes < 1).any():
            raise Damaged(self._damaged())
        self._known = np.zeros(count, bool)  # images with a verified checksum
        self._bytes: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}  # a memmap would be pickled with its whole content

    def __getitem__(self, index: int) -> Pixels:
        """Return the plane of an image as a read-only view into the file, [H, W] or [H, W, 3]."""
        if self._bytes is None:
            try:
                self._bytes = np.asarray(np.memmap(self.folder / "data.bin", np.uint8, "r"))
            except (OSError, ValueError) as error:
                raise Damaged(self._damaged()) from error
        height, width = (int(side) for side in self.shapes[index])
        raw = self._bytes[self.offsets[index] : self.offsets[index + 1]]
        if self.sums is not None and not self._known[index]:
            if zlib.crc32(raw.data) != self.sums[index]:
                raise Damaged(f"image {index} of the cache {self.folder} is damaged: {CURE}")
            self._known[index] = True
        flat = raw.view(self.kind)
        return flat.reshape((height, width, self.channels) if self.channels > 1 else (height, width))

    def _damaged(self) -> str:
        return f"the cache {self.folder} cannot be read: {CURE}"


class DiskCache:
    """All planes of a data set."""

    def __init__(self, files: dict[str, PlaneFile]) -> None:
        self.files = files

    def sample(self, index: int) -> Sample:
        """Return the resized sample at `index` as read-only views, without margins."""
        found = {name: file[index] for name, file in self.files.items()}
        return Sample(found["image"], found.get("label"), depth=found.get("depth"))

    def disk_size(self, index: int) -> tuple[int, int]:
        """Return (H, W) of the image file."""
        height, width = self.files["image"].disk[index]
        return int(height), int(width)


def find_cache(dataset: SegmentationDataset, resize: Resize | None, cache: Path) -> DiskCache | None:
    """Open the finished cache of a data set; None if a plane is missing or out of date.

    Raises:
        UserError: the cache is damaged.
    """
    start = f"{dataset.root.name}-{dataset.split}-image-"
    if not any(path.name.startswith(start) for path in cache.glob("resized/*")):
        return None  # avoids reading the times of all files
    wanted = planes(dataset, resize, cache)
    if not all(plane.folder.is_dir() for plane in wanted):
        return None
    files = {plane.name: PlaneFile(plane, len(dataset)) for plane in wanted}
    if any((file.shapes != files["image"].shapes).any() for file in files.values()):
        return None  # images were replaced by others of another size, which labels are resized to
    return DiskCache(files)


def write_cache(dataset: SegmentationDataset, resize: Resize | None, cache: Path, disk: Sequence[Sequence[int]]) -> int:
    """Write the missing parts of a data set's cache on all cores, and return its total size in bytes.

    Args:
        dataset: data set opened with everything that training reads.
        resize: resize in training.
        cache: root of all caches.
        disk: (H, W) of every image file.

    Raises:
        UserError: a full disk, or a file that cannot be decoded.
    """
    sizes = np.array(disk, np.int64).reshape(-1, 2)
    shapes = np.array([resize.size(int(h), int(w)) if resize else (h, w) for h, w in sizes], np.int64).reshape(-1, 2)
    wanted = planes(dataset, resize, cache, sizes)
    for plane in wanted:
        if plane.folder.is_dir():
            _remove_unusable(plane, shapes, cache)
    missing = [plane for plane in wanted if not plane.folder.is_dir()]
    for plane in missing:
        _Draft(plane, shapes).begin()
    _check_room(cache, sum(_Draft(plane, shapes).remaining() for plane in missing))
    for plane in missing:
        with FolderLock(cache / "resized", Owner("a prepare"), CACHE, f".{plane.folder.name}.lock"):
            if not plane.folder.is_dir():
                _write_plane(plane, shapes, sizes, f"resizing {plane.name}s of {dataset.root.name}")
    return int(sum(plane.nbytes(shapes).sum() for plane in wanted))


def _remove_unusable(plane: Plane, shapes: Sizes, cache: Path) -> None:
    """Delete a finished plane whose index or length is wrong, or which was made beside images of other sizes.

    Pixels are verified when they are read.
    """
    try:
        if (PlaneFile(plane, len(shapes)).shapes != shapes).any():
            raise Damaged(f"the cache {plane.folder} is of images of other sizes: {CURE}")
    except Damaged as error:
        log.warning("%s", str(error).replace(CURE, "it is made anew"))
        with FolderLock(cache / "resized", Owner("a prepare"), CACHE, f".{plane.folder.name}.lock"):
            shutil.rmtree(plane.folder, ignore_errors=True)


def _check_room(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"{cache} has room for {free / 1e9:.1f} GB, the cache of resized images needs {needed / 1e9:.1f} GB more: "
            f"{CACHE}, or do without data.cache=disk"
        )


def _write_plane(plane: Plane, shapes: Sizes, disk: Sizes, title: str) -> None:
    draft = _Draft(plane, shapes)
    todo = draft.todo()
    written: list[int] = []
    try:
        for index in in_threads(draft.put, todo, title):
            written.append(index)
            if len(written) == SYNC:
                draft.settle(written)
                written = []
        draft.settle(written)
        draft.finish(disk)
    except OSError as error:
        raise UserError(f"cannot write {draft.folder}: {error.strerror or error}; {CACHE}, then go on") from error


class _Draft:
    """An unfinished plane: the pixels so far, and every image's checksum and completion flag.

    It is written with `write`, not through a memory map, where a full disk kills the process instead of raising an
    error.
    """

    def __init__(self, plane: Plane, shapes: Sizes) -> None:
        self.plane, self.shapes, self.sizes = plane, shapes, plane.nbytes(shapes)
        self.offsets = _offsets(self.sizes)
        self.folder = plane.folder.with_name(f".{plane.folder.name}.part")
        self.data, self.done, self.sums = (self.folder / name for name in ("data.bin", "done", "sums"))

    def begin(self) -> None:
        """Create the files, or reuse those of an interrupted draft."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self.data, self.done, self.sums):
                path.touch()
            if [self.done.stat().st_size, self.sums.stat().st_size] != [len(self.sizes), 4 * len(self.sizes)]:
                self.done.write_bytes(bytes(len(self.sizes)))
                self.sums.write_bytes(bytes(4 * len(self.sizes)))
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}; {CACHE}") from error

    def todo(self) -> list[int]:
        """List the images that are still missing."""
        done = np.frombuffer(self.done.read_bytes(), np.uint8)
        return [int(index) for index in np.flatnonzero(done == 0)]

    def remaining(self) -> int:
        """Compute the bytes still to be written."""
        return int(self.sizes[self.todo()].sum())

    def put(self, index: int) -> int:
        """Decode an image and write it at its offset."""
        pixels = np.ascontiguousarray(self.plane.decode(index))
        if pixels.shape[:2] != tuple(self.shapes[index]) or pixels.dtype != self.plane.kind:
            raise UserError(
                f"{self.plane.name} {index} is {pixels.shape[0]}x{pixels.shape[1]}, not "
                f"{self.shapes[index][0]}x{self.shapes[index][1]} as its image's header says: run prepare again"
            )
        with self.data.open("r+b") as file:
            file.seek(int(self.offsets[index]))
            file.write(pixels.data)
        with self.sums.open("r+b") as file:
            file.seek(4 * index)
            file.write(np.uint32(zlib.crc32(pixels.data)).tobytes())
        return index

    def settle(self, indices: Sequence[int]) -> None:
        """Mark these images as complete after a sync."""
        for path in (self.data, self.sums):
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        with self.done.open("r+b") as file:
            for index in indices:
                file.seek(index)
                file.write(b"\1")

    def finish(self, disk: Sizes) -> None:
        """Move the complete plane to its final folder."""
        sums = np.fromfile(self.sums, np.uint32).tolist()
        index = {"shapes": self.shapes.tolist(), "disk": disk.tolist(), "sums": sums}
        write_sealed(self.folder / "index.json", index, CACHE)
        try:
            os.rename(self.folder, self.plane.folder)
        except OSError:
            if not self.plane.folder.is_dir():  # otherwise another process was faster
                raise


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
