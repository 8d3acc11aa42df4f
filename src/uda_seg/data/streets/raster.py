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
OPAQUE, CLEAR = np.uint8(255), np.uint8(0)
RAMP = np.arange(1 << 14, dtype=np.float32)
WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


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


@dataclass(frozen=True)
class Patch:
    """One parallelogram on the screen.

    Attributes:
        box: x0, y0, x1, y1 (exclusive).
        texture: one mip level.
        matrix: [3, 3] maps the box's own pixels to (texel x, texel y, 1) / depth.
        plane: [3] its last row, the inverse depth, as float32.
        outline: int32 [k, 2], the polygon in the box with `SHIFT` fractional bits.
        tint: [4] factors of red, green and blue, and 0.
        label: what it is.
        solid: whether its label covers the holes.
    """

    box: tuple[int, int, int, int]
    texture: Texture
    matrix: NDArray[np.float64]
    plane: Plane
    outline: NDArray[np.int32]
    tint: NDArray[np.float64]
    label: int
    solid: bool


def draw_quads(canvas: Canvas, camera: Camera, quads: Quads, frames: float) -> None:
    """Draw all parallelograms, shadows first, then far to near, `frames` after the scene's own moment."""
    size = (canvas.label.shape[0], canvas.label.shape[1])
    origin = np.array(quads.origin) + frames * np.array(quads.velocity)
    found = patches(quads, project(camera, size, origin, np.array(quads.u), np.array(quads.v)))
    white = np.full((*size, 3), 255, np.uint8)
    for patch in found:
        if patch.label == SHADOW:
            darken(canvas, patch)
    for patch in found:
        if patch.label != SHADOW:
            (draw_surface if patch.texture.shape[2] == 3 else draw_cutout)(canvas, patch, white)


def patches(quads: Quads, seen: Projection) -> list[Patch]:
    """Everything that can be prepared for all parallelograms at once."""
    textures = [level(quads.texture[which], extent) for which, extent in zip(seen.index, seen.extent, strict=True)]
    matrix = seen.matrix.copy()
    matrix[:, :, 2] += matrix[:, :, 0] * seen.box[:, :1] + matrix[:, :, 1] * seen.box[:, 1:2]
    texels = np.array([t.shape[1::-1] for t in textures], float).reshape(-1, 2, 1)
    # Texel centres lie at half-integers. Opaque textures are sampled one texel within their edges, so that bilinear
    # weights never reach the border, whose replication is slow.
    inset = np.array([1.0 if t.shape[2] == 3 else -0.5 for t in textures]).reshape(-1, 1, 1)
    shrink = np.where(inset > 0, 3.0, 0.0)
    matrix[:, :2] = matrix[:, :2] * (texels - shrink) + inset * matrix[:, 2:]
    corners = np.concatenate([np.zeros((0, 2)), *seen.polygon])
    counts = [len(polygon) for polygon in seen.polygon]
    corners = np.clip(corners, -1e4, 1e4) - np.repeat(seen.box[:, :2], counts, axis=0)
    outlines = np.split(np.rint(corners * 2**SHIFT).astype(np.int32), np.cumsum(counts)[:-1])
    tints, planes = np.zeros((len(textures), 4)), matrix[:, 2].astype(np.float32)
    tints[:, :3] = np.array(quads.tint)[seen.index] / 255
    return [
        Patch(
            (x0, y0, x1, y1),
            textures[i],
            matrix[i],
            planes[i],
            outlines[i],
            tints[i],
            quads.label[which],
            quads.solid[which],
        )
        for i, (which, (x0, y0, x1, y1)) in enumerate(zip(seen.index.tolist(), seen.box.tolist(), strict=True))
        if x1 > x0 and y1 > y0
    ]


def nearness(canvas: Canvas, patch: Patch, favour: float = 1.0) -> tuple[Plane, Texture]:
    """Inverse depth in the box, and 255 where it is nearer (after `favour`) than what is drawn already."""
    x0, y0, x1, y1 = patch.box
    a, b, c = patch.plane
    inverse: Plane = np.add.outer(b * RAMP[: y1 - y0] + c, a * RAMP[: x1 - x0])
    here = inverse * np.float32(favour) if favour > 1 else inverse
    return inverse, np.asarray(cv2.compare(here, canvas.inverse[y0:y1, x0:x1], cv2.CMP_GT), np.uint8)


def inside(patch: Patch, nearest: Texture) -> Texture:
    """255 within the parallelogram where it is nearest."""
    outline = np.zeros(nearest.shape, np.uint8)
    cv2.fillConvexPoly(outline, patch.outline, 255, cv2.LINE_8, SHIFT)
    return np.asarray(cv2.bitwise_and(outline, nearest), np.uint8)


def warp(patch: Patch) -> Texture:
    """The texture as it is seen in the box."""
    size = (patch.box[2] - patch.box[0], patch.box[3] - patch.box[1])
    return np.asarray(cv2.warpPerspective(patch.texture, patch.matrix, size, flags=WARP), np.uint8)


def own(canvas: Canvas, patch: Patch, inverse: Plane, owned: Texture) -> None:
    """Write label and depth."""
    x0, y0, x1, y1 = patch.box
    np.copyto(canvas.label[y0:y1, x0:x1], np.uint8(patch.label), where=owned.view(np.bool_))
    cv2.copyTo(inverse, owned, canvas.inverse[y0:y1, x0:x1])


def draw_surface(canvas: Canvas, patch: Patch, white: Texture) -> None:
    """A parallelogram without holes."""
    x0, y0, x1, y1 = patch.box
    inverse, nearest = nearness(canvas, patch)
    owned, tint = inside(patch, nearest), patch.tint
    if patch.texture.shape[0] == 1:  # one colour: nothing to warp
        picture = white[: y1 - y0, : x1 - x0]
        tint = tint * [*(patch.texture[0, 0] / 255), 0.0]
    else:
        picture = warp(patch)
    cv2.copyTo(cv2.multiply(picture, tint, dtype=cv2.CV_32F), owned, canvas.colour[y0:y1, x0:x1])
    own(canvas, patch, inverse, owned)


def draw_cutout(canvas: Canvas, patch: Patch, white: Texture) -> None:
    """A parallelogram whose texture has holes (premultiplied colours) laid over what is there."""
    x0, y0, x1, y1 = patch.box
    inverse, nearest = nearness(canvas, patch)
    picture, below = warp(patch), canvas.colour[y0:y1, x0:x1]
    alpha = np.asarray(cv2.bitwise_and(picture[..., 3], nearest), np.uint8)
    rest = cv2.bitwise_not(cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB))
    cv2.multiply(below, rest, below, 1 / 255, cv2.CV_32F)
    visible = cv2.copyTo(cv2.cvtColor(picture, cv2.COLOR_RGBA2RGB), alpha)
    cv2.add(below, cv2.multiply(visible, patch.tint, dtype=cv2.CV_32F), below)
    own(canvas, patch, inverse, inside(patch, nearest) if patch.solid else np.where(alpha > CUT, OPAQUE, CLEAR))


def darken(canvas: Canvas, patch: Patch) -> None:
    """A shadow, by its tint's share; it has neither label nor depth, and may lie a little under the ground."""
    x0, y0, x1, y1 = patch.box
    _, nearest = nearness(canvas, patch, favour=1.02)
    alpha = cv2.bitwise_and(warp(patch)[..., 3], nearest)
    rest = cv2.bitwise_not(cv2.convertScaleAbs(alpha, alpha=float(patch.tint[0]) * 255))
    below = canvas.colour[y0:y1, x0:x1]
    cv2.multiply(below, cv2.cvtColor(rest, cv2.COLOR_GRAY2RGB), below, 1 / 255, cv2.CV_32F)


def level(texture: Mips, extent: NDArray[np.float64]) -> Texture:
    """The coarsest mip level that still has a texel for every pixel."""
    if len(texture) == 1:
        return texture[0]
    height, width = texture[0].shape[:2]
    shrink = min(width / max(extent[0], 1.0), height / max(extent[1], 1.0))
    return texture[min(max(0, int(np.log2(max(shrink, 1.0)) + 0.3)), len(texture) - 1)]
