"""When the teacher moves."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from uda_seg.errors import UserError
from uda_seg.methods.base import UDAModule


class TeacherEMA(pl.Callback):
    """Updates the module's teacher once a step: at its start (DAFormer) or at its end (CorDA).

    Lightning's weight-averaging callbacks keep a constant decay and hide the average from the step, so they cannot be
    the teacher that labels every batch. A module without a teacher is left alone.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse an unknown `teacher.update` before anything runs."""
        if isinstance(pl_module, UDAModule) and pl_module.plan.teacher.update not in ("start", "end"):
            raise UserError(f"teacher.update={pl_module.plan.teacher.update} is unknown: use start or end")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Average before the step."""
        self._update(pl_module, "start")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after the step."""
        self._update(pl_module, "end")

    def _update(self, module: pl.LightningModule, when: str) -> None:
        assert isinstance(module, UDAModule)
        if module.teacher is not None and module.plan.teacher.update == when:
            module.teacher.update(module.segmentor)
