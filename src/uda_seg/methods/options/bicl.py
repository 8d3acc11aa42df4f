"""Options of BiCL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from uda_seg.methods.options.rounds import RoundOptions
from uda_seg.ops.contrast import Absent
from uda_seg.options.constraints import Channels, Fraction, LossWeight, OneOf, Temperature


class Ablation(IntEnum):
    """Steps of the ablation, each with one component more than those before."""

    SOURCE = 0
    SELF_TRAINING = 1
    FORWARD = 2
    BACKWARD = 3
    DYNAMIC = 4
    CALIBRATION = 5


@dataclass(frozen=True, kw_only=True)
class BiCLOptions(RoundOptions):
    """Options of BiCL."""

    until: Annotated[str, OneOf(tuple(step.name.lower() for step in Ablation))] = "calibration"
    """Last step of the ablation to use; each adds one component: source only, self-training on y_F, the forward term,
    the backward term, dynamic labels, their calibration (ours)."""

    target_weight: LossWeight = 0.3
    """Weight of CE on y_F, a mean over its labelled pixels (released)."""

    source_augment: bool = False
    """Apply the colour jitter and blur of self-training's mixed images to the source (ours; `source_only_strong` is the
    control)."""

    forward_weight: LossWeight = 0.2
    """Weight lambda_1 of the forward term (released; 0.1 in another of its configurations)."""

    backward_weight: LossWeight = 0.2
    """Weight lambda_2 of the backward term (likewise)."""

    temperature: Temperature = 0.1
    """Temperature tau of the contrast (released)."""

    dynamic_threshold: Fraction = 0.8
    """T, the minimum softmax value of a transferred label (released)."""

    calibration_momentum: Fraction = 0.99
    """Decay of the moving average of a class's displacement xi (ours; 1 keeps xi at 0; ablate 0.9 | 0.99 | 0.999)."""

    transfer_absent: Absent = "farthest"
    """Logit of a class absent from the source image in the transfer of labels. Ours is `farthest`, the cosine of the
    least similar class present: with `masked`, which removes it, an image of a single class labels every pixel with it,
    and because fused maps are positive, a cosine without a rival says little; `opposite` sets the cosine to -1."""

    feature: Annotated[str, OneOf(("fused", "backbone", "projection"))] = "fused"
    """Features to compare (ours): the `fused` map that the classifier reads, the `backbone`'s last stage, or a
    `projection` of the fused map. (Cosines of a DAFormer head's logits, the released feature, differ so little that no
    transferred label passes T.)"""

    width: Channels | None = None
    """Channels of the projection; null: as the fused map, at most 256 (ours)."""
