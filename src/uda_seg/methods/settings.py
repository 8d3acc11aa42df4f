"""Settings of optimiser, schedule, teacher and training step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from uda_seg.data.labels import ClassSet
from uda_seg.options.constraints import (
    Count,
    Fraction,
    FractionBelowOne,
    Interval,
    Length,
    OneOf,
    PositiveFraction,
    Power,
    Rate,
    Ratio,
)


@dataclass
class OptimizerSettings:
    """The optimiser and its parameter groups (defaults: DAFormer, AdamW)."""

    name: Annotated[str, OneOf(("adamw", "sgd"))] = "adamw"
    """The optimiser (DAFormer and its successors: `adamw`; BiCL and CorDA: `sgd`)."""

    lr: Rate = 6e-5
    """Learning rate of the encoder and all other parameters outside of heads, after the warm-up."""

    betas: Annotated[list[FractionBelowOne], Length(2, 2)] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's decay rates of the two moving averages."""

    momentum: FractionBelowOne = 0.9
    """SGD's momentum."""

    weight_decay: Annotated[float, Interval(0, 100)] = 0.01
    """Weight decay of all parameters except the layer norms of a transformer, and a plain vision transformer's tokens,
    position embedding, LayerScale and biases. Batch norm has it, as in the released codes."""

    head_lr_multiplier: Ratio = 10.0
    """Learning rate of the heads relative to `lr`, and of what an encoder adds to a pretrained transformer."""

    layer_decay: PositiveFraction = 1.0
    """Learning rate of each layer of a plain vision transformer relative to that of the next (Bao et al. 2022); 1: all
    have `lr`."""

    clip_norm: Ratio | None = None
    """Maximum L2 norm of the summed gradient; null: no clipping."""

    accumulate: Count = 1
    """Number of micro-batches per batch; still one optimiser step per batch. What averages over a selection of pixels
    (feature distance, depth, BiCL's target, T2S-DA's pull), the weight q of pseudo-labels, `mix_classes=batch` and
    batch norm see one micro-batch at a time."""

    scale_lr: bool = False
    """Multiply `lr` by the number of ranks (the linear scaling rule of Goyal et al. 2017, which none of the papers here
    uses)."""


@dataclass
class ScheduleSettings:
    """Linear warm-up, then polynomial decay to zero (defaults: DAFormer)."""

    warmup: FractionBelowOne = 0.0375
    """Length of the warm-up as a fraction of the run's steps (DAFormer: 1500 of 40 000)."""

    power: Power = 1.0
    """Exponent of the decay; 1 is linear."""

    weight_decay: Annotated[str, OneOf(("constant", "cosine"))] = "constant"
    """`constant`, or `cosine`: from `optimizer.weight_decay` to zero along half a cosine (SoMA)."""


@dataclass
class TeacherSettings:
    """The mean teacher and its pseudo-labels."""

    alpha: Fraction = 0.999
    """Upper bound of the EMA decay, min(1 - 1/(t+1), alpha)."""

    update: Annotated[str, OneOf(("start", "end"))] = "start"
    """Update of the teacher at the `start` of a step (DAFormer) or at its `end` (CorDA)."""

    batch_norm: Annotated[str, OneOf(("eval", "train"))] = "eval"
    """Statistics of the teacher's batch norm: `eval` uses averaged running statistics (ours), `train` those of the
    labelled batch, as the released DACS, DAFormer and MIC do."""

    threshold: Fraction = 0.968
    """Confidence from which a pixel counts towards the pseudo-labels' quality (DACS, DAFormer: 0.968)."""

    margins: bool = False
    """Ignore pseudo-labels within the target's `margins` (DAFormer, MIC: affected by rectification and the ego car)."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Settings of the run that the training step needs."""

    steps: int
    """Optimiser steps of the whole run."""

    seed: int
    """Seed of all random draws in training."""

    log_every: int = 20
    """Steps between two logged points."""

    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """The optimiser and its parameter groups."""

    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """Warm-up and decay of the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Plan(StepPlan):
    """Settings of the run that a method needs."""

    classes: ClassSet
    """The classes that the network predicts."""

    eval_classes: tuple[int, ...]
    """Indices of the classes in the reported mIoU."""

    crop: tuple[int, int]
    """Height and width of training crops in pixels."""

    targets: tuple[str, ...] = ("target",)
    """Names of the validation sets, in loader order."""

    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    """The mean teacher and its pseudo-labels."""

    running_statistics: str = "all"
    """Training images that update batch norm's running statistics: `all`, as released, or only the `mixed` ones, which
    are closer to the target; `target` instead estimates them on unlabelled target crops before every validation, as
    AdaBN does. (Irrelevant without batch norm or without target images.)"""

    statistics_batches: int = 40
    """Number of target batches for `target`."""
