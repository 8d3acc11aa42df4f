"""Rasteriser: sky and ground, then everything else by warping textures against a depth buffer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.camera import Camera, Projection, project
from uda_seg.data.streets.ground import LEVELS, GroundPaint, Plane, draw_ground
from uda_seg.data.streets.plan import SKY
from uda_seg.data.streets.scene import Scene
from uda_seg.data.streets.sky import Sky, draw_sky
from uda_seg.data.streets.stage import SHADOW, Quads
from uda_seg.data.streets.styles import Colour
from uda_seg.data.streets.textures import Mips, Texture

CUT = 110  # alpha (of 255) from which a pixel gets the label and depth of a surface
SHIFT = 4  # fractional bits of the outlines
BRIGHTEST = 1.2  # largest tint; brighter patches are multiplied later
BAND = 32  # rows of ground drawn at once, so that their planes fit the CPU cache
WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
Mask = NDArray[np.uint8]


@dataclass
class Canvas:
    """Buffers of the image being drawn.

    Attributes:
        colour: uint8 [H, W, 3], `LEVELS` times the colour.
        label: uint8 [H, W].
        inverse: float32 [H, W], the inverse depth, 0 = infinitely far.
        glow: float32 [H, W], factor of the colour of light sources; None without any.
    """

    colour: Texture
    label: Mask
    inverse: Plane
    glow: Plane | None = None


def draw_background(camera: Camera, size: tuple[int, int], scene: Scene, paint: GroundPaint, sky: Sky) -> Canvas:
    """Draw sky above the horizon and ground below it."""
    height, width = size
    canvas = Canvas(np.empty((*size, 3), np.uint8), np.full(size, SKY, np.uint8), np.zeros(size, np.float32))
    first = min(max(0, int(min(camera.horizon(width))) + 1), height)
    for start in range(first, height, BAND):
        rows = range(start, min(start + BAND, height))
        band = slice(rows.start, rows.stop)
        canvas.colour[band], label, canvas.inverse[band] = draw_ground(camera, rows, width, scene.layout, paint)
        cv2.copyTo(label, (canvas.inverse[band] > 0).astype(np.uint8), canvas.label[band])
    open_rows = np.flatnonzero((canvas.inverse == 0).any(1))
    if len(open_rows):
        above = slice(0, int(open_rows[-1]) + 1)
        cv2.copyTo(draw_sky(sky, size, above.stop), (canvas.inverse[above] == 0).astype(np.uint8), canvas.colour[above])
    return canvas


@dataclass(slots=True)
class Patch:
    """A projected parallelogram.

    Attributes:
        box: x0, y0, x1, y1 (exclusive).
        texture: one mip level.
        matrix: [3, 3] maps pixels of the box to (texel x, texel y, 1) / depth.
        rows: float32 [h], inverse depth in the box's first column.
        columns: float32 [w], increments of the inverse depth along the columns.
        outline: int32 [k, 2], polygon in the box with `SHIFT` fractional bits.
        tint: factors of red, green and blue, equal for textured surfaces.
        label: train id.
        solid: true if the label also covers holes.
    """

    box: tuple[int, int, int, int]
    texture: Texture
    matrix: NDArray[np.float64]
    rows: Plane
    columns: Plane
    outline: NDArray[np.int32]
    tint: Colour
    label: int
    solid: bool


@dataclass(slots=True)
class View:
    """The visible part of a patch.

    Attributes:
        patch: the patch.
        corner: first column and row of the part in the patch's box.
        area: rows and columns of the canvas.
        inverse: inverse depth of the part.
        mask: 255 where the patch is nearer than the canvas.
    """

    patch: Patch
    corner: tuple[int, int]
    area: tuple[slice, slice]
    inverse: Plane
    mask: Mask


def draw_quads(canvas: Canvas, camera: Camera, quads: Quads, frames: float) -> None:
    """Draw all parallelograms, `frames` after the scene's reference time.

    Shadows first; then surfaces without holes, near to far, so that hidden ones are never warped; then those with
    holes, far to near.
    """
    size = (canvas.label.shape[0], canvas.label.shape[1])
    origin = np.array(quads.origin) + frames * np.array(quads.velocity)
    found = patches(quads, project(camera, size, origin, np.array(quads.u), np.array(quads.v)))
    things = [patch for patch in found if patch.label != SHADOW]
    for patch in found:
        if patch.label == SHADOW:
            darken(canvas, patch)
    views = [draw_surface(canvas, patch) for patch in reversed(things) if patch.texture.shape[2] == 3]
    views += [draw_cutout(canvas, patch) for patch in things if patch.texture.shape[2] == 4]
    for view in views:
        if view and max(view.patch.tint) > BRIGHTEST:
            shine(canvas, view)


def patches(quads: Quads, seen: Projection) -> list[Patch]:
    """Prepare all parallelograms at once, as far as possible."""
    index = seen.index.tolist()
    textures = [level(quads.texture[i], *extent) for i, extent in zip(index, seen.extent.tolist(), strict=True)]
    matrix = seen.matrix.copy()
    matrix[:, :, 2] += matrix[:, :, 0] * seen.box[:, :1] + matrix[:, :, 1] * seen.box[:, 1:2]
    texels = np.array([t.shape[1::-1] for t in textures], float).reshape(-1, 2, 1)
    # Texel centres are at half-integers. Opaque textures are sampled one texel inside their edges, so that bilinear
    # weights never reach the border, whose replication is slow.
    inset = np.array([1.0 if t.shape[2] == 3 else -0.5 for t in textures]).reshape(-1, 1, 1)
    shrink = np.where(inset > 0, 3.0, 0.0)
    matrix[:, :2] = matrix[:, :2] * (texels - shrink) + inset * matrix[:, 2:]
    inverse = matrix[:, 2].astype(np.float32)
    ramp = np.arange((seen.box[:, 2:] - seen.box[:, :2]).max(initial=0), dtype=np.float32)
    rows, columns = inverse[:, 1:2] * ramp + inverse[:, 2:], inverse[:, :1] * ramp
    fine = (seen.extent.min(1) > 1).tolist()  # shadows below one pixel have no effect
    counts = [len(polygon) for polygon in seen.polygon]
    corners = np.concatenate([np.zeros((0, 2)), *seen.polygon])
    corners = np.clip(corners, -1e4, 1e4) - np.repeat(seen.box[:, :2], counts, axis=0)
    corners = np.rint(corners * 2**SHIFT).astype(np.int32)
    ends = list(accumulate(counts))
    return [
        Patch(
            (x0, y0, x1, y1), textures[i], matrix[i], rows[i, : y1 - y0], columns[i, : x1 - x0],
            corners[ends[i] - counts[i] : ends[i]], quads.tint[which], quads.label[which], quads.solid[which],
        )
        for i, (which, (x0, y0, x1, y1)) in enumerate(zip(index, seen.box.tolist(), strict=True))
        if x1 > x0 and y1 > y0 and (quads.label[which] != SHADOW or fine[i])
    ]  # fmt: skip


def look_at(canvas: Canvas, patch: Patch, outline: bool, favour: float = 1.0) -> View | None:
    """Find where a patch passes the depth test (after `favour`), optionally within its `outline`."""
    x0, y0, x1, y1 = patch.box
    inverse: Plane = np.add.outer(patch.rows, patch.columns)
    here = inverse * np.float32(favour) if favour > 1 else inverse
    order = cv2.CMP_GE if outline else cv2.CMP_GT  # the farther surface wins a tie in either drawing order
    mask = np.asarray(cv2.compare(here, canvas.inverse[y0:y1, x0:x1], order), np.uint8)
    if outline:
        mask = inside(patch, mask)
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return None
    rows, columns = slice(y, y + height), slice(x, x + width)
    area = slice(y0 + y, y0 + y + height), slice(x0 + x, x0 + x + width)
    return View(patch, (x, y), area, inverse[rows, columns], mask[rows, columns])


def inside(patch: Patch, mask: Mask, corner: tuple[int, int] = (0, 0)) -> Mask:
    """Restrict a mask, which starts at `corner` of the patch's box, to the parallelogram."""
    outline = np.zeros(mask.shape, np.uint8)
    corners = patch.outline - np.array(corner, np.int32) * 2**SHIFT if any(corner) else patch.outline
    cv2.fillConvexPoly(outline, corners, 255, cv2.LINE_8, SHIFT)
    return np.asarray(cv2.bitwise_and(outline, mask), np.uint8)


def warp(view: View) -> Texture:
    """Warp the texture into the image."""
    matrix, (x, y) = view.patch.matrix, view.corner
    if x or y:
        matrix = matrix.copy()
        matrix[:, 2] += matrix[:, 0] * x + matrix[:, 1] * y
    size = (view.mask.shape[1], view.mask.shape[0])
    return np.asarray(cv2.warpPerspective(view.patch.texture, matrix, size, flags=WARP), np.uint8)


def own(canvas: Canvas, view: View) -> None:
    """Write label and depth."""
    cv2.copyTo(even(view.mask.shape, view.patch.label), view.mask, canvas.label[view.area])
    cv2.copyTo(view.inverse, view.mask, canvas.inverse[view.area])


def even(shape: tuple[int, ...], *values: int) -> NDArray[np.uint8]:
    """Build a constant array [h, w, channels], read-only and many times faster than broadcasting."""
    height, width = shape
    return np.frombuffer(bytes(values) * (height * width), np.uint8).reshape(height, width, -1)


def draw_surface(canvas: Canvas, patch: Patch) -> View | None:
    """Draw a parallelogram without holes."""
    view = look_at(canvas, patch, outline=True)
    if view is None:
        return None
    gain = LEVELS / 255 / max(1.0, max(patch.tint) / BRIGHTEST)
    if patch.texture.shape[0] == 1:  # a single colour needs no warp
        ink = [min(255, round(v * t * gain)) for v, t in zip(patch.texture[0, 0].tolist(), patch.tint, strict=True)]
        picture = even(view.mask.shape, *ink)
    else:
        picture = np.asarray(cv2.convertScaleAbs(warp(view), alpha=gain * patch.tint[0]), np.uint8)
    cv2.copyTo(picture, view.mask, canvas.colour[view.area])
    own(canvas, view)
    return view


def draw_cutout(canvas: Canvas, patch: Patch) -> View | None:
    """Blend a parallelogram with a premultiplied RGBA texture over the canvas."""
    view = look_at(canvas, patch, outline=False)
    if view is None:
        return None
    picture = warp(view)
    alpha = cv2.bitwise_and(cv2.extractChannel(picture, 3), view.mask)
    gain = LEVELS / 255 / max(1.0, patch.tint[0] / BRIGHTEST)
    visible = cv2.copyTo(cv2.cvtColor(picture, cv2.COLOR_RGBA2RGB), alpha)
    visible = cv2.convertScaleAbs(visible, alpha=gain * patch.tint[0])
    below = canvas.colour[view.area]
    cv2.multiply(below, cv2.cvtColor(cv2.bitwise_not(alpha), cv2.COLOR_GRAY2RGB), below, 1 / 255)
    cv2.add(below, visible, below)
    if patch.solid:
        view.mask = inside(patch, view.mask, view.corner)
    else:
        view.mask = np.asarray(cv2.threshold(alpha, CUT, 255, cv2.THRESH_BINARY)[1], np.uint8)
    own(canvas, view)
    return view


def darken(canvas: Canvas, patch: Patch) -> None:
    """Draw a shadow with the strength of its tint; without label or depth, possibly just below ground."""
    view = look_at(canvas, patch, outline=False, favour=1.02)
    if view is None:
        return
    alpha = cv2.bitwise_and(cv2.extractChannel(warp(view), 3), view.mask)
    rest = cv2.bitwise_not(cv2.convertScaleAbs(alpha, alpha=patch.tint[0]))
    below = canvas.colour[view.area]
    cv2.multiply(below, cv2.cvtColor(rest, cv2.COLOR_GRAY2RGB), below, 1 / 255)


def shine(canvas: Canvas, view: View) -> None:
    """Record the glow of a patch brighter than the canvas can represent, where it stays visible."""
    if canvas.glow is None:
        canvas.glow = np.ones(canvas.label.shape, np.float32)
    bare = (view.mask > 0) & (canvas.inverse[view.area] == view.inverse)
    canvas.glow[view.area][bare] = max(view.patch.tint) / BRIGHTEST


def level(texture: Mips, across: float, down: float) -> Texture:
    """Select the coarsest mip level with at least one texel per pixel of the image."""
    if len(texture) == 1:
        return texture[0]
    height, width = texture[0].shape[:2]
    shrink = min(width / max(across, 1.0), height / max(down, 1.0))
    return texture[min(int(math.log2(max(shrink, 1.0)) + 0.3), len(texture) - 1)]
