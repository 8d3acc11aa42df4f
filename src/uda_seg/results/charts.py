"""Charts of a report as SVG, drawn from numbers alone: colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 34
Points = Sequence[tuple[float, float]]


def curves(lines: Mapping[str, Sequence[Points]], colours: Mapping[str, int], unit: str) -> Markup:
    """Draw lines over steps, several of one colour for the seeds of a method.

    Args:
        lines: label -> one line of (step, value) per seed.
        colours: label -> number of its colour.
        unit: name of the vertical axis.
    """
    points = [p for group in lines.values() for line in group for p in line if math.isfinite(p[1])]
    if not points:
        return Markup("")
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points) or 1.0
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    ticks = _ticks(low, high)
    high = max(high, ticks[-1])

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - first) / (last - first) if last > first else 0.5)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(unit)} over steps">']
    for y in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x, anchor in ((first, "start"), (last, "end")) if last > first else ((first, "middle"),):
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 16}" text-anchor="{anchor}">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(unit)} over optimiser steps</text>')
    for label, group in lines.items():
        for line in group:
            known = [(across(x), down(y)) for x, y in line if math.isfinite(y)]
            path, colour = " ".join(f"{x:.1f},{y:.1f}" for x, y in known), f"s{colours[label]}"
            parts.append(f'<polyline class="{colour}" points="{path}"><title>{escape(label)}</title></polyline>')
            if len(known) < 30:
                parts += [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in known]
    return Markup("".join(parts) + "</svg>")


def forest(low: float | None, mean: float, high: float | None, first: float, last: float) -> Markup:
    """Draw one interval on an axis from `first` to `last`, which holds 0."""

    def across(value: float) -> float:
        return 6 + 148 * (value - first) / (last - first)

    zero = f'<line class="zero" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="0" y2="18"/>'
    parts, kind = [f'<svg class="forest" viewBox="0 0 160 18" aria-hidden="true">{zero}'], "even"
    if low is not None and high is not None:
        kind = "up" if low > 0 else "down" if high < 0 else "even"
        parts.append(f'<line class="{kind}" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="9" y2="9"/>')
    parts.append(f'<circle class="{kind}" cx="{across(mean):.1f}" cy="9" r="4"/></svg>')
    return Markup("".join(parts))


def _ticks(low: float, high: float) -> list[float]:
    """Choose about five round numbers from low to at least high."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step = next(step * k for k in (1, 2, 2.5, 5, 10) if span / (step * k) <= 5)
    return [round(step * i, 10) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
