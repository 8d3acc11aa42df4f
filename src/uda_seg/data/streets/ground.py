"""Ground rendering by one ray per pixel: road, kerb, pavement, grass, markings, rails."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.camera import Camera
from uda_seg.data.streets.plan import FAR, ROAD, SIDEWALK, TERRAIN, Layout
from uda_seg.data.streets.styles import Style, colour, draw

Plane = NDArray[np.float32]
KERB = 0.16  # width of the kerb stones in metres
LEVELS = 200  # byte value of a colour of 1, which leaves headroom for brighter ones
HORIZON = 400.0  # metres; beyond it is sky
ASPHALT, PAVING, GRASS, STONE = range(4)
LABELS = np.array([ROAD, SIDEWALK, TERRAIN, SIDEWALK], np.uint8)


@dataclass(frozen=True)
class GroundPaint:
    """Look of the ground.

    Attributes:
        tones: colours of asphalt, paving, grass and kerb [4, 3].
        marking: colour of the markings [3].
        grain: tileable noise [256, 256].
        roughness: contrast of the noise on each of the four materials [4].
        paver: side of a paving stone in metres.
        joint: how much darker joints of paving are, in [0, 1].
    """

    tones: Plane
    marking: Plane
    grain: Plane
    roughness: Plane
    paver: float
    joint: float


def ground_paint(style: Style, grain: Plane, rng: np.random.Generator) -> GroundPaint:
    """Sample the look of the ground."""
    tones = [np.array(colour(rng, p), np.float32) for p in (style.asphalt, style.paving, style.grass)]
    yellow = max(0.0, draw(rng, style.marking_yellow))
    white = np.array([0.92, 0.92, 0.9], np.float32)
    marking = white + (np.array([0.95, 0.75, 0.12], np.float32) - white) * np.float32(yellow)
    roughness = 0.06 * draw(rng, style.texture) * np.array([1, 1, 2.2, 1], np.float32)
    paver = float(rng.uniform(0.6, 1.6))
    for material in (PAVING, GRASS):  # no change unless the style is alike
        tones[material] += (tones[ASPHALT] - tones[material]) * np.float32(style.alike)
        roughness[material] += (roughness[ASPHALT] - roughness[material]) * np.float32(style.alike)
    kerb = tones[PAVING] * np.float32(1.12)
    return GroundPaint(np.stack([*tones, kerb]), marking, grain, roughness, paver, 0.18 * (1 - style.alike))


def draw_ground(
    camera: Camera, rows: range, width: int, layout: Layout, paint: GroundPaint
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Plane]:
    """Draw the ground in some rows of an image.

    Returns:
        colour [h, W, 3] in the scale of `as_bytes`, label [h, W], inverse depth [h, W], 0 where a ray hits no ground.
    """
    dx, dy, dz = camera.rays(rows, width)
    inverse = np.maximum(dy, np.float32(1e-5)) * np.float32(-1 / camera.position[1])
    depth = np.asarray(1 / inverse, np.float32)
    z = np.asarray(np.float32(camera.position[2]) + depth * dz, np.float32)
    across = np.asarray(np.float32(camera.position[0]) + depth * dx, np.float32)
    if layout.bend:
        across -= np.float32(layout.bend) * z * z
    kerb = layout.off_road(across, z)
    path = np.float32(layout.verge)
    paved = (kerb > path) & (kerb < path + np.float32(layout.pavement))
    material = np.where(paved, np.uint8(PAVING), np.uint8(GRASS))
    np.copyto(material, np.uint8(STONE), where=kerb < KERB)
    np.copyto(material, np.uint8(ASPHALT), where=kerb < 0)
    sharpness = np.asarray(inverse * np.float32(camera.intrinsics[0, 0]), np.float32)  # pixels per metre
    marks = markings(across, z, kerb, sharpness, layout)
    steel = None if layout.rails is None else rails(across, sharpness, layout.rails) * (material == ASPHALT)
    bright = relief(across, z, depth, material, paint)
    planes = []
    for channel in range(3):
        plane = by_material(paint.tones[:, channel], material)
        plane += marks * (paint.marking[channel] - plane)
        if steel is not None:
            plane += steel * (np.float32(0.14) - plane)
        plane *= bright
        planes.append(plane)
    inverse *= (dy >= 1e-4) & (depth <= HORIZON) & (np.abs(z) <= HORIZON)
    return as_bytes(planes), LABELS[material], inverse


def as_bytes(planes: list[Plane]) -> NDArray[np.uint8]:
    """Convert three non-negative colour planes to uint8 [H, W, 3], `LEVELS` times the colour."""
    return np.asarray(cv2.merge([cv2.convertScaleAbs(plane, alpha=LEVELS) for plane in planes]), np.uint8)


def by_material(values: Plane, material: NDArray[np.uint8]) -> Plane:
    """Look up a value per pixel by material index."""
    table = np.zeros(256, np.float32)
    table[: len(values)] = values
    return np.asarray(cv2.LUT(material, table), np.float32)


def phase(position: Plane, period: float) -> Plane:
    """Compute the position within a period, in [0, 1)."""
    turns = position * np.float32(1 / period)
    turns -= np.floor(turns)
    return turns


def cover(distance: Plane, half: float, sharpness: Plane) -> Plane:
    """Compute the coverage of pixels by a line, in [0, 1], from the distance to its centre and its half width."""
    share = np.float32(half) - distance
    share *= sharpness
    share += np.float32(0.5)
    return limited(share, 1.0)


def limited(plane: Plane, most: float) -> Plane:
    """Clip the plane to [0, most] in place and return it, three times as fast as `np.clip`."""
    cv2.threshold(plane, most, 0, cv2.THRESH_TRUNC, plane)
    return np.asarray(cv2.threshold(plane, 0, 0, cv2.THRESH_TOZERO, plane)[1], np.float32)


def markings(across: Plane, z: Plane, kerb: Plane, sharpness: Plane, layout: Layout) -> Plane:
    """Compute the coverage, in [0, 1], by lane and edge lines and by the zebra crossing."""
    start, end = layout.crossing
    distance = np.abs(across)
    marks = cover(distance, 0.09, sharpness)
    if layout.parking:
        edge = np.abs(distance - np.float32(layout.lanes * layout.lane_width))
        np.maximum(marks, cover(edge, 0.06, sharpness), out=marks)
    for lane in range(1, layout.lanes):
        dashes = cover(np.abs(distance - np.float32(lane * layout.lane_width)), 0.07, sharpness)
        np.maximum(marks, dashes * (phase(z, 6.0) < 0.5), out=marks)
    if start < FAR:
        marks *= (z < start - 4.5) | (z > end + 4.5)
        zebra = (np.abs(z - np.float32(start - 2.4)) < 1.6) & (phase(across, 1.1) < 0.5)
        np.maximum(marks, zebra, out=marks)
    marks *= kerb < -0.05
    return marks


def rails(across: Plane, sharpness: Plane, middle: float) -> Plane:
    """Compute the coverage, in [0, 1], by the two rails of a tram track."""
    return cover(np.abs(np.abs(across - np.float32(middle)) - np.float32(0.72)), 0.07, sharpness)


def relief(across: Plane, z: Plane, depth: Plane, material: NDArray[np.uint8], paint: GroundPaint) -> Plane:
    """Compute the ground's brightness: two octaves of noise that fade with distance, and joints of paving."""
    side = len(paint.grain)  # a power of two

    def grain(scale: float) -> Plane:
        row, column = ((p * np.float32(scale) + np.float32(65536.5)).astype(np.int32) & (side - 1) for p in (z, across))
        return paint.grain.ravel().take(row * side + column)

    bright = grain(14.0)
    bright /= 1 + depth * np.float32(1 / 14)
    bright += np.float32(0.6) * grain(1.7)
    bright *= by_material(paint.roughness, material)
    bright += 1
    joint = (phase(across, paint.paver) < 0.05 / paint.paver) | (phase(z, paint.paver) < 0.07 / paint.paver)
    bright *= 1 - np.float32(paint.joint) * (joint & (material == PAVING) & (depth < 18))
    return bright
