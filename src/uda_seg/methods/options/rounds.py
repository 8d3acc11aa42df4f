"""Options of self-training in rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from uda_seg.methods.options.base import MethodOptions
from uda_seg.options.constraints import Count, Fraction, Interval


@dataclass(frozen=True, kw_only=True)
class RoundOptions(MethodOptions):
    """Options of self-training in rounds, at whose start the network labels the whole target."""

    warmup: Fraction = 0.25
    """Fraction of the run that trains on the source only, before the first round (ours; released: a separate run). With
    `init=` it can be 0."""

    rounds: Count = 10
    """Number of equally long rounds of static labels (released)."""

    round_passes: Annotated[float, Interval(0, 1e6)] = 0.5
    """Minimum passes over the target per round (ours; released: 2); rounds are reduced to satisfy it, because labelling
    costs one forward per image."""

    class_share: Fraction = 0.1
    """Most confident share of each predicted class to label (released)."""

    image_share: Fraction = 0.1
    """Most confident share of each image to label (released)."""
