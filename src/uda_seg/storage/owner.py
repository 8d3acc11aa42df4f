"""Identity of processes, and whether they are alive."""

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
    """Return eight hex digits that identify a pid namespace: a machine between two boots, or a container.

    Host names do not suffice: two machines may share one, and containers on one machine have their own pids.
    """
    boot = _read(Path("/proc/sys/kernel/random/boot_id"))
    with contextlib.suppress(OSError):
        boot += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:8]


def born(pid: int) -> str | None:
    """Return the start time of a process in kernel ticks, which distinguishes it from a later one with the same pid.

    None if there is no such process, or only a zombie; "" if that is unknown.
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
        what: description, following "in use by".
        host: host name, for messages.
        machine: result of `machine`.
        pid: process id.
        born: result of `born`.
        job: SLURM's job; "" outside of one.
        restarts: number of times SLURM has requeued the job.
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
        """Return whether the process is alive; None if it is on another machine or in another container."""
        if self.machine != machine():
            return None
        return born(self.pid) == self.born

    def before(self, other: Owner) -> bool:
        """Return whether this is an earlier start of the other's SLURM job, which SLURM has ended."""
        return bool(self.job) and self.job == other.job and self.restarts < other.restarts
