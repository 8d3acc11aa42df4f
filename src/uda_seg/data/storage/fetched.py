"""Local copies of remote files, fetched once per machine."""

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
from uda_seg.storage.files import CACHE, part_name, remove_parts, written_whole
from uda_seg.storage.user_cache import user_cache

ATTEMPTS = 5  # attempts to open a file that other processes delete to make room


class FetchedFiles:
    """Files at a remote address, fetched on first access.

    Processes that need the same file wait for the one that fetches it. To make room, the least recently opened files
    are deleted; processes that have one open can continue to read it.

    Args:
        root: an address that WebDataset can open.
        room: maximum bytes of all files together.
    """

    def __init__(self, root: str, room: int) -> None:
        self.root, self.room = root, room
        self.folder = user_cache() / "shards" / hashlib.sha256(root.encode()).hexdigest()[:16]

    def open(self, name: str, size: int) -> BinaryIO:
        """Open a file of `size` bytes for reading.

        Raises:
            UserError: it cannot be fetched, has another size, or is repeatedly deleted before it can be opened.
        """
        path = self.folder / name
        for _ in range(ATTEMPTS):
            if not _is_here(path, size):
                self._fetch(path, size)
            with contextlib.suppress(FileNotFoundError):
                with contextlib.suppress(PermissionError):  # owned by another user
                    os.utime(path)
                return path.open("rb")
        raise UserError(f"{path} was deleted to make room before it could be read: make data.shards.cache_gb larger")

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
                    for cause in (error, error.__context__):  # a full disk, then the fetching program's failure
                        if isinstance(cause, OSError) and cause.errno is not None:
                            raise cause from None  # `written_whole` names the cure
                    raise UserError(f"{address} cannot be fetched: {error}") from error
                if (found := part.stat().st_size) != size:
                    raise UserError(f"{address} has {found} bytes, but its index says {size}: index it again")

    def _make_room(self, size: int) -> None:
        """Delete the least recently opened files until `size` more bytes fit, but none that is being fetched."""
        found = []
        remove_parts(self.folder.glob(".*"))
        for path in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat(), path))
        too_much = sum(stat.st_size for stat, _ in found) + size - self.room
        for stat, path in sorted(found, key=lambda each: each[0].st_mtime_ns):
            if too_much <= 0:
                return
            if part_name(path) is not None:
                continue
            path.unlink(missing_ok=True)
            too_much -= stat.st_size


def _is_here(path: Path, size: int) -> bool:
    """Return whether a file exists with the size in the index, that is, unless it has changed remotely since."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold this lock within the block; it is released when the process ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {CACHE}") from error
    with lock:
        with contextlib.suppress(OSError):  # without locks several may fetch the file; one copy remains
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
