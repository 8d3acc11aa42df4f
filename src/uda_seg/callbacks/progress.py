"""Progress bar with losses, speed and remaining time."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from uda_seg.methods.step import StepModule


class ProgressBar(pl.Callback):
    """Steps, losses, images/s and memory: a live bar in a terminal, occasional plain lines elsewhere.

    Args:
        lines: number of plain lines per run without a terminal.
    """

    def __init__(self, lines: int = 20) -> None:
        self.lines = lines
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.started = 0.0
        self.first_step = 0
        self.losses = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar (Lightning hook)."""
        self.started, self.first_step = time.perf_counter(), trainer.global_step
        if trainer.is_global_zero and self.console.is_terminal:
            columns = (
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, TextColumn("{task.fields[status]}"), console=self.console)
            self.task = self.bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step, status="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar and show the losses of the last logged step (Lightning hook)."""
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        assert isinstance(pl_module, StepModule)
        logged = step == 1 or step % pl_module.plan.log_every == 0
        if logged:
            self.losses = self.spell(pl_module.recorded)
        if self.bar is not None:
            self.bar.update(self.task, completed=step)
            if logged:
                self.bar.update(self.task, status=self.status(trainer))
        elif step == 1 or step % max(1, trainer.max_steps // self.lines) == 0:
            left = self._seconds() / (step - self.first_step) * (trainer.max_steps - step)
            print(
                f"step {step}/{trainer.max_steps}  {self.status(trainer)}  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    def status(self, trainer: pl.Trainer) -> str:
        """Format the last logged losses, images/s since the start, and memory."""
        images = trainer.datamodule.images_per_step * (trainer.global_step - self.first_step)  # type: ignore[attr-defined]
        return f"{self.losses}  {images / self._seconds():.1f} images/s  {memory_gib():.1f} GiB"

    def spell(self, recorded: Mapping[str, float]) -> str:
        """Format the losses among the values of a logged step."""
        losses = {name.removeprefix("train/"): value for name, value in recorded.items() if name.startswith("train/")}
        return "  ".join(f"{name} {value:.3f}" for name, value in losses.items() if name not in ("lr", "gradient_norm"))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar (Lightning hook)."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that it does not mix with the error message (Lightning hook)."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def memory_gib() -> float:
    """Return the peak memory so far in GiB: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS and in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
