"""BiCL: bi-directional contrastive learning (Lee, Eom, Lee, Park and Ham, ECCV 2022, arXiv 2207.10892).

Within each pair of images, target pixels are pulled to source prototypes (forward) and source pixels to target
prototypes (backward). Target labels are hybrid: static labels y_F, which the network predicts for the whole target once
per round, and, where y_F is empty, dynamic labels y_D, transferred from the prototypes of the paired source image after
these were calibrated, class by class, by the observed difference between the domains.

Sources: the paper's abstract and figures, and the released code, which contains neither y_D nor the calibration, whose
    step is our choice. What only the release does is in `uda_seg.methods.released.bicl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from pytorch_lightning import Callback
from torch import Tensor

from uda_seg.methods.base import Batch, Loss, Plan, UDAModule
from uda_seg.methods.class_average import ClassAverage
from uda_seg.methods.labelled import Labelled, labelled
from uda_seg.methods.options.bicl import Ablation, BiCLOptions
from uda_seg.methods.rounds import Rounds
from uda_seg.models.pixel_features import attach_feature, select_feature
from uda_seg.models.segmentor import Segmentor, Supervision
from uda_seg.ops.contrast import Absent, prototype_contrast, similarity, transfer_labels
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import IGNORE
from uda_seg.ops.prototypes import ClassSums, class_sums, nearest


class BiCL(UDAModule):
    """CE_s + 0.3 CE_t + lambda_1 FCL + lambda_2 BCL, after a warm-up of CE_s alone; no teacher.

    Args:
        segmentor: the network; a projection is attached to it if that is the feature.
        plan: settings of the run. `teacher.batch_norm` is of the static labels; dynamic ones use the batch's.
        options: of the method.
    """

    options: BiCLOptions
    absent: Absent = "masked"  # a class without a prototype takes no part in FCL and BCL

    def __init__(self, segmentor: Segmentor, plan: Plan, options: BiCLOptions) -> None:
        super().__init__(segmentor, plan, options)
        self.ablation = Ablation[options.until.upper()]
        self.rounds = Rounds(plan.steps, options if self.ablation > Ablation.SOURCE else replace(options, warmup=1.0))
        shape = [len(plan.classes), attach_feature(segmentor, options.feature, options.width)]
        self.calibration = ClassAverage(shape, options.calibration_momentum)  # xi, zero at first

    def configure_callbacks(self) -> list[Callback]:
        """Return the rounds, at whose start the network labels the whole target with y_F (Lightning hook)."""
        return [self.rounds]

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield CE_s alone in the warm-up, then all terms, from one forward per domain."""
        source, target = labelled(batch["source"]), batch["target"]
        if self.options.source_augment:
            source = replace(source, image=self.augment(source.image))
        adapts = target.pseudo is not None and self.ablation > Ablation.SOURCE
        s = self.supervise_source(source, adapts)
        terms = self.supervised_terms("source", s, source.label, 1.0)
        if adapts and target.pseudo is not None:
            y_f = target.pseudo.masked_fill(~target.valid, IGNORE)
            image = to_float(target.image)
            t = self.segmentor.supervise(image, y_f, self.over_labelled(y_f))
            self.log_images(target_image=image, pseudo_label=y_f)
            terms += self.supervised_terms("target", t, y_f, self.options.target_weight)
            if self.ablation >= Ablation.FORWARD:
                pair = torch.arange(len(y_f), device=y_f.device) % len(source.image)
                f_s, f_t = (select_feature(self.segmentor, self.options.feature, result) for result in (s, t))
                terms += self.contrast(f_s[pair], source.label[pair], f_t, y_f, target.valid)
            else:
                self.log_diagnostics(**{"labelled/static": (y_f != IGNORE).float().mean()})
        yield tuple(terms)

    def supervise_source(self, source: Labelled, adapts: bool) -> Supervision:
        """Run the network on the source, which leaves the running statistics to the target once that trains too."""
        with self.statistics_of_source() if adapts else nullcontext():
            s = self.segmentor.supervise(source.image, source.label, source.weight)
        self.log_images(source_image=source.image, source_label=source.label)
        self.log_prediction("source", s.logits, s.features)
        return s

    def supervised_terms(self, domain: str, result: Supervision, label: Tensor, weight: float) -> tuple[Loss, ...]:
        """Return the terms of one domain's own labels [B, H, W]."""
        return (Loss(f"{domain}/ce", result.loss, weight),)

    def contrast(self, f_s: Tensor, y_s: Tensor, f_t: Tensor, y_f: Tensor, trusted: Tensor) -> tuple[Loss, ...]:
        """Compute FCL and BCL of pairs of images, each averaged over pixels (or cells), then over pairs.

        Features f are [B, D, h, w], labels y uint8 [B, H, W], 255 = none; `trusted`, bool [B, H, W], marks the target
        pixels that may get dynamic labels.
        """
        y_s, y_f, trusted = (self.sample(y, f) for y, f in ((y_s, f_s), (y_f, f_t), (trusted, f_t)))
        rho_s = self.prototypes(f_s, y_s)
        y_t = self.hybrid_labels(f_t, rho_s, y_f, trusted)
        rho_t = self.prototypes(f_t, y_t)
        shared = rho_s.present & rho_t.present  # C*
        self.calibrate(rho_s, rho_t, shared)
        shares = {"labelled/static": y_f, "labelled/hybrid": y_t}  # at one size: the second is never below the first
        self.log_diagnostics(**{name: (label != IGNORE).float().mean() for name, label in shares.items()})
        self.log_images(hybrid_label=nearest(y_t, self.plan.crop))
        terms = [Loss("contrast/forward", self.pull(f_t, y_t, rho_s, shared), self.options.forward_weight)]
        if self.ablation >= Ablation.BACKWARD:
            terms.append(Loss("contrast/backward", self.pull(f_s, y_s, rho_t, shared), self.options.backward_weight))
        return tuple(terms)

    def prototypes(self, features: Tensor, label: Tensor) -> ClassSums:
        """Sum features [B, D, h, w] by class; the prototype rho(c) is the mean of f(p) over y(p) = c."""
        return class_sums(features, label, len(self.plan.classes))

    def hybrid_labels(self, f_t: Tensor, rho_s: ClassSums, y_f: Tensor, trusted: Tensor) -> Tensor:
        """Return y_F and, where that is empty, y_D = argmax_c q if q = softmax_c(cos(f_T, rho_S + xi) / tau) > T."""
        if self.ablation < Ablation.DYNAMIC:
            return y_f
        calibrated = rho_s.mean.detach() + self.calibration.value  # before the cosine's normalisation
        cosines = self.cosines(f_t.detach(), calibrated, rho_s.present, y_f, self.options.transfer_absent)
        y_d = transfer_labels(cosines, self.options.dynamic_threshold).masked_fill(~trusted, IGNORE)
        return torch.where(y_f == IGNORE, y_d, y_f)

    def calibrate(self, rho_s: ClassSums, rho_t: ClassSums, shared: Tensor) -> None:
        """Accumulate xi <- m xi + (1 - m) (rho_T - rho_S) over the pairs that share a class."""
        if self.ablation < Ablation.CALIBRATION:
            return
        difference = (rho_t.mean - rho_s.mean).detach() * shared.unsqueeze(2)
        self.calibration.observe(difference.sum(0), shared.float().sum(0))
        norms = zip(self.plan.classes.names, self.calibration.value.norm(dim=1), strict=True)
        self.log_diagnostics(**{f"calibration/{name}": norm for name, norm in norms})

    def pull(self, f: Tensor, y: Tensor, rho: ClassSums, shared: Tensor) -> Tensor:
        """Average -log softmax_c(cos(f(p), rho(c)) / tau)[y(p)] over pixels p of shared classes, then over pairs."""
        cosines = self.cosines(f, rho.mean, rho.present, y, self.absent)
        return prototype_contrast(cosines, y, shared).mean()

    def cosines(self, f: Tensor, rho: Tensor, present: Tensor, label: Tensor, absent: Absent) -> Tensor:
        """Compute cos(f(p), rho(c)) / tau at the resolution of `label`: [B, K, H, W]."""
        return similarity(f, rho, present, self.options.temperature, absent)

    def sample(self, label: Tensor, features: Tensor) -> Tensor:
        """Sample a plane [B, H, W] at the centres of the features' cells: [B, h, w]."""
        return nearest(label.to(torch.uint8), features.shape[-2:]).to(label.dtype)

    def finish_step(self) -> None:
        """Update xi with what all micro-batches and ranks have observed."""
        self.calibration.move(self.mean_over_ranks)
