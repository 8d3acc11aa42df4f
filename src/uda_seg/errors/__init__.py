"""Errors for users: one line, whichever library raised the exception."""

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
    """An error that the user can fix: one line with the defect, the file or key, and the cure.

    Commands print it without a traceback and exit with code 1.
    """


class Damaged(UserError):
    """A file whose content has changed since it was written."""


class RankLost(UserError):
    """A rank's error about the loss of another rank, whose own error takes precedence."""


class Interrupted(SystemExit):
    """Exit after Ctrl-C with code 130, where Lightning would turn a KeyboardInterrupt into code 1.

    Attributes:
        line: the message.
    """

    line = "interrupted"

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGINT)

    def left_in(self, folder: Path) -> None:
        """Mention the checkpoint in a run's folder, if there is one."""
        last = folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            self.line = f"interrupted: {last} is saved, continue with resume=last"


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT by raising `Interrupted`, and ignore further ones during the exit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Interrupted


class _Outlet(io.RawIOBase):
    """Output to a pipe whose reader may leave (`... | head`): further output is dropped, and the work continues."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.number = stream, stream.fileno()  # the reference keeps the descriptor open

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
    """Make standard output and error robust against closed pipes and characters that they cannot encode."""
    logging.raiseExceptions = False  # no traceback for a line that cannot be logged
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            number = stream.fileno()
            stream.reconfigure(errors="backslashreplace")  # for names that are not UTF-8, as on stderr
        except (AttributeError, OSError, ValueError):  # a replacement by a test or a notebook
            continue
        raw = getattr(stream.buffer, "raw", stream.buffer)  # unbuffered with `python -u`
        if stat.S_ISFIFO(os.fstat(number).st_mode) and not isinstance(raw, _Outlet):
            stream.flush()
            outlet = io.BufferedWriter(_Outlet(stream))
            setattr(sys, name, io.TextIOWrapper(outlet, stream.encoding, "backslashreplace", line_buffering=True))
