"""Draws a scene: sky, ground, then textured parallelograms by homography into a z-buffer."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.camera import Camera, Projection, project
from uda_seg.data.streets.ground import draw_ground
from uda_seg.data.streets.scene import Scene
from uda_seg.data.streets.stage import DECAL, Quads
from uda_seg.data.streets.textures import Floats32, Texture, surface_noise

SKY = 10
CUT = 110  # alpha (of 255) from which a cut-out owns the pixel's label and depth
BIAS = 1.0 + 1e-5


@dataclass
class Canvas:
    """Colour [H, W, 3] in [0, 1] (above 1: brighter than white), label [H, W], inverse depth [H, W] (0: sky)."""

    colour: Floats32
    label: NDArray[np.uint8]
    inverse: Floats32


def draw(scene: Scene, camera: Camera, size: tuple[int, int], time: float = 0.0) -> Canvas:
    """The radiance of a scene before air and sensor; ``time`` in frames moves what moves."""
    canvas = _sky(scene, camera, size)
    ground = draw_ground(scene.layout, scene.surface, scene.light, camera, size)
    rows = slice(ground.first_row, None)
    visible = np.isfinite(ground.depth)
    cv2.copyTo(ground.colour, visible.astype(np.uint8), canvas.colour[rows])
    canvas.label[rows][visible] = ground.label[visible]
    canvas.inverse[rows] = np.where(visible, 1 / ground.depth, 0)
    quads = scene.quads
    projection = project(camera, size, quads.origin + time * quads.motion, quads.u, quads.v)
    homographies = _homographies(projection, quads)
    is_decal = quads.label[projection.index] == DECAL
    for i in np.concatenate([np.flatnonzero(is_decal), np.flatnonzero(~is_decal)]):
        _draw_quad(canvas, quads, projection, int(i), *homographies)
    return canvas


def _sky(scene: Scene, camera: Camera, size: tuple[int, int]) -> Canvas:
    height, width = size
    horizon = max(camera.horizon(width)[0], 1.0)
    ramp = np.clip(np.arange(height, dtype=np.float32) / np.float32(horizon), 0, 1)[:, None, None]
    top, low = np.float32(scene.sky_top), np.float32(scene.sky_low)
    colour = np.repeat(top + ramp**1.5 * (low - top), width, axis=1)
    noise = surface_noise()
    heading = int(np.degrees(np.arctan2(camera.rotation[0, 2], camera.rotation[2, 2])) * 3) % 512
    clouds = cv2.resize(np.roll(noise, -heading, 1)[:128, :256], (width, height), interpolation=cv2.INTER_LINEAR)
    cover = np.clip(clouds * np.float32(0.5) + np.float32(scene.clouds * 1.4 - 0.5), 0, 1)[..., None]
    colour += cover * np.float32(0.8) * (np.float32(low.max()) - colour)
    label = np.full(size, SKY, np.uint8)
    return Canvas(np.ascontiguousarray(colour), label, np.zeros(size, np.float32))


def _homographies(projection: Projection, quads: Quads) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Mip level, and the map from a box's own pixels to texture pixels of that level, for every visible quad."""
    count = len(projection.index)
    level, texels = np.zeros(count, np.int64), np.zeros((count, 2))
    for i, q in enumerate(projection.index):
        levels = quads.textures[q].levels
        height, width = levels[0].shape[:2]
        wide, high = projection.extent[i]
        ratio = 0.5 * np.log2(width * height / max(wide * high, 0.25))
        level[i] = min(max(int(ratio + 0.4), 0), len(levels) - 1)
        texels[i] = levels[level[i]].shape[1::-1]
    shift = np.tile(np.eye(3), (count, 1, 1))
    shift[:, :2, 2] = projection.box[:, :2]
    matrix = projection.matrix @ shift
    matrix[:, :2] *= texels[:, :, None]
    matrix[:, :2] -= 0.5 * matrix[:, 2:]  # texel centres lie at half-integers
    return level, matrix


def _draw_quad(
    canvas: Canvas,
    quads: Quads,
    projection: Projection,
    i: int,
    level: NDArray[np.int64],
    matrix: NDArray[np.float64],
) -> None:
    x0, y0, x1, y1 = projection.box[i].tolist()
    width, height = x1 - x0, y1 - y0
    if width <= 0 or height <= 0:
        return
    q = int(projection.index[i])
    skin: Texture = quads.textures[q]
    a, b, c = matrix[i, 2].tolist()
    inverse = (a * np.arange(width)).astype(np.float32) + (b * np.arange(height)[:, None] + c).astype(np.float32)
    before = canvas.inverse[y0:y1, x0:x1]
    is_decal = quads.label[q] == DECAL
    nearer = (inverse * np.float32(1.02) > before) if is_decal else (inverse > before * np.float32(BIAS))
    outline = None
    if skin.opaque or quads.solid[q]:
        outline = np.zeros((height, width), np.uint8)
        points = np.round((np.clip(projection.polygon[i], -4e3, 8e3) - (x0, y0)) * 16).astype(np.int32)
        cv2.fillConvexPoly(outline, points, 1, cv2.LINE_8, 4)
        outline &= nearer
    border = cv2.BORDER_REPLICATE if skin.opaque else cv2.BORDER_CONSTANT
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pixels = cv2.warpPerspective(skin.levels[level[i]], matrix[i], (width, height), flags=flags, borderMode=border)
    view = canvas.colour[y0:y1, x0:x1]
    tint = quads.tint[q] * np.float32(1 / 255)
    if skin.opaque:
        assert outline is not None
        cv2.copyTo(pixels * tint, outline, view)
        owned = outline
    else:
        alpha = pixels[..., 3] * nearer
        weight = alpha.astype(np.float32)[..., None] * np.float32(1 / 255)
        view *= np.float32(1) - weight
        if is_decal:
            return
        view += pixels[..., :3] * (tint * nearer[..., None])
        owned = outline if outline is not None else (alpha > CUT).astype(np.uint8)
    label = canvas.label[y0:y1, x0:x1]
    label[owned.view(np.bool_)] = quads.label[q]
    cv2.copyTo(inverse, owned, before)
