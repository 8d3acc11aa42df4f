"""The step every method shares: walk a generator of losses, back-propagate each, step once.

A method says only *what* its losses are. The order of work, precision, clipping, schedule, validation and logging live
here, once. Peak memory is that of the largest single forward, because a loss is back-propagated before the next exists.
"""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from uda_seg.data.batch import DomainBatch
from uda_seg.data.labels import ClassSet
from uda_seg.errors import UserError
from uda_seg.evaluation.evaluator import Scores, SegmentationEvaluator
from uda_seg.methods.teacher import Teacher
from uda_seg.models.segmentor import Segmentor, resize
from uda_seg.ops.image import to_float
from uda_seg.ops.schedule import warmup_poly

Batch = Mapping[str, DomainBatch]


@dataclass
class OptimizerSettings:
    """The optimiser and its parameter groups (defaults: DAFormer, AdamW).

    Attributes:
        name: `adamw` or `sgd`.
        lr: learning rate of the encoder and of anything that is not a segmentation head.
        betas: AdamW's two decay rates.
        momentum: SGD's momentum.
        weight_decay: decay of every parameter but the encoder's norm layers.
        head_lr_multiplier: learning rate of the heads relative to `lr`.
        clip_norm: largest L2 norm of the summed gradient; null leaves it alone.
        accumulate: micro-batches a batch is split into; still one optimiser step a batch.
    """

    name: str = "adamw"
    lr: float = 6e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.9
    weight_decay: float = 0.01
    head_lr_multiplier: float = 10.0
    clip_norm: float | None = None
    accumulate: int = 1


@dataclass
class ScheduleSettings:
    """Linear warm-up, then polynomial decay to zero; `warmup` is a fraction of the run's steps."""

    warmup: float = 0.0375
    power: float = 1.0


@dataclass
class TeacherSettings:
    """The mean teacher and the labels it gives.

    Attributes:
        alpha: ceiling of the average's decay, min(1 - 1/(t+1), alpha).
        update: `start` of a step (DAFormer) or its `end` (CorDA).
        batch_norm: `eval` uses averaged running statistics; `train` the statistics of the batch being labelled, as the
            released DACS, DAFormer and MIC do.
        threshold: confidence from which a pixel counts towards the pseudo-labels' quality.
        margins: leave pseudo-labels in the target's `margins` out (DAFormer, MIC: where rectification and the ego car
            spoil them).
    """

    alpha: float = 0.999
    update: str = "start"
    batch_norm: str = "eval"
    threshold: float = 0.968
    margins: bool = False


@dataclass(frozen=True)
class Plan:
    """What a method is told about the run it is part of.

    Attributes:
        steps: optimiser steps of the whole run.
        seed: drives every random draw of training.
        classes: the classes the network predicts.
        eval_classes: indices of the classes that the reported mIoU averages.
        crop: height and width of training crops, pixels.
        targets: names of the validation sets, in loader order.
        log_every: steps between two logged points.
    """

    steps: int
    seed: int
    classes: ClassSet
    eval_classes: tuple[int, ...]
    crop: tuple[int, int]
    targets: tuple[str, ...] = ("target",)
    log_every: int = 20
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)


@dataclass(frozen=True)
class Loss:
    """One named term: a 0-dim tensor with a graph, and the weight it enters the objective with."""

    name: str
    value: Tensor
    weight: float = 1.0


def fold(*numbers: int) -> int:
    """Mix integers into one 63-bit seed (splitmix64), so that (seed, step, rank) never share a random stream."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


class NonFinite:
    """Watches loss terms for NaN and infinity without ever waiting for the device.

    The first bad (step, term) is kept in a tensor on the device; `raise_if_any` reads it where a wait is free anyway:
    when values are logged and before weights are saved.
    """

    TERMS = 64

    def __init__(self) -> None:
        self.names: list[str] = []
        self.first: Tensor | None = None

    def watch(self, step: int, name: str, value: Tensor) -> None:
        """Remember (step, name) if `value`, 0-dim, is not finite and nothing was before."""
        if name not in self.names:
            self.names.append(name)
        if self.first is None:
            self.first = torch.full((), -1, dtype=torch.int64, device=value.device)
        code = step * self.TERMS + self.names.index(name)
        bad = ~torch.isfinite(value.detach()) & (self.first < 0)
        self.first = torch.where(bad, code, self.first)

    def found(self) -> Tensor:
        """Float 0-dim: 1 where something bad was seen; the form fused optimisers mask their step by."""
        if self.first is None:
            raise RuntimeError("no loss was watched before the optimiser step")
        return (self.first >= 0).float()

    def raise_if_any(self) -> None:
        """Raise UserError naming the step and the term, if any value was bad. Waits for the device."""
        code = -1 if self.first is None else int(self.first)
        if code >= 0:
            step, term = divmod(code, self.TERMS)
            raise UserError(
                f"{self.names[term]} is not finite at step {step}: training stopped, the last good weights are kept; "
                "lower optimizer.lr, set optimizer.clip_norm=1 or continue from the last checkpoint with resume=last"
            )


class UDAModule(pl.LightningModule):
    """Base of all methods: a Segmentor, the manual step, and validation of one or more targets.

    Sub-classes implement `losses`. Class attributes say what data they want: `needs_target` (unlabelled target images),
    `supervised_target` (the labelled target *instead of* the source: the oracle).

    Args:
        segmentor: the student network; heads a method needs are attached to it in the method's constructor.
        plan: what the run is.
    """

    needs_target = True
    supervised_target = False

    def __init__(self, segmentor: Segmentor, plan: Plan) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.segmentor = segmentor
        self.plan = plan
        self.teacher: Teacher | None = None
        self.infer: Callable[[Segmentor, Tensor], Tensor] = Segmentor.predict
        self.evaluate_teacher = False
        self.watcher = NonFinite()
        self.scores: dict[str, Scores] = {}
        self.scored_step = -1
        self.teacher_scores: dict[str, Scores] = {}
        self.panel: dict[str, Tensor] | None = None
        self.evaluators = self.build_evaluators()
        self.teacher_evaluators = self.build_evaluators()

    def build_evaluators(self) -> nn.ModuleList:
        """One evaluator per target, in loader order."""
        classes = self.plan.classes
        return nn.ModuleList(
            SegmentationEvaluator(len(classes.names), classes.names, self.plan.eval_classes) for _ in self.plan.targets
        )

    # ------------------------------------------------------------------ the interface of a method

    @abstractmethod
    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield the loss terms of one batch; terms that share a forward come as one tuple and share one backward."""

    def start_heads(self, missing: set[str]) -> None:
        """Give heads that `init=` found no weights for a better start than a random one; a hook, empty here."""

    def show(self, **tensors: Tensor) -> None:
        """Keep the first sample of each tensor for the picture panels, if a panel was asked for at this step."""
        if self.panel is not None:
            self.panel.update({name: tensor[:1].detach().float().cpu() for name, tensor in tensors.items()})

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimiser step from one batch (Lightning hook)."""
        step = self.trainer.global_step
        torch.manual_seed(fold(self.plan.seed, step, self.global_rank))
        optimizer: Any = self.optimizers()
        self.set_learning_rate(optimizer, step)
        optimizer.zero_grad(set_to_none=True)
        logged = self.accumulate_gradients(batch, step)
        self.reduce_gradients()
        logged["gradient_norm"] = self.clip_gradient_norm()
        self.watcher.watch(step, "gradient_norm", logged["gradient_norm"])
        optimizer.optimizer.found_inf = self.watcher.found()
        optimizer.step()
        if (step + 1) % self.plan.log_every == 0 or step == 0:
            self.watcher.raise_if_any()
            lr = optimizer.param_groups[0]["lr"]
            self.log_dict({f"train/{k}": v for k, v in logged.items()} | {"train/lr": lr}, on_step=True, on_epoch=False)

    def accumulate_gradients(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Back-propagate every yielded term; gradients sum up in `.grad`. Returns the detached values by name."""
        parts = self.plan.optimizer.accumulate
        logged: dict[str, Tensor] = {}
        with self._without_ddp_sync():
            for part in range(parts):
                piece = {name: domain.part(part, parts) for name, domain in batch.items()} if parts > 1 else batch
                for terms in self.losses(piece):
                    terms = (terms,) if isinstance(terms, Loss) else terms
                    self.manual_backward(
                        sum((t.value * (t.weight / parts) for t in terms), torch.zeros((), device=self.device))
                    )
                    for term in terms:
                        value = term.value.detach()
                        self.watcher.watch(step, term.name, value)
                        logged[term.name] = logged.get(term.name, torch.zeros_like(value)) + value / parts
        return logged

    def _without_ddp_sync(self) -> contextlib.AbstractContextManager[None]:
        model = self.trainer.model
        no_sync = getattr(model, "no_sync", None)
        return no_sync() if no_sync is not None else contextlib.nullcontext()

    def reduce_gradients(self) -> None:
        """Average the gradients over the ranks: one all-reduce of one flat buffer, whatever the number of terms."""
        if self.trainer.world_size == 1:
            return
        # The same terms run on every rank, so the same parameters have a gradient; the others must not be decayed.
        trained = [p for p in self.parameters() if p.grad is not None]
        grads = [p.grad for p in trained if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.trainer.world_size
        pieces: tuple[Tensor, ...] = torch.split(flat, [g.numel() for g in grads])
        for parameter, piece in zip(trained, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """Average a batch-level quantity over the ranks, so that n ranks compute what one process would."""
        if self.trainer.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.trainer.world_size
        return value

    def clip_gradient_norm(self) -> Tensor:
        """Scale the gradient to `clip_norm` where it is longer; returns its L2 norm before that, 0-dim."""
        trained = [p for p in self.parameters() if p.grad is not None]
        limit = self.plan.optimizer.clip_norm
        if limit is not None:
            return nn.utils.clip_grad_norm_(trained, limit)
        return nn.utils.get_total_norm(p.grad for p in trained if p.grad is not None)

    # ------------------------------------------------------------------ optimiser and schedule

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimiser (Lightning hook). Fused, so that a device flag alone can mask a step."""
        settings = self.plan.optimizer
        groups = self.parameter_groups()
        if settings.name == "adamw":
            betas = (settings.betas[0], settings.betas[1])
            return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, fused=True)
        if settings.name == "sgd":
            return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
        raise UserError(f"optimizer.name={settings.name} is unknown: use adamw or sgd")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of DAFormer: heads at `head_lr_multiplier`, the encoder's norm layers without decay, the rest plain.

        Biases and the decoder's batch norm are decayed, as in the released code.
        """
        settings = self.plan.optimizer
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = settings.head_lr_multiplier if name.startswith("segmentor.heads.") else 1.0
            is_norm = name.startswith("segmentor.encoder.") and "norm" in name
            groups.setdefault((scale, 0.0 if is_norm else settings.weight_decay), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": settings.lr * scale,
                "base_lr": settings.lr * scale,
                "weight_decay": decay,
            }
            for (scale, decay), parameters in groups.items()
        ]

    def set_learning_rate(self, optimizer: Any, step: int) -> None:
        """Set every group's rate for 0-based `step`: warm-up times polynomial decay."""
        schedule = self.plan.schedule
        warmup_steps = round(schedule.warmup * self.plan.steps)
        factor = warmup_poly(step, self.plan.steps, warmup_steps, schedule.power)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    # ------------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the validation before (Lightning hook)."""
        for evaluator in [*self.evaluators, *self.teacher_evaluators]:
            assert isinstance(evaluator, SegmentationEvaluator)
            evaluator.reset()

    def validation_step(self, batch: DomainBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one batch to its target's confusion matrix (Lightning hook)."""
        self._score(self.segmentor, self.evaluators[dataloader_idx], batch)
        if self.evaluate_teacher and self.teacher is not None:
            self._score(self.teacher.network, self.teacher_evaluators[dataloader_idx], batch)

    def _score(self, network: Segmentor, evaluator: nn.Module, batch: DomainBatch) -> None:
        assert batch.label is not None, "a validation set has labels"
        logits = resize(self.infer(network, to_float(batch.image)), batch.label.shape[-2:])
        assert isinstance(evaluator, SegmentationEvaluator)
        evaluator.update(logits.argmax(1), batch.label)

    def on_validation_epoch_end(self) -> None:
        """Compute and log every target's scores (Lightning hook)."""
        self.scored_step = self.trainer.global_step
        self.scores = self._computed(self.evaluators)
        for name, scores in self.scores.items():
            self.log(f"val/{name}/miou", scores.miou)
            self.log(f"val/{name}/pixel_accuracy", scores.pixel_accuracy)
        if self.evaluate_teacher and self.teacher is not None:
            self.teacher_scores = self._computed(self.teacher_evaluators)
            for name, scores in self.teacher_scores.items():
                self.log(f"val/{name}/teacher_miou", scores.miou)
        self.log("val/miou", self.miou)

    def _computed(self, evaluators: nn.ModuleList) -> dict[str, Scores]:
        scores = [e.compute() for e in evaluators if isinstance(e, SegmentationEvaluator)]
        return dict(zip(self.plan.targets, scores, strict=True))

    @property
    def miou(self) -> float:
        """Mean over the targets of the student's mIoU at the last validation, in [0, 1]; NaN before the first."""
        values = [scores.miou for scores in self.scores.values()]
        return sum(values) / len(values) if values else math.nan
