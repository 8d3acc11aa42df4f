"""Runs that are killed at random moments, again and again, and end as if nobody had touched them."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from test_distributed import overrides_on
from test_train import assert_same_training, checkpoint, log_of, metrics

from command_line import configured, forked, small_run
from uda_seg import train as command
from uda_seg.launch import ranks as launch
from uda_seg.launch.ranks import on_all_ranks

# A checkpoint after every step, and two validations.
STEPS = 6
RUN = ("method=dacs", f"steps={STEPS}", f"callbacks.checkpoints={STEPS}", "statistics_batches=1")

Start = Callable[[str], BaseProcess]
Kill = Callable[[BaseProcess], None]


@pytest.fixture
def start(camvid, tmp_path, monkeypatch):
    """`start(folder, ranks)`: a process that begins the run in that folder, or goes on with it."""
    monkeypatch.setattr(launch, "START_METHOD", "fork")

    def start(folder: str, ranks: int = 1) -> BaseProcess:
        chosen = overrides_on(ranks, camvid) if ranks > 1 else small_run(camvid)
        begun = any((tmp_path / folder / "checkpoints").glob("*.ckpt"))
        config = configured(*chosen, *RUN, *(["resume=last"] if begun else []))
        return forked(functools.partial(on_all_ranks(command.train), config, tmp_path / folder))

    return start


def newest_step(folder: Path) -> int:
    """Of the checkpoint that `resume=last` takes; -1 before there is one."""
    names = [n for n in ("last", "fresh", "previous") if (folder / "checkpoints" / f"{n}.ckpt").exists()]
    return checkpoint(folder, names[0])["global_step"] if names else -1


def modified(file: Path) -> int | None:
    """When it was written; None where it is not there, as between the two renames of a save."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def wait_for_saves(process: BaseProcess, file: Path, number: int) -> None:
    """Until a checkpoint has been written so many times, or the process has ended."""
    before = modified(file)
    while number and process.is_alive():
        if (now := modified(file)) not in (None, before):
            before, number = now, number - 1
        time.sleep(0.001)


def survives(start: Start, root: Path, kills: int, kill: Callable[[BaseProcess, random.Random], None]) -> None:
    """Kill runs `kills` times, at a drawn moment after none to two more steps; each that ends is as one left alone."""
    draws = random.Random(0)
    started = time.perf_counter()
    alone = start("alone")
    alone.join()
    assert alone.exitcode == 0
    step = (time.perf_counter() - started) / STEPS
    run, killed = 0, 0
    while True:
        folder = root / f"run{run}"
        before, process = newest_step(folder), start(folder.name)
        if killed < kills:
            wait_for_saves(process, folder / "checkpoints" / "last.ckpt", draws.randrange(3))
            process.join(draws.uniform(0, step))
        else:
            process.join()
        if process.is_alive():
            kill(process, draws)
            killed += 1
            assert newest_step(folder) >= before, "a checkpoint was lost"
            continue
        assert process.exitcode == 0
        assert_same_training(checkpoint(root / "alone"), checkpoint(folder))
        assert log_of(root / "alone") == log_of(folder)
        assert metrics(root / "alone") | {"wall_s": 0} == metrics(folder) | {"wall_s": 0}
        assert not list((folder / "checkpoints").glob(".*"))
        if killed >= kills:
            return
        run += 1


def kill_or_stop(process: BaseProcess, draws: random.Random) -> None:
    """SIGKILL, or SIGTERM, which saves the run once it trains."""
    number = draws.choice([signal.SIGKILL, signal.SIGTERM])
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode in (-number, 128 + number, 0)  # 0: it had just ended


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_runs_end_as_one_that_was_left_alone(start, tmp_path, kills):
    survives(start, tmp_path, kills, kill_or_stop)


def children(pid: int) -> list[int]:
    """Of a process; none where it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_one_of_many(process: BaseProcess, draws: random.Random) -> None:
    """SIGKILL to one rank or to their starter, or SIGTERM to the starter; whichever it is, all have to end."""
    ranks = children(process.pid)
    victim = draws.choice([process.pid, *ranks])
    number = draws.choice([signal.SIGKILL, signal.SIGTERM]) if victim == process.pid else signal.SIGKILL
    try:
        os.kill(victim, number)
    except ProcessLookupError:  # it had just ended
        victim = 0
    process.join(60)
    assert process.exitcode in (-number, 128 + number, 0, 1)
    for _ in range(600):
        if not any(map(lives, ranks)):
            return
        time.sleep(0.1)
    pytest.fail("a rank outlived the run")


@pytest.mark.slow
def test_killed_runs_on_two_ranks_end_as_one_that_was_left_alone(start, tmp_path):
    survives(functools.partial(start, ranks=2), tmp_path, 12, kill_one_of_many)
