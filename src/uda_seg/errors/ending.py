"""How a command ends: by its result, by one line and code 1, or by Ctrl-C with a line and code 130."""

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
    """Print the line and leave with code 1."""
    raise ended_by(error)


def ended_by(error: UserError) -> SystemExit:
    """Print the line; returns what to leave with."""
    print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
    return SystemExit(1)


def full_errors() -> bool:
    """Whether the person wants to see stacks of frames, by Hydra's own variable for that."""
    return os.environ.get(FULL) == "1"


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Within the block Hydra raises what goes wrong in it, instead of printing some of it and leaving."""
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
    """Within the block Ctrl-C raises `Interrupted`, and is answered by a line; training has its own way (`Stop`)."""
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
    """Within the block any error ends the process by its line: for commands that are not `command.run`'s."""
    outlive_readers()
    try:
        with ended_by_ctrl_c():
            yield
    except Exception as error:
        raise ended_by(told(error, None, full_errors())) from None
