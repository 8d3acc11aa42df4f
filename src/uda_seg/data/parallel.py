"""Work on many files: a thread per core, a progress bar, and no more results in memory than are being worked on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Cores that this process may use, where the platform says so: SLURM and `taskset` leave some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
