"""Scores of the network on unlabelled target images, at every validation."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from uda_seg.data.batch import DomainBatch
from uda_seg.data.datamodule import UDADataModule
from uda_seg.evaluation.evaluator import confusion_matrix
from uda_seg.evaluation.label_free import Predicted, class_shares, write_predictions
from uda_seg.methods.base import UDAModule
from uda_seg.methods.scoring import evaluating
from uda_seg.models.compilation import as_written
from uda_seg.ops.image import to_float
from uda_seg.ops.masking import draw_block_mask, mask_image

BLOCK, RATIO = 0.0625, 0.7  # of the masked blocks: side relative to the crop's height, and share (MIC)


class LabelFree(pl.Callback):
    """Scores the student on a fixed sample of whole, unlabelled target images of training.

    Runs at validations, before the checkpoints are written, and at the same steps where there is no validation set.
    Every image is predicted on its own and scored in a fixed order, so that batches and ranks change nothing. Draws are
    an image's own: neither the training's random numbers are touched, nor do two runs differ in them.

    Args:
        names: scores to compute, see `uda_seg.evaluation.label_free.SCORES`.
        folder: of the run; keeps the predictions of the last validation, by which runs are compared.
        every: steps between two scores in a run without validation sets.
    """

    def __init__(self, names: Sequence[str], folder: Path, every: int) -> None:
        self.names, self.folder, self.every = tuple(names), folder, every

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score and log (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        self.score(trainer, pl_module)
        pl_module.record(pl_module.label_free_values)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Score and log where validations would be, if there is no validation set (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        due = trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps
        if due and not sum(trainer.num_val_batches):
            pl_module.prepare_test()
            self.score(trainer, pl_module)
            pl_module.record(pl_module.label_free_values)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score where another callback has ended a run without validation sets early (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        if pl_module.label_free_step != trainer.global_step and not sum(trainer.num_val_batches):
            pl_module.prepare_test()
            self.score(trainer, pl_module)
            for logger in trainer.loggers:  # Lightning's `log` is closed by now
                logger.log_metrics(pl_module.label_free_values, trainer.global_step)

    @torch.no_grad()
    def score(self, trainer: pl.Trainer, module: UDAModule) -> None:
        """Set the module's `label_free`, equal on all ranks, and write the predictions."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, UDADataModule)
        predicted = Predicted.empty(data.sample_size, len(module.plan.classes), module.device)
        with evaluating(module.segmentor), trainer.precision_plugin.val_step_context(), as_written(module.segmentor):
            for place, batch in data.target_sample():
                self._add(predicted, place, batch, module)
        predicted = predicted.map(module.sum_over_ranks).map(Tensor.cpu)  # of one rank each: no sum is rounded
        scores: dict[str, float] = {}
        if trainer.is_global_zero:
            scores = predicted.scores(self.names, class_shares(data.source_shares))
            write_predictions(self.folder, predicted, module.plan.classes.names, trainer.global_step)
        module.label_free = trainer.strategy.broadcast(scores)
        module.label_free_step = trainer.global_step

    def _add(self, predicted: Predicted, place: int, batch: DomainBatch, module: UDAModule) -> None:
        """Predict an image, also masked if a score needs it, and enter the result."""
        infer, network = module.infer.single(), module.segmentor
        checksum = zlib.crc32(batch.image.numpy().tobytes())
        image = to_float(batch.image.to(module.device))
        logits = infer(network, image)
        counts = None
        if "masked_agreement" in self.names:
            clean = logits if module.teacher is None else infer(module.teacher.network, image)
            masked = infer(network, mask_image(image, self._visible(image, checksum, module), network.mean_colour))
            counts = confusion_matrix(masked.argmax(1), clean.argmax(1), predicted.mean.shape[1])
        predicted.add(place, logits[0].float().softmax(0), checksum, counts)

    def _visible(self, image: Tensor, seed: int, module: UDAModule) -> Tensor:
        """Draw the image's block mask, [1, 1, H, W], in whole patches of a transformer."""
        patch = module.segmentor.encoder.patch
        block = patch * max(1, round(BLOCK * module.plan.crop[0] / patch))
        size, generator = (image.shape[-2], image.shape[-1]), torch.Generator().manual_seed(seed)
        return draw_block_mask(1, size, block, RATIO, generator).to(image.device)
