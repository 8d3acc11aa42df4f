"""Domain styles: ranges of all parameters of a street's appearance.

A style contains only numbers, so that two styles can be interpolated field by field: ``camera:0.5`` is half-way between
``game`` and ``camera``, which controls the size of the domain gap almost linearly.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from uda_seg.errors import UserError

Range = tuple[float, float]
Palette = tuple[Range, Range, Range]  # ranges of hue, saturation and value, each in [0, 1]
Colour = tuple[float, float, float]  # RGB in [0, 1]


@dataclass(frozen=True)
class Style:
    """Ranges of a domain's parameters, sampled uniformly per scene; `alike` is one number for all scenes.

    Lengths in metres, angles in degrees.
    """

    # camera
    field_of_view: Range = (58.0, 70.0)
    camera_height: Range = (1.6, 2.1)
    pitch: Range = (-1.0, 3.0)
    hood: Range = (
        -0.10,
        0.0,
    )  # height of the ego car's bonnet relative to the image; negative: not visible
    # layout
    lane_width: Range = (3.0, 3.8)
    pavement_width: Range = (4.0, 7.0)
    verge_width: Range = (-1.6, 3.0)  # grass between kerb and pavement; negative: none
    setback: Range = (-3.0, 3.0)  # front garden; negative: none
    curvature: Range = (-0.0025, 0.0025)
    building_height: Range = (8.0, 34.0)
    open_share: Range = (0.2, 0.45)  # share of the plots without a house
    parked_share: Range = (0.1, 0.35)
    tree_spacing: Range = (9.0, 26.0)
    pole_spacing: Range = (9.0, 17.0)
    left_hand: Range = (0.1, 0.1)  # probability of left-hand traffic
    bare_trees: Range = (0.02, 0.02)  # probability that a scene's trees are bare
    # light
    sun: Range = (0.35, 0.8)
    ambient: Range = (0.55, 0.7)
    haze: Range = (0.0008, 0.003)  # extinction per metre
    lamp_light: Range = (0.0, 0.0)
    headlight: Range = (0.0, 0.0)
    emission: Range = (1.0, 1.0)  # gain of lamps, lit windows and signals
    wetness: Range = (0.0, 0.0)
    rain: Range = (0.0, 0.0)
    clouds: Range = (0.1, 0.7)
    # sensor
    warmth: Range = (-0.02, 0.10)  # red gain minus blue gain of the white balance
    green: Range = (-0.02, 0.02)
    exposure: Range = (0.9, 1.15)
    gamma: Range = (0.85, 1.0)
    saturation: Range = (1.15, 1.45)
    blur: Range = (0.0, 0.3)  # pixels at a width of 512
    noise: Range = (0.0, 0.006)
    vignette: Range = (0.0, 0.05)
    jpeg: Range = (98.0, 100.0)
    # materials
    lit_windows: Range = (0.0, 0.0)
    brick: Range = (0.4, 0.4)  # probabilities
    glass: Range = (0.3, 0.3)
    neutral_cars: Range = (0.2, 0.2)
    texture: Range = (0.5, 0.9)  # contrast of surface noise
    marking_yellow: Range = (0.5, 1.0)
    alike: float = 0.0  # in [0, 1]: how far pavement and grass take the road's colour and texture
    sky_top: Palette = ((0.53, 0.6), (0.5, 0.75), (0.75, 0.95))
    sky_low: Palette = ((0.5, 0.58), (0.12, 0.35), (0.9, 1.0))
    asphalt: Palette = ((0.04, 0.12), (0.05, 0.2), (0.24, 0.36))
    paving: Palette = ((0.04, 0.11), (0.12, 0.34), (0.55, 0.78))
    grass: Palette = ((0.22, 0.3), (0.55, 0.85), (0.4, 0.62))
    foliage: Palette = ((0.22, 0.33), (0.6, 0.95), (0.3, 0.55))
    plaster: Palette = ((0.0, 0.16), (0.2, 0.65), (0.55, 0.92))
    bricks: Palette = ((0.0, 0.05), (0.45, 0.75), (0.4, 0.7))
    cloth: Palette = ((0.0, 1.0), (0.5, 1.0), (0.35, 0.95))
    paint: Palette = ((0.0, 1.0), (0.65, 1.0), (0.45, 0.95))
    metal: Palette = ((0.3, 0.6), (0.05, 0.3), (0.3, 0.5))


GAME = Style()

CAMERA = Style(
    field_of_view=(48.0, 56.0),
    camera_height=(1.3, 1.6),
    pitch=(-1.0, 1.5),
    hood=(0.02, 0.08),
    lane_width=(2.8, 3.4),
    pavement_width=(3.5, 6.5),
    verge_width=(-1.8, 2.8),
    setback=(-3.0, 4.0),
    building_height=(7.0, 18.0),
    open_share=(0.25, 0.5),
    parked_share=(0.15, 0.5),
    tree_spacing=(8.0, 20.0),
    pole_spacing=(9.0, 18.0),
    left_hand=(0.1, 0.1),
    bare_trees=(0.35, 0.35),
    sun=(0.0, 0.15),
    ambient=(0.85, 1.1),
    haze=(0.004, 0.012),
    clouds=(0.0, 0.25),
    warmth=(-0.14, -0.02),
    green=(0.0, 0.06),
    exposure=(0.85, 1.2),
    gamma=(1.0, 1.25),
    saturation=(0.45, 0.75),
    blur=(0.5, 1.0),
    noise=(0.015, 0.035),
    vignette=(0.1, 0.35),
    jpeg=(60.0, 90.0),
    brick=(0.2, 0.2),
    glass=(0.1, 0.1),
    neutral_cars=(0.75, 0.75),
    texture=(0.9, 1.4),
    marking_yellow=(0.0, 0.05),
    sky_top=((0.5, 0.6), (0.0, 0.12), (0.88, 1.0)),
    sky_low=((0.1, 0.6), (0.0, 0.05), (0.97, 1.0)),
    asphalt=((0.55, 0.7), (0.03, 0.12), (0.36, 0.48)),
    paving=((0.05, 0.6), (0.0, 0.1), (0.42, 0.56)),
    grass=((0.14, 0.22), (0.25, 0.45), (0.3, 0.45)),
    foliage=((0.17, 0.27), (0.2, 0.5), (0.2, 0.36)),
    plaster=((0.05, 0.15), (0.03, 0.25), (0.55, 0.85)),
    bricks=((0.02, 0.07), (0.2, 0.4), (0.35, 0.55)),
    cloth=((0.0, 1.0), (0.05, 0.45), (0.12, 0.5)),
    paint=((0.0, 1.0), (0.2, 0.7), (0.2, 0.6)),
    metal=((0.3, 0.6), (0.0, 0.1), (0.35, 0.6)),
)

NIGHT_RAIN = replace(
    CAMERA,
    sun=(0.0, 0.0),
    ambient=(0.42, 0.58),
    haze=(0.008, 0.016),
    lamp_light=(0.25, 0.5),
    headlight=(0.5, 0.9),
    emission=(2.0, 3.0),
    wetness=(0.35, 0.7),
    rain=(0.04, 0.12),
    clouds=(0.2, 0.5),
    warmth=(0.0, 0.2),
    green=(-0.02, 0.03),
    exposure=(1.0, 1.3),
    gamma=(0.85, 1.0),
    saturation=(0.6, 0.9),
    blur=(0.6, 1.2),
    noise=(0.03, 0.055),
    lit_windows=(0.35, 0.35),
    sky_top=((0.58, 0.7), (0.3, 0.6), (0.14, 0.24)),
    sky_low=((0.02, 0.1), (0.15, 0.4), (0.3, 0.45)),
)

WIDE: Palette = ((0.0, 1.0), (0.0, 0.9), (0.2, 0.95))

RANDOM = Style(
    field_of_view=(46.0, 72.0),
    camera_height=(1.15, 2.1),
    pitch=(-2.0, 3.0),
    hood=(-0.08, 0.08),
    lane_width=(2.8, 3.8),
    pavement_width=(3.5, 7.0),
    verge_width=(-2.0, 2.2),
    setback=(-3.0, 4.0),
    building_height=(7.0, 34.0),
    open_share=(0.15, 0.5),
    parked_share=(0.1, 0.8),
    tree_spacing=(8.0, 26.0),
    pole_spacing=(9.0, 18.0),
    left_hand=(0.5, 0.5),
    bare_trees=(0.3, 0.3),
    sun=(0.0, 0.9),
    ambient=(0.4, 1.0),
    haze=(0.0005, 0.014),
    lamp_light=(0.0, 0.3),
    headlight=(0.0, 0.4),
    emission=(1.0, 2.0),
    wetness=(-0.6, 0.5),
    rain=(-0.1, 0.06),
    clouds=(0.0, 0.9),
    warmth=(-0.25, 0.25),
    green=(-0.08, 0.08),
    exposure=(0.6, 1.3),
    gamma=(0.75, 1.35),
    saturation=(0.0, 1.6),
    blur=(0.0, 1.2),
    noise=(0.0, 0.04),
    vignette=(0.0, 0.4),
    jpeg=(50.0, 100.0),
    lit_windows=(0.0, 0.15),
    brick=(0.35, 0.35),
    glass=(0.25, 0.25),
    neutral_cars=(0.4, 0.4),
    texture=(0.3, 1.6),
    marking_yellow=(-0.5, 1.0),
    sky_top=((0.0, 1.0), (0.0, 0.6), (0.2, 1.0)),
    sky_low=((0.0, 1.0), (0.0, 0.3), (0.4, 1.0)),
    asphalt=((0.0, 1.0), (0.0, 0.3), (0.18, 0.6)),
    paving=((0.0, 1.0), (0.0, 0.4), (0.3, 0.8)),
    grass=((0.08, 0.4), (0.1, 0.9), (0.2, 0.7)),
    foliage=((0.08, 0.42), (0.1, 0.95), (0.15, 0.6)),
    plaster=WIDE,
    bricks=((0.0, 0.2), (0.1, 0.7), (0.3, 0.8)),
    cloth=WIDE,
    paint=WIDE,
    metal=((0.0, 1.0), (0.0, 0.4), (0.2, 0.7)),
)

STYLES = {
    "game": GAME,
    "camera": CAMERA,
    "night_rain": NIGHT_RAIN,
    "random": RANDOM,
    "game_alike": replace(GAME, alike=1.0),
    "camera_alike": replace(CAMERA, alike=1.0),
}
DOMAINS = tuple(STYLES)


def _lerp(a: Any, b: Any, t: float) -> Any:
    if isinstance(a, tuple):
        return tuple(_lerp(x, y, t) for x, y in zip(a, b, strict=True))
    return (1.0 - t) * a + t * b


def interpolate(first: Style, second: Style, t: float) -> Style:
    """Interpolate linearly from ``first`` (t = 0) to ``second`` (t = 1)."""
    pairs = {f.name: _lerp(getattr(first, f.name), getattr(second, f.name), t) for f in fields(Style)}
    return Style(**pairs)


def style_of(domain: str) -> Style:
    """Return the style of a domain: one of `DOMAINS`, or ``name:t`` for strength t between game and that domain.

    Raises:
        UserError: unknown name, or a strength outside [0, 1].
    """
    name, _, strength = domain.partition(":")
    if name not in STYLES:
        raise UserError(f"unknown streets domain '{domain}': use one of {', '.join(DOMAINS)}, or e.g. camera:0.5")
    if not strength:
        return STYLES[name]
    try:
        t = float(strength)
    except ValueError:
        t = -1.0
    if not 0.0 <= t <= 1.0:
        raise UserError(f"streets domain '{domain}': the strength after ':' must be a number from 0 to 1")
    return interpolate(GAME, STYLES[name], t)


def generator(seed: int, domain: str, *path: int) -> np.random.Generator:
    """Create an independent random stream for (seed, domain, path), identical on every machine and worker."""
    return np.random.default_rng([seed, zlib.crc32(domain.encode()), *path])


def draw(rng: np.random.Generator, bounds: Range) -> float:
    """Sample uniformly from a range."""
    low, high = bounds
    return low + (high - low) * rng.random()  # like `rng.uniform`, three times as fast


def colour(rng: np.random.Generator, palette: Palette) -> Colour:
    """Sample an RGB colour in [0, 1] from a palette."""
    hue, saturation, value = (draw(rng, bounds) for bounds in palette)
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
