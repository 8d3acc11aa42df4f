"""Vehicles as side profiles extruded over their width, so that no gaps open between bonnet, screens and roof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.styles import Colour, Style, colour
from uda_seg.data.streets.textures import RNG, Mips, Texture, brightened, flat, mips, rgb8

Point = tuple[float, float]
Vector = tuple[float, float, float]  # right, up and forward, relative to the centre on the ground
Face = tuple[Mips, Vector, Vector, Vector, bool]  # texture, upper left corner, horizontal and vertical edge, mirrored
FRONT_LAMPS: Colour = (1.0, 0.97, 0.85)
REAR_LAMPS: Colour = (0.85, 0.05, 0.05)


@dataclass(frozen=True)
class Body:
    """A kind of vehicle.

    Attributes:
        profile: (z, y) in metres from the front's bottom over the roof to the rear's bottom; z forward, y up.
        windows: polygons (z, y) of the side windows.
        wheels: z of the axles.
        wheel: radius.
        width: overall width.
        screens: indices of glass segments of the profile.
    """

    profile: tuple[Point, ...]
    windows: tuple[tuple[Point, ...], ...]
    wheels: tuple[float, ...]
    wheel: float = 0.33
    width: float = 1.8
    screens: tuple[int, ...] = ()


def _panes(start: float, stop: float, count: int, low: float, high: float) -> tuple[tuple[Point, ...], ...]:
    edges, sign = np.linspace(start, stop, count + 1).tolist(), float(np.sign(start - stop))
    return tuple(
        ((a - 0.1 * sign, low), (b + 0.1 * sign, low), (b + 0.1 * sign, high), (a - 0.1 * sign, high))
        for a, b in pairwise(edges)
    )


CARS: tuple[Body, ...] = (
    Body(  # saloon
        ((2.25, 0), (2.2, 0.78), (1.05, 0.98), (0.35, 1.46), (-1.0, 1.46), (-1.65, 1.04), (-2.2, 0.98), (-2.25, 0)),
        (((0.9, 0.98), (0.3, 1.38), (-0.3, 1.38), (-0.3, 0.98)),
         ((-0.4, 0.98), (-0.4, 1.38), (-0.95, 1.38), (-1.45, 1.0))),
        (1.4, -1.35), screens=(2, 4),
    ),
    Body(  # hatchback
        ((1.95, 0), (1.9, 0.8), (0.95, 1.02), (0.2, 1.52), (-1.35, 1.5), (-1.85, 1.0), (-1.95, 0)),
        (((0.8, 1.02), (0.18, 1.43), (-0.4, 1.43), (-0.4, 1.02)),
         ((-0.5, 1.02), (-0.5, 1.43), (-1.25, 1.4), (-1.6, 1.05))),
        (1.2, -1.2), width=1.72, screens=(2, 4),
    ),
    Body(  # estate
        ((2.3, 0), (2.25, 0.8), (1.1, 1.0), (0.4, 1.5), (-1.9, 1.5), (-2.25, 1.0), (-2.3, 0)),
        (((0.95, 1.0), (0.38, 1.41), (-0.3, 1.41), (-0.3, 1.0)),
         ((-0.4, 1.0), (-0.4, 1.41), (-1.85, 1.4), (-2.1, 1.05))),
        (1.4, -1.4), screens=(2, 4),
    ),
    Body(  # off-roader
        ((2.25, 0), (2.2, 1.05), (1.0, 1.18), (0.5, 1.8), (-1.95, 1.8), (-2.2, 1.15), (-2.25, 0)),
        (((0.85, 1.2), (0.45, 1.68), (-0.3, 1.68), (-0.3, 1.2)),
         ((-0.4, 1.2), (-0.4, 1.68), (-1.85, 1.66), (-2.0, 1.2))),
        (1.35, -1.4), wheel=0.4, width=1.95, screens=(2, 4),
    ),
    Body(  # van
        ((2.5, 0), (2.45, 0.95), (1.9, 1.2), (1.2, 1.95), (-2.4, 2.0), (-2.45, 1.2), (-2.5, 0)),
        (((1.7, 1.2), (1.15, 1.8), (0.5, 1.8), (0.5, 1.2)), ((0.4, 1.2), (0.4, 1.8), (-0.9, 1.8), (-0.9, 1.2))),
        (1.55, -1.5), wheel=0.36, width=1.95, screens=(2, 4),
    ),
)  # fmt: skip
TRUCKS: tuple[Body, ...] = (
    Body(  # box truck with a cab of its own
        ((3.6, 0), (3.6, 1.3), (3.45, 2.5), (2.0, 2.65), (1.95, 3.5), (-3.6, 3.5), (-3.6, 0)),
        (((3.3, 1.5), (3.2, 2.35), (2.3, 2.35), (2.3, 1.5)),),
        (2.6, -1.7, -2.7), wheel=0.52, width=2.5, screens=(1,),
    ),
    Body(  # lorry with a high roof
        ((4.5, 0), (4.5, 1.5), (4.35, 2.9), (3.2, 3.2), (-4.5, 3.8), (-4.5, 0)),
        (((4.2, 1.7), (4.1, 2.7), (3.2, 2.7), (3.2, 1.7)),),
        (3.4, -2.2, -3.3), wheel=0.55, width=2.55, screens=(1,),
    ),
    Body(  # tipper
        ((3.2, 0), (3.2, 1.3), (3.05, 2.4), (1.7, 2.5), (1.6, 2.0), (-3.2, 2.0), (-3.2, 0)),
        (((2.9, 1.4), (2.8, 2.25), (1.9, 2.25), (1.9, 1.4)),),
        (2.2, -1.3, -2.4), wheel=0.52, width=2.45, screens=(1,),
    ),
)  # fmt: skip
BUSES: tuple[Body, ...] = (
    Body(
        ((5.5, 0), (5.5, 1.1), (5.35, 3.0), (-5.4, 3.05), (-5.5, 1.3), (-5.5, 0)),
        _panes(5.0, -5.2, 7, 1.25, 2.4), (3.8, -2.6), wheel=0.5, width=2.55, screens=(1, 3),
    ),
    Body(  # double decker
        ((4.8, 0), (4.8, 1.1), (4.7, 4.2), (-4.8, 4.2), (-4.8, 1.3), (-4.8, 0)),
        _panes(4.5, -4.6, 6, 1.2, 2.1) + _panes(4.6, -4.6, 6, 2.75, 3.7), (3.3, -2.6), wheel=0.5, width=2.55,
        screens=(1, 3),
    ),
)  # fmt: skip
TRAMS: tuple[Body, ...] = (
    Body(
        ((8.0, 0), (7.8, 1.3), (7.2, 2.9), (6.6, 3.3), (-6.6, 3.3), (-7.2, 2.9), (-7.8, 1.3), (-8.0, 0)),
        _panes(6.8, -6.8, 10, 1.4, 2.6), (), width=2.5, screens=(1, 5),
    ),
)  # fmt: skip
KINDS = {"car": CARS, "truck": TRUCKS, "bus": BUSES, "train": TRAMS}


@dataclass(frozen=True)
class Vehicle:
    """A painted body: its side, and one texture per segment of the profile."""

    body: Body
    side: Mips
    strips: tuple[Mips, ...]

    @property
    def length(self) -> float:
        """Overall length in metres."""
        return self.body.profile[0][0] - self.body.profile[-1][0]

    @property
    def height(self) -> float:
        """Height of the roof in metres."""
        return max(y for _, y in self.body.profile)

    @cached_property
    def faces(self) -> list[Face]:
        """The strips, then the left flank and the right one, which mirrors the left texture."""
        profile, half = self.body.profile, self.body.width / 2
        faces: list[Face] = []
        for i, (skin, first, second) in enumerate(zip(self.strips, profile, profile[1:], strict=False)):
            ahead = i < len(profile) // 2  # visible from the front
            (z, y), (end, low), side = (second, first, -half) if ahead else (first, second, half)
            faces.append((skin, (-side, y, z), (2 * side, 0.0, 0.0), (0.0, low - y, end - z), False))
        along, down = (0.0, 0.0, -self.length), (0.0, -self.height, 0.0)
        for side in (-half, half):
            faces.append((self.side, (side, self.height, profile[0][0]), along, down, side > 0))
        return faces


def paint_vehicle(rng: RNG, kind: str, which: int, style: Style) -> Vehicle:
    """Paint a vehicle of a kind in a colour of the style."""
    bodies = KINDS[kind]
    body = bodies[which % len(bodies)]
    base = _coat(rng, kind, style)
    profile = body.profile
    strips = []
    for i in range(len(profile) - 1):
        if i == 0:
            strips.append(_face(rng, body, base, kind, FRONT_LAMPS, profile[1][1]))
        elif i == len(profile) - 2:
            strips.append(_face(rng, body, base, kind, REAR_LAMPS, profile[-2][1]))
        elif i in body.screens:
            strips.append(_screen(base, kind, i > len(profile) // 2))
        else:
            strips.append(flat(base))
    return Vehicle(body, _side(rng, body, base, kind), tuple(strips))


def _coat(rng: RNG, kind: str, style: Style) -> Colour:
    if kind in ("bus", "train") and rng.random() < 0.7:  # liveries
        return colour(rng, ((0.0, 0.16), style.paint[1], (0.6, 0.9)))
    if rng.random() < style.neutral_cars[1] or (kind == "truck" and rng.random() < 0.5):
        level = float(rng.choice([0.07, 0.12, 0.3, 0.5, 0.65, 0.85], p=[0.15, 0.15, 0.15, 0.2, 0.2, 0.15]))
        return (level, level, level * 1.03)
    return colour(rng, style.paint)


def _side(rng: RNG, body: Body, base: Colour, kind: str) -> Mips:
    front, height = body.profile[0][0], max(y for _, y in body.profile)
    length = front - body.profile[-1][0]
    width = 256 if kind != "car" else 192
    rows = round(width * height / length)
    scale = width / length

    def at(points: tuple[Point, ...]) -> NDArray[np.int32]:  # front on the left, 4 fractional bits
        return np.round([[(front - z) * scale * 16, (height - y) * scale * 16] for z, y in points]).astype(np.int32)

    picture = np.zeros((rows, width, 4), np.uint8)
    clearance = 0.22 if kind == "car" else (0.45 if kind == "truck" else 0.3)
    shell = tuple((z, max(y, clearance)) for z, y in body.profile)
    cv2.fillPoly(picture, [at(shell)], (*rgb8(base), 255), cv2.LINE_AA, 4)
    _flank(rng, picture, base, kind, at, body)
    glass = rgb8((0.13, 0.15, 0.18))
    for pane in body.windows:
        cv2.fillPoly(picture, [at(pane)], (*glass, 255), cv2.LINE_AA, 4)
    for z in body.wheels:
        centre = (round((front - z) * scale), round((height - body.wheel) * scale))
        cv2.circle(picture, centre, round(body.wheel * 1.2 * scale), (18, 18, 18, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, centre, round(body.wheel * scale), (30, 30, 32, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, centre, round(body.wheel * 0.58 * scale), (135, 138, 140, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, centre, round(body.wheel * 0.2 * scale), (60, 60, 60, 255), -1, cv2.LINE_AA)
    picture[rows - 1, :] = 0
    fade = np.linspace(1.12, 0.75, rows, dtype=np.float32)[:, None]
    return mips(brightened(picture, np.repeat(fade, width, axis=1)))


def _flank(
    rng: RNG,
    picture: Texture,
    base: Colour,
    kind: str,
    at: Callable[[tuple[Point, ...]], NDArray[np.int32]],
    body: Body,
) -> None:
    rows, width = picture.shape[:2]
    coloured = picture.copy()
    if kind == "truck":  # the load has its own colour, above the chassis
        cover = colour(rng, ((0.0, 1.0), (0.0, 0.6), (0.4, 0.9)))
        rear, cab = body.profile[-1][0], body.windows[0][2][0] - 0.4
        cv2.fillPoly(coloured, [at(((cab, 9.0), (rear, 9.0), (rear, 1.0), (cab, 1.0)))], (*rgb8(cover), 255), 8, 4)
        cv2.fillPoly(coloured, [at(((cab, 1.0), (rear, 1.0), (rear, 0.5), (cab, 0.5)))], (45, 45, 48, 255), 8, 4)
        for x in range(width // 3, width, 24):
            cv2.line(coloured, (x, 0), (x, int(rows * 0.68)), (*rgb8(cover, 0.85), 255), 1)
    elif kind in ("bus", "train"):
        band = (*rgb8(colour(rng, ((0.0, 1.0), (0.1, 0.8), (0.3, 0.95)))), 255)
        cv2.rectangle(coloured, (0, int(rows * 0.68)), (width, int(rows * 0.8)), band, -1)
    else:
        for z in (0.95, -0.35, -1.3):
            ((x, _),) = at(((z, 0.5),)) // 16
            cv2.line(coloured, (x, int(rows * 0.35)), (x, int(rows * 0.8)), (*rgb8(base, 0.6), 255), 1)
        cv2.line(coloured, (0, int(rows * 0.62)), (width, int(rows * 0.6)), (*rgb8(base, 1.25), 255), 2)
        cv2.rectangle(coloured, (2, int(rows * 0.5)), (10, int(rows * 0.58)), (225, 225, 210, 255), -1)
        cv2.rectangle(coloured, (width - 10, int(rows * 0.45)), (width - 2, int(rows * 0.56)), (170, 20, 20, 255), -1)
    cv2.copyTo(coloured, cv2.extractChannel(picture, 3), picture)


def _face(rng: RNG, body: Body, base: Colour, kind: str, lamps: Colour, height: float) -> Mips:
    """Draw front or rear, `height` metres high: bumper, lamps, plate, grille, and tyres below."""
    scale = 128 / body.width
    rows = round(height * scale)
    picture = np.zeros((rows, 128, 4), np.uint8)

    def box(x0: float, y0: float, x1: float, y1: float, ink: tuple[int, int, int]) -> None:  # y in metres above ground
        corners = (round(x0), rows - round(y1 * scale)), (round(x1), rows - 1 - round(y0 * scale))
        cv2.rectangle(picture, *corners, (*ink, 255), -1)

    floor = (0.28 if kind == "car" else 0.45) if body.wheels else 0.05
    if body.wheels:
        tyre = 15 if kind == "car" else 18
        for x in (6, 121 - tyre):
            box(x, 0.0, x + tyre, floor + 0.1, (24, 24, 26))
        box(6, floor - 0.1, 121, floor, (14, 14, 15))
    box(0, floor, 127, height, rgb8(base))
    box(0, floor, 127, floor + 0.22, rgb8(base, 0.8) if rng.random() < 0.6 else (45, 45, 48))
    low, high = floor + float(rng.uniform(0.24, 0.3)), float(rng.uniform(0.13, 0.2))
    wide = int(rng.integers(14, 30))
    for x in (4, 123 - wide):
        box(x, low, x + wide, low + high, rgb8(lamps))
    if lamps[1] > 0.5:  # front: grille
        box(38, low - 0.02, 90, low + high, (28, 28, 30))
        for y in np.arange(low + 0.02, low + high, 0.06).tolist():
            box(40, y, 88, y, (130, 130, 132))
    elif kind == "truck":  # rear doors
        box(63, floor + 0.22, 64, height, rgb8(base, 0.6))
        box(0, height - 0.06, 127, height, rgb8(base, 0.7))
    box(48, floor + 0.04, 80, floor + 0.17, (236, 232, 200) if rng.random() < 0.5 else (235, 235, 235))
    for x in range(52, 78, 6):
        box(x, floor + 0.07, x + 1, floor + 0.14, (30, 30, 30))
    return mips(picture)


def _screen(base: Colour, kind: str, rear: bool) -> Mips:
    picture = np.full((48, 128, 3), rgb8(base, 0.9), np.uint8)
    cv2.rectangle(picture, (9, 5), (118, 44), (32, 38, 44), -1)
    cv2.fillConvexPoly(picture, np.array([[12, 6], [60, 6], [24, 43], [12, 43]]), (72, 84, 92))
    if rear:
        cv2.rectangle(picture, (56, 8), (72, 11), (150, 20, 20), -1)
    if kind in ("bus", "train"):
        cv2.rectangle(picture, (16, 0), (110, 9), (20, 20, 20), -1)
        cv2.line(picture, (30, 5), (95, 5), (250, 170, 40), 3)
    return mips(picture)
