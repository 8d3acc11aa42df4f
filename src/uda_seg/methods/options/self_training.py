"""Options of self-training, in the parts that its descendants share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from uda_seg.methods.options.base import MethodOptions
from uda_seg.options.constraints import Fraction, LossWeight, PositiveFraction


@dataclass(frozen=True, kw_only=True)
class MixingOptions(MethodOptions):
    """Options of class mixing with a mean teacher."""

    mix_classes: Literal["image", "image_and_ignore", "batch"] = "image"
    """Classes from which half are pasted: the `image`'s own (paper, DACS), its own including 255 (`image_and_ignore`,
    released DACS and CorDA), or the whole `batch`'s including 255 (released DAFormer, MIC and LC-MSM)."""

    jitter: Fraction = 0.2
    """Strength of the colour jitter (released: 0.2 in DAFormer and its successors, 0.25 in DACS and CorDA)."""

    jitter_order: Literal["rgb", "bgr"] = "rgb"
    """Channel order in which colours are jittered (released DACS and CorDA: `bgr`)."""

    augment_draws: Literal["batch", "released"] = "batch"
    """Draws of the augmentation: `batch` draws the order of colour operations per batch and the blur per image (ours);
    `released` draws both per mixed image, and both per batch of masked images."""

    encoder_updates: Literal["once", "released"] = "once"
    """Updates per step: `released` repeats SGD's update 3 or 4 times for the encoder's parameters, which the released
    DACS and CorDA list that often."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions(MixingOptions):
    """Options of the source's terms: cross-entropy and DAFormer's feature distance."""

    source_ce: Literal["all", "labelled"] = "all"
    """Pixels that the source's cross-entropy averages over: `all`, with ignored ones as 0 (released DAFormer and its
    successors), or only `labelled` ones (released DACS)."""

    feature_distance: LossWeight = 0.0
    """Weight of the feature distance (paper, DAFormer: 0.005). It needs an encoder pretrained on natural images and is
    switched off, with a log line, for others."""

    feature_distance_ratio: Fraction = 0.75
    """Minimum share of a feature cell's pixels that its thing class must cover (paper, DAFormer)."""

    distillation: LossWeight = 0.0
    """Weight of the distillation of the initial encoder's features, on source and target (released, VFM-UDA++: 0.1, in
    place of the feature distance). It needs a pretrained encoder and is switched off, with a log line, for others."""


@dataclass(frozen=True, kw_only=True)
class MaskingOptions(MethodOptions):
    """Options of MIC's block masking."""

    mask_weight: LossWeight = 0.0
    """Weight of the loss on masked images (paper, MIC: 1); 0 switches it off."""

    mask_block: PositiveFraction = 0.0625
    """Side of the masked blocks as a fraction of the crop's height (paper, MIC: 32 pixels of 512)."""

    mask_ratio: Fraction = 0.7
    """Expected share of masked pixels (paper, MIC)."""


@dataclass(frozen=True, kw_only=True)
class SelfTrainingOptions(SourceOptions, MaskingOptions):
    """Options of DACS, DAFormer and MIC."""

    mask_augment: bool = True
    """Apply colour jitter and blur to masked images too (released)."""

    mask_images: Literal["target", "both"] = "target"
    """Images to mask: the `target`'s, or half as many of `both` domains, the source's with their labels (released MIC
    on ACDC and Dark Zurich: one each)."""
