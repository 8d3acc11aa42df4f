"""Work on many files: a thread per core, a progress bar, and no more results in memory than are being worked on."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
Result = TypeVar("Result")
_Out = TypeVar("_Out", covariant=True)

AHEAD = 4  # items submitted per thread, so that a slow one does not stop the others


class Items(Sized, Iterable[_Out], Protocol[_Out]):
    """Anything that can be walked through and counted."""


def cores() -> int:
    """Cores that this process may use: what SLURM and `taskset` leave of the machine's, and a container's limit."""
    return max(1, math.ceil(min(affinity(), quota())))


def affinity() -> int:
    """Cores that this process may be on, however little of their time it is granted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = Path("/")) -> float:
    """How many cores' worth of time Linux grants this process's control groups; infinite where nothing limits them.

    A container sees all of the machine's cores, and would start a thread on each for the few it is granted.

    Args:
        root: of the file system.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for _, controllers, path in (group.split(":", 2) for group in groups):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = top / path.strip("/")
        # A group is held to the limits of those around it; inside a container its own path may not be there.
        limits += [_limit(folder) for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return min(limits)


def _limit(group: Path) -> float:
    """The quota over its period, of version 2 (one file) or 1 (two) of control groups."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            granted, period = (int(word) for name in names for word in (group / name).read_text().split())
        except (OSError, ValueError):  # not there, or `max`
            continue
        if granted > 0 and period > 0:
            return granted / period
    return math.inf


def in_threads(work: Callable[[Item], Result], items: Items[Item], title: str) -> Iterator[Result]:
    """`work(item)` of every item, in the items' order; decoding, inflating and checksums let threads run side by side.

    An exception of `work` is raised at its item's turn; what had not begun by then is not done.
    """
    threads = cores()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not len(items)) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        task = bar.add_task(title, total=len(items))
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= AHEAD * threads:
                    yield waiting.popleft().result()
                    bar.advance(task)
            while waiting:
                yield waiting.popleft().result()
                bar.advance(task)
        finally:
            for future in waiting:
                future.cancel()
