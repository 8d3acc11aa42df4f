"""Exit of a command: its result, one line and code 1, or one line and code 130 after Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from uda_seg.errors import Interrupted, UserError, interrupt, outlive_readers
from uda_seg.errors.known import told

FULL = "HYDRA_FULL_ERROR"


def fail(error: UserError) -> None:
    """Print the line and exit with code 1."""
    raise ended_by(error)


def ended_by(error: UserError) -> SystemExit:
    """Print the line and return the SystemExit to raise."""
    print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
    return SystemExit(1)


def full_errors() -> bool:
    """Return whether to print tracebacks, as requested by Hydra's variable for it."""
    return os.environ.get(FULL) == "1"


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Make Hydra raise its errors within the block instead of printing them partly and exiting."""
    before = os.environ.get(FULL)
    os.environ[FULL] = "1"
    try:
        yield
    finally:
        del os.environ[FULL]
        if before is not None:
            os.environ[FULL] = before


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Turn Ctrl-C into `Interrupted` and a line within the block; training handles it itself (`Stop`)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Interrupted as end:
        print(end.line, file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def one_line() -> Iterator[None]:
    """Exit with one line on any error within the block, for commands that do not use `command.run`."""
    outlive_readers()
    try:
        with ended_by_ctrl_c():
            yield
    except Exception as error:
        raise ended_by(told(error, None, full_errors())) from None
