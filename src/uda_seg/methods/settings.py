"""Settings of optimiser, schedule, teacher and training step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from uda_seg.data.labels import ClassSet
from uda_seg.options.constraints import Count, Fraction, FractionBelowOne, Interval, Length, OneOf, Power, Rate, Ratio


@dataclass
class OptimizerSettings:
    """The optimiser and its parameter groups (defaults: DAFormer, AdamW).

    Attributes:
        name: `adamw` or `sgd`.
        lr: learning rate of the encoder and all other parameters outside of heads.
        betas: AdamW's two decay rates.
        momentum: SGD's momentum.
        weight_decay: weight decay of all parameters except the encoder's norm layers.
        head_lr_multiplier: learning rate of the heads relative to `lr`.
        clip_norm: maximum L2 norm of the summed gradient; null: no clipping.
        accumulate: number of micro-batches per batch; still one optimiser step per batch.
        scale_lr: multiply `lr` by the number of ranks (the linear scaling rule of Goyal et al. 2017, which none of the
            papers here uses).
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
    """The mean teacher and its pseudo-labels.

    Attributes:
        alpha: upper bound of the EMA decay, min(1 - 1/(t+1), alpha).
        update: at the `start` of a step (DAFormer) or at its `end` (CorDA).
        batch_norm: `eval` uses averaged running statistics; `train` the statistics of the labelled batch, as the
            released DACS, DAFormer and MIC do.
        threshold: confidence from which a pixel counts towards the pseudo-labels' quality.
        margins: ignore pseudo-labels within the target's `margins` (DAFormer, MIC: affected by rectification and the
            ego car).
    """

    alpha: Fraction = 0.999
    update: Annotated[str, OneOf(("start", "end"))] = "start"
    batch_norm: Annotated[str, OneOf(("eval", "train"))] = "eval"
    threshold: Fraction = 0.968
    margins: bool = False


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Settings of the run that the training step needs.

    Attributes:
        steps: optimiser steps of the whole run.
        seed: seed of all random draws in training.
        log_every: steps between two logged points.
    """

    steps: int
    seed: int
    log_every: int = 20
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)


@dataclass(frozen=True, kw_only=True)
class Plan(StepPlan):
    """Settings of the run that a method needs.

    Attributes:
        classes: the classes that the network predicts.
        eval_classes: indices of the classes in the reported mIoU.
        crop: height and width of training crops in pixels.
        targets: names of the validation sets, in loader order.
        running_statistics: training images that update batch norm's running statistics: `all`, as released, or only the
            `mixed` ones, which are closer to the target; `target` instead estimates them on unlabelled target crops
            before every validation, as AdaBN does. (Irrelevant without batch norm or without target images.)
        statistics_batches: number of target batches for `target`.
    """

    classes: ClassSet
    eval_classes: tuple[int, ...]
    crop: tuple[int, int]
    targets: tuple[str, ...] = ("target",)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    running_statistics: str = "all"
    statistics_batches: int = 40
