"""BiCL: bi-directional contrastive learning (Lee, Eom, Lee, Park and Ham, ECCV 2022, arXiv 2207.10892).

Within each pair of images, target pixels are pulled to source prototypes (forward) and source pixels to target
prototypes (backward). Target labels are hybrid: static labels y_F, which the network predicts for the whole target once
per round, and, where y_F is empty, dynamic labels y_D, transferred from the prototypes of the paired source image after
these were calibrated, class by class, by the observed difference between the domains.

Sources: the paper's abstract and figures, and the released code, which contains neither y_D nor the calibration. The
    size of the calibration step is in neither and is our choice, as are all numbers that are not marked as released.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback
from torch import Tensor

from uda_seg.methods.base import Batch, Loss, Plan, UDAModule
from uda_seg.methods.class_average import ClassAverage
from uda_seg.methods.labelled import labelled
from uda_seg.methods.labelling import Shares
from uda_seg.methods.options.bicl import BiCLOptions
from uda_seg.methods.released.repeated_sgd import repeating_optimizer
from uda_seg.methods.round_schedule import RoundSchedule
from uda_seg.methods.rounds import Rounds
from uda_seg.models.deeplab import DeepLabV2Head
from uda_seg.models.norm import frozen_statistics
from uda_seg.models.projection import attach_projection, project
from uda_seg.models.segmentor import Segmentor, Supervision, resize
from uda_seg.models.stem import DomainStem
from uda_seg.ops.contrast import prototype_contrast, similarity, transfer_labels
from uda_seg.ops.entropy import entropy
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import IGNORE
from uda_seg.ops.prototypes import ClassSums, class_sums, nearest

LADDER = ("source", "self_training", "forward", "backward", "dynamic", "calibration")


class BiCL(UDAModule):
    """CE_s + 0.3 CE_t + lambda_1 FCL + lambda_2 BCL, after a warm-up of CE_s alone; no teacher.

    Args:
        segmentor: the network; a projection is attached to it if that is the feature.
        plan: settings of the run. `teacher.batch_norm` selects the statistics with which the network labels the target.
        options: of the method.
    """

    options: BiCLOptions

    def __init__(self, segmentor: Segmentor, plan: Plan, options: BiCLOptions) -> None:
        o = options
        projected = o.feature == "projection"
        channels = attach_projection(segmentor, o.width) if projected else _channels(segmentor, o.feature)
        super().__init__(segmentor, plan, options)
        self.rung = LADDER.index(o.until)
        schedule = RoundSchedule(plan.steps, o.warmup if self.rung > 0 else 1.0, o.rounds)
        self.rounds = Rounds(schedule, Shares(o.class_share, o.image_share), o.round_passes)
        self.calibration = ClassAverage([len(plan.classes), channels], o.calibration_momentum)  # xi
        self.source_stem = DomainStem(segmentor.encoder) if o.stem == "own" else None

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield only CE_s in the warm-up, then all terms from one forward per domain."""
        source, target = labelled(batch["source"]), batch["target"]
        adapts = target.pseudo is not None and self.rung > 0
        weight = self.over_labelled(source.label) if self.options.source_ce == "labelled" else None
        with self.stem_of_source(adapts), self.statistics_of_source(adapts):
            s = self.segmentor.supervise(source.image, source.label, weight)
        self.log_images(source_image=source.image, source_label=source.label)
        self.log_prediction("source", s.logits, s.features)
        terms = [Loss("source/ce", s.loss), *self.entropy_terms("source", s, source.label, self.options.entropy_weight)]
        if adapts and target.pseudo is not None:
            trusted = target.valid if self.plan.teacher.margins else torch.ones_like(target.valid)
            y_f = target.pseudo.masked_fill(~trusted, IGNORE)
            image = to_float(target.image)
            t = self.segmentor.supervise(image, y_f, self.over_labelled(y_f))
            self.log_images(target_image=image, pseudo_label=y_f)
            terms.append(Loss("target/ce", t.loss, self.options.target_weight))
            terms += self.entropy_terms("target", t, y_f, self.options.entropy_weight * self.options.target_weight)
            if self.rung > 1:
                partner = torch.arange(len(image), device=image.device) % len(source.image)
                f_s, f_t = self.features(s)[partner], self.features(t)
                terms += self.contrast(f_s, source.label[partner], f_t, y_f, trusted)
            else:
                self.log_diagnostics(**{"labelled/static": (y_f != IGNORE).float().mean()})
        yield tuple(terms)

    def contrast(self, f_s: Tensor, y_s: Tensor, f_t: Tensor, y_f: Tensor, trusted: Tensor) -> tuple[Loss, ...]:
        """Compute FCL and BCL of pairs of images, each averaged over pixels (or cells), then over pairs.

        Args:
            f_s: source features [B, D, h, w].
            y_s: source labels uint8 [B, H, W].
            f_t: target features [B, D, h, w].
            y_f: static target labels uint8 [B, H, W].
            trusted: bool [B, H, W], target pixels that may get dynamic labels.
        """
        tau = self.options.temperature
        if self.options.resolution == "features":  # then all resampling below is the identity
            y_s, y_f = nearest(y_s, f_s.shape[-2:]), nearest(y_f, f_t.shape[-2:])
            trusted = nearest(trusted.to(torch.uint8), f_t.shape[-2:]).bool()
        rho_s = self.prototypes(f_s, y_s)
        y_t = y_f
        if self.rung >= LADDER.index("dynamic"):
            calibrated = rho_s.mean.detach() + self.calibration.value  # before the cosine's normalisation
            transferred = similarity(f_t.detach(), calibrated, rho_s.present, tau, self.options.transfer_absent)
            certain = transfer_labels(spread(transferred, y_f), self.options.dynamic_threshold)
            y_d = certain.masked_fill(~trusted, IGNORE)
            y_t = torch.where(y_f == IGNORE, y_d, y_f)
        rho_t = self.prototypes(f_t, y_t)
        shared = rho_s.present & rho_t.present  # C*
        self.observe(rho_s, rho_t, shared)
        # Both are averaged at the same size, so that the second is never below the first.
        shares = {"static": y_f, "hybrid": y_t}
        self.log_diagnostics(**{f"labelled/{name}": (y != IGNORE).float().mean() for name, y in shares.items()})
        self.log_images(hybrid_label=nearest(y_t, self.plan.crop))
        forward = spread(similarity(f_t, rho_s.mean, rho_s.present, tau, self.options.absent), y_t)
        terms = [Loss("contrast/forward", prototype_contrast(forward, y_t, shared).mean(), self.options.forward_weight)]
        if self.rung >= LADDER.index("backward"):
            backward = spread(similarity(f_s, rho_t.mean, rho_t.present, tau, self.options.absent), y_s)
            value = prototype_contrast(backward, y_s, shared).mean()
            terms.append(Loss("contrast/backward", value, self.options.backward_weight))
        return tuple(terms)

    def prototypes(self, features: Tensor, label: Tensor) -> ClassSums:
        """Sum features [B, D, h, w] by class; larger labels [B, H, W] are down-sampled first."""
        return class_sums(features, nearest(label, features.shape[-2:], exact=False), len(self.plan.classes))

    def observe(self, rho_s: ClassSums, rho_t: ClassSums, shared: Tensor) -> None:
        """Accumulate xi <- momentum xi + (1 - momentum) (rho_T - rho_S) over the pairs that share a class."""
        if self.rung < LADDER.index("calibration"):
            return
        difference = (rho_t.mean - rho_s.mean).detach() * shared.unsqueeze(2)
        self.calibration.observe(difference.sum(0), shared.float().sum(0))
        norms = self.calibration.value.norm(dim=1)
        self.log_diagnostics(
            **{f"calibration/{name}": n for name, n in zip(self.plan.classes.names, norms, strict=True)}
        )

    def entropy_terms(self, domain: str, result: Supervision, label: Tensor, weight: float) -> tuple[Loss, ...]:
        """Return the entropy of a prediction for labels [B, H, W] as a tuple of one term, empty if switched off."""
        if self.options.entropy_weight == 0:
            return ()
        logits = result.logits
        if self.options.resolution == "labels":
            logits = resize(logits.float(), label.shape[-2:], self.segmentor.align_corners)
        return (Loss(f"{domain}/entropy", entropy(logits, self.options.entropy_kind), weight),)

    def features(self, result: Supervision) -> Tensor:
        """Select the features to compare, [B, D, h, w], from a supervised forward."""
        head = self.segmentor.head()
        if self.options.feature == "projection":
            return project(self.segmentor, result.fused)
        if self.options.feature == "fused":
            return result.fused
        if self.options.feature == "backbone":
            return result.features.stages[-1]
        return head.branches(result.fused).flatten(1, 2) if isinstance(head, DeepLabV2Head) else result.logits

    def statistics_of_source(self, adapts: bool) -> AbstractContextManager[None]:
        """Update running statistics with the target only, once it is trained on, unless `running_statistics=all`."""
        target_alone = adapts and self.plan.running_statistics != "all"
        return frozen_statistics(self.segmentor) if target_alone else nullcontext()

    def stem_of_source(self, adapts: bool) -> AbstractContextManager[None]:
        """Use the source's own first stage, if it has one, once the target trains the plain one."""
        stem = self.source_stem
        return nullcontext() if stem is None or not adapts else stem.inside(self.segmentor.encoder)

    def finish_step(self) -> None:
        """Update xi; at the end of the warm-up, copy the plain first stage to the source's."""
        self.calibration.move(self.mean_over_ranks)
        if self.source_stem is not None and self.trainer.global_step == self.rounds.schedule.first:
            self.source_stem.copy_from(self.segmentor.encoder)

    def start_heads(self, missing: set[str]) -> None:
        """Initialise the source's first stage from the network's after `init=`."""
        if self.source_stem is not None:
            self.source_stem.copy_from(self.segmentor.encoder)

    # ------------------------------------------------------------------ rounds

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the configured optimiser, or SGD with the released code's repetitions (Lightning hook)."""
        return super().configure_optimizers() if self.options.encoder_updates == "once" else repeating_optimizer(self)

    def configure_callbacks(self) -> list[Callback]:
        """Add the rounds of static labels to the trainer's callbacks (Lightning hook)."""
        return [self.rounds]


def spread(logits: Tensor, label: Tensor) -> Tensor:
    """Up-sample logits [B, K, h, w] to the size of labels [B, H, W] by nearest neighbour."""
    size = label.shape[-2:]
    return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="nearest")


def _channels(segmentor: Segmentor, feature: str) -> int:
    """Return the channels of the compared features, other than a projection."""
    if feature == "backbone":
        return segmentor.encoder.channels[-1]
    head = segmentor.head()
    if feature == "fused":
        return head.width
    branches = len(head.dilations) if isinstance(head, DeepLabV2Head) else 1
    return branches * segmentor.num_classes
