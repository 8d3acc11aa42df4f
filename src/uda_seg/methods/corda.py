"""CorDA: domain adaptation with self-supervised depth (Wang, Dai, Hoyer, Van Gool and Fink, ICCV 2021).

DACS with depth as a second task. Depth needs no labels in either domain; the network predicts it besides the classes,
the two tasks exchange features (models/two_task.py), and where the depth decoders of the two domains disagree, the
target differs from the source and pseudo-labels get less weight.

Depth is inverse depth z (ops/depth.py), regressed without transformation. Sources: the paper's abstract and the
released code; there are options for its oddities and for the differences between its two scripts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.methods.base import Batch
from uda_seg.methods.class_mixing import ClassMixing
from uda_seg.methods.labelled import Labelled, labelled
from uda_seg.methods.options.corda import CorDAOptions
from uda_seg.methods.released.initial_labels import InitialLabels
from uda_seg.methods.settings import Plan
from uda_seg.methods.step import Loss
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.deeplab import EXPANSION
from uda_seg.models.eomt import EoMTHead
from uda_seg.models.segmentor import Prediction, Segmentor
from uda_seg.models.two_task import Tasks, TwoTaskHead
from uda_seg.ops.depth import agreement, berhu, discrepancy_weight, log_scaled
from uda_seg.ops.mixing import class_mix

log = logging.getLogger(__name__)


class CorDA(ClassMixing):
    """CE(S) + CE(S0) + a [berHu(D_s) + berHu(D_s0)] on the source; the same, weighted, on the mixture with b for a.

    S and D are the final predictions, S0 and D0 the initial ones. On the mixture, D is the source decoder's on pasted
    source pixels and the target decoder's elsewhere, the only place where the target decoder learns.

    Args:
        segmentor: the student; the two-task decoder is attached to it as `two_task`.
        plan: settings of the run.
        options: of the method.
    """

    options: CorDAOptions
    needs_depth = True

    def __init__(self, segmentor: Segmentor, plan: Plan, options: CorDAOptions) -> None:
        o = options
        labels = InitialLabels(options, plan.steps)
        if o.width is not None and o.width % EXPANSION:
            raise UserError(f"method.width={o.width}: the two tasks' features need a multiple of {EXPANSION} channels")
        main, classes = segmentor.head(), len(plan.classes)
        if o.initial == "main" and isinstance(main, EoMTHead):
            raise UserError("method.initial=main: EoMT classifies queries, not features: say method.initial=features")
        head = TwoTaskHead(main, classes, o.width, o.dilations, o.correlation, o.initial, o.depth_start)
        segmentor.attach("two_task", head)
        segmentor.eval_head = "two_task"
        super().__init__(segmentor, plan, options)
        self.initial_labels = labels

    def start_heads(self, missing: set[str]) -> None:
        """Initialise the final segmentation from the trained main head (our choice): it labels the target at once."""
        main, head = self.segmentor.head(), self.segmentor.head("two_task")
        if "two_task" not in missing or not isinstance(head, TwoTaskHead):
            return
        if isinstance(main, DAFormerHead) and main.width == head.segmentation.width:
            head.start_from(main)
        else:
            log.info("the two-task head starts untrained: it is narrower than the main head, or of another form")

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield the source's terms, then the mixture's, each from one forward."""
        source, target = labelled(batch["source"]), batch["target"]
        yield self.source_terms(source)
        head = self.initial_labels.head(self.trainer.global_step)
        yield self.mixed_terms(self.mix(source, replace(self.label_target(target, head), depth=target.depth)))

    def source_terms(self, source: Labelled) -> tuple[Loss, ...]:
        """Compute cross-entropy over labelled pixels and the source decoder's depth losses, initial and final."""
        with self.statistics_of_source():
            tasks, final, initial = self.predict_tasks(source.image, "source")
        z = depth_of(source)
        weight = self.over_labelled(source.label)
        self.log_images(
            source_image=source.image, source_label=source.label,
            source_depth=log_scaled(z), source_depth_estimate=log_scaled(tasks.source_depth),
        )  # fmt: skip
        return (
            Loss("source/ce", final.loss(source.label, weight)),
            Loss("source/initial_ce", initial.loss(source.label, weight)),
            Loss("source/depth", self.depth_loss(tasks.source_depth, z), self.options.source_depth),
            Loss("source/initial_depth", self.depth_loss(tasks.initial_source_depth, z), self.options.source_depth),
        )

    def mixed_terms(self, mixed: Labelled) -> tuple[Loss, ...]:
        """Compute weighted cross-entropy and depth losses of each pixel's own decoder, initial and final."""
        tasks, final, initial = self.predict_tasks(mixed.image, "mixed")
        z, pasted = depth_of(mixed), mixed.pasted
        assert mixed.weight is not None
        assert pasted is not None
        weight = mixed.weight
        if self.options.depth_weight != "none":
            agreed = agreement(tasks.source_depth, tasks.target_depth, z)
            weight = weight * discrepancy_weight(agreed, self.options.depth_weight, self.mean_over_ranks)
            self.log_images(adaptation_difficulty=1 - agreed)
        depth = class_mix(tasks.source_depth, tasks.target_depth, pasted)
        initial_depth = class_mix(tasks.initial_source_depth, tasks.initial_target_depth, pasted)
        self.log_images(mixed_depth=log_scaled(z), mixed_depth_estimate=log_scaled(depth))
        return (
            Loss("mix/ce", final.loss(mixed.label, weight)),
            Loss("mix/initial_ce", initial.loss(mixed.label, weight)),
            Loss("mix/depth", self.depth_loss(depth, z), self.options.mixed_depth),
            Loss("mix/initial_depth", self.depth_loss(initial_depth, z), self.options.mixed_depth),
        )

    def predict_tasks(self, image: Tensor, name: str) -> tuple[Tasks, Prediction, Prediction]:
        """Predict both tasks at the size of images [B, 3, H, W], and final and initial segmentation for the losses.

        In a network with detail windows, depth covers the whole image only (our choice). `name` labels the panels.
        """
        head = self.segmentor.head("two_task")
        assert isinstance(head, TwoTaskHead)
        views = self.segmentor.views(image)
        tasks = head.tasks(head.fuse(views[0].stages))
        details = [head.segmentations(head.fuse(view.stages)) for view in views[1:]]
        final = self.segmentor.combine(views, [tasks.segmentation, *(logits for logits, _ in details)])
        initial = self.segmentor.combine(views, [tasks.initial_segmentation, *(logits for _, logits in details)])
        self.log_prediction(name, final.logits, views[0])
        tasks = replace(tasks, segmentation=final.logits, initial_segmentation=initial.logits)
        return tasks.resized(image.shape[-2:], self.segmentor.align_corners), final, initial

    def depth_loss(self, prediction: Tensor, z: Tensor) -> Tensor:
        """Compute BerHu over the valid pixels of all ranks."""
        return berhu(prediction, z, self.max_over_ranks, self.mean_over_ranks)


def depth_of(images: Labelled) -> Tensor:
    """Return the inverse depth [B, 1, H, W] of a batch that must have it."""
    assert images.depth is not None, "CorDA's data has depth"
    return images.depth
