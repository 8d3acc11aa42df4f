"""What reaches a person when something goes wrong: one line, whichever library noticed it."""

from __future__ import annotations

import io
import logging
import os
import signal
import stat
import sys
from pathlib import Path
from types import FrameType
from typing import IO, Any


class UserError(Exception):
    """Something the person can fix: one clear line that says what is wrong, in which file, and the cure.

    Commands print it without a stack of frames and return exit code 1.
    """


class Damaged(UserError):
    """A file that is not what it was when it was made."""


class RankLost(UserError):
    """What a rank sees of the end of another one: the other's own words say more, where there are any."""


class Interrupted(SystemExit):
    """Ctrl-C, as a command is ended by it: exit code 130, which of a KeyboardInterrupt Lightning would make 1.

    Attributes:
        line: what is told.
    """

    line = "interrupted"

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGINT)

    def left_in(self, folder: Path) -> None:
        """Tell of the checkpoint in a run's folder, if there is one."""
        last = folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            self.line = f"interrupted: {last} is saved, go on with resume=last"


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of SIGINT that raises `Interrupted`; further ones must not disturb the way out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Interrupted


class _Outlet(io.RawIOBase):
    """A pipe that may lose its reader (`... | head`): what nobody reads is dropped, and the work goes on."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.number = stream, stream.fileno()  # the stream would close it, were it dropped

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def write(self, data: Any, /) -> int:
        try:
            return os.write(self.number, data)
        except BrokenPipeError:
            return len(data)


def outlive_readers() -> None:
    """Let nothing end, or go unsaid, because standard output or error is a closed pipe or has no such letter."""
    logging.raiseExceptions = False  # of a line that cannot be logged
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            number = stream.fileno()
            stream.reconfigure(errors="backslashreplace")  # names that are no UTF-8, as standard error does by itself
        except (AttributeError, OSError, ValueError):  # one that a test or a notebook has put there
            continue
        raw = getattr(stream.buffer, "raw", stream.buffer)  # without a buffer where Python was asked for that
        if stat.S_ISFIFO(os.fstat(number).st_mode) and not isinstance(raw, _Outlet):
            stream.flush()
            outlet = io.BufferedWriter(_Outlet(stream))
            setattr(sys, name, io.TextIOWrapper(outlet, stream.encoding, "backslashreplace", line_buffering=True))
