"""From a scene to pixels: the ground by ray casting, everything else by warping textures against a depth buffer."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.camera import Camera, Projection, project
from uda_seg.data.streets.scene import ROAD, SHADOW, SIDEWALK, SKY, TERRAIN, Layout, Quads, Scene
from uda_seg.data.streets.styles import Style, colour, draw
from uda_seg.data.streets.textures import Texture

Plane = NDArray[np.float32]
COVER = 0.43  # alpha from which a pixel gets the label and the depth of what is drawn
KERB = 0.14  # metres


@dataclass
class Canvas:
    """colour float32 [H, W, 3] in [0, 1]; label uint8 [H, W]; inverse depth float32 [H, W], 0 = infinitely far."""

    colour: Plane
    label: NDArray[np.uint8]
    inverse: Plane


@dataclass(frozen=True)
class GroundPaint:
    """Colours of a street's ground, and tileable noise [256, 256] in [-1, 1]."""

    asphalt: Plane
    paving: Plane
    kerb: Plane
    grass: Plane
    marking: Plane
    grain: Plane
    roughness: float
    paver: float


def ground_paint(style: Style, grain: Plane, rng: np.random.Generator) -> GroundPaint:
    """Draw the ground's colours."""
    tones = [np.array(colour(rng, p), np.float32) for p in (style.asphalt, style.paving, style.grass)]
    yellow = max(0.0, draw(rng, style.marking_yellow))
    white = np.array([0.92, 0.92, 0.9], np.float32)
    marking = white + (np.array([0.95, 0.75, 0.12], np.float32) - white) * yellow
    return GroundPaint(
        asphalt=tones[0],
        paving=tones[1],
        kerb=tones[1] * np.float32(1.12),
        grass=tones[2],
        marking=marking,
        grain=grain,
        roughness=0.06 * draw(rng, style.texture),
        paver=float(rng.uniform(0.6, 1.6)),
    )


def draw_background(camera: Camera, size: tuple[int, int], scene: Scene, paint: GroundPaint, sky: Plane) -> Canvas:
    """Sky above the horizon, ground below it."""
    height, width = size
    canvas = Canvas(sky.copy(), np.full(size, SKY, np.uint8), np.zeros(size, np.float32))
    first = max(0, int(min(camera.horizon(width))) + 1)
    if first < height:
        dx, dy, dz = camera.rays(size, first)
        low = dy > 1e-4
        depth = np.asarray(np.float32(-camera.position[1]) / np.maximum(dy, np.float32(1e-4)), np.float32)
        x = np.asarray(np.float32(camera.position[0]) + depth * dx, np.float32)
        z = np.asarray(np.float32(camera.position[2]) + depth * dz, np.float32)
        low &= (z < 400) & (depth < 400)
        ground, label = shade_ground(x, z, depth, scene.layout, paint)
        canvas.colour[first:] = np.where(low[..., None], ground, canvas.colour[first:])
        canvas.label[first:] = np.where(low, label, SKY)
        canvas.inverse[first:] = np.where(low, 1 / depth, 0)
    return canvas


def shade_ground(
    x: Plane, z: Plane, depth: Plane, layout: Layout, paint: GroundPaint
) -> tuple[Plane, NDArray[np.uint8]]:
    """Colour and label of ground points, each [H, W]."""
    across = x - np.float32(layout.bend) * z * z
    distance = np.abs(across)
    start, end = layout.crossing
    in_z = (z > start) & (z < end)
    arm = in_z & np.where(across < 0, layout.arms[0], layout.arms[1])
    road = (distance < layout.road) | arm
    lawn = ~road & (
        ((distance < layout.kerb) & (distance > layout.road + KERB)) | (distance > layout.kerb + layout.pavement)
    )
    if layout.verge == 0:
        lawn &= distance > layout.kerb + layout.pavement
    kerb = ~road & (distance < layout.road + KERB)
    label = np.where(road, ROAD, np.where(lawn, TERRAIN, SIDEWALK)).astype(np.uint8)
    tone = np.where(road[..., None], paint.asphalt, np.where(lawn[..., None], paint.grass, paint.paving))
    tone = np.where(kerb[..., None], paint.kerb, tone)
    tone = np.where(markings(across, z, road, arm, layout)[..., None], paint.marking, tone)
    return tone * relief(across, z, depth, label, paint)[..., None], label


def markings(
    across: Plane, z: Plane, road: NDArray[np.bool_], arm: NDArray[np.bool_], layout: Layout
) -> NDArray[np.bool_]:
    """Lines between lanes, at the edges, and a zebra before the crossing."""
    start, end = layout.crossing
    clear = (z < start - 4.5) | (z > end + 4.5)
    dashed = np.mod(z, 6.0) < 3.0
    line = np.abs(across) < 0.09
    for lane in range(1, layout.lanes):
        line |= (np.abs(np.abs(across) - lane * layout.lane_width) < 0.07) & dashed
    line |= np.abs(np.abs(across) - layout.lanes * layout.lane_width) < 0.06
    zebra = (np.abs(z - (start - 2.4)) < 1.6) & (np.mod(across, 1.1) < 0.55)
    result: NDArray[np.bool_] = road & ~arm & ((line & clear) | zebra)
    return result


def relief(across: Plane, z: Plane, depth: Plane, label: NDArray[np.uint8], paint: GroundPaint) -> Plane:
    """Brightness of the ground: two octaves of grain that fade with distance, and the joints of paving."""
    fade = 1 / (1 + depth / 14)
    index = (np.floor(across * 14).astype(np.int32) & 255, np.floor(z * 14).astype(np.int32) & 255)
    wide = (np.floor(across * 1.7).astype(np.int32) & 255, np.floor(z * 1.7).astype(np.int32) & 255)
    gain = np.where(label == TERRAIN, 2.2, 1.0).astype(np.float32)
    bright = 1 + paint.roughness * gain * (fade * paint.grain[index] + 0.6 * paint.grain[wide])
    joint = (np.mod(across, paint.paver) < 0.05) | (np.mod(z, paint.paver) < 0.07)
    return np.asarray(np.where((label == SIDEWALK) & joint & (depth < 18), bright * 0.82, bright), np.float32)


def draw_quads(canvas: Canvas, camera: Camera, quads: Quads, frames: float) -> None:
    """Draw all parallelograms, far to near, `frames` after the scene's own moment."""
    size = (canvas.label.shape[0], canvas.label.shape[1])
    origin = np.stack(quads.origin) + frames * np.stack(quads.velocity)
    seen = project(camera, size, origin, np.stack(quads.u), np.stack(quads.v))
    for place in range(len(seen.index)):
        draw_quad(canvas, quads, seen, place)


def draw_quad(canvas: Canvas, quads: Quads, seen: Projection, place: int) -> None:
    """Warp one texture into its screen box and blend it where it is nearest."""
    x0, y0, x1, y1 = seen.box[place]
    if x1 <= x0 or y1 <= y0:
        return
    which, label = int(seen.index[place]), quads.label[int(seen.index[place])]
    matrix = seen.matrix[place].copy()
    matrix[:, 2] += matrix[:, 0] * x0 + matrix[:, 1] * y0  # box coordinates
    rows, columns = slice(y0, y1), slice(x0, x1)
    inverse = (
        np.float32(matrix[2, 0]) * np.arange(x1 - x0, dtype=np.float32)
        + (np.float32(matrix[2, 1]) * np.arange(y1 - y0, dtype=np.float32) + np.float32(matrix[2, 2]))[:, None]
    )
    behind = canvas.inverse[rows, columns]
    nearest = inverse * np.float32(1.002 if label == SHADOW else 1.0) > behind
    if not nearest.any():
        return
    texture = level(quads.texture[which], seen.extent[place])
    scale = np.diag([texture.shape[1], texture.shape[0], 1.0])
    shift = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    warped = cv2.warpPerspective(
        texture, shift @ scale @ matrix, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    alpha = np.where(nearest, warped[..., 3], 0).astype(np.float32) * np.float32(1 / 255)
    paint = warped[..., :3] * (np.array(quads.tint[which], np.float32) / np.float32(255))
    below = canvas.colour[rows, columns]
    if label == SHADOW:
        below *= 1 - alpha[..., None] * (1 - paint)
        return
    below += alpha[..., None] * (paint - below)
    inside = alpha > COVER
    if quads.solid[which]:
        inside = nearest & within(matrix, inverse)
    np.copyto(canvas.label[rows, columns], np.uint8(label), where=inside)
    np.copyto(behind, inverse, where=inside)


def within(matrix: NDArray[np.float64], inverse: Plane) -> NDArray[np.bool_]:
    """Where the box's pixels lie inside the parallelogram itself, whatever its texture's alpha."""
    height, width = inverse.shape
    u, v = np.arange(width), np.arange(height)[:, None]
    s, r = ((m[0] * u + m[1] * v + m[2]) / np.maximum(inverse, 1e-9) for m in matrix[:2])
    result: NDArray[np.bool_] = (s >= 0) & (s <= 1) & (r >= 0) & (r <= 1) & (inverse > 0)
    return result


def level(texture: list[Texture], extent: NDArray[np.float64]) -> Texture:
    """The coarsest mip level that still has a texel for every pixel."""
    shrink = min(texture[0].shape[1] / max(extent[0], 1.0), texture[0].shape[0] / max(extent[1], 1.0))
    return texture[min(max(0, int(np.log2(max(shrink, 1.0)) + 0.3)), len(texture) - 1)]
