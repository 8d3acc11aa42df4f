"""Source terms of self-training: cross-entropy, and what keeps the encoder's features close to its initial ones.

That is DAFormer's feature distance (Hoyer et al. 2022, eq. 10), or the distillation of VFM-UDA++ (Englert et al. 2025),
which also has a term on the target.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from uda_seg.data.batch import DomainBatch
from uda_seg.methods.base import Loss, Plan
from uda_seg.methods.class_mixing import ClassMixing
from uda_seg.methods.labelled import Labelled
from uda_seg.methods.options.self_training import SourceOptions
from uda_seg.models.compilation import compile_module
from uda_seg.models.norm import frozen_statistics
from uda_seg.models.segmentor import Features, Segmentor
from uda_seg.models.trunk import shared_copy
from uda_seg.ops.distillation import distillation
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import feature_distance

log = logging.getLogger(__name__)


class FrozenReference:
    """Frozen copy of the initial encoder, sharing what the student has frozen; no submodule, so not in checkpoints."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = shared_copy(encoder).eval()

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Compute last-stage features of normalised images."""
        stages: list[Tensor] = self.encoder.to(image.device)(image)
        return stages[-1]


class SourceTerms(ClassMixing):
    """Base of methods that train on the source and may keep features close to the initial encoder's.

    Args:
        segmentor: the student.
        plan: settings of the run.
        options: of the method.
    """

    options: SourceOptions

    def __init__(self, segmentor: Segmentor, plan: Plan, options: SourceOptions) -> None:
        super().__init__(segmentor, plan, options)
        self.reference: FrozenReference | None = None
        wanted = {"feature distance": options.feature_distance, "distillation": options.distillation}
        names = " and no ".join(name for name, weight in wanted.items() if weight > 0)
        if names and segmentor.encoder.pretrained:
            self.reference = FrozenReference(segmentor.encoder)
            if untrained := segmentor.encoder.untrained:
                log.warning(
                    "%s: the initial encoder's last map contains %s, which starts at random, so features are held to "
                    "noise as well: leave it out, or choose neck=simple", names.replace(" no ", " "), untrained,
                )  # fmt: skip
        elif names:
            log.info("differs from the paper: no encoder pretrained on natural images, so no %s", names)

    def on_fit_start(self) -> None:
        """Compile the network and the reference if configured (Lightning hook)."""
        super().on_fit_start()
        if self.reference is not None and self.segmentor.backend is not None:
            compile_module(self.reference.encoder, self.segmentor.backend)

    def source_terms(self, source: Labelled) -> tuple[Loss, ...]:
        """Compute cross-entropy on the source and, from the same forward, feature distance and distillation."""
        with self.statistics_of_source():
            weight = self.over_labelled(source.label) if self.options.source_ce == "labelled" else None
            clean = self.segmentor.supervise(source.image, source.label, weight)
        self.log_images(source_image=source.image, source_label=source.label)
        self.log_prediction("source", clean.logits, clean.features)
        distilled = self.distillation_terms("source", clean.features, source.image)
        return Loss("source/ce", clean.loss), *self.feature_distance_terms(clean.features, source), *distilled

    def target_terms(self, target: DomainBatch) -> Iterator[Loss]:
        """Yield the distillation on the target's images, nothing if switched off."""
        if self.reference is None or self.options.distillation == 0:
            return
        image = to_float(target.image)
        with frozen_statistics(self.segmentor.encoder):
            features = self.segmentor.features(image)
        yield from self.distillation_terms("target", features, image)

    def distillation_terms(self, domain: str, features: Features, image: Tensor) -> tuple[Loss, ...]:
        """Compute the distillation of last-stage features as a tuple of one term, empty if switched off."""
        if self.reference is None or self.options.distillation == 0:
            return ()
        reference = self.reference(self.segmentor.encoder_input(image))
        value = distillation(features.stages[-1], reference)
        return (Loss(f"{domain}/distillation", value, self.options.distillation),)

    def feature_distance_terms(self, features: Features, source: Labelled) -> tuple[Loss, ...]:
        """Compute the feature distance as a tuple of one term, empty if switched off."""
        if self.reference is None or self.options.feature_distance == 0:
            return ()
        reference = self.reference(self.segmentor.encoder_input(source.image))
        classes = self.plan.classes
        value = feature_distance(
            features.stages[-1],
            reference,
            source.label,
            classes.things,
            self.options.feature_distance_ratio,
            len(classes.names),
            self.mean_over_ranks,
        )
        return (Loss("source/feature_distance", value, self.options.feature_distance),)
