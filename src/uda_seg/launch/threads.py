"""The threads that PyTorch calculates on: how many they are, and how they wait for each other.

At the end of each of a step's thousands of parallel regions a thread waits for the others. To spin meanwhile is
fastest, as long as each has a core: waking one that sleeps takes longer than most regions. Where another process is on
one of the cores, those that spin keep it from the thread they wait for, and a step takes many times as long. So they
spin while nobody else is there, and sleep while somebody is. Neither changes a bit of what is computed; their number
would, and depends on nothing that comes and goes. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import torch

from uda_seg import WAITING
from uda_seg.data.parallel import affinity, cores

log = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between two looks
CROWDED = 0.1  # of the time, in which threads of this process wanted a core and had none
QUIET = 4  # looks in a row without such a share, after which they spin again


def share_cores(processes: int = 1) -> None:
    """Let PyTorch calculate on this process's share of the cores, and give way to other processes on them.

    By itself it has a thread for every core of the machine, or of the process's affinity, whatever a container is
    granted and however many ranks there are. None is set aside for loader workers, which have one thread each: they
    decode for a small part of a step. A user's OMP_NUM_THREADS stays, and so does what a user says about waiting.

    Args:
        processes: that calculate at the same time on the cores of this one.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores()) // processes))
    chosen = "OMP_WAIT_POLICY" in os.environ or any(os.environ.get(n, value) != value for n, value in WAITING.items())
    if torch.get_num_threads() > 1 and not chosen and queued() is not None:
        _watch()


def queued() -> float | None:
    """Seconds for which the threads of this process have wanted a core and waited for it; None where nobody counts."""
    waited = 0
    try:
        for task in os.listdir("/proc/self/task"):
            try:
                waited += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
            except ProcessLookupError:  # it has ended
                continue
    except (OSError, IndexError, ValueError):
        return None
    return waited / 1e9


class Watch(threading.Thread):
    """Looks twice a second whether other processes are on the cores, and lets PyTorch's threads wait accordingly."""

    def __init__(self) -> None:
        super().__init__(name="uda_seg.threads", daemon=True)
        self.idlers: list[Idler] = []
        self.told = False

    def run(self) -> None:
        """Look for ever."""
        quiet, before, then = 0, queued(), time.monotonic()
        while before is not None:
            time.sleep(PERIOD)
            waited, now = queued(), time.monotonic()
            if waited is None:
                return
            crowded = waited - before > CROWDED * (now - then)
            quiet = 0 if crowded else quiet + 1
            if crowded:
                self.sleep()
            elif quiet >= QUIET:
                self.spin()
            before, then = waited, now

    def sleep(self) -> None:
        """Have the threads sleep almost at once when they wait."""
        if self.idlers:
            return
        if not self.told:
            log.info("other processes use these cores: a step takes longer, and PyTorch's threads wait asleep")
            self.told = True
        self.idlers = [Idler() for _ in range(needed(torch.get_num_threads(), affinity()))]

    def spin(self) -> None:
        """Have them spin."""
        for idler in self.idlers:
            idler.end()
        self.idlers = []


class Idler:
    """A thread that has OpenMP threads of its own, which sleep.

    GNU's OpenMP lets all threads of a process spin for a moment only as soon as they are more than the cores (manual of
    libgomp, GOMP_SPINCOUNT). It can be told neither more directly nor later than when it is loaded.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._idle, name="uda_seg.threads.idler", daemon=True)
        self.thread.start()

    def _idle(self) -> None:
        torch.zeros(1 << 20).exp_()  # enough for all of its threads to get a part of
        self.over.wait()

    def end(self) -> None:
        """End it, and its OpenMP threads with it."""
        self.over.set()
        self.thread.join()


def needed(threads: int, cores: int) -> int:
    """How many idlers of so many threads each, themselves one of them, make more threads than cores."""
    return max(1, -(-(cores + 1 - threads) // (threads - 1)))


_watching: Watch | None = None


def _watch() -> None:
    global _watching
    if _watching is None or not _watching.is_alive():  # a fork has the one, but not the thread
        _watching = Watch()
        _watching.start()
