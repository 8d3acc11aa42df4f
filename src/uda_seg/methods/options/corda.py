"""Options of CorDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from uda_seg.methods.options.self_training import MixingOptions
from uda_seg.ops.depth import Z_SCALE
from uda_seg.options.constraints import Channels, Dilations, Fraction, Interval, LossWeight


@dataclass(frozen=True, kw_only=True)
class CorDAOptions(MixingOptions):
    """Options of CorDA."""

    source_depth: LossWeight = 0.01
    """Weight a of the depth losses on source images (released); 0 switches them off."""

    mixed_depth: LossWeight = 0.001
    """Weight b of the depth losses on mixed images (released)."""

    depth_weight: Literal["own", "batch_mean", "none"] = "own"
    """Weighting of pseudo-labels by the decoders' discrepancy: each image by its `own` (paper); by the `batch_mean`
    over all images at the same position (released, and what the published numbers are based on); or `none`."""

    correlation: bool = True
    """Exchange features between the tasks; false is the control."""

    width: Channels | None = None
    """Channels of the tasks' features; null: as the main head's map, at most 256 (released)."""

    dilations: Dilations | None = None
    """Dilations of the final heads in feature cells; null: the main head's. DeepLab-V2's are 6, 12, 18, 24, of which
    the released code uses the first two."""

    depth_start: Annotated[float, Interval(0, Z_SCALE)] = 50.0
    """Inverse depth that the untrained decoders predict (ours: the mean of a street, 13 m, so that short runs need not
    spend their depth losses on finding it; released: 0)."""

    initial: Literal["features", "main"] = "features"
    """Source of the initial segmentation: the task's `features` (released SYNTHIA model) or the `main` head (released
    GTA model)."""

    label_by_initial: Fraction = 0.0
    """Fraction of the run in which the teacher's main head provides the pseudo-labels; afterwards its final
    segmentation does (released GTA script: 0.100004, 25 001 of 250 000 steps); needs `initial=main`."""

    jitter: Fraction = 0.25
    """Strength of the colour jitter (released)."""
