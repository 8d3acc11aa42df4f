"""Composes a street: its plan, its houses, its furniture and its traffic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from uda_seg.data.streets import furniture, traffic
from uda_seg.data.streets.bank import VARIANTS, bank_of
from uda_seg.data.streets.camera import rotation
from uda_seg.data.streets.ground import Crossing, Layout, Surface
from uda_seg.data.streets.stage import Quads, Stage
from uda_seg.data.streets.styles import Colour, Style, colour, draw, generator, style_of
from uda_seg.data.streets.textures import RNG

RANGE = 130  # metres of street that are built


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything but the camera: what the views of one scene share."""

    style: Style
    layout: Layout
    surface: Surface
    quads: Quads
    light: float
    ambient: float
    sky_top: Colour
    sky_low: Colour
    clouds: float
    field_of_view: float
    position: tuple[float, float, float]
    orientation: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    ego_speed: float
    ego_yaw: float


@lru_cache(maxsize=2)
def compose(seed: int, domain: str, index: int) -> Scene:
    """The scene of (seed, domain, index)."""
    style, rng = style_of(domain), generator(seed, domain, 1, index)
    bank = bank_of(seed, domain, index % VARIANTS)
    sun, ambient = draw(rng, style.sun), draw(rng, style.ambient)
    azimuth = _sun_direction(rng)
    hand = -1 if rng.random() < style.left_hand[1] else 1
    plan, lanes = _plan(rng, style, hand)
    stage = Stage(bank, rng, plan.curvature, sun, ambient, azimuth)
    houses = furniture.build_sides(stage, plan, style, RANGE)
    furniture.close_end(stage, plan, style, RANGE)
    traffic.populate(stage, plan, lanes, style)
    furniture.furnish(stage, plan, style)
    traffic.pedestrians(stage, plan)
    sunlit = int(np.sign(azimuth[0])) if sun > 0.2 else 0
    layout = Layout(
        **{
            **vars(plan),
            "sunlit": sunlit,
            "shadow": abs(azimuth[0]) / -azimuth[1] * 0.6,
            "shade": ambient / (ambient + 0.7 * sun),
            "houses": houses[sunlit] if sunlit else houses[1],
        }
    )
    yellow = draw(rng, style.marking_yellow)
    surface = Surface(
        colour(rng, style.asphalt),
        colour(rng, style.paving),
        colour(rng, style.grass),
        (0.95, 0.8, 0.2) if yellow > 0.3 else (0.92, 0.92, 0.92),
        draw(rng, style.texture),
        float(rng.choice([0.5, 0.8, 1.2])),
    )
    yaw, pitch, roll = np.radians([rng.uniform(-4, 4), draw(rng, style.pitch), rng.uniform(-0.8, 0.8)])
    height = draw(rng, style.camera_height)
    return Scene(
        style=style,
        layout=layout,
        surface=surface,
        quads=stage.quads(),
        light=ambient + 0.7 * sun,
        ambient=ambient,
        sky_top=colour(rng, style.sky_top),
        sky_low=colour(rng, style.sky_low),
        clouds=draw(rng, style.clouds),
        field_of_view=draw(rng, style.field_of_view),
        position=(float(rng.uniform(-0.4, 0.4)), -height, 0.0),
        orientation=rotation(yaw, pitch, roll),
        ego_speed=float(rng.uniform(0.5, 1.0)),
        ego_yaw=float(rng.normal(0.0, 0.006)),
    )


def _sun_direction(rng: RNG) -> tuple[float, float, float]:
    """Unit vector towards the sun: mostly from behind or the side, so that what the camera sees is lit."""
    angle, elevation = rng.uniform(-2.6, 2.6), rng.uniform(0.5, 1.1)
    x, z = np.sin(angle) * np.cos(elevation), -np.cos(angle) * np.cos(elevation)
    return float(x), float(-np.sin(elevation)), float(z)


def _plan(rng: RNG, style: Style, hand: int) -> tuple[Layout, traffic.Lanes]:
    """Lanes, kerbs, pavements and crossings; ``hand`` is +1 for right-hand traffic."""
    lane = draw(rng, style.lane_width)
    outer = int(rng.random() < 0.25)  # lanes between ours and the kerb
    own, opposite = outer + int(rng.random() < 0.25), int(rng.choice([0, 1, 2], p=[0.12, 0.63, 0.25]))
    parking = [2.3 * (rng.random() < 0.2 + draw(rng, style.parked_share)) for _ in range(2)]
    near_edge = (0.5 + outer) * lane + parking[1]
    far_edge = (0.5 + own - outer + opposite) * lane + parking[0]
    centre = -(0.5 + own - outer) * lane
    lines = [(centre, bool(rng.random() < 0.5))] if opposite else []
    lines += [(centre + lane * i, True) for i in range(1, own + 1)] + ([(centre - lane, True)] if opposite > 1 else [])
    oncoming = [centre - lane * (i + 0.5) for i in range(opposite)]
    same = [centre + lane * (i + 0.5) for i in range(own + 1)]
    rails = tuple(same[:1] + oncoming[:1]) if rng.random() < 0.35 else ()
    lanes = traffic.Lanes(
        hand,
        tuple(hand * s for s in same),
        tuple(hand * s for s in oncoming),
        (hand * (near_edge - 1.15), hand * -(far_edge - 1.15)),
        (parking[1] > 0, parking[0] > 0),
        lane,
        draw(rng, style.parked_share),
    )
    left, right = (far_edge, near_edge) if hand > 0 else (near_edge, far_edge)
    verge = tuple(max(0.0, draw(rng, style.verge_width)) for _ in range(2))
    crossings, end = _crossings(rng)
    return (
        Layout(
            curvature=0.0 if np.isfinite(end) else draw(rng, style.curvature),
            left=left,
            right=right,
            verge=(verge[0], verge[1]),
            pavement=(draw(rng, style.pavement_width), draw(rng, style.pavement_width)),
            crossings=crossings,
            end=end,
            lines=tuple((hand * s, dashed) for s, dashed in lines),
            rails=tuple(hand * s for s in rails),
        ),
        lanes,
    )


def _crossings(rng: RNG) -> tuple[tuple[Crossing, ...], float]:
    kind = rng.random()
    start, width, zebra = float(rng.uniform(14, 40)), float(rng.uniform(7, 11)), bool(rng.random() < 0.6)
    if kind < 0.15:  # the street ends here
        return (Crossing(start + 10, start + 10 + width, True, True, zebra),), start + 10 + width
    if kind < 0.45:  # a side street on one side
        left = bool(rng.random() < 0.5)
        return (Crossing(start, start + width, left, not left, zebra),), np.inf
    if kind < 0.85:
        first = Crossing(start, start + width, True, True, zebra)
        far = start + float(rng.uniform(40, 60))
        return (first, Crossing(far, far + width, True, bool(rng.random() < 0.5), False)), np.inf
    return (), np.inf


