"""Class mixing with a mean teacher, the step of DACS (Tranheden et al. 2021) that all self-training methods share."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from uda_seg.data.batch import DomainBatch
from uda_seg.methods.base import UDAModule
from uda_seg.methods.labelled import Labelled
from uda_seg.methods.options.self_training import MixingOptions
from uda_seg.methods.released.augmentation import draw_as_released, jittered_as_bgr
from uda_seg.methods.released.repeated_sgd import repeating_optimizer
from uda_seg.methods.settings import Plan
from uda_seg.methods.teacher import Teacher
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.augment import draw_strong
from uda_seg.ops.image import to_float
from uda_seg.ops.mixing import class_mask, class_mix, draw_classes
from uda_seg.ops.pseudo_label import pseudo_label


class ClassMixing(UDAModule):
    """Base of methods whose teacher labels the target, and whose student trains on source classes pasted over it.

    Args:
        segmentor: the student, with every head that the teacher needs.
        plan: settings of the run.
        options: of the method.
    """

    options: MixingOptions
    unreached: ClassVar[tuple[str, ...]] = ()
    """Heads that labelling the target does not run."""

    def __init__(self, segmentor: Segmentor, plan: Plan, options: MixingOptions) -> None:
        super().__init__(segmentor, plan, options)
        self.teacher: Teacher = Teacher(segmentor, plan.teacher.alpha, plan.teacher.batch_norm, self.unreached)

    def label_target(self, target: DomainBatch, head: str | None = None, **context: Tensor | None) -> Labelled:
        """Label clean images with the teacher; the weight of valid pixels is the batch's share of confident pixels.

        As in the released codes, that share is of all pixels, valid or not.
        """
        image = to_float(target.image)
        pseudo = pseudo_label(self.teacher.predict(image, head, **context), self.plan.teacher.threshold)
        quality = self.mean_over_ranks(pseudo.quality)
        self.log_images(target_image=image, pseudo_label=pseudo.label, pseudo_confidence=pseudo.confidence)
        return Labelled(image, pseudo.label, quality * target.valid)

    def mix(self, source: Labelled, target: Labelled) -> Labelled:
        """Paste half of a source image's classes over target b (source b mod B_s), then jitter and blur the mixture."""
        assert target.weight is not None
        partner = torch.arange(len(target.image), device=target.image.device) % len(source.image)
        image, label = source.image[partner], source.label[partner]
        classes = len(self.plan.classes.names)
        keep = class_mask(label, draw_classes(label, classes, self.options.mix_classes, maximum=self.max_over_ranks))
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
        images, strength = len(image), self.options.jitter
        if self.options.augment_draws == "released":
            draw = draw_as_released(images, image.device, strength, together)
        else:
            draw = draw_strong(images, device=image.device, strength=strength)
        apply = jittered_as_bgr(self.apply_draw) if self.options.jitter_order == "bgr" else self.apply_draw
        return apply(image, draw)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the configured optimiser, or SGD with the released codes' repetitions (Lightning hook)."""
        once = self.options.encoder_updates == "once"
        return super().configure_optimizers() if once else repeating_optimizer(self)
