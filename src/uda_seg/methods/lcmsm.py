"""LC-MSM: language-conditioned masked segmentation (Kim, Lee and Lee, Pattern Recognition 148, 2024).

A second, language head reads *masked* images and, per pixel, the correlation of the visual feature with the text
embedding of each class name. It also predicts the teacher's pseudo-labels. It is dropped at test time: the plain head
segments, and neither text nor CLIP is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from uda_seg.errors import UserError
from uda_seg.methods.base import Batch, Loss, Plan
from uda_seg.methods.labelled import Labelled, labelled
from uda_seg.methods.masking import mask_blocks
from uda_seg.methods.options.lcmsm import LCMSMOptions
from uda_seg.methods.source_terms import SourceTerms
from uda_seg.models.daformer import DILATIONS, DAFormerHead
from uda_seg.models.language import LanguageHead, correlate, correlation_health
from uda_seg.models.norm import frozen_statistics
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.text import TextEmbeddings, text_embeddings

log = logging.getLogger(__name__)


class LCMSM(SourceTerms):
    """Five terms: source, with its feature distance, masked source, mixed, masked mixed.

    Source cross-entropy and feature distance share a forward and therefore a backward, which leaves the gradient
    unchanged.

    Args:
        segmentor: the student; the language head is attached to it as `language`.
        plan: settings of the run.
        options: of the method.
    """

    options: LCMSMOptions
    unreached: ClassVar[tuple[str, ...]] = ("main",)  # the teacher labels with the language head

    def __init__(self, segmentor: Segmentor, plan: Plan, options: LCMSMOptions) -> None:
        correlation = options.text != "none"
        main = segmentor.head()
        dilations: Sequence[int] = main.dilations if isinstance(main, DAFormerHead) else DILATIONS
        width = options.width or (main.width if isinstance(main, DAFormerHead) else 512)
        channels, classes, tau = segmentor.encoder.channels, len(plan.classes), options.temperature
        start = options.spatial_start
        head = LanguageHead(channels, classes, width, dilations, 0.1, tau, correlation, start)
        segmentor.attach("language", head)
        super().__init__(segmentor, plan, options)
        self.embed = class_text(options, plan.seed)
        self.width = width
        self.projection: nn.Linear | None = None

    def start_heads(self, missing: set[str]) -> None:
        """Initialise the language head from the trained plain one (our choice): it labels the target from step 0."""
        main, language = self.segmentor.head(), self.segmentor.head("language")
        if "language" not in missing or not isinstance(language, LanguageHead):
            return
        if isinstance(main, DAFormerHead) and language.shaped_like(main):
            language.start_from(main)
        else:
            log.info("the language head starts untrained: it has not the width and dilations of the main head")

    def setup(self, stage: str) -> None:
        """Load the class embeddings when training starts (Lightning hook); a trained network needs none.

        Raises:
            UserError: the masked terms have no weight, with which the head that labels the target would not learn.
        """
        if stage == "fit" and self.options.mask_weight == 0:
            raise UserError(
                "method.mask_weight=0: the masked images alone train the language head, which labels the target; to "
                "train it on whole images instead, say method.mask_ratio=0"
            )
        if stage != "fit" or self.embed is None or self.projection is not None:
            return
        found = self.embed(self.plan.classes.words)
        log.info("class text: %s", found.provenance)
        self.register_buffer("embeddings", found.vectors.to(self.device), persistent=False)
        self.projection = nn.Linear(found.vectors.shape[1], self.width).to(self.device)

    def text(self) -> Tensor | None:
        """Project the class text to [K, width]; call it once per term, as every backward needs its own graph.

        The projection has no EMA copy: student and teacher use the same text, as in the released code.
        """
        if self.projection is None:
            return None
        text: Tensor = self.projection(self.embeddings)
        return text - text.mean(dim=0) if self.options.centre_text else text

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield CE(x_s) + FD, CE_L(mask x_s), CE(mix), CE_L(mask mix), with labels of the teacher's language head."""
        source, target = labelled(batch["source"]), batch["target"]
        yield self.source_terms(source)
        yield from self.target_terms(target)
        yield Loss("source/masked_ce", self.masked(source, diagnose=True), self.options.mask_weight)
        with torch.no_grad():
            text = self.text()
        mixed = self.mix(source, self.label_target(target, head="language", text=text))
        result = self.segmentor.supervise(mixed.image, mixed.label, mixed.weight)
        self.log_prediction("mixed", result.logits, result.features)
        yield Loss("mix/ce", result.loss)
        del result
        yield Loss("mix/masked_ce", self.masked(mixed), self.options.mask_weight)

    def masked(self, images: Labelled, diagnose: bool = False) -> Tensor:
        """Compute the language head's cross-entropy on jittered, blurred and block-masked images, 0-dim.

        Args:
            images: of the source or mixed.
            diagnose: log the health of the correlation, if the step logs.
        """
        image, text = self.augment(images.image, together=True), self.text()
        masked = mask_blocks(image, self.segmentor, self.plan, self.options)
        with frozen_statistics(self.segmentor.encoder):
            result = self.segmentor.supervise(masked, images.label, images.weight, head="language", text=text)
        self.log_images(masked_image=masked)
        self.log_prediction("masked", result.logits, result.features)
        if text is not None and self.panel is not None:
            tau, names = self.options.temperature, self.plan.classes.names
            maps = correlate(result.fused, text, tau)
            self.log_images(**{f"correlation_{name}": maps[:, i] * tau for i, name in enumerate(names)})
        if text is not None and diagnose and self.logs_at(self.trainer.global_step + 1):
            head = self.segmentor.head("language")
            assert isinstance(head, LanguageHead)
            self.log_diagnostics(**correlation_health(head, result.fused, text, images.label))
        return result.loss


def class_text(options: LCMSMOptions, seed: int) -> Callable[[Sequence[str]], TextEmbeddings] | None:
    """Return the function that embeds class names as configured; None for the control without text."""
    if options.text == "none":
        return None
    o = options
    return partial(text_embeddings, o.text, model=o.text_model, tag=o.text_tag, file=o.text_file, seed=seed)
