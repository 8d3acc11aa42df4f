"""Setting files aside until they are replaced, without losing any if killed at any moment."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from uda_seg.errors import UserError
from uda_seg.storage.files import RUN, remove_parts, write_text

STATE = "state.txt"


class Aside:
    """A sub-folder that keeps files of its parent.

    Its `state.txt` records the progress: `moving` files in, all `aside`, `returning` them, or `done`. It determines the
    recovery after a kill: files in transit are moved back.

    Args:
        folder: the parent folder.
        name: name of the sub-folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.place = folder, folder / name

    @property
    def state(self) -> str:
        """Recorded progress; "" if nothing is set aside."""
        try:
            return (self.place / STATE).read_text().strip()
        except FileNotFoundError:
            return ""

    def put(self, paths: Iterable[Path]) -> None:
        """Set files and folders of the parent aside.

        Raises:
            UserError: an unrelated folder of this name exists, or files cannot be moved.
        """
        try:
            self._clean()
            with contextlib.suppress(OSError):
                self.place.rmdir()  # left by a process killed before it could write the state
            if self.place.exists():
                raise UserError(f"{self.place} is in the way: move it to another place")
            self.place.mkdir()
            self._is("moving")
            for path in paths:
                self._move(path, self.place / path.relative_to(self.folder))
            self._is("aside")
        except OSError as error:
            raise UserError(f"cannot set {self.folder} aside: {error.strerror or error}; {RUN}") from error

    def bring_back(self, instead: Iterable[Path] = ()) -> None:
        """Move everything back, after deleting the replacements `instead`."""
        self._clean()
        if self.state == "aside":
            for path in instead:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
                _remove_empty(path.parent, self.folder)
            self._is("returning")
        for path in sorted(self.place.rglob("*")):
            if (path.is_symlink() or not path.is_dir()) and path != self.place / STATE:
                self._move(path, self.folder / path.relative_to(self.place))
        shutil.rmtree(self.place)

    def drop(self) -> None:
        """Delete the files set aside."""
        self._is("done")
        for path in list(self.place.iterdir()):
            if path.name != STATE:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.rmtree(self.place)

    def _clean(self) -> None:
        """Remove leftovers of an interrupted write of the state."""
        remove_parts(self.place.glob(f".{STATE}.*.tmp"), alone=True)

    def _is(self, state: str) -> None:
        write_text(self.place / STATE, state + "\n")

    def _move(self, path: Path, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, to)
        _remove_empty(path.parent, self.folder)


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and its parents below `top` that are empty."""
    with contextlib.suppress(OSError):
        while folder != top:
            folder.rmdir()
            folder = folder.parent
