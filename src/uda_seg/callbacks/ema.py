"""Timing of the teacher's EMA update."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from uda_seg.errors import UserError
from uda_seg.methods.base import UDAModule


class TeacherEMA(pl.Callback):
    """Updates the module's teacher once per step: at its start (DAFormer) or at its end (CorDA).

    Lightning's weight-averaging callbacks have a constant decay and do not expose the average to the step, which needs
    it to label every batch. Does nothing for modules without a teacher.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check `teacher.update` before training (Lightning hook)."""
        if isinstance(pl_module, UDAModule) and pl_module.plan.teacher.update not in ("start", "end"):
            raise UserError(f"teacher.update={pl_module.plan.teacher.update} is unknown: use start or end")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Update at the start of the step (Lightning hook)."""
        self._update(pl_module, "start")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update at the end of the step (Lightning hook)."""
        self._update(pl_module, "end")

    def _update(self, module: pl.LightningModule, when: str) -> None:
        assert isinstance(module, UDAModule)
        if module.teacher is not None and module.plan.teacher.update == when:
            module.teacher.update(module.segmentor)
