"""T2S-DA: pulling target to source (Wang et al., IJCV 2024, arXiv 2305.13752).

Source features are discriminative, so target features are pulled towards them and not vice versa. The pulled images are
pseudo-target images: source images in the target's style, with exact labels. Their student pixels are queries, the
teacher's class prototypes of the original source are positives, and the teacher's pixels of other classes, in equal
numbers from source and target, are negatives. Classes on which the network performs worse get more weight.

Sources: the paper's abstract and method figure, from which the Fourier window is measured, and the authors' published
    style augmentor; their training code is not published. All other numbers are our choice, not compared with the
    paper's, and options. The term is added to DACS, DAFormer or MIC; without a target it is the paper's domain
    generalisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.data.batch import DomainBatch
from uda_seg.methods.base import Batch, Loss, Plan
from uda_seg.methods.class_average import ClassAverage
from uda_seg.methods.labelled import Labelled, labelled
from uda_seg.methods.options.t2sda import T2SDAOptions
from uda_seg.methods.self_training import SelfTraining
from uda_seg.methods.translation import Translation
from uda_seg.models.projection import attach_projection, project
from uda_seg.models.segmentor import Segmentor, resize
from uda_seg.ops.contrast import draw_equal_negatives, draw_of_class, group_by_class, info_nce, take
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import IGNORE
from uda_seg.ops.prototypes import class_sums, crowding, nearest
from uda_seg.ops.pseudo_label import pseudo_label
from uda_seg.ops.reweight import class_weights, confidence_by_class, overlap_by_class, share_by_class


class Pixels(NamedTuple):
    """Unit vectors [B, D, h, w] of an image's pixels with their labels uint8 [B, h, w]."""

    features: Tensor
    label: Tensor


class T2SDA(SelfTraining):
    """The base's terms and L_pull.

    Args:
        segmentor: the student; the projection g is attached to it.
        plan: settings of the run.
        options: of the method.
    """

    options: T2SDAOptions
    target_optional = True

    def __init__(self, segmentor: Segmentor, plan: Plan, options: T2SDAOptions) -> None:
        width = attach_projection(segmentor, options.width)
        super().__init__(segmentor, plan, options)
        self.alone = False
        self.translate = Translation(options.style, options.fourier_beta, options.style_weights, options.style_alpha)
        classes, momentum = len(plan.classes), options.proxy_momentum
        momentum = plan.teacher.alpha if momentum is None else momentum
        self.performance = ClassAverage([classes], momentum, start=0.5)
        self.prototypes = ClassAverage([classes, width], options.prototype_momentum)

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield the base's terms, or only the source's without a target; then L_pull."""
        source, self.alone = labelled(batch["source"]), "target" not in batch
        if self.alone:
            yield self.source_terms(source)
        else:
            yield from super().losses(batch)
        yield self.pull_terms(source, batch.get("target"))

    def statistics_of_source(self) -> AbstractContextManager[None]:
        """Freeze statistics as in the base, except without a target, where source and translation update them."""
        return nullcontext() if self.alone else super().statistics_of_source()

    def pull_terms(self, source: Labelled, target: DomainBatch | None) -> tuple[Loss, ...]:
        """Compute L_pull and, from the same forward, the translated images' cross-entropy if it has a weight."""
        assert self.teacher is not None
        teacher, images = self.teacher, len(source.image)
        partner = torch.arange(images, device=source.image.device) % (images if target is None else len(target.image))
        translated = self.translate(source.image, None if target is None else to_float(target.image)[partner])
        self.log_images(translated_image=translated)
        keys, key_logits = teacher.apply_network(lambda network: embed(network, source.image))
        own = Pixels(keys, nearest(source.label, keys.shape[-2:]))
        other = None
        if target is not None:
            image = to_float(target.image)
            keys, key_logits = teacher.apply_network(lambda network: embed(network, image))
            other = Pixels(keys[partner], self.target_labels(key_logits, target)[partner])
        with self.statistics_of_source():
            logits, fused, value = self.read_translated(translated, source.label)
        # Outside of the block: the projection sees only these images, so its statistics must be updated here.
        query = unit_vectors(self.segmentor, fused)
        self.observe(key_logits, logits.detach(), own.label)
        terms = [Loss("translated/pull", self.pull(query, own, other), self.options.pull_weight)]
        if value is not None:
            terms.append(Loss("translated/ce", value, self.options.translated_weight))
        return tuple(terms)

    def read_translated(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute logits and fused map, equal in size, of translated images, and their cross-entropy if weighted."""
        if self.options.translated_weight == 0:
            return *self.segmentor.decode(self.segmentor.features(image)), None
        result = self.segmentor.supervise(image, label)
        return resize(result.logits, result.fused.shape[-2:]), result.fused, result.loss

    def target_labels(self, logits: Tensor, target: DomainBatch) -> Tensor:
        """Select the labels of target keys, uint8 [B, h, w]: the teacher's, restricted by `target_keys`."""
        pseudo = pseudo_label(logits, self.plan.teacher.threshold)
        if self.options.target_keys == "all":
            return pseudo.label
        trusted = pseudo.confidence >= self.plan.teacher.threshold
        if self.plan.teacher.margins:
            trusted &= nearest(target.valid.to(torch.uint8), logits.shape[-2:]).bool()
        return pseudo.label.masked_fill(~trusted, IGNORE)

    def pull(self, query: Tensor, own: Pixels, other: Pixels | None) -> Tensor:
        """Compute L_pull = sum_c w_c l_c / |C| over the classes C of the source; l_c is the mean over its queries.

        Args:
            query: the student's unit vectors of the translated images, [B, D, h, w], labelled as `own`.
            own: the teacher's pixels of the source.
            other: the teacher's pixels of the paired target images.
        """
        classes = len(self.plan.classes)
        sums = class_sums(own.features, own.label, classes)
        total, count = sums.total.sum(0), sums.count.sum(0)
        self.prototypes.observe(total, count)
        total, count = self.mean_over_ranks(total), self.mean_over_ranks(count)
        prototypes = self.prototypes.after(total, count)
        positive = F.normalize(prototypes, dim=1)
        pixels = group_by_class(own.label, classes)
        others = None if other is None else group_by_class(other.label, classes)
        position, usable, one_sided = draw_equal_negatives(pixels, others, self.options.negatives)
        keys = own.features.flatten(2)
        if other is not None:
            keys = torch.cat([keys, other.features.flatten(2)], dim=2)
        queries = take(query.flatten(2), draw_of_class(pixels, self.options.queries))
        loss = info_nce(queries, positive, take(keys, position), usable, self.options.temperature)
        # Average a class over all images on all ranks that contain it, so that n ranks compute the same as one process.
        here = (pixels.count > 0).float()
        images = self.mean_over_ranks(here.sum(0))
        per_class = (loss * here).sum(0) / images.where(images > 0, 1.0)
        weight = class_weights(self.performance.value, self.options.reweight)
        self.log_diagnostics(
            **{"pull/one_sided": one_sided.float().mean(), "pull/class_cosine": crowding(positive, count > 0)}
        )
        if other is not None:
            self.note_alignment(positive, count > 0, other)
        return (weight * per_class).sum() / (images > 0).sum().clamp_min(1)

    def observe(self, teacher: Tensor, student: Tensor, label: Tensor) -> None:
        """Update the classes' performance from the teacher's logits, or the student's on translated images."""
        classes = len(self.plan.classes)
        if self.options.proxy == "confidence":
            self.performance.observe(*confidence_by_class(teacher, classes))
        elif self.options.proxy == "source_iou":
            self.performance.observe(*overlap_by_class(student, label, classes))
        else:
            self.performance.observe(*share_by_class(label, classes))

    def note_alignment(self, positive: Tensor, present: Tensor, target: Pixels) -> None:
        """Log the cosine of source prototype and target centroid per class, which should rise."""
        sums = class_sums(target.features, target.label, len(self.plan.classes))
        centroid, count = F.normalize(sums.total.sum(0), dim=1), sums.count.sum(0)
        cosine = (positive * centroid).sum(1).masked_fill(~(present & (count > 0)), torch.nan)
        self.log_diagnostics(
            **{f"alignment/{name}": c for name, c in zip(self.plan.classes.names, cosine, strict=True)}
        )

    def finish_step(self) -> None:
        """Update the classes' scores and the prototype memory."""
        self.performance.move(self.mean_over_ranks)
        self.prototypes.move(self.mean_over_ranks)


def embed(network: Segmentor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute unit vectors g [B, D, h, w] and main-head logits [B, K, h, w] of images [B, 3, H, W] in [0, 1]."""
    logits, fused = network.decode(network.features(image))
    return unit_vectors(network, fused), logits


def unit_vectors(network: Segmentor, fused: Tensor) -> Tensor:
    """Compute the projection g of a fused map with unit length, float32 [B, D, h, w]."""
    return F.normalize(project(network, fused).float(), dim=1)
