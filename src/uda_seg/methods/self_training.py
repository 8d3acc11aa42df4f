"""Self-training with a mean teacher and class mixing: DACS, DAFormer and MIC.

- DACS (Tranheden et al. 2021): cross-entropy on the source and on source classes pasted over the target, which the
    teacher labels.
- DAFormer (Hoyer et al. 2022): `feature_distance` keeps the encoder's features of thing classes close to ImageNet's.
    (Rare-class sampling is part of the loader, the network is `model=`.)
- MIC (Hoyer et al. 2023): `mask_weight` adds a loss on block-masked target images with the teacher's labels.

The papers' encoders have no batch norm. With batch norm, masked images do not update the running statistics, because
they do not occur at test.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from uda_seg.data.batch import DomainBatch
from uda_seg.methods.base import Batch, Loss, Plan, UDAModule
from uda_seg.methods.released.repeated_sgd import repeating_optimizer
from uda_seg.methods.teacher import Teacher
from uda_seg.models.compilation import compile_module
from uda_seg.models.norm import frozen_statistics
from uda_seg.models.segmentor import Features, Segmentor
from uda_seg.ops.augment import draw_strong
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import feature_distance
from uda_seg.ops.masking import draw_block_mask, mask_image
from uda_seg.ops.mixing import class_mask, class_mix, draw_classes
from uda_seg.ops.pseudo_label import pseudo_label
from uda_seg.options.constraints import Fraction, LossWeight, PositiveFraction

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Images with labels, weights and optional depth.

    Attributes:
        image: [B, 3, H, W] in [0, 1].
        label: uint8 [B, H, W].
        weight: per-pixel loss weights [B, H, W]; None: all 1.
        depth: inverse depth [B, 1, H, W], 1.0 = invalid; None for methods without depth.
        pasted: for mixtures, bool [B, 1, H, W], true for source pixels.
    """

    image: Tensor
    label: Tensor
    weight: Tensor | None = None
    depth: Tensor | None = None
    pasted: Tensor | None = None


class FrozenReference:
    """Frozen copy of the initial encoder for the feature distance; not a submodule, so not in checkpoints."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Compute last-stage features of normalised images."""
        stages: list[Tensor] = self.encoder.to(image.device)(image)
        return stages[-1]


class SelfTraining(UDAModule):
    """The mean-teacher step of DACS, DAFormer and MIC.

    Args:
        segmentor: the student.
        plan: settings of the run.
        feature_distance: weight of the feature distance (DAFormer: 0.005). It needs an encoder pretrained on natural
            images and is switched off, with a log line, for others.
        feature_distance_ratio: minimum share of a feature cell's pixels that its thing class must cover.
        mask_weight: weight of the masked-image loss (MIC: 1); 0 switches it off.
        mask_block: side of the masked blocks as a fraction of the crop's height (32 / 512).
        mask_ratio: expected share of masked pixels.
        mask_augment: also apply colour jitter and blur to masked images.
        mask_images: images to mask: the `target`'s, or half as many of `both` domains, the source's with their labels
            (released MIC on ACDC and Dark Zurich: one each).
        mix_classes: `image` draws half of each image's own classes (as DACS describes); `batch` draws from the classes
            of the whole batch including 255, as the released DAFormer and MIC do; `image_and_ignore` draws from the
            image's own classes including 255 (released DACS and CorDA).
        source_ce: pixels that the source cross-entropy averages over: `all`, with ignored ones as 0 (DAFormer and
            successors), or only `labelled` ones (released DACS).
        jitter: strength of the colour jitter (DAFormer and successors: 0.2; released DACS: 0.25).
        jitter_order: channel order in which colours are jittered: `rgb`, or `bgr` (released DACS and CorDA).
        augment_draws: `batch` draws the order of colour operations per batch and the blur per image; `released` draws
            both per mixed image, and both per batch of masked images.
        encoder_updates: `once` per step; `released` repeats SGD's update 3 or 4 times for encoder parameters, which the
            released DACS and CorDA list that often.
    """

    def __init__(
        self,
        segmentor: Segmentor,
        plan: Plan,
        *,
        feature_distance: LossWeight = 0.0,
        feature_distance_ratio: Fraction = 0.75,
        mask_weight: LossWeight = 0.0,
        mask_block: PositiveFraction = 0.0625,
        mask_ratio: Fraction = 0.7,
        mask_augment: bool = True,
        mask_images: Literal["target", "both"] = "target",
        mix_classes: Literal["image", "image_and_ignore", "batch"] = "image",
        source_ce: Literal["all", "labelled"] = "all",
        jitter: Fraction = 0.2,
        jitter_order: Literal["rgb", "bgr"] = "rgb",
        augment_draws: Literal["batch", "released"] = "batch",
        encoder_updates: Literal["once", "released"] = "once",
    ) -> None:
        super().__init__(segmentor, plan)
        self.teacher = Teacher(segmentor, plan.teacher.alpha, plan.teacher.batch_norm)
        self.feature_distance_weight = feature_distance
        self.feature_distance_ratio = feature_distance_ratio
        self.mask_weight = mask_weight
        self.mask_block = max(1, round(mask_block * plan.crop[0]))
        self.mask_ratio = mask_ratio
        self.mask_augment, self.mask_images = mask_augment, mask_images
        self.mix_classes, self.source_ce = mix_classes, source_ce
        self.jitter, self.jitter_order, self.augment_draws = jitter, jitter_order, augment_draws
        self.encoder_updates = encoder_updates
        self.reference: FrozenReference | None = None
        if feature_distance > 0 and segmentor.encoder.pretrained:
            self.reference = FrozenReference(segmentor.encoder)
        elif feature_distance > 0:
            log.info("differs from the paper: no encoder pretrained on natural images, so no feature distance")

    def on_fit_start(self) -> None:
        """Compile the network and the reference if configured (Lightning hook)."""
        super().on_fit_start()
        if self.reference is not None and self.segmentor.backend is not None:
            compile_module(self.reference.encoder, self.segmentor.backend)

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield source, mixed and, if `mask_weight` is set, masked cross-entropy."""
        source, target = labelled(batch["source"]), batch["target"]
        yield self.source_terms(source)
        pseudo = self.label_target(target)
        mixed = self.mix(source, pseudo)
        result = self.segmentor.supervise(mixed.image, mixed.label, mixed.weight)
        self.log_prediction("mixed", result.logits, result.features)
        yield Loss("mix/ce", result.loss)
        del result
        if self.mask_weight > 0:
            seen = pseudo if self.mask_images == "target" else half_of_each(source, pseudo)
            masked = self.mask(self.augment(seen.image, together=True) if self.mask_augment else seen.image)
            with frozen_statistics(self.segmentor.encoder):
                result = self.segmentor.supervise(masked, seen.label, seen.weight)
            self.log_images(masked_image=masked)
            self.log_prediction("masked", result.logits, result.features)
            yield Loss("masked/ce", result.loss, self.mask_weight)

    def source_terms(self, source: Labelled) -> tuple[Loss, ...]:
        """Compute cross-entropy on the source and, from the same forward, the feature distance."""
        with self.statistics_of_source():
            weight = self.over_labelled(source.label) if self.source_ce == "labelled" else None
            clean = self.segmentor.supervise(source.image, source.label, weight)
        self.log_images(source_image=source.image, source_label=source.label)
        self.log_prediction("source", clean.logits, clean.features)
        return Loss("source/ce", clean.loss), *self.feature_distance_terms(clean.features, source)

    def statistics_of_source(self) -> AbstractContextManager[None]:
        """Keep the source from updating running statistics within the block if only mixed images should."""
        return nullcontext() if self.plan.running_statistics == "all" else frozen_statistics(self.segmentor)

    def feature_distance_terms(self, features: Features, source: Labelled) -> tuple[Loss, ...]:
        """Compute the feature distance as a tuple of one term, empty if switched off (Hoyer et al. 2022, eq. 10)."""
        if self.reference is None:
            return ()
        reference = self.reference(self.segmentor.encoder_input(source.image))
        classes = self.plan.classes
        value = feature_distance(
            features.stages[-1],
            reference,
            source.label,
            classes.things,
            self.feature_distance_ratio,
            len(classes.names),
            self.mean_over_ranks,
        )
        return (Loss("source/feature_distance", value, self.feature_distance_weight),)

    def label_target(self, target: DomainBatch, head: str | None = None, **context: Tensor | None) -> Labelled:
        """Label clean images with the teacher; the weight of valid pixels is the batch's share of confident pixels."""
        assert self.teacher is not None
        image = to_float(target.image)
        pseudo = pseudo_label(self.teacher.predict(image, head, **context), self.plan.teacher.threshold)
        quality = self.mean_over_ranks(pseudo.quality)
        self.log_images(target_image=image, pseudo_label=pseudo.label, pseudo_confidence=pseudo.confidence)
        trusted = target.valid if self.plan.teacher.margins else torch.ones_like(target.valid)
        return Labelled(image, pseudo.label, quality * trusted)

    def mix(self, source: Labelled, target: Labelled) -> Labelled:
        """Paste half of a source image's classes over target b (source b mod B_s), then jitter and blur the mixture."""
        assert target.weight is not None
        partner = torch.arange(len(target.image), device=target.image.device) % len(source.image)
        image, label = source.image[partner], source.label[partner]
        classes = len(self.plan.classes.names)
        keep = class_mask(label, draw_classes(label, classes, self.mix_classes, maximum=self.max_over_ranks))
        mixed = Labelled(
            self.augment(class_mix(image, target.image, keep)),
            class_mix(label[:, None], target.label[:, None], keep)[:, 0],
            torch.where(keep[:, 0], torch.ones_like(target.weight), target.weight),
            None if source.depth is None or target.depth is None
            else class_mix(source.depth[partner], target.depth, keep),
            keep,
        )  # fmt: skip
        assert mixed.weight is not None
        self.log_images(mixed_image=mixed.image, mixed_label=mixed.label, mixed_weight=mixed.weight)
        return mixed

    def augment(self, image: Tensor, together: bool = False) -> Tensor:
        """Apply colour jitter and blur to [B, 3, H, W] in [0, 1]; `together`: the released codes draw per batch."""
        released = self.augment_draws == "released"
        draw = draw_strong(
            len(image), device=image.device, strength=self.jitter,
            own_order=released and not together, own_sigma=not (released and together),
        )  # fmt: skip
        if self.jitter_order == "bgr":
            return self.apply_draw(image.flip(1), draw).flip(1)
        return self.apply_draw(image, draw)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the configured optimiser, or SGD with the released codes' repetitions (Lightning hook)."""
        return super().configure_optimizers() if self.encoder_updates == "once" else repeating_optimizer(self)

    def mask(self, image: Tensor) -> Tensor:
        """Fill random blocks of [B, 3, H, W] with the mean colour (zero after normalisation)."""
        size = (image.shape[-2], image.shape[-1])
        visible = draw_block_mask(len(image), size, self.mask_block, self.mask_ratio, device=image.device)
        return mask_image(image, visible, self.segmentor.mean_colour)


def half_of_each(source: Labelled, target: Labelled) -> Labelled:
    """Take the first half of both batches, at least one image of each; source pixels have weight 1."""
    assert target.weight is not None
    own, other = max(1, len(source.image) // 2), max(1, len(target.image) // 2)
    return Labelled(
        torch.cat([source.image[:own], target.image[:other]]),
        torch.cat([source.label[:own], target.label[:other]]),
        torch.cat([torch.ones_like(source.label[:own], dtype=target.weight.dtype), target.weight[:other]]),
    )


def labelled(batch: DomainBatch) -> Labelled:
    """Convert a source batch to `Labelled`."""
    assert batch.label is not None, "the source has labels"
    return Labelled(to_float(batch.image), batch.label, depth=batch.depth)
