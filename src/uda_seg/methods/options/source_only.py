"""Options of the baselines without pseudo-labels."""

from __future__ import annotations

from dataclasses import dataclass

from uda_seg.methods.options.base import MethodOptions


@dataclass(frozen=True, kw_only=True)
class SourceOnlyOptions(MethodOptions):
    """Options of source-only training, the oracle and AdaBN."""

    strong_augment: bool = False
    """Apply the colour jitter and blur of self-training's mixed images: the control that separates adaptation from
    augmentation."""
