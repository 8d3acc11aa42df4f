"""Checkpoints that survive: written whole or not at all, never with bad weights."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from uda_seg.errors import Damaged, UserError
from uda_seg.methods.base import UDAModule
from uda_seg.methods.step import StepModule

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name, then renames: a kill or a full disk leaves the file of before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` to `path`; UserError where the disk does not take it."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.tmp")  # one rank writes; what a kill left here is overwritten
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot write {target}: {error}; the checkpoint of before is kept, free some space"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


class LastCheckpoint(pl.Callback):
    """Keeps `last.ckpt` (every `every` steps and at the end), and the one before it.

    Args:
        folder: where the files go.
        every: steps between two saves of `last.ckpt`.
        content: plain values stored under `uda_seg`: how to build the same network again.

    Attributes:
        saved_step: the step that `last.ckpt` was last written after; -1 before.
    """

    def __init__(self, folder: str | Path, every: int, content: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.every = every
        self.content = content
        self.saved_step = -1
        self._loop: dict[str, Any] = {}

    def described(self, trainer: pl.Trainer) -> dict[str, Any]:
        """What is stored under `uda_seg`."""
        return self.content

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save bad weights; add what builds the network again."""
        assert isinstance(pl_module, StepModule)
        pl_module.watcher.raise_if_any()
        checkpoint["uda_seg"] = self.described(trainer)
        if self._loop:
            checkpoint["loops"]["fit_loop"] = self._loop

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save `last.ckpt` when it is due and no validation comes first."""
        # Every save holds Lightning's counters as they are here: it goes on from the end of a batch without fail, but
        # would take a run that stopped early, saved after its last validation, for finished.
        self._loop = trainer.fit_loop.state_dict()
        if not self.validates_now(trainer):
            self._save_if_due(trainer)

    def validates_now(self, trainer: pl.Trainer) -> bool:
        """Whether a validation within training follows the step that ends."""
        due = trainer.global_step % (trainer.val_check_batch or 1) == 0
        return due and sum(trainer.num_val_batches) > 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save `last.ckpt` when it is due."""
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt`; the one it replaces becomes `previous.ckpt`."""
        last = self.folder / "last.ckpt"
        fresh = self.folder / "fresh.ckpt"
        trainer.save_checkpoint(fresh, weights_only=False)
        if trainer.is_global_zero:
            if last.exists():
                os.replace(last, self.folder / "previous.ckpt")
            os.replace(fresh, last)
        self.saved_step = trainer.global_step


class Checkpoints(LastCheckpoint):
    """Keeps the last checkpoints, and `best.ckpt`.

    `best` is chosen by the targets' labelled validation sets: it is an oracle's choice, shown beside the last iterate
    and never in its place.

    Args:
        folder, every, content: as `LastCheckpoint` has them.
        source_images: labelled images that the network had been trained on before this run.

    Attributes:
        best_miou: the best validation so far, in [0, 1]; -inf before the first.
        best_step: its step.
        source_images: labelled images seen so far, over all ranks, those before this run included.
    """

    def __init__(self, folder: str | Path, every: int, content: dict[str, Any], source_images: int = 0) -> None:
        super().__init__(folder, every, content)
        self.best_miou = -math.inf
        self.best_step = -1
        self.source_images = source_images
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, over all its resumptions."""
        return self._seconds_before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {
            "best_miou": self.best_miou,
            "best_step": self.best_step,
            "source_images": self.source_images,
            "wall_s": self.wall_s,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        kinds = {"best_miou": float, "best_step": int, "source_images": int, "wall_s": float}
        if wrong := [key for key, kind in kinds.items() if type(state_dict.get(key)) is not kind]:
            raise Damaged(f"the checkpoint is damaged, its {wrong[0]} is missing or nonsense: resume from another one")
        self.best_miou, self.best_step = state_dict["best_miou"], state_dict["best_step"]
        self.source_images, self._seconds_before = state_dict["source_images"], state_dict["wall_s"]

    def described(self, trainer: pl.Trainer) -> dict[str, Any]:
        """What `evaluate` and `predict` need to build the network, and what has been read."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        read = {"source_images": self.source_images, "source_images_per_step": data.source_images_per_step}
        read |= {"target_images_per_step": data.target_batch * data.world, "ranks": data.world, "bits": data.bits}
        return self.content | read

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; save `last.ckpt` when it is due and no validation comes first."""
        self.source_images += trainer.datamodule.source_images_per_step  # type: ignore[attr-defined]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save `best.ckpt` where the validation was the best so far, then `last.ckpt` when it is due."""
        assert isinstance(pl_module, UDAModule)
        if pl_module.miou > self.best_miou:
            self.best_miou, self.best_step = pl_module.miou, trainer.global_step
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=False)
        super().on_validation_end(trainer, pl_module)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt`, with all that a validation would have done to the network for the test."""
        if not sum(trainer.num_val_batches):
            assert isinstance(trainer.lightning_module, UDAModule)
            trainer.lightning_module.prepare_test()
        super().save_last(trainer)
