"""The controls: training on labelled source images alone, with and without help that needs no pseudo-labels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from uda_seg.limits import Count
from uda_seg.methods.base import Batch, Loss, Plan, UDAModule
from uda_seg.methods.self_training import labelled
from uda_seg.models.norm import batch_norms, batch_statistics
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.image import to_float


class SourceOnly(UDAModule):
    """Cross-entropy on the source (or, for the oracle, on the labelled target).

    Args:
        segmentor: the network.
        plan: what the run is.
        strong_augment: colour jitter and blur as the mixed images of self-training get them: the control that tells
            adaptation from augmentation.
    """

    needs_target = False

    def __init__(self, segmentor: Segmentor, plan: Plan, *, strong_augment: bool = False) -> None:
        super().__init__(segmentor, plan)
        self.strong_augment = strong_augment

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """One term: cross-entropy on the labelled images."""
        source = labelled(batch["source"])
        image = self.augment(source.image) if self.strong_augment else source.image
        result = self.segmentor.supervise(image, source.label)
        self.show(source_image=image, source_label=source.label, source_prediction=result.logits)
        yield Loss("source/ce", result.loss)


class Oracle(SourceOnly):
    """Training on the target's own labels: what adaptation could reach at most."""

    supervised_target = True


class AdaBN(SourceOnly):
    """Source-only training, evaluated with the target's batch-norm statistics (AdaBN, Li et al. 2018).

    Before every validation the running statistics are estimated anew on unlabelled target training images.

    Args:
        segmentor: the network; one without batch norm is left as it is.
        plan: what the run is.
        batches: target batches the statistics are averaged over.
    """

    needs_target = True
    target_in_step = False

    def __init__(self, segmentor: Segmentor, plan: Plan, *, batches: Count = 40) -> None:
        super().__init__(segmentor, plan)
        self.batches = batches

    def on_validation_epoch_start(self) -> None:
        """Estimate the statistics on the target, then reset the evaluators (Lightning hook)."""
        super().on_validation_epoch_start()
        if not self.trainer.sanity_checking:
            self.estimate_statistics()

    @torch.no_grad()
    def estimate_statistics(self) -> None:
        """Replace the running statistics by their plain average over target batches."""
        norms = batch_norms(self.segmentor)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
        with batch_statistics(self.segmentor):
            for batch in self.trainer.datamodule.target_batches(self.batches):  # type: ignore[attr-defined]
                self.segmentor.predict(to_float(batch.image.to(self.device)))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
