"""From a scene to pixels: sky and ground, then everything else by warping textures against a depth buffer."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.camera import Camera, Projection, project
from uda_seg.data.streets.ground import GroundPaint, Plane, draw_ground
from uda_seg.data.streets.plan import SKY
from uda_seg.data.streets.scene import Scene
from uda_seg.data.streets.stage import SHADOW, Quads
from uda_seg.data.streets.textures import Mips, Texture

CUT = 110  # alpha (of 255) from which a pixel gets the label and the depth of what is drawn
SHIFT = 4  # fractional bits of the outlines


@dataclass
class Canvas:
    """colour float32 [H, W, 3] in [0, 1]; label uint8 [H, W]; inverse depth float32 [H, W], 0 = infinitely far."""

    colour: Plane
    label: NDArray[np.uint8]
    inverse: Plane


def draw_background(camera: Camera, size: tuple[int, int], scene: Scene, paint: GroundPaint, sky: Plane) -> Canvas:
    """Sky above the horizon, ground below it."""
    height, width = size
    canvas = Canvas(sky.copy(), np.full(size, SKY, np.uint8), np.zeros(size, np.float32))
    first = max(0, int(min(camera.horizon(width))) + 1)
    if first < height:
        colour, label, inverse = draw_ground(camera, size, first, scene.layout, paint)
        met = (inverse > 0).astype(np.uint8)
        cv2.copyTo(colour, met, canvas.colour[first:])
        cv2.copyTo(label, met, canvas.label[first:])
        canvas.inverse[first:] = inverse
    return canvas


def draw_quads(canvas: Canvas, camera: Camera, quads: Quads, frames: float) -> None:
    """Draw all parallelograms, shadows first, then far to near, `frames` after the scene's own moment."""
    size = (canvas.label.shape[0], canvas.label.shape[1])
    origin = np.array(quads.origin) + frames * np.array(quads.velocity)
    seen = project(camera, size, origin, np.array(quads.u), np.array(quads.v))
    textures = [level(quads.texture[which], extent) for which, extent in zip(seen.index, seen.extent, strict=True)]
    matrices = to_texels(seen, textures)
    shadow = np.array(quads.label)[seen.index] == SHADOW
    for place in np.concatenate([np.flatnonzero(shadow), np.flatnonzero(~shadow)]).tolist():
        draw_quad(canvas, quads, seen, place, textures[place], matrices[place])


def to_texels(seen: Projection, textures: list[Texture]) -> NDArray[np.float64]:
    """[n, 3, 3] maps from a box's own pixels to (texel x, texel y, 1) / depth."""
    matrix = seen.matrix.copy()
    matrix[:, :, 2] += matrix[:, :, 0] * seen.box[:, :1] + matrix[:, :, 1] * seen.box[:, 1:2]
    texels = np.array([t.shape[1::-1] for t in textures], float).reshape(-1, 2, 1)
    matrix[:, :2] = matrix[:, :2] * texels - 0.5 * matrix[:, 2:]  # texel centres lie at half-integers
    return matrix


def draw_quad(
    canvas: Canvas, quads: Quads, seen: Projection, place: int, texture: Texture, matrix: NDArray[np.float64]
) -> None:
    """Warp one texture into its screen box and blend it where it is nearest."""
    x0, y0, x1, y1 = seen.box[place].tolist()
    if x1 <= x0 or y1 <= y0:
        return
    which = int(seen.index[place])
    size, label, opaque = (x1 - x0, y1 - y0), quads.label[which], texture.shape[2] == 3
    a, b, c = matrix[2].tolist()
    inverse = np.arange(size[0], dtype=np.float32) * np.float32(a)
    inverse = inverse + (np.arange(size[1], dtype=np.float32) * np.float32(b) + np.float32(c))[:, None]
    behind, below = canvas.inverse[y0:y1, x0:x1], canvas.colour[y0:y1, x0:x1]
    nearest = cv2.compare(inverse * np.float32(1.02) if label == SHADOW else inverse, behind, cv2.CMP_GT)
    if opaque or quads.solid[which]:
        points = np.clip(seen.polygon[place], -1e4, 1e4) - (x0, y0)
        outline = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillConvexPoly(outline, np.rint(points * 2**SHIFT).astype(np.int32), 255, cv2.LINE_8, SHIFT)
        owned = cv2.bitwise_and(outline, nearest)
    tint = np.array(quads.tint[which], np.float32) * np.float32(1 / 255)
    if opaque and texture.shape[:2] == (1, 1):
        below[owned.view(np.bool_)] = texture[0, 0] * tint
    else:
        border = cv2.BORDER_REPLICATE if opaque else cv2.BORDER_CONSTANT
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = np.asarray(cv2.warpPerspective(texture, matrix, size, flags=flags, borderMode=border), np.uint8)
        if opaque:
            cv2.copyTo(tinted(warped, tint), owned, below)
        else:
            alpha = np.asarray(cv2.bitwise_and(warped[..., 3], nearest), np.uint8)
            blend(below, warped, alpha, tint, is_shadow=label == SHADOW)
            if label == SHADOW:
                return
            if not quads.solid[which]:
                owned = np.where(alpha > CUT, np.uint8(255), np.uint8(0))
    cv2.copyTo(np.full(owned.shape, label, np.uint8), owned, canvas.label[y0:y1, x0:x1])
    cv2.copyTo(inverse, owned, behind)


def blend(below: Plane, warped: Texture, alpha: Texture, tint: Plane, *, is_shadow: bool) -> None:
    """Lay premultiplied colours over what is there; a shadow only darkens, by its tint's share."""
    if is_shadow:
        rest = cv2.cvtColor(cv2.convertScaleAbs(alpha, alpha=float(tint[0]) * 255), cv2.COLOR_GRAY2RGB)
        cv2.multiply(below, cv2.bitwise_not(rest), below, 1 / 255, cv2.CV_32F)
        return
    rest = cv2.bitwise_not(cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB))
    cv2.multiply(below, rest, below, 1 / 255, cv2.CV_32F)
    seen = np.asarray(cv2.copyTo(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB), alpha), np.uint8)
    cv2.add(below, tinted(seen, tint), below)


def tinted(picture: Texture, tint: Plane) -> Plane:
    """uint8 RGB times a colour, as float32."""
    return np.asarray(cv2.multiply(picture, np.array([*tint.tolist(), 0.0]), dtype=cv2.CV_32F), np.float32)


def level(texture: Mips, extent: NDArray[np.float64]) -> Texture:
    """The coarsest mip level that still has a texel for every pixel."""
    if len(texture) == 1:
        return texture[0]
    height, width = texture[0].shape[:2]
    shrink = min(width / max(extent[0], 1.0), height / max(extent[1], 1.0))
    return texture[min(max(0, int(np.log2(max(shrink, 1.0)) + 0.3)), len(texture) - 1)]
