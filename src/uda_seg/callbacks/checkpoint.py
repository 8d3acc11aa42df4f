"""Checkpointing: atomic writes, and no checkpoint with NaN weights."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from uda_seg.errors import Damaged, UserError
from uda_seg.methods.base import UDAModule
from uda_seg.methods.frozen_trunk import leave_out_trunk
from uda_seg.methods.step import StepModule

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint IO that writes to a temporary file and renames it: a kill or a full disk leaves the previous file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` to `path`; raises UserError if it cannot be written."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.tmp")  # a single rank writes; leftovers of a kill are overwritten
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot write {target}: {error}; the previous checkpoint is kept, free some space"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


class LastCheckpoint(pl.Callback):
    """Saves `last.ckpt` (every `every` steps and at the end), and keeps its predecessor as `previous.ckpt`.

    Args:
        folder: folder of the checkpoints.
        every: steps between two saves of `last.ckpt`.
        content: plain values stored under `uda_seg`, from which the network can be rebuilt.

    Attributes:
        saved_step: step of the last save of `last.ckpt`; -1 before the first.
    """

    def __init__(self, folder: str | Path, every: int, content: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.every = every
        self.content = content
        self.saved_step = -1
        self._loop: dict[str, Any] = {}

    def described(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return the values to store under `uda_seg`."""
        return self.content

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save non-finite weights, leave out a frozen trunk, and add what the network can be rebuilt from."""
        assert isinstance(pl_module, StepModule)
        pl_module.watcher.raise_if_any()
        checkpoint["uda_seg"] = self.described(trainer)
        if isinstance(pl_module, UDAModule):
            trunk = leave_out_trunk(checkpoint["state_dict"], pl_module.segmentor.encoder)
            checkpoint["uda_seg"] |= {} if trunk is None else {"trunk": trunk}
        if self._loop:
            checkpoint["loops"]["fit_loop"] = self._loop

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save `last.ckpt` if it is due and no validation follows (Lightning hook)."""
        # Save Lightning's counters as they are at the end of a batch, from which it resumes reliably. With those after
        # the last validation it would consider a run that stopped early as finished.
        self._loop = trainer.fit_loop.state_dict()
        if not self.validates_now(trainer):
            self._save_if_due(trainer)

    def validates_now(self, trainer: pl.Trainer) -> bool:
        """Return whether a validation follows the current step."""
        due = trainer.global_step % (trainer.val_check_batch or 1) == 0
        return due and sum(trainer.num_val_batches) > 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save `last.ckpt` if it is due (Lightning hook)."""
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save `last.ckpt` where another callback has ended the run between two saves."""
        if self._loop and self.saved_step != trainer.global_step:
            self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt` and rename the file it replaces to `previous.ckpt`."""
        last = self.folder / "last.ckpt"
        fresh = self.folder / "fresh.ckpt"
        trainer.save_checkpoint(fresh, weights_only=False)
        if trainer.is_global_zero:
            if last.exists():
                os.replace(last, self.folder / "previous.ckpt")
            os.replace(fresh, last)
        self.saved_step = trainer.global_step


@dataclass
class Chosen:
    """The checkpoint that a label-free score has chosen so far.

    Attributes:
        by: the score.
        value: its value; -inf before the first.
        step: step of the checkpoint; -1 before the first.
        miou: the mIoU there, in [0, 1], which took no part in the choice; NaN without validation sets.
    """

    by: str
    value: float = -math.inf
    step: int = -1
    miou: float = math.nan


class Checkpoints(LastCheckpoint):
    """Saves the last checkpoints, `best.ckpt`, and `best_unsupervised.ckpt` if there are label-free scores.

    `best` is selected on the targets' labelled validation sets: it is an oracle choice, reported besides the last step
    and never instead of it. `best_unsupervised` is selected by a label-free score and uses no label of the target.

    Args:
        folder: see `LastCheckpoint`.
        every: see `LastCheckpoint`.
        content: see `LastCheckpoint`.
        source_images: number of labelled images seen before this run.
        choose_by: label-free score that selects `best_unsupervised.ckpt`; None: there is none.

    Attributes:
        best_miou: best mIoU so far, in [0, 1]; -inf before the first validation.
        best_step: step of the best validation.
        chosen: the choice without labels; None if there is none.
        source_images: number of labelled images seen so far, over all ranks, including those before this run.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int,
        content: dict[str, Any],
        source_images: int = 0,
        choose_by: str | None = None,
    ) -> None:
        super().__init__(folder, every, content)
        self.best_miou = -math.inf
        self.best_step = -1
        self.chosen = None if choose_by is None else Chosen(choose_by)
        self.source_images = source_images
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    @property
    def wall_s(self) -> float:
        """Wall-clock seconds of the run, summed over resumptions."""
        return self._seconds_before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed run."""
        state = {
            "best_miou": self.best_miou,
            "best_step": self.best_step,
            "source_images": self.source_images,
            "wall_s": self.wall_s,
        }
        return state if self.chosen is None else state | {"chosen": asdict(self.chosen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        kinds = {"best_miou": float, "best_step": int, "source_images": int, "wall_s": float}
        if wrong := [key for key, kind in kinds.items() if type(state_dict.get(key)) is not kind]:
            raise Damaged(f"the checkpoint is damaged, its {wrong[0]} is missing or nonsense: resume from another one")
        self.best_miou, self.best_step = state_dict["best_miou"], state_dict["best_step"]
        self.source_images, self._seconds_before = state_dict["source_images"], state_dict["wall_s"]
        if self.chosen is not None and "chosen" in state_dict:
            self._load_chosen(state_dict["chosen"])

    def _load_chosen(self, state: Any) -> None:
        assert self.chosen is not None
        kinds = {"by": str, "value": float, "step": int, "miou": float}
        if not isinstance(state, dict) or {key: type(value) for key, value in state.items()} != kinds:
            raise Damaged("the checkpoint is damaged, its chosen is missing or nonsense: resume from another one")
        if state["by"] == self.chosen.by:
            self.chosen = Chosen(**state)
        else:
            log.warning(
                "best_unsupervised.ckpt was chosen by %s, from here on by %s: earlier steps take no part in the choice",
                *(state["by"], self.chosen.by),
            )

    def described(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return the values with which `evaluate` and `predict` rebuild the network, and the number of images seen."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        read = {"source_images": self.source_images, "source_images_per_step": data.source_images_per_step}
        read |= {
            "target_images_per_step": data.target_batch * data.world_size,
            "ranks": data.world_size,
            "bits": data.bits,
        }
        return self.content | read

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images, and save `last.ckpt` if it is due and no validation follows (Lightning hook)."""
        self.source_images += trainer.datamodule.source_images_per_step  # type: ignore[attr-defined]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        """Save `best.ckpt` and `best_unsupervised.ckpt` if this step is the best so far, then `last.ckpt` if due."""
        module, step = trainer.lightning_module, trainer.global_step
        assert isinstance(module, UDAModule)
        names = []  # all of the state first: each file has it
        if module.scored_step == step and module.miou > self.best_miou:
            self.best_miou, self.best_step = module.miou, step
            names.append("best.ckpt")
        if self.chosen is not None and module.label_free_step == step:
            value, miou = module.label_free[self.chosen.by], module.miou if module.scored_step == step else math.nan
            if value > self.chosen.value:
                self.chosen = Chosen(self.chosen.by, value, step, miou)
                names.append("best_unsupervised.ckpt")
        for name in names:
            trainer.save_checkpoint(self.folder / name, weights_only=False)
        super()._save_if_due(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt` after preparing the network for tests as a validation does."""
        if not sum(trainer.num_val_batches):
            assert isinstance(trainer.lightning_module, UDAModule)
            trainer.lightning_module.prepare_test()
        super().save_last(trainer)
