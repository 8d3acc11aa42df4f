"""LC-MSM: language-conditioned masked segmentation (Kim, Lee and Lee, Pattern Recognition 148, 2024).

A second, language head reads *masked* images and, per pixel, the correlation of the visual feature with the text
embedding of each class name. It also predicts the teacher's pseudo-labels. It is dropped at test time: the plain head
segments, and neither text nor CLIP is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from uda_seg.methods.base import Batch, Loss, Plan
from uda_seg.methods.self_training import Labelled, SelfTraining, labelled
from uda_seg.models.daformer import DILATIONS, DAFormerHead
from uda_seg.models.language import LanguageHead, correlate
from uda_seg.models.norm import frozen_statistics
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.text import SOURCES, TextEmbeddings, text_embeddings
from uda_seg.options.constraints import (
    Channels,
    FilePath,
    Fraction,
    LossWeight,
    OneOf,
    PositiveFraction,
    Temperature,
    Text,
)

log = logging.getLogger(__name__)


class LCMSM(SelfTraining):
    """Five terms: source, with its feature distance, masked source, mixed, masked mixed.

    Source cross-entropy and feature distance share a forward and therefore a backward, which leaves the gradient
    unchanged.

    Args:
        segmentor: the student; the language head is attached to it as `language`.
        plan: settings of the run.
        text: source of the class embeddings: `openclip`, `file`, `shuffled` and `openclip-shuffled` (permuted so that
            no class keeps its own), `random`, or `none`: the control, the same head and budget without the correlation
            map.
        text_model: OpenCLIP model name.
        text_tag: OpenCLIP weights tag, or the path of a weights file.
        text_file: embeddings by prompt, for `file` and `shuffled`; null: the file shipped with the package.
        width: channels of the language head and of the projected text; null: the plain DAFormer head's width, as in the
            paper (512 both), or 512 with any other head. Likewise its dilations.
        temperature: divides the cosine similarity (0.07).
        mask_weight: weight of the two masked terms (1).
        mask_block: side of the masked blocks as a fraction of the crop's height (32 / 512).
        mask_ratio: expected share of masked pixels.
        feature_distance: weight of DAFormer's feature distance.
        feature_distance_ratio: minimum share of a feature cell's pixels that its thing class must cover.
        mix_classes: see SelfTraining.
        augment_draws: see SelfTraining.
    """

    def __init__(
        self,
        segmentor: Segmentor,
        plan: Plan,
        *,
        text: Annotated[str, OneOf((*SOURCES, "none"))] = "openclip",
        text_model: Text = "ViT-H-14",
        text_tag: FilePath = "laion2b_s32b_b79k",
        text_file: FilePath | None = None,
        width: Channels | None = None,
        temperature: Temperature = 0.07,
        mask_weight: LossWeight = 1.0,
        mask_block: PositiveFraction = 0.0625,
        mask_ratio: Fraction = 0.5,
        feature_distance: LossWeight = 0.005,
        feature_distance_ratio: Fraction = 0.75,
        mix_classes: Literal["image", "batch"] = "image",
        augment_draws: Literal["batch", "released"] = "batch",
    ) -> None:
        correlation = text != "none"
        main = segmentor.head()
        dilations: Sequence[int] = main.dilations if isinstance(main, DAFormerHead) else DILATIONS
        width = width or (main.width if isinstance(main, DAFormerHead) else 512)
        channels, classes = segmentor.encoder.channels, len(plan.classes)
        head = LanguageHead(channels, classes, width, dilations, temperature=temperature, correlation=correlation)
        segmentor.attach("language", head)
        super().__init__(
            segmentor,
            plan,
            feature_distance=feature_distance,
            feature_distance_ratio=feature_distance_ratio,
            mask_weight=mask_weight,
            mask_block=mask_block,
            mask_ratio=mask_ratio,
            mix_classes=mix_classes,
            augment_draws=augment_draws,
        )
        self.embed: Callable[[Sequence[str]], TextEmbeddings] | None = None
        if correlation:
            self.embed = partial(text_embeddings, text, model=text_model, tag=text_tag, file=text_file, seed=plan.seed)
        self.width, self.temperature = width, temperature
        self.projection: nn.Linear | None = None

    def start_heads(self, missing: set[str]) -> None:
        """Initialise the language head from the trained plain one (our choice): it labels the target from step 0."""
        main, language = self.segmentor.head(), self.segmentor.head("language")
        if "language" in missing and isinstance(main, DAFormerHead) and isinstance(language, LanguageHead):
            language.start_from(main)

    def setup(self, stage: str) -> None:
        """Load the class embeddings when training starts (Lightning hook); a trained network needs none."""
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
        return None if self.projection is None else self.projection(self.embeddings)

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield CE(x_s) + FD, CE_L(mask x_s), CE(mix), CE_L(mask mix), with labels of the teacher's language head."""
        source, target = labelled(batch["source"]), batch["target"]
        yield self.source_terms(source)
        yield Loss("source/masked_ce", self.masked(source), self.mask_weight)
        with torch.no_grad():
            text = self.text()
        mixed = self.mix(source, self.label_target(target, head="language", text=text))
        result = self.segmentor.supervise(mixed.image, mixed.label, mixed.weight)
        self.log_prediction("mixed", result.logits, result.features)
        yield Loss("mix/ce", result.loss)
        del result
        yield Loss("mix/masked_ce", self.masked(mixed), self.mask_weight)

    def masked(self, images: Labelled) -> Tensor:
        """Compute the language head's cross-entropy on jittered, blurred and block-masked images, 0-dim."""
        masked, text = self.mask(self.augment(images.image, together=True)), self.text()
        with frozen_statistics(self.segmentor.encoder):
            result = self.segmentor.supervise(masked, images.label, images.weight, head="language", text=text)
        self.log_images(masked_image=masked)
        self.log_prediction("masked", result.logits, result.features)
        if text is not None and self.panel is not None:
            maps = correlate(result.fused, text, self.temperature)
            self.log_images(
                **{f"correlation_{c}": maps[:, i] * self.temperature for i, c in enumerate(self.plan.classes.names)}
            )
        return result.loss
