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

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.data.batch import DomainBatch
from uda_seg.errors import UserError
from uda_seg.methods.base import Batch, Loss, Plan
from uda_seg.methods.class_average import ClassAverage
from uda_seg.methods.class_performance import ClassPerformance
from uda_seg.methods.labelled import Labelled, labelled
from uda_seg.methods.options.t2sda import T2SDAOptions
from uda_seg.methods.pull_samples import Pixels, alignment, draw_samples, embed, key_labels, unit_vectors
from uda_seg.methods.self_training import SelfTraining
from uda_seg.methods.translation import Translation
from uda_seg.models.projection import attach_projection
from uda_seg.models.segmentor import Segmentor, resize
from uda_seg.ops.contrast import info_nce
from uda_seg.ops.image import to_float
from uda_seg.ops.prototypes import class_sums, crowding, nearest
from uda_seg.ops.reweight import class_weights


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
        momentum = plan.teacher.alpha if options.proxy_momentum is None else options.proxy_momentum
        self.performance = ClassPerformance(len(plan.classes), options.proxy, momentum)
        self.prototypes = ClassAverage([len(plan.classes), width], options.prototype_momentum)

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
        teacher, images = self.teacher, len(source.image)
        if target is None and images == 1 and self.translate.painter is None:
            raise UserError(
                "T2S-DA without a target translates source images towards others of the batch, which has one: make "
                "data.source_batch at least twice optimizer.accumulate, or say method.style=file"
            )
        partner = torch.arange(images, device=source.image.device) % (images if target is None else len(target.image))
        translated = self.translate(source.image, None if target is None else to_float(target.image)[partner])
        self.log_images(translated_image=translated)
        keys, key_logits = teacher.apply_network(lambda network: embed(network, source.image))
        own = Pixels(keys, nearest(source.label, keys.shape[-2:]))
        other = None
        if target is not None:
            image = to_float(target.image)
            keys, key_logits = teacher.apply_network(lambda network: embed(network, image))
            label = key_labels(key_logits, target, self.plan.teacher, self.options.target_keys)
            other = Pixels(keys[partner], label[partner])
        with self.statistics_of_source():
            logits, fused, value = self.read_translated(translated, source.label)
        # Outside of the block: the projection sees only these images, so its statistics must be updated here.
        query = unit_vectors(self.segmentor, fused)
        self.performance.observe_batch(key_logits, logits.detach(), own.label)
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

    def pull(self, query: Tensor, own: Pixels, other: Pixels | None) -> Tensor:
        """Compute L_pull = sum_c w_c l_c / |C| over the classes C of the source; l_c is the mean over its queries.

        Args:
            query: the student's unit vectors of the translated images, [B, D, h, w], labelled as `own`.
            own: the teacher's pixels of the source.
            other: the teacher's pixels of the paired target images.
        """
        o = self.options
        prototypes, present = self.source_prototypes(own)
        positive = F.normalize(prototypes, dim=1)
        drawn = draw_samples(query, own, other, len(self.plan.classes), o.queries, o.negatives)
        loss = info_nce(drawn.queries, positive, drawn.negatives, drawn.usable, o.temperature)
        # Average a class over all images on all ranks that contain it, so that n ranks compute the same as one process.
        here = drawn.present.float()
        images = self.mean_over_ranks(here.sum(0))
        per_class = (loss * here).sum(0) / images.where(images > 0, 1.0)
        weight = class_weights(self.performance.value, o.reweight)
        self.log_diagnostics(
            **{"pull/one_sided": drawn.one_sided.float().mean(), "pull/class_cosine": crowding(positive, present)}
        )
        if other is not None:
            cosines = zip(self.plan.classes.names, alignment(positive, present, other), strict=True)
            self.log_diagnostics(**{f"alignment/{name}": cosine for name, cosine in cosines})
        return (weight * per_class).sum() / (images > 0).sum().clamp_min(1)

    def source_prototypes(self, own: Pixels) -> tuple[Tensor, Tensor]:
        """Compute the teacher's prototypes [K, D] of the source on all ranks, and which classes it has, bool [K]."""
        sums = class_sums(own.features, own.label, len(self.plan.classes))
        total, count = sums.total.sum(0), sums.count.sum(0)
        self.prototypes.observe(total, count)
        total, count = self.mean_over_ranks(total), self.mean_over_ranks(count)
        return self.prototypes.after(total, count), count > 0

    def finish_step(self) -> None:
        """Update the classes' scores and the prototype memory."""
        self.performance.move(self.mean_over_ranks)
        self.prototypes.move(self.mean_over_ranks)
