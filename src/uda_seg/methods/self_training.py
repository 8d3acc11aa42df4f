"""Self-training with a mean teacher and class mixing: DACS, DAFormer and MIC.

- DACS (Tranheden et al. 2021): cross-entropy on the source and on source classes pasted over the target, which the
    teacher labels.
- DAFormer (Hoyer et al. 2022): `feature_distance` keeps the encoder's features of thing classes close to ImageNet's.
    (Rare-class sampling is part of the loader, the network is `model=`.)
- MIC (Hoyer et al. 2023): `mask_weight` adds a loss on block-masked target images with the teacher's labels.

The papers' encoders have no batch norm. With batch norm, masked images do not update the encoder's running statistics,
because they do not occur at test; those of the decoder they update, as in the released code.
"""

from __future__ import annotations

from collections.abc import Iterator

from uda_seg.methods.base import Batch, Loss, Plan
from uda_seg.methods.labelled import Labelled, half_of_each, labelled
from uda_seg.methods.masking import mask_blocks
from uda_seg.methods.options.self_training import SelfTrainingOptions
from uda_seg.methods.source_terms import SourceTerms
from uda_seg.models.norm import frozen_statistics
from uda_seg.models.segmentor import Segmentor


class SelfTraining(SourceTerms):
    """CE(x_s) + a FD(x_s) + CE(mix) + b CE(mask(x_t)): DACS; DAFormer with a = 0.005; MIC with b = 1 as well.

    Args:
        segmentor: the student.
        plan: settings of the run.
        options: of the method.
    """

    options: SelfTrainingOptions

    def __init__(self, segmentor: Segmentor, plan: Plan, options: SelfTrainingOptions) -> None:
        super().__init__(segmentor, plan, options)

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield source, mixed and, if `mask_weight` is set, masked cross-entropy."""
        source, target = labelled(batch["source"]), batch["target"]
        yield self.source_terms(source)
        yield from self.target_terms(target)
        pseudo = self.label_target(target)
        yield self.mixed_term(self.mix(source, pseudo))
        if self.options.mask_weight > 0:
            yield self.masked_term(pseudo if self.options.mask_images == "target" else half_of_each(source, pseudo))

    def mixed_term(self, mixed: Labelled) -> Loss:
        """Compute the cross-entropy on mixed images."""
        result = self.segmentor.supervise(mixed.image, mixed.label, mixed.weight)
        self.log_prediction("mixed", result.logits, result.features)
        return Loss("mix/ce", result.loss)

    def masked_term(self, seen: Labelled) -> Loss:
        """Compute the cross-entropy on block-masked images, with the labels of the whole ones."""
        image = self.augment(seen.image, together=True) if self.options.mask_augment else seen.image
        masked = mask_blocks(image, self.segmentor, self.plan, self.options)
        with frozen_statistics(self.segmentor.encoder):
            result = self.segmentor.supervise(masked, seen.label, seen.weight)
        self.log_images(masked_image=masked)
        self.log_prediction("masked", result.logits, result.features)
        return Loss("masked/ce", result.loss, self.options.mask_weight)
