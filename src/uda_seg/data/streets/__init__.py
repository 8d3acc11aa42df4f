"""Streets: a procedurally rendered data set with exact labels and depth, deterministic in (seed, domain, index)."""

from uda_seg.data.streets.styles import DOMAINS
from uda_seg.data.streets.world import VIEWS, Frame, render

__all__ = ["DOMAINS", "VIEWS", "Frame", "render"]
