"""Labels that a network gave a whole data set, on disk: one file a version, read under the crops of training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uda_seg.data.labels import IGNORE
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import checksum, first_line, open_file, read_text, write_text

PLANES = {"label": np.uint8, "level": np.int16, "selected": np.uint8}  # of a draft


class LabelStore:
    """Versions of labels uint8 [N, H, W], each a memory-mapped file that is there whole or not at all.

    Beside each lies its CRC-32, verified when a process opens it: 0.6 s per GB, once a round.

    Args:
        folder: where the files lie.
        count: images N.
        size: (H, W) that every image fits inside; beyond a smaller one lies 255.
    """

    def __init__(self, folder: Path, count: int, size: tuple[int, int]) -> None:
        self.folder, self.count, self.size = folder, count, size
        self._open: tuple[int, NDArray[np.uint8]] | None = None

    def path(self, version: int) -> Path:
        """The finished file of a version."""
        return self.folder / f"round_{version:03d}.npy"

    def sum_path(self, version: int) -> Path:
        """The checksum of a finished version; those of an earlier release have none."""
        return self.path(version).with_suffix(".crc32")

    def has(self, version: int) -> bool:
        """Whether a version is finished and can be read; a broken file is as good as none."""
        if not self.path(version).is_file():
            return False
        try:
            self._map(version)
        except Damaged:
            return False
        return True

    def take(self, folder: Path, version: int) -> None:
        """Copy a finished version from another folder, if it has it."""
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
        """Delete this version and later ones, unfinished ones too."""
        for path in self.folder.glob("round_*"):
            number = path.stem.removeprefix("round_")
            if number.isdecimal() and int(number) >= version:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read(self, version: int, index: Tensor, window: Tensor, crop: tuple[int, int]) -> Tensor:
        """The labels of training crops.

        Args:
            version: a finished one.
            index: int64 [B], places of the images.
            window: int64 [B, 3], where each crop lies and whether it is mirrored, as in `Sample`.
            crop: (h, w).

        Returns:
            uint8 [B, h, w]; 255 where a crop reaches beyond its image.
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
            cure = "resume=last makes them anew"
            try:
                open_file(path).close()  # a pipe would keep the next line waiting
                labels = np.lib.format.open_memmap(path, "r")
            except Exception as error:  # a damaged header fails wherever its reader happens to be
                raise Damaged(f"cannot read the pseudo-labels {path}: {first_line(error)}; {cure}") from error
            known = self.sum_path(version)
            if labels.dtype != np.uint8 or (known.exists() and read_text(known, cure).strip() != checksum(path, cure)):
                raise Damaged(f"the pseudo-labels {path} are damaged; {cure}")
            if labels.shape != (self.count, *self.size):
                raise UserError(f"{path} holds labels of other target images: start the run anew with overwrite=true")
            self._open = (version, labels)
        return self._open[1]


def _no_room(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write pseudo-labels into {folder}: {error}; free some space")


class LabelDraft:
    """An unfinished version: predictions and their certainty levels, batch of images by batch of images.

    Args:
        store: where it will belong.
        version: its number.
        size: images a batch.
        network: fingerprint of what labels; a draft of another one, or in other batches, is begun anew.

    Attributes:
        batches: the places of each batch's images.
    """

    def __init__(self, store: LabelStore, version: int, size: int, network: str) -> None:
        self.store, self.folder, self.version = store, store.folder / f"round_{version:03d}", version
        self.shape = (store.count, *store.size)
        self.batches = [list(range(i, min(i + size, store.count))) for i in range(0, store.count, size)]
        self.identity = f"{network} labels {self.shape} by {size}"

    def begin(self) -> None:
        """Make the files, or leave those of an interrupted draft of the same identity."""
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
        """Whether the planes are there as they were begun."""
        shapes = {**dict.fromkeys(PLANES, self.shape), "done": (len(self.batches),)}
        try:
            planes = {name: self.plane(name) for name in shapes}
        except Exception:  # a damaged header fails wherever its reader happens to be
            return False
        kinds = all(planes[name].dtype == PLANES.get(name, np.uint8) for name in shapes)
        return kinds and all(planes[name].shape == shape for name, shape in shapes.items())

    def plane(self, name: str) -> np.memmap[Any, np.dtype[Any]]:
        """`label`, `level`, `selected` [N, H, W] or `done` [batches], mapped for reading."""
        plane: np.memmap[Any, np.dtype[Any]] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return plane

    def write(self, name: str, first: int, content: NDArray[np.generic]) -> None:
        """Put rows into a plane from row `first` on.

        Not through a map: of a page that two machines write, one's part would be lost, and a full disk would end the
        process without a word.
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
        """Put `selected` in its place, its checksum beside it, and drop the rest."""
        selected = self.folder / "selected.npy"
        write_text(self.store.sum_path(self.version), checksum(selected, "run it again") + "\n")
        os.replace(selected, self.store.path(self.version))
        shutil.rmtree(self.folder)
