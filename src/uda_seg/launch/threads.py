"""PyTorch's CPU threads: their number, and whether they spin or sleep while waiting.

At the end of each of a step's thousands of parallel regions, threads wait for each other. Spinning is fastest as long
as each has its own core, because waking a sleeping thread takes longer than most regions. If another process uses one
of the cores, spinning threads keep it from the thread they wait for, and a step takes many times as long. So threads
spin while the cores are free, and sleep otherwise. Neither changes results bit by bit; the number of threads would, so
it does not depend on the load. See docs/benchmarks.md for measurements.
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

PERIOD = 0.5  # seconds between two checks
CROWDED = 0.1  # share of time in which threads of this process waited for a core
QUIET = 4  # consecutive checks below that share after which threads spin again


def share_cores(processes: int = 1) -> None:
    """Limit PyTorch to this process's share of the cores, and yield to other processes on them.

    By default it has a thread for every core of the machine or of the process's affinity, regardless of a container's
    quota and the number of ranks. No core is reserved for loader workers, which have one thread each and decode during
    a small part of a step. A user's OMP_NUM_THREADS and wait policy are kept.

    Args:
        processes: number of processes that compute on the same cores.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores()) // processes))
    chosen = "OMP_WAIT_POLICY" in os.environ or any(os.environ.get(n, value) != value for n, value in WAITING.items())
    if torch.get_num_threads() > 1 and not chosen and queued() is not None:
        _watch()


def queued() -> float | None:
    """Read the seconds that this process's threads have waited for a core; None if not available."""
    waited = 0
    try:
        for task in os.listdir("/proc/self/task"):
            try:
                waited += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
            except ProcessLookupError:  # the thread has ended
                continue
    except (OSError, IndexError, ValueError):
        return None
    return waited / 1e9


class Watch(threading.Thread):
    """Thread that checks for other processes on the cores twice per second, and switches between spin and sleep."""

    def __init__(self) -> None:
        super().__init__(name="uda_seg.threads", daemon=True)
        self.idlers: list[Idler] = []
        self.told = False

    def run(self) -> None:
        """Check forever."""
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
        """Let waiting threads sleep almost at once."""
        if self.idlers:
            return
        if not self.told:
            log.info("other processes use these cores: steps take longer, and waiting PyTorch threads sleep")
            self.told = True
        self.idlers = [Idler() for _ in range(needed(torch.get_num_threads(), affinity()))]

    def spin(self) -> None:
        """Let waiting threads spin."""
        for idler in self.idlers:
            idler.end()
        self.idlers = []


class Idler:
    """A thread with its own sleeping OpenMP threads.

    GNU's OpenMP shortens spinning of all threads of a process once there are more threads than cores (libgomp manual,
    GOMP_SPINCOUNT). There is no more direct way, and none to change it after loading.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._idle, name="uda_seg.threads.idler", daemon=True)
        self.thread.start()

    def _idle(self) -> None:
        torch.zeros(1 << 20).exp_()  # large enough to involve all of its threads
        self.over.wait()

    def end(self) -> None:
        """End the thread together with its OpenMP threads."""
        self.over.set()
        self.thread.join()


def needed(threads: int, cores: int) -> int:
    """Compute how many idlers, of so many threads each including themselves, make more threads than cores."""
    return max(1, -(-(cores + 1 - threads) // (threads - 1)))


_watching: Watch | None = None


def _watch() -> None:
    global _watching
    if _watching is None or not _watching.is_alive():  # a fork inherits the object, but not the thread
        _watching = Watch()
        _watching.start()
