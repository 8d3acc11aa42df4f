"""The drawn surfaces of a street: a bank of RGBA textures per style and seed, shared by its scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.styles import Style, colour, draw

Texture = NDArray[np.uint8]  # [H, W, 4], RGBA; row 0 is the surface's upper edge
SUPER = 3  # silhouettes are drawn this much larger, then averaged down: smooth alpha edges
VARIANTS = 8
GRAIN = 256  # side of the ground's noise
DARK, GLASS, TYRE, CHROME = (38, 40, 46), (62, 74, 88), (22, 22, 24), (150, 152, 156)


@dataclass(frozen=True)
class Bank:
    """Every kind of surface with its variants, each a list of mip levels from fine to coarse; the ground's grain."""

    kinds: dict[str, list[list[Texture]]]
    grain: NDArray[np.float32]

    def pick(self, kind: str, rng: np.random.Generator) -> list[Texture]:
        """One variant at random."""
        variants = self.kinds[kind]
        return variants[int(rng.integers(len(variants)))]


class Canvas:
    """An empty RGBA sheet in unit coordinates (0..1 across, 0..1 down) with anti-aliased shapes."""

    def __init__(self, height: int, width: int) -> None:
        self.size = (width, height)
        self.pixels = np.zeros((height * SUPER, width * SUPER, 4), np.uint8)

    def _points(self, points: list[tuple[float, float]]) -> NDArray[np.int32]:
        scale = np.array([self.pixels.shape[1], self.pixels.shape[0]])
        return np.asarray(np.round(np.array(points) * scale), np.int32)

    def polygon(self, points: list[tuple[float, float]], rgb: tuple[int, ...]) -> None:
        """Fill a polygon."""
        cv2.fillPoly(self.pixels, [self._points(points)], (*rgb, 255))

    def box(self, x0: float, y0: float, x1: float, y1: float, rgb: tuple[int, ...]) -> None:
        """Fill a rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], rgb)

    def ellipse(self, x: float, y: float, rx: float, ry: float, rgb: tuple[int, ...], line: float = 0.0) -> None:
        """Fill an ellipse, or draw its outline `line` wide (a share of the width)."""
        centre, axes = self._points([(x, y), (rx, ry)])
        thickness = -1 if line == 0 else max(1, round(line * self.pixels.shape[1]))
        cv2.ellipse(self.pixels, tuple(map(int, centre)), tuple(map(int, axes)), 0, 0, 360, (*rgb, 255), thickness)

    def line(self, points: list[tuple[float, float]], width: float, rgb: tuple[int, ...]) -> None:
        """Draw a poly-line `width` wide (a share of the width)."""
        thickness = max(1, round(width * self.pixels.shape[1]))
        cv2.polylines(self.pixels, [self._points(points)], False, (*rgb, 255), thickness)

    def done(self) -> Texture:
        """The sheet at its final size."""
        return average(self.pixels, self.size)


def average(rgba: Texture, size: tuple[int, int]) -> Texture:
    """Shrink to (width, height) with colours weighted by alpha, so that edges do not darken."""
    alpha = np.ascontiguousarray(rgba[..., 3])
    if alpha.min() == 255:
        return np.asarray(cv2.resize(rgba, size, interpolation=cv2.INTER_AREA), np.uint8)
    weighted = cv2.multiply(rgba[..., :3], cv2.merge([alpha] * 3), scale=1 / 255)
    small = cv2.resize(np.dstack([weighted, alpha]), size, interpolation=cv2.INTER_AREA)
    colours = small[..., :3].astype(np.float32) * (255 / np.maximum(small[..., 3:], 1).astype(np.float32))
    return np.dstack([colours.clip(0, 255).astype(np.uint8), small[..., 3]])


def mips(texture: Texture) -> list[Texture]:
    """The texture and its halvings, down to about 4 pixels."""
    levels = [texture]
    while min(levels[-1].shape[:2]) > 7:
        height, width = levels[-1].shape[:2]
        levels.append(average(levels[-1], (width // 2, height // 2)))
    return levels


def rgb8(rgb: tuple[float, float, float], gain: float = 1.0) -> tuple[int, int, int]:
    """A colour in [0, 1] as bytes."""
    r, g, b = (int(min(max(value * gain, 0.0), 1.0) * 255) for value in rgb)
    return r, g, b


def noise(rng: np.random.Generator, height: int, width: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise in [-1, 1] with about `cells` bumps along the longer side."""
    rows, columns = max(2, cells * height // max(height, width)), max(2, cells * width // max(height, width))
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def roughen(texture: Texture, rng: np.random.Generator, strength: float, cells: int = 24) -> Texture:
    """Modulate the colours by two octaves of noise."""
    height, width = texture.shape[:2]
    grain = 1 + strength * (0.10 * noise(rng, height, width, cells) + 0.05 * noise(rng, height, width, cells * 4))
    rough = texture.copy()
    rough[..., :3] = (texture[..., :3] * grain[..., None]).clip(0, 255)
    return rough


def plain(rgb: tuple[int, int, int], height: int = 8, width: int = 8) -> Texture:
    """One opaque colour."""
    return np.full((height, width, 4), (*rgb, 255), np.uint8)


# ---------------------------------------------------------------------- houses


def facade(style: Style, rng: np.random.Generator) -> Texture:
    """Five storeys by six bays of windows over a shop or a plinth, 20 m x 16 m."""
    kind = rng.random()
    if kind < style.glass[0]:
        base = rgb8(colour(rng, ((0.5, 0.62), (0.15, 0.5), (0.35, 0.65))))
    else:
        base = rgb8(colour(rng, style.bricks if kind < style.glass[0] + style.brick[0] else style.plaster))
    sheet = plain(base, 160, 192)
    if kind >= style.glass[0]:
        sheet = roughen(sheet, rng, draw(rng, style.texture))
        if kind < style.glass[0] + style.brick[0]:
            sheet[::4, :, :3] = (sheet[::4, :, :3] * 0.82).astype(np.uint8)
    frame = tuple(int(c) for c in np.clip(np.array(base) * rng.choice([0.6, 1.35]), 0, 255))
    width, height = (0.8, 0.82) if kind < style.glass[0] else (rng.uniform(0.3, 0.55), rng.uniform(0.45, 0.65))
    for row in range(4):
        for bay in range(6):
            x, y = (bay + 0.5) * 32, 4 + (row + 0.5) * 30
            w, h = 32 * width / 2, 30 * height / 2
            lit = rng.random() < style.lit_windows[0]
            pane = (235, 200, 120) if lit else tuple(int(v) for v in np.array(GLASS) * rng.uniform(0.6, 1.5))
            cv2.rectangle(sheet, (int(x - w - 2), int(y - h - 2)), (int(x + w + 2), int(y + h + 2)), (*frame, 255), -1)
            cv2.rectangle(sheet, (int(x - w), int(y - h)), (int(x + w), int(y + h)), (*pane, 255), -1)
            cv2.line(sheet, (int(x), int(y - h)), (int(x), int(y + h)), (*frame, 255), 1)
    ground_floor(sheet, style, rng)
    return sheet


def ground_floor(sheet: Texture, style: Style, rng: np.random.Generator) -> None:
    """Shops with an awning, or doors and small windows, in the lowest 36 rows."""
    sheet[122:126, :, :3] = (sheet[122:126, :, :3] * 0.7).astype(np.uint8)
    if rng.random() < 0.45:
        sign = rgb8(colour(rng, style.cloth))
        cv2.rectangle(sheet, (0, 124), (191, 131), (*sign, 255), -1)
        for bay in range(3):
            pane = tuple(int(v) for v in np.array(GLASS) * rng.uniform(0.7, 1.6))
            cv2.rectangle(sheet, (bay * 64 + 5, 134), (bay * 64 + 58, 155), (*pane, 255), -1)
    else:
        for bay in range(6):
            tone = rgb8(colour(rng, style.plaster), 0.5) if rng.random() < 0.3 else DARK
            top = 132 if tone is not DARK else 136
            cv2.rectangle(
                sheet, (bay * 32 + 9, top), (bay * 32 + 22, 159 if tone is not DARK else 150), (*tone, 255), -1
            )


def masonry(style: Style, rng: np.random.Generator) -> Texture:
    """A wall of stones or bricks."""
    sheet = roughen(plain(rgb8(colour(rng, style.bricks), 0.9), 32, 128), rng, 1.5)
    sheet[::6, :, :3] = (sheet[::6, :, :3] * 0.75).astype(np.uint8)
    for row in range(0, 32, 6):
        sheet[row : row + 6, (row % 12) :: 12, :3] = (sheet[row : row + 6, (row % 12) :: 12, :3] * 0.8).astype(np.uint8)
    sheet[:3, :, :3] = (sheet[:3, :, :3] * 1.15).clip(0, 255).astype(np.uint8)
    return sheet


def fence(style: Style, rng: np.random.Generator) -> Texture:
    """Railings with posts, or boards."""
    canvas, tone = Canvas(40, 160), rgb8(colour(rng, style.metal))
    bars = 26 if rng.random() < 0.6 else 14
    for x in np.linspace(0.005, 0.99, bars):
        canvas.box(x, 0.06, x + 0.4 / bars, 1.0, tone)
    for y in (0.1, 0.8):
        canvas.box(0, y, 1, y + 0.09, tone)
    return canvas.done()


# ---------------------------------------------------------------------- plants


def crown(style: Style, rng: np.random.Generator) -> Texture:
    """Leaves: many blobs within a few lobes, lighter above, with holes."""
    size, canvas = 112, Canvas(112, 112)
    tone = np.array(colour(rng, style.foliage))
    lobes = [(0.5, 0.5, 0.3)] + [
        (0.5 + 0.26 * np.cos(a), 0.5 + 0.24 * np.sin(a), rng.uniform(0.15, 0.22)) for a in np.linspace(0, 6.28, 7)[:-1]
    ]
    for _ in range(300):
        x0, y0, r0 = lobes[int(rng.integers(len(lobes)))]
        a, r = rng.uniform(0, 6.28), r0 * np.sqrt(rng.random())
        x, y, blob = x0 + r * np.cos(a), y0 + r * np.sin(a), rng.uniform(0.02, 0.05)
        shade = (0.62 + 0.55 * (1 - y)) * rng.uniform(0.75, 1.2)
        canvas.ellipse(x, y, blob, blob * rng.uniform(0.6, 1.0), rgb8(tuple(tone), shade))
    leaves = canvas.done()
    assert leaves.shape[0] == size
    return leaves


def bare(style: Style, rng: np.random.Generator) -> Texture:
    """Leafless branches, forking five times."""
    canvas, tone = Canvas(112, 112), rgb8(colour(rng, ((0.05, 0.1), (0.1, 0.35), (0.18, 0.32))))

    def branch(x: float, y: float, angle: float, length: float, depth: int) -> None:
        x1, y1 = x + length * np.sin(angle), y - length * np.cos(angle)
        canvas.line([(x, y), (x1, y1)], 0.006 + 0.006 * depth, tone)
        if depth:
            for turn in rng.uniform(-0.75, 0.75, 3):
                branch(x1, y1, angle + turn, length * rng.uniform(0.65, 0.85), depth - 1)

    branch(0.5, 1.0, 0.0, 0.26, 4)
    return canvas.done()


def hedge(style: Style, rng: np.random.Generator) -> Texture:
    """A clipped hedge."""
    sheet = roughen(plain(rgb8(colour(rng, style.foliage)), 40, 120), rng, 3.0, cells=40)
    sheet[28:, :, :3] = (sheet[28:, :, :3] * 0.75).astype(np.uint8)
    return sheet


# ---------------------------------------------------------------------- people and cycles


def person(style: Style, rng: np.random.Generator) -> Texture:
    """Somebody walking or standing, seen from behind or in front; 0.75 m x 1.8 m."""
    canvas = Canvas(108, 48)
    coat, trousers = rgb8(colour(rng, style.cloth)), rgb8(colour(rng, style.cloth), 0.7)
    skin = rgb8(colour(rng, ((0.03, 0.08), (0.25, 0.55), (0.35, 0.9))))
    stride, swing = rng.uniform(0.0, 0.16), rng.uniform(0.02, 0.14)
    for side in (-1, 1):
        hip, foot = 0.5 + side * 0.085, 0.5 + side * (0.1 + stride)
        canvas.polygon([(hip - 0.1, 0.5), (hip + 0.1, 0.5), (foot + 0.075, 0.965), (foot - 0.075, 0.965)], trousers)
        canvas.box(foot - 0.09, 0.955, foot + 0.1, 0.995, DARK)
    if rng.random() < 0.3:  # a skirt or a long coat
        canvas.polygon([(0.31, 0.45), (0.69, 0.45), (0.77, 0.74), (0.23, 0.74)], coat)
    for side in (-1, 1):
        shoulder, hand = 0.5 + side * 0.23, 0.5 + side * (0.27 + swing)
        sleeve = tuple(int(v * 0.85) for v in coat)
        canvas.polygon(
            [(shoulder - 0.08, 0.19), (shoulder + 0.08, 0.19), (hand + 0.06, 0.53), (hand - 0.06, 0.53)], sleeve
        )
        canvas.ellipse(hand, 0.545, 0.055, 0.024, skin)
    canvas.polygon([(0.25, 0.2), (0.36, 0.155), (0.64, 0.155), (0.75, 0.2), (0.69, 0.53), (0.31, 0.53)], coat)
    if rng.random() < 0.35:
        bag = rgb8(colour(rng, style.cloth), 0.8)
        canvas.polygon([(0.34, 0.2), (0.66, 0.2), (0.64, 0.42), (0.36, 0.42)], bag)
    canvas.box(0.44, 0.12, 0.56, 0.17, skin)
    canvas.ellipse(0.5, 0.085, 0.125, 0.068, skin)
    hair = rgb8(colour(rng, ((0.02, 0.1), (0.2, 0.6), (0.05, 0.5))))
    canvas.polygon([(0.37, 0.085), (0.39, 0.03), (0.5, 0.008), (0.61, 0.03), (0.63, 0.085), (0.5, 0.06)], hair)
    return canvas.done()


def rider(style: Style, rng: np.random.Generator) -> Texture:
    """Somebody sitting on a cycle, seen from the side; the cycle is another texture of the same frame."""
    canvas = Canvas(112, 112)
    coat, trousers = rgb8(colour(rng, style.cloth)), rgb8(colour(rng, style.cloth), 0.7)
    skin = rgb8(colour(rng, ((0.03, 0.08), (0.25, 0.55), (0.35, 0.9))))
    knee = rng.uniform(0.55, 0.66)
    canvas.line([(0.42, 0.52), (knee, 0.62), (0.52, 0.86)], 0.095, trousers)
    canvas.line([(0.42, 0.52), (knee - 0.08, 0.7), (0.44, 0.9)], 0.095, trousers)
    canvas.polygon([(0.34, 0.55), (0.5, 0.55), (0.66, 0.27), (0.53, 0.2)], coat)
    canvas.line([(0.6, 0.28), (0.68, 0.43), (0.77, 0.47)], 0.065, tuple(int(v * 0.85) for v in coat))
    canvas.ellipse(0.655, 0.13, 0.065, 0.078, skin)
    cap = rgb8(colour(rng, style.cloth))
    canvas.polygon([(0.57, 0.12), (0.6, 0.05), (0.67, 0.025), (0.74, 0.07), (0.745, 0.115)], cap)
    return canvas.done()


def bicycle(style: Style, rng: np.random.Generator) -> Texture:
    """A bicycle from the side, in the rider's frame: 1.9 m x 1.9 m."""
    canvas, tone = Canvas(112, 112), rgb8(colour(rng, style.paint))
    for x in (0.23, 0.77):
        canvas.ellipse(x, 0.8, 0.185, 0.185, TYRE, 0.04)
        for angle in np.linspace(0, np.pi, 5)[:-1]:
            dx, dy = 0.18 * np.cos(angle), 0.18 * np.sin(angle)
            canvas.line([(x - dx, 0.8 - dy), (x + dx, 0.8 + dy)], 0.008, CHROME)
    canvas.line([(0.23, 0.8), (0.48, 0.8), (0.68, 0.56), (0.4, 0.56), (0.23, 0.8)], 0.04, tone)
    canvas.line([(0.48, 0.8), (0.38, 0.52)], 0.04, tone)
    canvas.line([(0.77, 0.8), (0.67, 0.47), (0.77, 0.46)], 0.04, tone)
    canvas.box(0.33, 0.5, 0.46, 0.535, DARK)
    return canvas.done()


def motorcycle(style: Style, rng: np.random.Generator) -> Texture:
    """A motorcycle from the side, in the rider's frame."""
    canvas, tone = Canvas(112, 112), rgb8(colour(rng, style.paint))
    for x in (0.2, 0.8):
        canvas.ellipse(x, 0.82, 0.165, 0.165, TYRE)
        canvas.ellipse(x, 0.82, 0.07, 0.07, CHROME)
    canvas.polygon([(0.14, 0.6), (0.4, 0.57), (0.46, 0.6), (0.64, 0.52), (0.74, 0.6), (0.66, 0.82), (0.34, 0.84)], tone)
    canvas.polygon([(0.36, 0.7), (0.62, 0.68), (0.6, 0.86), (0.38, 0.86)], DARK)
    canvas.line([(0.8, 0.82), (0.7, 0.5), (0.8, 0.44)], 0.045, CHROME)
    canvas.box(0.14, 0.56, 0.46, 0.61, DARK)
    canvas.ellipse(0.75, 0.52, 0.05, 0.05, (235, 235, 220))
    return canvas.done()


# ---------------------------------------------------------------------- street furniture


def traffic_light(style: Style, rng: np.random.Generator) -> Texture:
    """A housing with three lamps, one of them lit; 0.45 m x 1.15 m."""
    canvas = Canvas(72, 28)
    canvas.box(0, 0, 1, 1, rgb8(colour(rng, style.metal), 0.35))
    lit = int(rng.integers(3))
    for lamp, rgb in enumerate(((255, 60, 40), (255, 190, 40), (70, 255, 130))):
        tone = rgb if lamp == lit else tuple(int(v * 0.25) for v in rgb)
        canvas.ellipse(0.5, 0.18 + 0.32 * lamp, 0.32, 0.125, tone)
    return canvas.done()


def sign(style: Style, rng: np.random.Generator) -> Texture:
    """A round, triangular, square or rectangular traffic sign."""
    canvas, shape = Canvas(64, 64), int(rng.integers(5))
    red, blue, white, yellow = (205, 30, 40), (30, 80, 180), (240, 240, 240), (245, 205, 40)
    if shape == 0:
        canvas.ellipse(0.5, 0.5, 0.48, 0.48, red)
        canvas.ellipse(0.5, 0.5, 0.34, 0.34, white)
        canvas.box(0.36, 0.38, 0.64, 0.62, DARK)
    elif shape == 1:
        canvas.polygon([(0.5, 0.03), (0.98, 0.94), (0.02, 0.94)], red)
        canvas.polygon([(0.5, 0.26), (0.8, 0.83), (0.2, 0.83)], white)
        canvas.box(0.46, 0.45, 0.54, 0.75, DARK)
    elif shape == 2:
        canvas.ellipse(0.5, 0.5, 0.48, 0.48, blue)
        canvas.polygon(
            [(0.5, 0.18), (0.72, 0.5), (0.57, 0.5), (0.57, 0.8), (0.43, 0.8), (0.43, 0.5), (0.28, 0.5)], white
        )
    elif shape == 3:
        canvas.polygon([(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)], white)
        canvas.polygon([(0.5, 0.12), (0.88, 0.5), (0.5, 0.88), (0.12, 0.5)], yellow)
    else:
        canvas.box(0.0, 0.12, 1.0, 0.88, blue if rng.random() < 0.6 else (30, 110, 70))
        for y in (0.28, 0.5, 0.7):
            canvas.box(0.12, y, rng.uniform(0.5, 0.9), y + 0.08, white)
    return canvas.done()


# ---------------------------------------------------------------------- vehicles (unpainted: the scene tints them)

PAINT = (236, 236, 236)
LEAN = 0.09  # how far a cabin narrows towards its roof, on each side, as a share of its width


def wheel(canvas: Canvas, x: float, radius: float, aspect: float) -> None:
    """A tyre with its rim, standing on the lower edge."""
    canvas.ellipse(x, 1 - radius * aspect, radius, radius * aspect, TYRE)
    canvas.ellipse(x, 1 - radius * aspect, radius * 0.55, radius * 0.55 * aspect, CHROME)


def car_side(style: Style, rng: np.random.Generator) -> Texture:
    """The lower body from the side, 4.3 m x 0.95 m, wheels included."""
    canvas, aspect = Canvas(36, 160), 4.3 / 0.95
    canvas.polygon([(0, 0.25), (0.04, 0.05), (0.96, 0.0), (1, 0.3), (1, 0.8), (0, 0.8)], PAINT)
    canvas.box(0.0, 0.62, 1.0, 0.66, (170, 170, 170))
    for x in (0.35, 0.6):
        canvas.box(x, 0.04, x + 0.006, 0.7, (150, 150, 150))
    canvas.box(0.05, 0.72, 0.95, 0.88, DARK)
    for x in (0.19, 0.8):
        canvas.ellipse(x, 1 - 0.085 * aspect, 0.1, 0.1 * aspect, DARK)
        wheel(canvas, x, 0.078, aspect)
    return canvas.done()


def cabin_side(style: Style, rng: np.random.Generator) -> Texture:
    """Windows between pillars."""
    canvas = Canvas(28, 96)
    canvas.box(0, 0, 1, 1, PAINT)
    canvas.polygon([(0.05, 0.98), (0.12, 0.14), (0.47, 0.14), (0.47, 0.98)], GLASS)
    canvas.polygon([(0.53, 0.98), (0.53, 0.14), (0.88, 0.14), (0.95, 0.98)], GLASS)
    return canvas.done()


def car_end(style: Style, rng: np.random.Generator) -> Texture:
    """Front or rear of the lower body, 1.75 m x 0.95 m: lamps, plate, bumper, tyres."""
    canvas, rear = Canvas(44, 72), rng.random() < 0.6
    canvas.polygon([(0, 0.1), (0.05, 0), (0.95, 0), (1, 0.1), (1, 0.82), (0, 0.82)], PAINT)
    lamp = (205, 35, 35) if rear else (250, 248, 225)
    kind = int(rng.integers(3))
    size = ((0.24, 0.14), (0.14, 0.32), (0.3, 0.09))[kind]
    for left in (0.03, 0.97 - size[0]):
        canvas.box(left, 0.14, left + size[0], 0.14 + size[1], lamp)
    canvas.box(0.34, 0.44, 0.66, 0.58, (235, 235, 225))
    if not rear:
        canvas.box(0.3, 0.16, 0.7, 0.34, DARK)
    canvas.box(0.0, 0.64, 1.0, 0.84, tuple(int(v * 0.5) for v in PAINT) if kind else DARK)
    for left in (0.04, 0.78):
        canvas.box(left, 0.78, left + 0.18, 1.0, TYRE)
    return canvas.done()


def window(style: Style, rng: np.random.Generator) -> Texture:
    """A wind-screen or rear window in its frame."""
    canvas = Canvas(28, 64)
    canvas.polygon([(0, 1), (LEAN, 0), (1 - LEAN, 0), (1, 1)], PAINT)
    canvas.polygon([(0.05, 0.95), (LEAN + 0.03, 0.1), (0.97 - LEAN, 0.1), (0.95, 0.95)], GLASS)
    canvas.polygon([(0.12, 0.9), (0.3, 0.2), (0.45, 0.2), (0.25, 0.9)], tuple(int(v * 1.35) for v in GLASS))
    return canvas.done()


def long_side(windows: float, doors: int, wheels: tuple[float, ...], stripe: bool) -> Callable[..., Texture]:
    """The side of a truck, bus or tram: a row of windows of height `windows`, doors, wheels that stand on the road."""

    def paint(style: Style, rng: np.random.Generator) -> Texture:
        canvas = Canvas(72, 224)
        canvas.box(0, 0, 1, 0.86, PAINT)
        if windows:
            canvas.box(0.02, 0.16, 0.98, 0.16 + windows, GLASS)
            for x in np.linspace(0.02, 0.98, 8)[1:-1]:
                canvas.box(x - 0.006, 0.14, x + 0.006, 0.18 + windows, PAINT)
        else:
            for x in np.linspace(0.0, 0.74, 7):
                canvas.box(x, 0.02, x + 0.004, 0.8, (190, 190, 190))
            canvas.box(0.76, 0, 0.78, 0.86, DARK)
            canvas.box(0.84, 0.2, 0.97, 0.45, GLASS)
        for door in range(doors):
            x = 0.16 + 0.66 * door / max(1, doors - 1)
            canvas.box(x, 0.16, x + 0.08, 0.84, tuple(int(v * 0.8) for v in GLASS))
            canvas.box(x + 0.038, 0.16, x + 0.042, 0.84, PAINT)
        if stripe:
            canvas.box(0, 0.62, 1, 0.72, (90, 90, 90))
        canvas.box(0, 0.82, 1, 0.92, DARK)
        for x in wheels:
            wheel(canvas, x, 0.045, 224 / 72)
        return canvas.done()

    return paint


def tall_end(screen: tuple[float, float], board: bool) -> Callable[..., Texture]:
    """The front or rear of a truck, bus or tram; `screen` = upper and lower edge of its window."""

    def paint(style: Style, rng: np.random.Generator) -> Texture:
        canvas, rear = Canvas(80, 64), rng.random() < 0.55
        canvas.box(0, 0, 1, 0.88, PAINT)
        if screen[1] > screen[0] and not (rear and not board):
            canvas.box(0.06, screen[0], 0.94, screen[1], GLASS)
        else:
            canvas.box(0.485, 0.04, 0.515, 0.8, (150, 150, 150))
            canvas.box(0.05, 0.04, 0.95, 0.06, (170, 170, 170))
        if board:
            canvas.box(0.2, 0.03, 0.8, 0.13, (30, 28, 22))
            canvas.box(0.3, 0.055, 0.7, 0.105, (250, 170, 40))
        for left in (0.05, 0.8):
            canvas.box(left, 0.74, left + 0.15, 0.81, (210, 40, 35) if rear else (250, 245, 225))
        canvas.box(0, 0.84, 1, 0.93, DARK)
        for left in (0.07, 0.77):
            canvas.box(left, 0.88, left + 0.16, 1.0, TYRE)
        return canvas.done()

    return paint


PAINTERS: dict[str, Callable[[Style, np.random.Generator], Texture]] = {
    "facade": facade, "masonry": masonry, "fence": fence, "crown": crown, "bare": bare, "hedge": hedge,
    "person": person, "rider": rider, "bicycle": bicycle, "motorcycle": motorcycle,
    "light": traffic_light, "sign": sign,
    "car_side": car_side, "cabin_side": cabin_side, "car_end": car_end, "window": window,
    "truck_side": long_side(0.0, 0, (0.1, 0.2, 0.88), False), "truck_end": tall_end((0.3, 0.55), False),
    "bus_side": long_side(0.38, 3, (0.2, 0.8), False), "bus_end": tall_end((0.16, 0.56), True),
    "train_side": long_side(0.34, 4, (), True), "train_end": tall_end((0.2, 0.62), True),
}  # fmt: skip


def build_bank(style: Style, rng: np.random.Generator) -> Bank:
    """Draw every kind of surface in several variants."""
    kinds = {kind: [mips(paint(style, rng)) for _ in range(VARIANTS)] for kind, paint in PAINTERS.items()}
    return Bank(kinds, ground_grain(rng))


def ground_grain(rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise for the ground, [256, 256] about 0, fine and coarse; it tiles."""
    fine, coarse = rng.normal(0, 1, (2, GRAIN, GRAIN)).astype(np.float32)
    coarse = cv2.GaussianBlur(np.tile(coarse, (3, 3)), (0, 0), 9)[GRAIN : 2 * GRAIN, GRAIN : 2 * GRAIN]
    return np.asarray((0.45 * fine + 0.8 * coarse / coarse.std()).clip(-2.5, 2.5), np.float32)
