"""Files behind an address, kept on this machine's disk: each is fetched once for all its processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from uda_seg.errors import UserError
from uda_seg.storage.files import CACHE, written_whole
from uda_seg.storage.user_cache import user_cache

ATTEMPTS = 5  # openings of a file that other processes delete for room each time


class FetchedFiles:
    """The files at an address; what is opened is fetched unless it is here already.

    Processes that want the same file wait for the one that fetches it. Where they lack room, the files that were opened
    longest ago are deleted; who has one open reads on.

    Args:
        root: the address, of a kind that WebDataset opens.
        room: bytes that all of them together may take.
    """

    def __init__(self, root: str, room: int) -> None:
        self.root, self.room = root, room
        self.folder = user_cache() / "shards" / hashlib.sha256(root.encode()).hexdigest()[:16]

    def open(self, name: str, size: int) -> BinaryIO:
        """A file of `size` bytes, open for reading.

        Raises:
            UserError: it cannot be fetched, or has another size, or is deleted before it is open, again and again.
        """
        path = self.folder / name
        for _ in range(ATTEMPTS):
            if not _is_here(path, size):
                self._fetch(path, size)
            with contextlib.suppress(FileNotFoundError):
                with contextlib.suppress(PermissionError):  # another user's
                    os.utime(path)
                return path.open("rb")
        raise UserError(f"{path} was deleted for room before it could be read: make data.shards.cache_gb larger")

    def _fetch(self, path: Path, size: int) -> None:
        from webdataset.gopen import gopen  # takes a second to import, which those who read files need not wait for

        address = f"{self.root}/{path.name}"
        with _locked(self.folder.with_suffix(".locks") / path.name):
            if _is_here(path, size):
                return
            self._make_room(size)
            with written_whole(path, CACHE) as part:
                try:
                    with gopen(address) as stream, part.open("wb") as file:
                        shutil.copyfileobj(stream, file, 2**20)
                except (OSError, ValueError) as error:
                    for cause in (error, error.__context__):  # a full disk, and then the program that could not go on
                        if isinstance(cause, OSError) and cause.errno is not None:
                            raise cause from None  # `written_whole` names the cure
                    raise UserError(f"{address} cannot be fetched: {error}") from error
                if (found := part.stat().st_size) != size:
                    raise UserError(f"{address} has {found} bytes, but its index says {size}: index it again")

    def _make_room(self, size: int) -> None:
        """Delete what was opened longest ago until `size` more bytes fit."""
        found = []
        for path in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat(), path))
        too_much = sum(stat.st_size for stat, _ in found) + size - self.room
        for stat, path in sorted(found, key=lambda each: each[0].st_mtime_ns):
            if too_much <= 0:
                return
            path.unlink(missing_ok=True)
            too_much -= stat.st_size


def _is_here(path: Path, size: int) -> bool:
    """Whether a file is there, as its index has it: not one that was changed at its address since it was fetched."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Within the block no other process has this lock; it ends with the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {CACHE}") from error
    with lock:
        with contextlib.suppress(OSError):  # a disk without locks: several may fetch the same, and one of them stays
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
