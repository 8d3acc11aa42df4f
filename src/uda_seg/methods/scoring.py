"""Validation of a network, and of its teacher, on one or more targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from uda_seg.data.batch import DomainBatch
from uda_seg.evaluation.evaluator import Scores, SegmentationEvaluator
from uda_seg.methods.settings import Plan
from uda_seg.methods.step import StepModule
from uda_seg.methods.teacher import Teacher
from uda_seg.models.compilation import as_written
from uda_seg.models.inference import Inference
from uda_seg.models.norm import estimate_statistics
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import IGNORE


def label_free_name(score: str) -> str:
    """Return the name that a label-free score is logged with."""
    return f"val/target/label_free/{score}"


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode within the block, and every module of it back afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class ScoredModule(StepModule):
    """Base module with a network that is scored at every validation.

    Args:
        segmentor: the student network.
        plan: settings of the run.

    Attributes:
        teacher: the averaged network, scored as well if `evaluate_teacher`; None without one.
        infer: how validation images are predicted.
        scores: the student's at the last validation, by target.
        scored_step: step of the last validation.
        teacher_scores: the teacher's.
        label_free: the student's label-free scores on the target, by name; empty unless they are asked for.
        label_free_step: step of these.
    """

    needs_target = True
    plan: Plan

    def __init__(self, segmentor: Segmentor, plan: Plan) -> None:
        super().__init__(plan)
        self.segmentor = segmentor
        self.teacher: Teacher | None = None
        self.infer = Inference()
        self.evaluate_teacher = False
        self.scores: dict[str, Scores] = {}
        self.scored_step = -1
        self.teacher_scores: dict[str, Scores] = {}
        self.label_free: dict[str, float] = {}
        self.label_free_step = -1
        self.evaluators = self.build_evaluators()
        self.teacher_evaluators = self.build_evaluators()

    def build_evaluators(self) -> nn.ModuleList:
        """Build one evaluator per target, in loader order."""
        classes = self.plan.classes
        return nn.ModuleList(
            SegmentationEvaluator(len(classes.names), classes.names, self.plan.eval_classes, classes.subsets)
            for _ in self.plan.targets
        )

    def on_validation_epoch_start(self) -> None:
        """Reset the evaluators, and estimate the target's batch-norm statistics if configured (Lightning hook)."""
        self.prepare_test()
        for evaluator in [*self.evaluators, *self.teacher_evaluators]:
            assert isinstance(evaluator, SegmentationEvaluator)
            evaluator.reset()

    def prepare_test(self) -> None:
        """Estimate the target's batch-norm statistics if configured, before validations and other checkpoints."""
        if self.plan.running_statistics == "target" and self.needs_target:
            with evaluating(self.segmentor):
                self.estimate_statistics()

    def estimate_statistics(self) -> None:
        """Estimate batch norm's running statistics on unlabelled target crops, for the test and the checkpoint.

        Training forwards normalise by their own batch and are not affected; only a teacher that averages statistics
        continues from these.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not data.has_target:
            return
        images = (to_float(b.image.to(self.device)) for b in data.target_batches(self.plan.statistics_batches))
        with as_written(self.segmentor):
            norms = estimate_statistics(self.segmentor, self.segmentor.predict, images)
        for norm in norms:
            for buffer in (norm.running_mean, norm.running_var):
                assert buffer is not None
                buffer.copy_(self.mean_over_ranks(buffer))

    def validation_step(self, batch: DomainBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a batch to its target's confusion matrix (Lightning hook).

        Returns:
            Class ids [B, H, W] that callbacks may show: the `prediction`, and the `teacher`'s if it is scored.
        """
        found = {"prediction": self._score(self.segmentor, self.evaluators[dataloader_idx], batch)}
        if self.evaluate_teacher and self.teacher is not None:
            found["teacher"] = self._score(self.teacher.network, self.teacher_evaluators[dataloader_idx], batch)
        return found

    def _score(self, network: Segmentor, evaluator: nn.Module, batch: DomainBatch) -> Tensor:
        assert batch.label is not None, "a validation set has labels"
        height, width = batch.label.shape[-2:]
        assert isinstance(evaluator, SegmentationEvaluator)
        with as_written(network):
            labels = self.infer.label(network, to_float(batch.image), (height, width))
        # Each image counts on one rank. A rank without images left repeats another's, so that all ranks run as many
        # steps.
        mine = batch.index % self.trainer.world_size == self.global_rank
        evaluator.update(
            labels, batch.label.masked_fill(~mine.view(-1, 1, 1), IGNORE), batch.index.masked_fill(~mine, -1)
        )
        return labels

    def on_validation_epoch_end(self) -> None:
        """Compute and log every target's scores (Lightning hook)."""
        self.scored_step = self.trainer.global_step
        self.scores = self._computed(self.evaluators)
        values = {"val/miou": self.miou}
        for name, scores in self.scores.items():
            values[f"val/{name}/miou"] = scores.miou
            values[f"val/{name}/pixel_accuracy"] = scores.pixel_accuracy
        if self.evaluate_teacher and self.teacher is not None:
            self.teacher_scores = self._computed(self.teacher_evaluators)
            for name, scores in self.teacher_scores.items():
                values[f"val/{name}/teacher_miou"] = scores.miou
        self.record(values)

    def _computed(self, evaluators: nn.ModuleList) -> dict[str, Scores]:
        scores = [e.compute() for e in evaluators if isinstance(e, SegmentationEvaluator)]
        return dict(zip(self.plan.targets, scores, strict=True))

    @property
    def label_free_values(self) -> dict[str, float]:
        """The label-free scores by the names that they are logged with."""
        return {label_free_name(name): value for name, value in self.label_free.items()}

    @property
    def miou(self) -> float:
        """The student's mIoU in [0, 1] at the last validation, averaged over targets; NaN before the first."""
        values = [scores.miou for scores in self.scores.values()]
        return sum(values) / len(values) if values else math.nan
