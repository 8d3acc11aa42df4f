"""Ranks of a run: one process per device; a failure of one stops all and is reported in one line.

The main process only starts the ranks and waits. So no environment variable or process group of one job of a sweep
reaches the next, and an error can still be reported after a rank has died.

Ranks started by `torchrun` or SLURM's `srun` run directly.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.config.settings import Config
from uda_seg.errors import Interrupted, RankLost, UserError, interrupt, outlive_readers
from uda_seg.errors.known import user_error
from uda_seg.launch.devices import local_ranks
from uda_seg.launch.rendezvous import environment, started_by_others, this_rank
from uda_seg.launch.threads import share_cores
from uda_seg.storage.slurm import requeue_signal

Work = Callable[[Any, Path], Any]  # of a configuration and a folder

# A rank that loses another one also crashes, so wait this long for the first one's report.
LAST_WORDS_S = 5.0

# A fork server imports once, and its forks have neither threads nor a CUDA context.
START_METHOD = "forkserver"
# Modules that take seconds to import, except the command's own, which a rank runs again as its main module. The last
# one is imported by the constructor of DistributedDataParallel.
PRELOADED = ["uda_seg.data.datamodule", "uda_seg.runs.build", "uda_seg.sweeps.table", "torch._dynamo"]


def on_all_ranks(work: Work) -> Work:
    """Run a command on as many processes as `trainer` requires, and return the result of rank 0.

    Raises:
        UserError: missing hardware, an occupied port, externally started ranks that do not match, or the error of the
            rank that failed first.
    """

    @functools.wraps(work)
    def job(config: Config, folder: Path) -> Any:
        settings = config.trainer
        ranks = local_ranks(settings)
        alone = ranks * settings.num_nodes == 1 and settings.strategy != "ddp"
        if started_by_others(ranks * settings.num_nodes) or alone:
            if this_rank() > 0:
                _keep_quiet()
            return work(config, folder)
        return Ranks(ranks, environment(settings, ranks)).run(work, config, folder)

    return job


# ---------------------------------------------------------------------- the process that was called


CAUSES = ("killed", "crashed", "lost")  # kinds of failure, the most conclusive first


@dataclass(frozen=True)
class Outcome:
    """End of a rank.

    Attributes:
        kind: `done` with the result, `stopped` with an exit code, `failed` with a line for the user, `crashed` with a
            traceback; `lost` with a line, if it lost another rank; `killed` with a line, if it ended without a report.
        content: see `kind`.
        when: seconds on a clock shared by all processes of a machine.
    """

    kind: str
    content: Any
    when: float = field(default_factory=time.monotonic)


class Ranks:
    """The rank processes of a job on this machine.

    Args:
        count: number of ranks.
        environment: variables to add to this process's environment.
    """

    def __init__(self, count: int, environment: Mapping[str, str]) -> None:
        self.count, self.environment = count, environment
        self.first = int(environment["NODE_RANK"]) * count
        self.processes: list[BaseProcess] = []
        self.asked: int | None = None  # the forwarded signal

    def run(self, work: Work, config: Config, folder: Path) -> Any:
        """Run the work on all ranks and return the result of the first one on this machine.

        Raises:
            UserError: the error of the rank that failed first.
            SystemExit: the ranks stopped on request.
        """
        with self._passing_signals_on():
            try:
                answers = self._start(work, config, folder)
                return self._wait(answers)
            finally:
                for process in self.processes:
                    process.kill()
                    process.join()

    def _start(self, work: Work, config: Config, folder: Path) -> dict[Connection, int]:
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # no CUDA context before the fork
        context: Any = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload(PRELOADED)
        hydra = HydraConfig.instance().cfg if HydraConfig.initialized() else None
        answers: dict[Connection, int] = {}
        for number in range(self.count):
            given = {**os.environ, **self.environment, "LOCAL_RANK": str(number)}
            given.pop("SLURM_NTASKS", None)  # or Lightning would take SLURM's tasks for the ranks
            here, there = context.Pipe(duplex=False)
            arguments = (there, given, self.first + number, self.count, hydra, work, config, folder)
            process = context.Process(target=_rank, args=arguments, name=f"rank {self.first + number}")
            process.start()
            there.close()  # so that the pipe closes when the rank ends
            self.processes.append(process)
            answers[here] = number
        return answers

    def _wait(self, answers: dict[Connection, int]) -> Any:
        outcomes: dict[int, Outcome] = {}
        while answers:
            hurt = any(outcome.kind in CAUSES for outcome in outcomes.values())
            ready = wait(list(answers), LAST_WORDS_S if hurt else None)
            if not ready:
                break
            for answer in ready:
                assert isinstance(answer, Connection)
                number = answers.pop(answer)
                outcomes[number] = self._outcome(answer, number)
                if outcomes[number].kind == "failed":
                    raise UserError(outcomes[number].content)
        return self._conclude(outcomes)

    def _conclude(self, outcomes: Mapping[int, Outcome]) -> Any:
        """Return the result, or raise the error of the rank that caused the others' failures."""
        hurt = [number for number, outcome in outcomes.items() if outcome.kind in CAUSES]
        if hurt:
            first = min(hurt, key=lambda number: (CAUSES.index(outcomes[number].kind), outcomes[number].when))
            content = outcomes[first].content
            if outcomes[first].kind != "crashed":
                raise UserError(content)
            raise RuntimeError(f"rank {self.first + first}: {content.splitlines()[-1]}\n{content}")
        stopped = next((outcome for outcome in outcomes.values() if outcome.kind == "stopped"), None)
        if stopped is not None:
            raise SystemExit(stopped.content)
        return outcomes[0].content

    def _outcome(self, answer: Connection, number: int) -> Outcome:
        try:
            outcome: Outcome = answer.recv()
            return outcome
        except EOFError:
            self.processes[number].join()
        code = self.processes[number].exitcode or 0
        if self.asked is not None and code == -self.asked:  # before it could handle the signal
            return Outcome("stopped", 128 + self.asked)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        why = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
        return Outcome(
            "killed",
            f"rank {self.first + number} {how}{why}; the other ranks were stopped: go on from the last checkpoint "
            "with resume=last",
        )

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """Forward SIGTERM, Ctrl-C and SLURM's signal to the ranks within the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        listened = [signal.SIGTERM, signal.SIGINT, *([requeue_signal()] if "SLURM_JOB_ID" in os.environ else [])]
        before = {number: signal.signal(number, lambda number, _: self._pass_on(number)) for number in listened}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int) -> None:
        self.asked = number
        for process in self.processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)


# ---------------------------------------------------------------------- a rank


def _rank(
    answer: Connection,
    environment: dict[str, str],
    rank: int,
    ranks: int,
    hydra: DictConfig | None,
    work: Work,
    config: Config,
    folder: Path,
) -> None:
    """Run one rank's process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    share_cores(ranks)
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # or Lightning would set it itself
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, interrupt)  # sent by the terminal to all processes, and forwarded too
    outlive_readers()
    try:
        _speak_as(rank, hydra)
        outcome = Outcome("done", work(config, folder))
    except SystemExit as stop:
        outcome = Outcome("stopped", stop.code)
        if isinstance(stop, Interrupted) and rank == 0:
            print(stop.line, file=sys.stderr)
    except BaseException as error:
        outcome = _end_of(error)
    answer.send(outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    if outcome.kind == "done" and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    # Other ranks may wait for this one forever, and libraries for them at exit, so exit immediately.
    os._exit(0)


def _end_of(error: BaseException) -> Outcome:
    said = user_error(error)
    if said is None:
        return Outcome("crashed", traceback.format_exc())
    return Outcome("lost" if isinstance(said, RankLost) else "failed", str(said))


def _end_with_parent() -> None:
    """End this rank when its parent is killed, so that it does not write to a folder that may be resumed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _speak_as(rank: int, hydra: DictConfig | None) -> None:
    """Configure logging: rank 0 logs like the command, others only errors."""
    if hydra is not None:
        setup_globals()
        HydraConfig.instance().cfg = hydra  # type: ignore[assignment]
        if rank == 0:
            configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
    if rank > 0:
        _keep_quiet()


def _keep_quiet() -> None:
    """Silence the log lines and warnings that rank 0 prints too."""
    logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
