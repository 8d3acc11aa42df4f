"""Options of BiCL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from uda_seg.methods.options.base import MethodOptions
from uda_seg.options.constraints import Channels, Count, Fraction, Interval, LossWeight, Temperature


@dataclass(frozen=True, kw_only=True)
class BiCLOptions(MethodOptions):
    """Options of BiCL."""

    until: Literal["source", "self_training", "forward", "backward", "dynamic", "calibration"] = "calibration"
    """Last step of the ablation to use; each adds one component: source only, self-training on y_F, the forward term,
    the backward term, dynamic labels, their calibration."""

    warmup: Fraction = 0.25
    """Fraction of the run that trains on the source only, before the first round (ours; released: a separate run). With
    `init=` it can be 0."""

    rounds: Count = 10
    """Number of equally long rounds of static labels (released)."""

    round_passes: Annotated[float, Interval(0, 1e6)] = 0.5
    """Minimum passes over the target per round (ours; released: 2); rounds are reduced to satisfy it, because labelling
    costs one forward per image."""

    class_share: Fraction = 0.1
    """Most confident share of each predicted class to label (released)."""

    image_share: Fraction = 0.1
    """Most confident share of each image to label (released)."""

    target_weight: LossWeight = 0.3
    """Weight of CE on y_F, a mean over its labelled pixels, and of the target in the entropy term (released)."""

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

    absent: Literal["masked", "opposite"] = "masked"
    """Logit of a class absent from the other image: `masked` removes it (ours), `opposite` sets the cosine to -1
    (released)."""

    transfer_absent: Literal["farthest", "masked", "opposite"] = "farthest"
    """The same for the transfer of labels. Ours is `farthest`, the cosine of the least similar class present in the
    source image: with `masked`, an image of a single class labels every pixel with it, and because fused maps are
    positive, a cosine without a rival says little."""

    feature: Literal["fused", "logits", "backbone", "projection"] = "fused"
    """Features to compare: the `fused` map that the classifier reads, its `logits` (released: those of DeepLab's four
    branches, concatenated), the `backbone`'s last stage, or a `projection` of the fused map. All but the logits are
    ours: cosines of a DAFormer head's logits differ so little that no transferred label passes T."""

    width: Channels | None = None
    """Channels of the projection; null: as the fused map, at most 256 (ours)."""

    entropy_weight: LossWeight = 0.0
    """Weight of the entropy term, which is not in the paper (released: 0.4)."""

    entropy_kind: Literal["double_softmax", "shannon"] = "double_softmax"
    """Form of the entropy: `double_softmax` (released, see `uda_seg.ops.entropy`) or `shannon`."""

    resolution: Literal["features", "labels"] = "features"
    """Resolution of contrast and entropy. `features` (ours): feature cells, labelled by the pixel at their centre.
    `labels` (released): pixels; cosines are up-sampled by `nearest` and logits bilinearly, and prototypes use labels
    sampled by PyTorch's older `nearest`, at the corners of the cells."""

    source_ce: Literal["all", "labelled"] = "all"
    """Pixels that CE_s averages over: `all`, with ignored ones as 0 (ours), or only `labelled` ones (released)."""

    encoder_updates: Literal["once", "released"] = "once"
    """Updates per step: `released` repeats SGD's update 3 or 4 times for the encoder's parameters, which the released
    code lists that often."""

    stem: Literal["shared", "own"] = "shared"
    """First stage of the encoder: `shared` (paper's figure), or `own` (released): the source gets its own, copied from
    the plain one at the end of the warm-up; from then on the plain one belongs to the target. Tests use the plain
    one."""
