"""The ground, by casting one ray per pixel: road, kerb, pavement, grass, markings, rails."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.camera import Camera
from uda_seg.data.streets.plan import ROAD, SIDEWALK, TERRAIN, Layout
from uda_seg.data.streets.styles import Style, colour, draw

Plane = NDArray[np.float32]
KERB = 0.16  # metres, width of the kerb stones
HORIZON = 400.0  # metres; what lies beyond is sky
ASPHALT, PAVING, GRASS, STONE = range(4)
LABELS = np.array([ROAD, SIDEWALK, TERRAIN, SIDEWALK], np.uint8)


@dataclass(frozen=True)
class GroundPaint:
    """Colours of asphalt, paving, grass and kerb [4, 3], of the markings [3], and tileable noise [256, 256]."""

    tones: Plane
    marking: Plane
    grain: Plane
    roughness: float
    paver: float


def ground_paint(style: Style, grain: Plane, rng: np.random.Generator) -> GroundPaint:
    """Draw the ground's colours."""
    tones = [np.array(colour(rng, p), np.float32) for p in (style.asphalt, style.paving, style.grass)]
    yellow = max(0.0, draw(rng, style.marking_yellow))
    white = np.array([0.92, 0.92, 0.9], np.float32)
    marking = white + (np.array([0.95, 0.75, 0.12], np.float32) - white) * np.float32(yellow)
    roughness = 0.06 * draw(rng, style.texture)
    paver = float(rng.uniform(0.6, 1.6))
    return GroundPaint(np.stack([*tones, tones[1] * np.float32(1.12)]), marking, grain, roughness, paver)


def draw_ground(
    camera: Camera, size: tuple[int, int], first: int, layout: Layout, paint: GroundPaint
) -> tuple[Plane, NDArray[np.uint8], Plane]:
    """The ground in the rows from `first` on.

    Returns:
        colour [h, W, 3], label [h, W], inverse depth [h, W]; the inverse depth is 0 where a ray meets no ground.
    """
    dx, dy, dz = camera.rays(size, first)
    inverse = np.maximum(dy, np.float32(1e-5)) * np.float32(-1 / camera.position[1])
    depth = np.asarray(1 / inverse, np.float32)
    z = np.asarray(np.float32(camera.position[2]) + depth * dz, np.float32)
    x = np.float32(camera.position[0]) + depth * dx
    across = np.asarray(x - np.float32(layout.bend) * z * z, np.float32)
    kerb = layout.off_road(across, z)
    path = np.float32(layout.verge)
    paved = (kerb > path) & (kerb < path + np.float32(layout.pavement))
    material = np.where(paved, np.uint8(PAVING), np.uint8(GRASS))
    material[kerb < KERB] = STONE
    material[kerb < 0] = ASPHALT
    footprint = np.asarray(depth * np.float32(1 / camera.intrinsics[0, 0]), np.float32)  # metres per pixel
    marks = markings(across, z, kerb, footprint, layout)
    steel = rails(across, footprint, layout) * (material == ASPHALT)
    bright = relief(across, z, depth, material, paint)
    planes = []
    for channel in range(3):
        plane = paint.tones[:, channel][material]
        plane += marks * (paint.marking[channel] - plane)
        plane += steel * (np.float32(0.14) - plane)
        planes.append(plane * bright)
    inverse[(dy < 1e-4) | (depth > HORIZON) | (np.abs(z) > HORIZON)] = 0
    return np.asarray(cv2.merge(planes), np.float32), LABELS[material], inverse


def markings(across: Plane, z: Plane, kerb: Plane, footprint: Plane, layout: Layout) -> Plane:
    """Coverage in [0, 1] by lines between lanes and at the edges, and by a zebra before the crossing."""
    start, end = layout.crossing
    distance = np.abs(across)

    def line(centre: float, half: float) -> Plane:
        gap = (np.float32(half) - np.abs(distance - np.float32(centre))) / footprint
        return np.asarray(np.clip(gap + np.float32(0.5), 0, 1), np.float32)

    marks = np.maximum(line(0.0, 0.09), line(layout.lanes * layout.lane_width, 0.06) if layout.parking else 0)
    dashed = z % np.float32(6.0) < 3.0
    for lane in range(1, layout.lanes):
        marks = np.maximum(marks, line(lane * layout.lane_width, 0.07) * dashed)
    marks *= (z < start - 4.5) | (z > end + 4.5)
    zebra = (np.abs(z - np.float32(start - 2.4)) < 1.6) & (across % np.float32(1.1) < 0.55)
    marks = np.maximum(marks, zebra)
    return np.asarray(marks * (kerb < -0.05), np.float32)


def rails(across: Plane, footprint: Plane, layout: Layout) -> Plane:
    """Coverage in [0, 1] by the two rails of a tram's track."""
    if layout.rails is None:
        return np.zeros_like(across)
    gap = np.abs(np.abs(across - np.float32(layout.rails)) - np.float32(0.72))
    return np.asarray(np.clip((np.float32(0.07) - gap) / footprint + np.float32(0.5), 0, 1), np.float32)


def relief(across: Plane, z: Plane, depth: Plane, material: NDArray[np.uint8], paint: GroundPaint) -> Plane:
    """Brightness of the ground: two octaves of grain that fade with distance, and the joints of paving."""

    def grain(scale: float) -> Plane:
        maps = across * np.float32(scale), z * np.float32(scale)
        return np.asarray(cv2.remap(paint.grain, *maps, cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP), np.float32)

    rough = np.float32(paint.roughness) * np.array([1, 1, 2.2, 1], np.float32)[material]
    fine, wide = grain(14.0), grain(1.7)
    bright = 1 + rough * (fine / (1 + depth * np.float32(1 / 14)) + np.float32(0.6) * wide)
    joint = (across % np.float32(paint.paver) < 0.05) | (z % np.float32(paint.paver) < 0.07)
    bright[(material == PAVING) & joint & (depth < 18)] *= np.float32(0.82)
    return np.asarray(bright, np.float32)
