"""What a run decides about optimiser, schedule, teacher and step: the values, and nothing that acts on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from uda_seg.data.labels import ClassSet
from uda_seg.limits import Count, Fraction, FractionBelowOne, Interval, Length, OneOf, Power, Rate, Ratio


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
        scale_lr: multiply `lr` by the number of ranks, as their batches add up (the linear rule of Goyal et al. 2017;
            no paper here used it).
    """

    name: Annotated[str, OneOf(("adamw", "sgd"))] = "adamw"
    lr: Rate = 6e-5
    betas: Annotated[list[FractionBelowOne], Length(2, 2)] = field(default_factory=lambda: [0.9, 0.999])
    momentum: FractionBelowOne = 0.9
    weight_decay: Annotated[float, Interval(0, 100)] = 0.01
    head_lr_multiplier: Ratio = 10.0
    clip_norm: Ratio | None = None
    accumulate: Count = 1
    scale_lr: bool = False


@dataclass
class ScheduleSettings:
    """Linear warm-up, then polynomial decay to zero; `warmup` is a fraction of the run's steps."""

    warmup: FractionBelowOne = 0.0375
    power: Power = 1.0


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

    alpha: Fraction = 0.999
    update: Annotated[str, OneOf(("start", "end"))] = "start"
    batch_norm: Annotated[str, OneOf(("eval", "train"))] = "eval"
    threshold: Fraction = 0.968
    margins: bool = False


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What the optimiser step has to know about the run it is part of.

    Attributes:
        steps: optimiser steps of the whole run.
        seed: drives every random draw of training.
        log_every: steps between two logged points.
    """

    steps: int
    seed: int
    log_every: int = 20
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)


@dataclass(frozen=True, kw_only=True)
class Plan(StepPlan):
    """What a method is told about the run it is part of.

    Attributes:
        classes: the classes the network predicts.
        eval_classes: indices of the classes that the reported mIoU averages.
        crop: height and width of training crops, pixels.
        targets: names of the validation sets, in loader order.
        running_statistics: which images batch norm remembers for the test: of self-training `all`, as released, or the
            `mixed` ones alone, which are nearer to the target; or `target`, as AdaBN does: unlabelled crops of it,
            before every validation. (A network without batch norm has no choice, nor a method without target images.)
        statistics_batches: target batches that `target` averages over.
    """

    classes: ClassSet
    eval_classes: tuple[int, ...]
    crop: tuple[int, int]
    targets: tuple[str, ...] = ("target",)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    running_statistics: str = "all"
    statistics_batches: int = 40
