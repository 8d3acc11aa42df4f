"""A run that is asked to stop saves its state first."""

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
from uda_seg.slurm import requeue_signal, slurm_job

log = logging.getLogger(__name__)

ONE_KEY_S = 1.0  # a terminal sends Ctrl-C to every rank, and so does the process that started them
FIRST_RANK_S = 2.0  # that the others wait for rank 0 to speak with SLURM: when the first has left, srun may end all


class Stop(pl.Callback):
    """On SIGTERM, Ctrl-C or SLURM's signal: finish the step, write `last.ckpt`, leave with 128 + the signal's number.

    A second Ctrl-C does not wait. SLURM's signal is SIGUSR1, in jobs that submitit submitted the one it asks for; the
    job is queued again.

    Several ranks have to stop after the same step. They agree on it whenever values are logged, where they wait for
    each other anyway, and on CPUs, which always wait, after every step. A validation is finished first.

    Lightning's own handler is replaced: it saves nothing, and talks to the other ranks from within the handler, where
    they may be in the midst of anything. In a validation after the end of training, when all is saved, the run leaves
    at once.

    Args:
        checkpoints: what saves. This callback comes after it, and after all that belong to a step.
    """

    def __init__(self, checkpoints: LastCheckpoint) -> None:
        self.checkpoints = checkpoints
        self.asked = 0
        self._since = 0.0  # when it was

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, in the place of Lightning, which gives the signals back to whom they belonged at the end."""
        self._listen(self._note)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise where Lightning validates after training."""
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
        """Stop between two steps, unless a validation comes first."""
        if not self.checkpoints.validates_now(trainer):
            self._stop_if_asked(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after a validation of training."""
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
        trainer.strategy.barrier()  # srun may be told to end all ranks as soon as one has left
        raise SystemExit(128 + number)

    def _take_leave(self, number: int, step: int) -> None:
        """Say it, and have SLURM start the job again where that is what its signal meant."""
        name = signal.Signals(number).name
        print(f"stopped by {name} after step {step}, which is saved: go on with resume=last", file=sys.stderr)
        job = slurm_job()
        if job is not None and number == requeue_signal():
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
            log.info("SLURM job %s: %s", job, "queued again" if done.returncode == 0 else done.stderr.strip())


@rank_zero_only
def _say_soon() -> None:
    # Not by `print`, which is not made for handlers of signals.
    os.write(2, b"\nto be stopped after this step, or the validation that goes on; Ctrl-C again: at once\n")
