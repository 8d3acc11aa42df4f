"""On-disk store of pseudo-labels for a whole data set: one file per version, read with training crops."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uda_seg.data.batch import DomainBatch
from uda_seg.data.labels import IGNORE
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import checksum, first_line, open_file, read_text, write_text

PLANES = {"label": np.uint8, "level": np.int16, "selected": np.uint8}  # planes of a draft


class LabelStore:
    """Versions of labels uint8 [N, H, W], each a memory-mapped file that is written atomically.

    Each has a CRC-32 in a separate file, verified when a process opens it: 0.6 s per GB, once per round.

    Args:
        folder: folder of the files.
        count: number of images N.
        size: maximum (H, W) of the images; smaller ones are padded with 255.
    """

    def __init__(self, folder: Path, count: int, size: tuple[int, int]) -> None:
        self.folder, self.count, self.size = folder, count, size
        self._open: tuple[int, NDArray[np.uint8]] | None = None

    def path(self, version: int) -> Path:
        """Return the path of a finished version."""
        return self.folder / f"round_{version:03d}.npy"

    def sum_path(self, version: int) -> Path:
        """Return the path of a version's checksum, which earlier releases did not write."""
        return self.path(version).with_suffix(".crc32")

    def has(self, version: int) -> bool:
        """Return whether a version is finished and readable; a broken file counts as missing."""
        if not self.path(version).is_file():
            return False
        try:
            self._map(version)
        except Damaged:
            return False
        return True

    def take(self, folder: Path, version: int) -> None:
        """Copy a finished version from another folder, if it exists there."""
        other = LabelStore(folder, self.count, self.size)
        if not other.has(version):
            return
        part = self.folder / f".{self.path(version).name}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for theirs, mine in ((other.sum_path, self.sum_path), (other.path, self.path)):
                if theirs(version).is_file():
                    shutil.copyfile(theirs(version), part)
                    os.replace(part, mine(version))
        except OSError as error:
            raise _no_room(self.folder, error) from error

    def forget_from(self, version: int) -> None:
        """Delete this and later versions, including unfinished ones."""
        for path in self.folder.glob("round_*"):
            number = path.stem.removeprefix("round_")
            if number.isdecimal() and int(number) >= version:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read(self, version: int, index: Tensor, window: Tensor, crop: tuple[int, int]) -> Tensor:
        """Read the labels of training crops.

        Args:
            version: number of a finished version.
            index: int64 [B], indices of the images.
            window: int64 [B, 3], position and flip of each crop, as in `Sample`.
            crop: (h, w).

        Returns:
            uint8 [B, h, w]; 255 where a crop extends beyond its image.
        """
        labels = self._map(version)
        out = np.full((len(index), *crop), IGNORE, np.uint8)
        for i, (image, (top, left, mirrored)) in enumerate(zip(index.tolist(), window.tolist(), strict=True)):
            piece = labels[image, top : top + crop[0], left : left + crop[1]]
            row = out[i, :, ::-1] if mirrored else out[i]
            row[: piece.shape[0], : piece.shape[1]] = piece
        return torch.from_numpy(out)

    def _map(self, version: int) -> NDArray[np.uint8]:
        if self._open is None or self._open[0] != version:
            path = self.path(version)
            cure = "resume=last computes them again"
            try:
                open_file(path).close()  # refuses a pipe, on which the next line would block
                labels = np.lib.format.open_memmap(path, "r")
            except Exception as error:  # a damaged header can raise anything
                raise Damaged(f"cannot read the pseudo-labels {path}: {first_line(error)}; {cure}") from error
            known = self.sum_path(version)
            if labels.dtype != np.uint8 or (known.exists() and read_text(known, cure).strip() != checksum(path, cure)):
                raise Damaged(f"the pseudo-labels {path} are damaged; {cure}")
            if labels.shape != (self.count, *self.size):
                raise UserError(f"{path} holds labels of other target images: start the run again with overwrite=true")
            self._open = (version, labels)
        return self._open[1]


def _no_room(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write pseudo-labels into {folder}: {error}; free some space")


@dataclass(frozen=True)
class StoredLabels:
    """A finished version of a store, as pseudo-labels of training batches.

    Args:
        store: the store.
        version: number of the version.
    """

    store: LabelStore
    version: int

    def add_to(self, target: DomainBatch) -> DomainBatch:
        """Return the batch with the labels of its crops; unchanged if it has pseudo-labels."""
        if target.pseudo is not None:
            return target
        assert target.window is not None, "the data module says where crops lie"
        size = (target.image.shape[2], target.image.shape[3])
        pseudo = self.store.read(self.version, target.index, target.window, size)
        # The loader has pinned the rest; a copy from pageable memory would stall the step.
        return replace(target, pseudo=pseudo.pin_memory() if torch.cuda.is_available() else pseudo)


class LabelDraft:
    """An unfinished version: predictions and their confidence levels, written batch by batch.

    Args:
        store: store of the finished version.
        version: its number.
        size: images per batch.
        network: fingerprint of the labelling network; a draft of another network or batch size is restarted.

    Attributes:
        batches: indices of the images of each batch.
    """

    def __init__(self, store: LabelStore, version: int, size: int, network: str) -> None:
        self.store, self.folder, self.version = store, store.folder / f"round_{version:03d}", version
        self.shape = (store.count, *store.size)
        self.batches = [list(range(i, min(i + size, store.count))) for i in range(0, store.count, size)]
        self.identity = f"{network} labels {self.shape} by {size}"

    def begin(self) -> None:
        """Create the files, or reuse those of an interrupted draft with the same identity."""
        tag = self.folder / "identity.txt"
        if tag.is_file() and tag.read_bytes() == self.identity.encode() and self._is_whole():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True)
            for name, kind in PLANES.items():
                np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", np.dtype(kind), self.shape).flush()
            np.save(self.folder / "done.npy", np.zeros(len(self.batches), np.uint8))
            tag.write_text(self.identity)
        except OSError as error:
            raise _no_room(self.folder, error) from error

    def _is_whole(self) -> bool:
        """Return whether the planes exist as they were created."""
        shapes = {**dict.fromkeys(PLANES, self.shape), "done": (len(self.batches),)}
        try:
            planes = {name: self.plane(name) for name in shapes}
        except Exception:  # a damaged header can raise anything
            return False
        kinds = all(planes[name].dtype == PLANES.get(name, np.uint8) for name in shapes)
        return kinds and all(planes[name].shape == shape for name, shape in shapes.items())

    def plane(self, name: str) -> np.memmap[Any, np.dtype[Any]]:
        """Map `label`, `level`, `selected` [N, H, W] or `done` [batches] for reading."""
        plane: np.memmap[Any, np.dtype[Any]] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return plane

    def write(self, name: str, first: int, content: NDArray[np.generic]) -> None:
        """Write rows of a plane from row `first` on.

        Not through a memory map: if two machines write to the same page, one part is lost, and a full disk kills the
        process without an error.
        """
        plane = self.plane(name)
        offset = plane.offset + first * plane.strides[0]
        try:
            with (self.folder / f"{name}.npy").open("r+b") as file:
                file.seek(offset)
                file.write(np.ascontiguousarray(content, plane.dtype).tobytes())
        except OSError as error:
            raise _no_room(self.folder, error) from error

    def finish(self) -> None:
        """Move `selected` to its final path, write its checksum, and delete the other planes."""
        selected = self.folder / "selected.npy"
        write_text(self.store.sum_path(self.version), checksum(selected, "run it again") + "\n")
        os.replace(selected, self.store.path(self.version))
        shutil.rmtree(self.folder)
