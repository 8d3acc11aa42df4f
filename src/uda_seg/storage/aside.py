"""Files put aside until others have taken their place; a kill at any moment loses none of them."""

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
    """A folder within a folder that keeps some of its files.

    `state.txt` in it says how far it is: `moving` files in, all `aside`, `returning` them, or `done` with them. What is
    to be done about each after a kill follows from it: files that are on their way are brought back.

    Args:
        folder: whose files they are.
        name: of the folder in it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.place = folder, folder / name

    @property
    def state(self) -> str:
        """As above; "" where nothing was put aside."""
        try:
            return (self.place / STATE).read_text().strip()
        except FileNotFoundError:
            return ""

    def put(self, paths: Iterable[Path]) -> None:
        """Move files and folders of the folder in.

        Raises:
            UserError: a folder of the name is there that this class did not make, or the disk does not take it.
        """
        try:
            self._clean()
            with contextlib.suppress(OSError):
                self.place.rmdir()  # of a process that was killed before it could say a word
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
        """Move everything back; what has come `instead` is deleted first."""
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
        """Delete what was put aside."""
        self._is("done")
        for path in list(self.place.iterdir()):
            if path.name != STATE:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.rmtree(self.place)

    def _clean(self) -> None:
        """Remove what was left of a state that a kill kept from being written."""
        remove_parts(self.place.glob(f".{STATE}.*.tmp"), alone=True)

    def _is(self, state: str) -> None:
        write_text(self.place / STATE, state + "\n")

    def _move(self, path: Path, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, to)
        _remove_empty(path.parent, self.folder)


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and those above it, below `top`, that hold nothing any more."""
    with contextlib.suppress(OSError):
        while folder != top:
            folder.rmdir()
            folder = folder.parent
