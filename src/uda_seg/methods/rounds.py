"""Self-training in rounds: at the start of each, the network labels the whole target that the round trains on."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.storage.label_store import LabelStore, StoredLabels
from uda_seg.errors import UserError
from uda_seg.methods.base import UDAModule
from uda_seg.methods.options.rounds import RoundOptions
from uda_seg.methods.round_schedule import RoundSchedule
from uda_seg.methods.static_labels import label_target
from uda_seg.models.norm import batch_norms

log = logging.getLogger(__name__)

FOLDER = "pseudo_labels"


class Rounds(pl.Callback):
    """Start each round: label the target, and hand the labels to the data module for the training batches.

    A round begins between two steps, after the checkpoint of the first is saved: Lightning appends a method's callbacks
    to those of the trainer. Its labels are kept on disk, because a run may be resumed from an earlier checkpoint.
    Without a `UDADataModule` nothing is labelled; batches are expected to contain labels.

    Args:
        steps: length of the run.
        options: of the method.

    Attributes:
        schedule: the rounds: from the start of training on, those that `round_passes` allows.
    """

    def __init__(self, steps: int, options: RoundOptions) -> None:
        self.options, self.schedule = options, RoundSchedule(steps, options.warmup, options.rounds)
        self.store: LabelStore | None = None
        self.round: int | None = None
        self.begun: RoundSchedule | None = None  # the schedule of a resumed run's checkpoint

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the schedule, which a resumed run keeps (Lightning hook)."""
        checkpoint["rounds"] = asdict(self.schedule)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the schedule, if the checkpoint has one (Lightning hook)."""
        if (saved := checkpoint.get("rounds")) is not None:
            self.begun = RoundSchedule.restored(saved)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Find or create the labels of the first step (Lightning hook).

        Raises:
            UserError: batch norm cannot compute statistics of a rank's images.
        """
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, UDADataModule):
            return
        assert isinstance(module, UDAModule)
        synchronised = any(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(module.segmentor))
        if synchronised and module.plan.teacher.batch_norm != "eval":
            raise UserError(
                "trainer.sync_batchnorm=true: the ranks label different numbers of images, and would wait for each "
                "other's statistics for ever: add teacher.batch_norm=eval"
            )
        count, height, width = data.target_shape
        self.schedule = self.possible(count, data.images_per_step - data.source_images_per_step)
        self.store = LabelStore(Path(trainer.default_root_dir) / FOLDER, count, (height, width))
        self.round, data.pseudo_labels = None, None
        if trainer.is_global_zero:
            self.tidy(trainer, self.store)
        trainer.strategy.barrier()
        self.begin(trainer, module)

    def possible(self, count: int, per_step: int) -> RoundSchedule:
        """Reduce the rounds to those that `count` target images allow at `per_step` per step; resumed runs keep theirs.

        Resuming with another number of ranks keeps the rounds, which then pass over the target more or fewer times.
        """
        asked, begun = self.schedule, self.begun
        if begun is not None and (begun.steps, begun.warmup) == (asked.steps, asked.warmup):
            return begun
        images = per_step * (asked.steps - asked.first)
        passes = self.options.round_passes
        most = int(images / (passes * count)) if passes > 0 else asked.rounds
        return replace(asked, rounds=max(1, min(asked.rounds, most)))

    def tidy(self, trainer: pl.Trainer, store: LabelStore) -> None:
        """Delete labels of later rounds left by another run; look for those of the current one in a resumed folder."""
        step, before = trainer.global_step, self.begun or self.schedule
        current, other = self.schedule.at(step), before.span(step) != self.schedule.span(step)
        store.forget_from(0 if current is None else current + (not other))
        if current is not None and other:
            log.warning(
                "resumed with %d rounds in %d steps instead of %d in %d: the target is labelled again for this one, "
                "with the weights of step %d",
                *(self.schedule.rounds, self.schedule.steps, before.rounds, before.steps), step,
            )  # fmt: skip
        elif current is not None and not store.has(current):
            self.recover(trainer, store, current)

    def recover(self, trainer: pl.Trainer, store: LabelStore, current: int) -> None:
        """Copy a round's labels from the folder of the resumed checkpoint; warn if a started round has none."""
        if trainer.ckpt_path is not None:
            store.take(Path(trainer.ckpt_path).resolve().parent.parent / FOLDER, current)
        if self.schedule.at(trainer.global_step - 1) == current and not store.has(current):
            log.warning(
                "round %d has no readable labels in %s: the target is labelled again with the weights of step %d "
                "instead of those of the round's start", current + 1, store.folder, trainer.global_step,
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin a round that is due, between two steps (Lightning hook)."""
        self.begin(trainer, module)

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Label the target if the next step is the first of a round, or the first of this process."""
        current = self.schedule.at(trainer.global_step)
        if self.store is None or current is None or current == self.round or trainer.global_step >= trainer.max_steps:
            return
        assert isinstance(module, UDAModule)
        if not trainer.strategy.broadcast(self.store.has(current)):  # shared disks may lag, so rank 0 decides
            share = label_target(module, self.store, current, self.options)
            if trainer.is_global_zero:
                log.info(
                    "round %d of %d: %.1f %% of the target labelled", current + 1, self.schedule.rounds, 100 * share
                )
        self.round = current
        trainer.datamodule.pseudo_labels = StoredLabels(self.store, current)  # type: ignore[attr-defined]
