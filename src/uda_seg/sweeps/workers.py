"""Running the jobs of a benchmark in processes side by side, each of which trains one."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from uda_seg.config.schema import key_of
from uda_seg.errors import Damaged, Interrupted, UserError, interrupt
from uda_seg.runs.contents import checkpoints_in, holds_run, same_run
from uda_seg.storage.lock import FolderLock
from uda_seg.storage.owner import Owner
from uda_seg.sweeps.benchmark import Job, begin, duration, expected, is_in_folder, is_kept, keep, seconds_of

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks at the processes
PATIENCE = 120.0  # seconds that a process which was told to end has to save its run


@dataclass
class Process:
    """A process that trains a job.

    Attributes:
        job: the job.
        running: the process.
        output: file of what it prints.
        claim: holds the job against other benchmarks.
    """

    job: Job
    running: subprocess.Popen[bytes]
    output: IO[bytes]
    claim: ExitStack
    begun: float = field(default_factory=time.monotonic)

    def error(self) -> str | None:
        """Return what a process that has ended failed with; None if it succeeded."""
        self.output.close()
        if self.running.returncode == 0:
            return None
        text = Path(self.output.name).read_text(errors="replace").strip().splitlines()
        line = next((line for line in reversed(text) if line.startswith("error: ")), text[-1] if text else "")
        return f"{line.removeprefix('error: ') or 'ended without a word'} (code {self.running.returncode})"


@dataclass
class Workers:
    """Runs jobs in processes side by side; one that fails does not stop the others.

    Attributes:
        processes: number of processes at once.
        threads: PyTorch's threads of each.
        minutes: minutes after which all of them save and end; None: no limit.
        more: arguments that all processes get besides their job's overrides.
    """

    processes: int
    threads: int
    minutes: float | None = None
    more: Sequence[str] = ()
    took: dict[Job, float] = field(default_factory=dict)
    failed: dict[Job, str] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Run jobs in their order, and return those that are not finished: out of time, or another process has them."""
        waiting, running, elsewhere = list(jobs), list[Process](), list[Job]()
        until = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        with ended_with(running):
            while waiting or running:
                while waiting and len(running) < self.processes:
                    job = waiting.pop(0)
                    if (claim := claimed(job)) is None:
                        elsewhere.append(job)
                    elif is_kept(job):  # by another benchmark, since this one looked
                        claim.close()
                    elif why := occupied(job):
                        claim.close()
                        self._fail(job, why)
                    else:
                        running.append(self._start(job, claim))
                if running:
                    time.sleep(POLL)
                for process in [p for p in running if p.running.poll() is not None]:
                    running.remove(process)
                    self._finish(process, [*(p.job for p in running), *waiting])
                if until is not None and time.monotonic() > until:
                    break
            stopped = [process.job for process in running]
        return [*stopped, *waiting, *(job for job in elsewhere if not is_kept(job))]

    def command(self, job: Job) -> list[str]:
        """Build the command that trains a job, or continues it.

        A run of an earlier version or of other photographs is replaced, and one without a checkpoint; one of other
        settings with `overwrite=true`, which those of the same settings do not need (see `occupied`).
        """
        mine = same_run(job.folder, job.config) and is_in_folder(job)
        resume = ["resume=last"] if mine and checkpoints_in(job.folder) else []
        resume = resume or (["overwrite=true"] if holds_run(job.folder) else [])
        place = str(job.folder).replace("\\", "\\\\").replace("'", "\\'")
        own = [o for o in job.overrides if key_of(o) != "overwrite"]
        own = [*own, *resume, *self.more, "hydra.mode=RUN", f"hydra.run.dir='{place}'"]
        return [sys.executable, "-m", "uda_seg.train", *own]

    def _start(self, job: Job, claim: ExitStack) -> Process:
        """Start a job, or go on with one that was stopped."""
        output = (job.folder.parent / f"{job.folder.name}.log").open("wb")
        command = self.command(job)
        if "resume=last" not in command:
            begin(job)
        # In a session of its own: Ctrl-C is for this process, which tells the others.
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
            start_new_session=True,
        )
        return Process(job, running, output, claim)

    def _fail(self, job: Job, error: str) -> None:
        self.failed[job] = error
        log.error("%s failed: %s", job.name, error)

    def _finish(self, process: Process, left: Sequence[Job]) -> None:
        """Keep the result of a job that has ended, and say what is left."""
        job, error, said = process.job, process.error(), ""
        with process.claim:
            if error is None:
                try:
                    miou = keep(job).get("miou")
                    said = "no scores" if miou is None else f"mIoU {100 * miou:.1f} %"
                except (Damaged, UserError) as damage:
                    error = str(damage)
        if error is not None:
            self._fail(job, error)
            return
        self.took[job] = time.monotonic() - process.begun
        rest = expected(left, self.took) or 0.0
        then = f"; {len(left)} left, {duration(rest / self.processes)}" if left else ""
        log.info("%s: %s in %s%s", job.name, said, duration(self.took[job]), then)


def occupied(job: Job) -> str:
    """Tell of a run of other settings in a job's folder that stays there; empty if there is none."""
    if job.config.overwrite or not holds_run(job.folder) or same_run(job.folder, job.config):
        return ""
    return f"{job.folder} holds a run of other settings: move it away, or replace it with overwrite=true"


def claimed(job: Job) -> ExitStack | None:
    """Claim a job among benchmarks that run at the same time, until the stack is closed; None if another one has it.

    Raises:
        UserError: the folder of runs cannot be written.
    """
    name = f".{job.folder.name}.lock"
    claim = FolderLock(job.folder.parent, Owner("a benchmark"), "choose another folder with hydra.sweep.dir=", name)
    closing = ExitStack()
    for again in (True, False):  # the other one may give it back in between
        try:
            closing.enter_context(claim)
            break
        except UserError as error:
            if claim.path.exists():
                log.info("%s is left to another benchmark: %s", job.name, error)
                return None
            if not again:
                raise
    return closing


@contextmanager
def ended_with(running: Sequence[Process]) -> Iterator[None]:
    """End the processes with the block, also when this process is told to end; each saves its run first.

    A closed terminal tells so too, unless it is ignored (`nohup`); the processes, in sessions of their own, would not
    hear it.
    """
    told = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in told}
    try:
        yield
    except Interrupted as end:
        end.line = "interrupted: runs are saved, the same command continues"
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running:
            process.running.terminate()
        for process in running:
            with process.claim:
                _wait(process.running)
                process.output.close()


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def budget(jobs: Sequence[Job], left: Sequence[Job], processes: int, threads: int) -> str:
    """Write the line that a benchmark begins with: numbers of runs, and their time as far as it is known."""
    took = {job: seconds for job in jobs if job not in left and (seconds := seconds_of(job)) is not None}
    seconds = expected(left, took)
    known = "their time is known after the first" if seconds is None else f"about {duration(seconds / processes)}"
    then = f"{len(left)} to do, {processes} at once with {threads} thread(s) each, {known}" if left else "nothing to do"
    return f"{len(jobs)} runs, {len(jobs) - len(left)} of them finished; {then}"


Measure = Callable[[int, int], float]


def choose(cores: int, measure: Measure) -> tuple[int, int]:
    """Choose numbers of processes and of threads each, by measuring the images per second of some divisions of cores.

    Args:
        cores: number of cores.
        measure: images per second of all processes, given their number and the threads of each.
    """
    divisions = [(n, cores // n) for n in range(1, cores + 1) if cores % n == 0]
    if len(divisions) == 1:
        return divisions[0]
    rates = {division: measure(*division) for division in divisions}
    best = max(rates, key=lambda division: rates[division])
    said = ", ".join(f"{n} x {t}: {rates[n, t] / rates[divisions[0]]:.2f}" for n, t in divisions)
    log.info("measured processes x threads, relative to one process: %s", said)
    return best
