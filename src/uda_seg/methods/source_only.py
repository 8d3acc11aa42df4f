"""Baselines without pseudo-labels: source-only training, the oracle, and AdaBN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from uda_seg.methods.base import Batch, Loss, Plan, UDAModule
from uda_seg.methods.labelled import labelled
from uda_seg.methods.options.source_only import SourceOnlyOptions
from uda_seg.models.segmentor import Segmentor


class SourceOnly(UDAModule):
    """Cross-entropy on the source (or, for the oracle, on the labelled target).

    Args:
        segmentor: the network.
        plan: settings of the run.
        options: of the method.
    """

    options: SourceOnlyOptions
    needs_target = False

    def __init__(self, segmentor: Segmentor, plan: Plan, options: SourceOnlyOptions) -> None:
        super().__init__(segmentor, plan, options)

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield one term: cross-entropy on the labelled images."""
        source = labelled(batch["source"])
        image = self.augment(source.image) if self.options.strong_augment else source.image
        result = self.segmentor.supervise(image, source.label)
        self.log_images(source_image=image, source_label=source.label)
        self.log_prediction("source", result.logits, result.features)
        yield Loss("source/ce", result.loss)


class Oracle(SourceOnly):
    """Training on the target's own labels: the upper bound for adaptation."""

    supervised_target = True


class AdaBN(SourceOnly):
    """Source-only training, evaluated with the target's batch-norm statistics (AdaBN, Li et al. 2018).

    They are estimated before every validation, as for every method with `running_statistics=target`.
    """

    needs_target = True
    target_in_step = False

    def __init__(self, segmentor: Segmentor, plan: Plan, options: SourceOnlyOptions) -> None:
        super().__init__(segmentor, replace(plan, running_statistics="target"), options)
