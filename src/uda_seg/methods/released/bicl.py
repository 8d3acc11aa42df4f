"""BiCL with what its released code does besides or instead of the paper (cvlab-yonsei/DASS, a fork of CCM)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.methods.base import Loss, Plan
from uda_seg.methods.bicl import BiCL
from uda_seg.methods.labelled import Labelled
from uda_seg.methods.options.bicl import BiCLOptions
from uda_seg.methods.released.repeated_sgd import repeating_optimizer
from uda_seg.models.segmentor import Segmentor, Supervision, resize
from uda_seg.models.stem import DomainStem
from uda_seg.ops.contrast import Absent
from uda_seg.ops.entropy import entropy
from uda_seg.ops.prototypes import ClassSums, nearest
from uda_seg.options.constraints import LossWeight, OneOf


@dataclass(frozen=True, kw_only=True)
class ReleasedBiCLOptions(BiCLOptions):
    """Options of BiCL as released; each can be set back to what `BiCL` does."""

    feature: Annotated[str, OneOf(("fused", "backbone", "projection", "logits"))] = "logits"
    """Features to compare: besides those of `BiCL` the `logits` (released): those of DeepLab's four branches,
    concatenated, or the plain ones of any other head."""

    absent: Literal["masked", "opposite"] = "opposite"
    """Logit of a class absent from the other image: `masked` removes it (as `BiCL`), `opposite` sets the cosine to -1
    (released)."""

    entropy_weight: LossWeight = 0.4
    """Weight of an entropy term, which is not in the paper (released); 0 switches it off."""

    entropy_kind: Literal["double_softmax", "shannon"] = "double_softmax"
    """Form of the entropy: `double_softmax` (released, see `uda_seg.ops.entropy`) or `shannon`."""

    resolution: Literal["features", "labels"] = "labels"
    """Resolution of contrast and entropy. `features` (as `BiCL`): feature cells, labelled by the pixel at their centre.
    `labels` (released): pixels; cosines are up-sampled by `nearest` and logits bilinearly, and prototypes use labels
    sampled by PyTorch's older `nearest`, at the corners of the cells."""

    source_ce: Literal["all", "labelled"] = "labelled"
    """Pixels that CE_s averages over: `all`, with ignored ones as 0 (as `BiCL`), or only `labelled` ones (released)."""

    encoder_updates: Literal["once", "released"] = "released"
    """Updates per step: `released` repeats SGD's update 3 or 4 times for the encoder's parameters, which the released
    code lists that often."""

    stem: Literal["shared", "own"] = "own"
    """First stage of the encoder: `shared` (paper's figure), or `own` (released): the source gets its own, copied from
    the plain one at the end of the warm-up; from then on the plain one belongs to the target. Tests use the plain
    one."""


class ReleasedBiCL(BiCL):
    """BiCL with the released code's side terms, sampling, stems and optimiser.

    Args:
        segmentor: the network.
        plan: settings of the run.
        options: of the method.
    """

    options: ReleasedBiCLOptions

    def __init__(self, segmentor: Segmentor, plan: Plan, options: ReleasedBiCLOptions) -> None:
        super().__init__(segmentor, plan, options)
        self.absent = options.absent
        self.source_stem = DomainStem(segmentor.encoder) if options.stem == "own" else None

    def supervise_source(self, source: Labelled, adapts: bool) -> Supervision:
        """Run the network on the source, with its own stem once the target trains the plain one."""
        if self.options.source_ce == "labelled":
            source = replace(source, weight=self.over_labelled(source.label))
        if self.source_stem is None or not adapts:
            return super().supervise_source(source, adapts)
        with self.source_stem.inside(self.segmentor.encoder):
            return super().supervise_source(source, adapts)

    def supervised_terms(self, domain: str, result: Supervision, label: Tensor, weight: float) -> tuple[Loss, ...]:
        """Add the entropy of the prediction to the cross-entropy."""
        terms, logits = super().supervised_terms(domain, result, label, weight), result.logits
        if self.options.entropy_weight == 0:
            return terms
        if self.options.resolution == "labels":
            logits = resize(logits.float(), label.shape[-2:], self.segmentor.align_corners)
        value = entropy(logits, self.options.entropy_kind)
        return *terms, Loss(f"{domain}/entropy", value, self.options.entropy_weight * weight)

    def sample(self, label: Tensor, features: Tensor) -> Tensor:
        """Leave labels at their own resolution."""
        return super().sample(label, features) if self.options.resolution == "features" else label

    def prototypes(self, features: Tensor, label: Tensor) -> ClassSums:
        """Sum features by class, with labels sampled at the corners of the cells."""
        return super().prototypes(features, nearest(label, features.shape[-2:], exact=False))

    def cosines(self, f: Tensor, rho: Tensor, present: Tensor, label: Tensor, absent: Absent) -> Tensor:
        """Up-sample the cosines to the labels by nearest neighbour."""
        logits, size = super().cosines(f, rho, present, label, absent), label.shape[-2:]
        return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="nearest")

    def finish_step(self) -> None:
        """At the end of the warm-up, copy the plain stem to the source's."""
        super().finish_step()
        if self.trainer.global_step == self.rounds.schedule.first:
            self.start_heads(set())

    def start_heads(self, missing: set[str]) -> None:
        """Copy the plain stem to the source's, also after `init=`."""
        if self.source_stem is not None:
            self.source_stem.copy_from(self.segmentor.encoder)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the configured optimiser, or SGD with the released code's repetitions (Lightning hook)."""
        once = self.options.encoder_updates == "once"
        return super().configure_optimizers() if once else repeating_optimizer(self)
