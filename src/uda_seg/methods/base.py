"""Base class of methods: a Segmentor, the shared training step, and validation on one or more targets."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from uda_seg.data.batch import DomainBatch
from uda_seg.evaluation.evaluator import Scores, SegmentationEvaluator
from uda_seg.methods.options.base import MethodOptions
from uda_seg.methods.settings import Plan
from uda_seg.methods.step import Loss, StepModule
from uda_seg.methods.teacher import Teacher
from uda_seg.models.compilation import as_written, check_compiler, compile_network
from uda_seg.models.hrda import ContextView
from uda_seg.models.inference import Inference
from uda_seg.models.norm import estimate_statistics
from uda_seg.models.segmentor import Features, Segmentor
from uda_seg.ops.augment import StrongDraw, draw_strong, strong_augment
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import IGNORE

__all__ = ["Batch", "Loss", "Plan", "UDAModule"]

log = logging.getLogger(__name__)

Batch = Mapping[str, DomainBatch]


class UDAModule(StepModule):
    """Base of all methods.

    Sub-classes implement `losses`. Class attributes declare the data they need: `needs_target` (unlabelled target
    images), `target_optional` (also works with `data.target=null`), `needs_depth` (inverse depth of both domains),
    `supervised_target` (the labelled target *instead of* the source: the oracle). `target_in_step` is false if target
    images are only read between steps.

    Args:
        segmentor: the student network; the method's constructor attaches the heads it needs.
        plan: settings of the run.
        options: of the method; the annotation of this parameter names the dataclass of a method's options.
    """

    needs_target = True
    target_in_step = True
    target_optional = False
    needs_depth = False
    supervised_target = False
    plan: Plan

    def __init__(self, segmentor: Segmentor, plan: Plan, options: MethodOptions) -> None:
        super().__init__(plan)
        self.segmentor = segmentor
        self.options = options
        self.teacher: Teacher | None = None
        self.infer = Inference()
        self.evaluate_teacher = False
        self.scores: dict[str, Scores] = {}
        self.scored_step = -1
        self.teacher_scores: dict[str, Scores] = {}
        self.panel: dict[str, Tensor] | None = None
        self.evaluators = self.build_evaluators()
        self.teacher_evaluators = self.build_evaluators()

    def build_evaluators(self) -> nn.ModuleList:
        """Build one evaluator per target, in loader order."""
        classes = self.plan.classes
        return nn.ModuleList(
            SegmentationEvaluator(len(classes.names), classes.names, self.plan.eval_classes, classes.subsets)
            for _ in self.plan.targets
        )

    def on_fit_start(self) -> None:
        """Compile the network if configured, now that all copies of it have been made (Lightning hook)."""
        if self.segmentor.backend is None:
            return
        check_compiler(self.segmentor.backend, self.trainer.strategy.root_device)
        networks = {"student": self.segmentor} | ({} if self.teacher is None else {"teacher": self.teacher.network})
        for network in networks.values():
            compile_network(network)
        log.info("%s compiled by %s: the first steps take minutes", " and ".join(networks), self.segmentor.backend)

    # ------------------------------------------------------------------ the interface of a method

    @abstractmethod
    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield the loss terms of one batch; terms that share a forward come as one tuple and share one backward."""

    def start_heads(self, missing: set[str]) -> None:
        """Initialise heads for which `init=` found no weights better than randomly; a hook, empty here."""

    def log_images(self, **tensors: Tensor) -> None:
        """Keep the first sample of each tensor for the image panels, if a panel is due at this step."""
        if self.panel is not None:
            self.panel.update({name: tensor[:1].detach().float().cpu() for name, tensor in tensors.items()})

    def log_prediction(self, images: str, logits: Tensor, features: Features) -> None:
        """Show logits [B, C, h, w] as `<images>_prediction`, and HRDA's attention if there is one."""
        self.log_images(**{f"{images}_prediction": logits})
        if self.panel is not None and isinstance(features, ContextView):
            self.log_images(**{f"{images}_attention": features.attention_of(logits)})

    def over_labelled(self, label: Tensor) -> Tensor:
        """Compute the weight [B, H, W] that turns a mean over all pixels into one over all ranks' labelled pixels."""
        share = self.mean_over_ranks((label != IGNORE).float().mean())
        return (1.0 / torch.where(share > 0, share, 1.0)).expand(label.shape)

    def augment(self, image: Tensor) -> Tensor:
        """Apply newly drawn colour jitter and Gaussian blur to images [B, 3, H, W] in [0, 1]."""
        return self.apply_draw(image, draw_strong(len(image), device=image.device))

    def apply_draw(self, image: Tensor, draw: StrongDraw) -> Tensor:
        """Augment a whole batch at once; a separate method, so that the bench can replace it by a loop over images."""
        return strong_augment(image, draw)

    def part(self, batch: Batch, index: int, parts: int) -> Batch:
        """Return the `index`-th of `parts` equal micro-batches of every domain."""
        return {name: domain.part(index, parts) for name, domain in batch.items()}

    def rate_and_decay(self, name: str) -> tuple[float, float]:
        """Assign DAFormer's parameter groups: heads at `head_lr_multiplier`, the encoder's norm layers without decay.

        Biases and the decoder's batch norm have weight decay, as in the released code.
        """
        settings = self.plan.optimizer
        scale = settings.head_lr_multiplier if name.startswith("segmentor.heads.") else 1.0
        is_norm = name.startswith("segmentor.encoder.") and "norm" in name
        return scale, 0.0 if is_norm else settings.weight_decay

    # ------------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        """Reset the evaluators, and estimate the target's batch-norm statistics if configured (Lightning hook)."""
        self.prepare_test()
        for evaluator in [*self.evaluators, *self.teacher_evaluators]:
            assert isinstance(evaluator, SegmentationEvaluator)
            evaluator.reset()

    def prepare_test(self) -> None:
        """Estimate the target's batch-norm statistics if configured, before validations and other checkpoints."""
        if self.plan.running_statistics == "target" and self.needs_target:
            modes = {module: module.training for module in self.segmentor.modules()}
            self.segmentor.eval()
            self.estimate_statistics()
            for module, mode in modes.items():
                module.training = mode

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

    def validation_step(self, batch: DomainBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to its target's confusion matrix (Lightning hook)."""
        self._score(self.segmentor, self.evaluators[dataloader_idx], batch)
        if self.evaluate_teacher and self.teacher is not None:
            self._score(self.teacher.network, self.teacher_evaluators[dataloader_idx], batch)

    def _score(self, network: Segmentor, evaluator: nn.Module, batch: DomainBatch) -> None:
        assert batch.label is not None, "a validation set has labels"
        height, width = batch.label.shape[-2:]
        assert isinstance(evaluator, SegmentationEvaluator)
        with as_written(network):
            labels = self.infer.label(network, to_float(batch.image), (height, width))
        # Each image counts on one rank. A rank without images left repeats another's, so that all ranks run as many
        # steps.
        mine = batch.index % self.trainer.world_size == self.global_rank
        evaluator.update(labels, batch.label.masked_fill(~mine.view(-1, 1, 1), IGNORE))

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
    def miou(self) -> float:
        """The student's mIoU in [0, 1] at the last validation, averaged over targets; NaN before the first."""
        values = [scores.miou for scores in self.scores.values()]
        return sum(values) / len(values) if values else math.nan
