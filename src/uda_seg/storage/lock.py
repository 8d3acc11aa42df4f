"""Lock of a folder, also between machines that share a disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import uuid
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType

from uda_seg.errors import UserError
from uda_seg.storage.owner import Owner

NAME = ".uda_seg.lock"
BEAT_S = 10.0  # seconds between heartbeats
# Seconds without a heartbeat after which a process on another machine counts as dead; NFS may be a minute late.
SILENT_S = 180.0


class FolderLock:
    """Context that locks a folder: a file in it names the process, and its modification time is the heartbeat.

    The lock of a dead process is taken over. On the same machine, pid, start time and boot tell; for another machine
    the file's age does. The file is created atomically by one process, and is complete when it appears.

    Args:
        folder: the folder, created if necessary.
        owner: this process.
        elsewhere: how to choose another folder, for the message.
        name: name of the file; another one locks only a part of the folder.

    Attributes:
        taken: true if another process has taken over the folder, which is checked periodically.
    """

    def __init__(self, folder: Path, owner: Owner, elsewhere: str, name: str = NAME) -> None:
        self.folder, self.owner, self.elsewhere = folder, owner, elsewhere
        self.path = folder / name
        self.content = json.dumps(asdict(owner) | {"key": uuid.uuid4().hex}).encode()
        self.taken = False
        self._ended = threading.Event()

    def __enter__(self) -> FolderLock:
        """Lock the folder.

        Raises:
            UserError: another process has locked it (names machine and process), or the file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            raise UserError(f"cannot write into {self.folder}: {error.strerror or error}; {self.elsewhere}") from error
        threading.Thread(target=self._beat, daemon=True, name=f"lock of {self.folder}").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release the folder."""
        self._ended.set()
        if self.owner.pid == os.getpid():  # a fork that leaves the block does not hold the lock
            with contextlib.suppress(OSError):
                if self.path.read_bytes() == self.content:
                    self.path.unlink()

    def raise_if_taken(self) -> None:
        """Raise UserError if another process has taken over the folder, so that this one stops writing."""
        if self.taken:
            raise UserError(
                f"{self.folder} was taken over by another process while this one gave no sign of life, or its "
                f"{self.path.name} was deleted: this run ends, and the other one continues"
            )

    def _take(self) -> None:
        draft = self.folder / f"{self.path.name}.{self.owner.machine}.{self.owner.pid}.tmp"
        try:
            while True:
                draft.write_bytes(self.content)
                if self._create(draft, self.path) or self._replace_dead(draft, self.path):
                    return
        finally:
            draft.unlink(missing_ok=True)

    def _create(self, draft: Path, path: Path) -> bool:
        """Create a file unless it exists, as a link to a complete one if the disk supports links."""
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError:
            try:
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(file, "wb") as opened:
                opened.write(self.content)
        return True

    def _replace_dead(self, draft: Path, path: Path) -> bool:
        """Replace a dead process's file; false if it is gone, or if another process was faster.

        Whoever replaces a file first creates a claim, named after the content to be replaced, and then looks whether
        that is still there: so of many processes that find the same file, one replaces it, and none replaces its
        successor. A claim that a dead process has left is replaced likewise.

        Raises:
            UserError: the process is or may be alive.
        """
        try:
            found, age = path.read_bytes(), draft.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return False
        self._refuse_living(found, age)
        claim = self.path.with_name(f"{self.path.name}.{hashlib.sha256(found).hexdigest()[:8]}.tmp")
        if not (self._create(draft, claim) or self._replace_dead(draft, claim)):
            return False
        try:
            draft.unlink(missing_ok=True)  # it may be the claim by another name
            draft.write_bytes(self.content)
            if path.read_bytes() != found:
                return False
            os.replace(draft, path)
        except FileNotFoundError:
            return False
        finally:
            claim.unlink(missing_ok=True)
        return True

    def _refuse_living(self, found: bytes, age: float) -> None:
        """Raise UserError if the process named in a file, of this age by the disk's clock, is or may be alive."""
        owner = _parsed(found)
        lives = None if owner is None else owner.lives()
        if lives or (lives is None and age < SILENT_S and not (owner is not None and owner.before(self.owner))):
            raise UserError(self._refusal(owner, None if lives else age))

    def _refusal(self, owner: Owner | None, age: float | None) -> str:
        said = "by a process that does not say its name"
        if owner is not None:
            said = f"by {owner.what} on {owner.host}, process {owner.pid}, since {owner.since}"
        cure = f"wait for its end, or {self.elsewhere}"
        if age is not None:
            cure = (
                f"its last sign of life is {max(age, 0):.0f} s old; if it has died, delete {self.path} or wait until "
                f"{SILENT_S:.0f} s have passed, else {self.elsewhere}"
            )
        return f"{self.folder} is in use {said}: {cure}"

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.taken = self.path.read_bytes() != self.content
                if not self.taken:
                    os.utime(self.path)
            except FileNotFoundError:
                self.taken = not self._ended.is_set()
            except OSError:  # a shared disk may be temporarily unavailable
                continue


def _parsed(content: bytes) -> Owner | None:
    """Parse the process named in a file; None if malformed."""
    try:
        said = json.loads(content)
        return Owner(**{field.name: said[field.name] for field in fields(Owner)})
    except (ValueError, TypeError, KeyError):
        return None
