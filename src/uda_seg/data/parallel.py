"""Parallel processing of files: a thread per core, a progress bar, and a bounded number of results in memory."""

from __future__ import annotations

import math
import os
import sys
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

AHEAD = 4  # items submitted per thread, so that a slow item does not stall the others


class Items(Sized, Iterable[_Out], Protocol[_Out]):
    """Sized iterable."""


def cores() -> int:
    """Return the number of cores available to this process, limited by SLURM, `taskset` and container quotas."""
    return max(1, math.ceil(min(affinity(), quota())))


def affinity() -> int:
    """Return the number of cores in the CPU affinity, regardless of quotas."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = Path("/")) -> float:
    """Return the CPU quota of this process's Linux control groups in cores; infinite without a limit.

    A container sees all cores of the machine, and would start a thread on each although it is granted only a few.

    Args:
        root: root of the file system.
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
        # Limits of parent groups apply too; inside a container the group's own path may not exist.
        limits += [_limit(folder) for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return min(limits)


def _limit(group: Path) -> float:
    """Read quota / period of control groups, version 2 (one file) or 1 (two files)."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            granted, period = (int(word) for name in names for word in (group / name).read_text().split())
        except (OSError, ValueError):  # missing, or `max`
            continue
        if granted > 0 and period > 0:
            return granted / period
    return math.inf


def progress_console() -> Console:
    """Return the console of progress bars: standard error, without control characters unless it is a terminal.

    In a notebook rich would draw with widgets, which need a package, and kernels ask for colours that pages show badly.
    """
    return Console(stderr=True, force_jupyter=False, force_terminal=sys.stderr.isatty())


def in_threads(work: Callable[[Item], Result], items: Items[Item], title: str) -> Iterator[Result]:
    """Yield `work(item)` of every item in order, from threads; decoding, inflating and checksums release the GIL.

    An exception of `work` is raised at its item's turn; items that have not started by then are cancelled.
    """
    threads = cores()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=progress_console(), transient=True, disable=not len(items)) as bar,
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
