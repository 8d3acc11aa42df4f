"""The procedural street world: images, labels, depth and poses of streets that exist nowhere.

It is a function: the same (seed, domain, index) gives the same frame on every machine and worker. Domains differ in
appearance: ``game`` (the source), ``camera`` (the target), ``night_rain`` (a harder target) and ``random`` (everything
drawn widely, for pretraining); ``camera:0.5`` lies half-way from game to camera.
"""

from __future__ import annotations

from uda_seg.data.streets.renderer import BASELINE, VERSION, VIEWS, Frame, render
from uda_seg.data.streets.styles import DOMAINS, style_of

__all__ = ["BASELINE", "DOMAINS", "VERSION", "VIEWS", "Frame", "render", "style_of"]
