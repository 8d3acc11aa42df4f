"""Which process wrote something, and whether it still lives."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path


@functools.cache
def machine() -> str:
    """Eight hex digits for all processes that see each other's numbers: one machine between two boots, one container.

    Two machines may have one host name, and two containers on one machine have numbers of their own.
    """
    boot = _read(Path("/proc/sys/kernel/random/boot_id"))
    with contextlib.suppress(OSError):
        boot += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:8]


def born(pid: int) -> str | None:
    """When a process started, in the kernel's ticks, which tells it from a later one of its number.

    None where there is no such process, or only what its parent has not asked about yet; "" where that cannot be known.
    """
    if not Path("/proc/self/stat").exists():
        return "" if _signalled(pid) else None
    said = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return None if len(said) < 20 or said[0] in "ZX" else said[19]


def _signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        what: it does, in words that follow "in use by".
        host: the machine's name, for people.
        machine: as `machine` says.
        pid: its number there.
        born: when it started, as `born` says.
        job: SLURM's job and how often it was started anew; "" outside of one.
        restarts: how often SLURM has started that job anew.
        since: date and time.
    """

    what: str
    host: str = field(default_factory=socket.gethostname)
    machine: str = field(default_factory=machine)
    pid: int = field(default_factory=os.getpid)
    born: str = field(default_factory=lambda: born(os.getpid()) or "")
    job: str = ""
    restarts: int = 0
    since: str = field(default_factory=lambda: datetime.now().isoformat(" ", "seconds"))

    def lives(self) -> bool | None:
        """Whether the process runs; None where it is on a machine, or in a container, that cannot be asked."""
        if self.machine != machine():
            return None
        return born(self.pid) == self.born

    def before(self, other: Owner) -> bool:
        """Whether this is an earlier start of the other's SLURM job, which SLURM has ended."""
        return bool(self.job) and self.job == other.job and self.restarts < other.restarts
