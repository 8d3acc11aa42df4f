"""Graceful stop on signals: save the state, then exit."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.callbacks.checkpoint import LastCheckpoint
from uda_seg.errors import interrupt
from uda_seg.methods.step import StepModule
from uda_seg.storage.slurm import requeue_signal, slurm_job

log = logging.getLogger(__name__)

ONE_KEY_S = 1.0  # one Ctrl-C can arrive twice: a terminal and the launching process both send it to every rank
FIRST_RANK_S = 2.0  # head start of rank 0 for requeueing: srun may kill all ranks once the first has left


class Stop(pl.Callback):
    """On SIGTERM, Ctrl-C or SLURM's signal: finish the step, write `last.ckpt`, exit with 128 + the signal's number.

    A second Ctrl-C exits immediately. SLURM's signal is SIGUSR1, or the one that submitit requests in its jobs; the job
    is requeued.

    All ranks must stop after the same step. They agree on it whenever values are logged, where they synchronise anyway,
    and on CPUs, which always synchronise, after every step. A validation is finished first.

    This replaces Lightning's handler, which saves nothing and communicates with other ranks from within the handler,
    while these may be in the middle of another collective. In a validation after training, when everything is saved,
    the run exits at once.

    Args:
        checkpoints: the callback that saves. This callback must come after it and all other per-step callbacks.
    """

    def __init__(self, checkpoints: LastCheckpoint) -> None:
        self.checkpoints = checkpoints
        self.asked = 0
        self._since = 0.0  # time of the first Ctrl-C

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers instead of Lightning's, which restores the original ones at the end (Lightning hook)."""
        self._listen(self._note)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers for a validation after training (Lightning hook)."""
        if trainer.state.fn == "validate":
            self._listen(functools.partial(self._leave, trainer))

    def _listen(self, handler: Callable[[int, FrameType | None], None]) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)
        if "SLURM_JOB_ID" in os.environ:
            signal.signal(requeue_signal(), handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.asked == number:
            if now - self._since > ONE_KEY_S:
                interrupt(number, frame)
            return
        self.asked, self._since = number, now
        if number == signal.SIGINT:
            _say_soon()

    def _leave(self, trainer: pl.Trainer, number: int, frame: FrameType | None) -> None:
        if trainer.is_global_zero:
            self._take_leave(number, trainer.global_step)
        else:
            time.sleep(FIRST_RANK_S)
        raise SystemExit(128 + number)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps, unless a validation follows (Lightning hook)."""
        if not self.checkpoints.validates_now(trainer):
            self._stop_if_asked(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after a validation within training (Lightning hook)."""
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer, pl_module, always=True)

    def _stop_if_asked(self, trainer: pl.Trainer, module: pl.LightningModule, always: bool = False) -> None:
        assert isinstance(module, StepModule)
        step, number = trainer.global_step, self.asked
        if trainer.world_size > 1:
            if not (always or module.device.type == "cpu" or module.logs_at(step)):
                return
            number = int(module.max_over_ranks(torch.tensor(number, device=module.device)))
        if not number:
            return
        if self.checkpoints.saved_step != step:
            self.checkpoints.save_last(trainer)
        if trainer.is_global_zero:
            self._take_leave(number, step)
        trainer.strategy.barrier()  # srun may kill all ranks as soon as one has left
        raise SystemExit(128 + number)

    def _take_leave(self, number: int, step: int) -> None:
        """Report the stop, and requeue the job if the signal was SLURM's."""
        name = signal.Signals(number).name
        print(f"stopped by {name} after step {step} and saved its state; continue with resume=last", file=sys.stderr)
        job = slurm_job()
        if job is not None and number == requeue_signal():
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
            log.info("SLURM job %s: %s", job, "requeued" if done.returncode == 0 else done.stderr.strip())


@rank_zero_only
def _say_soon() -> None:
    # Not `print`, which is not reentrant and so unsafe in signal handlers.
    os.write(2, b"\nstopping after this step, or after the running validation; press Ctrl-C again to stop at once\n")
