"""Procedural textures of a street: houses, plants, signs, and the canvas for them."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.styles import Colour, Style, colour, draw

Texture = NDArray[np.uint8]  # [H, W, 4], RGBA; row 0 is the surface's upper edge
Mips = tuple[Texture, ...]  # from fine to coarse: RGB, or RGBA with colours premultiplied by alpha
RNG = np.random.Generator
SUPER = 3  # supersampling factor of silhouettes, for smooth alpha edges
GRAIN = 256  # side of the ground's noise in texels
DARK, GLASS = (38, 40, 46), (62, 74, 88)


class Canvas:
    """An empty RGBA canvas in unit coordinates (x right, y down) with anti-aliased shapes."""

    def __init__(self, height: int, width: int) -> None:
        self.size = (width, height)
        self.pixels = np.zeros((height * SUPER, width * SUPER, 4), np.uint8)

    def _points(self, points: list[tuple[float, float]]) -> NDArray[np.int32]:
        height, width = self.pixels.shape[:2]
        return np.array([(round(x * width), round(y * height)) for x, y in points], np.int32)

    def polygon(self, points: list[tuple[float, float]], rgb: tuple[int, ...]) -> None:
        """Fill a polygon."""
        cv2.fillPoly(self.pixels, [self._points(points)], (*rgb, 255))

    def box(self, x0: float, y0: float, x1: float, y1: float, rgb: tuple[int, ...]) -> None:
        """Fill a rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], rgb)

    def ellipse(self, x: float, y: float, rx: float, ry: float, rgb: tuple[int, ...], line: float = 0.0) -> None:
        """Fill an ellipse, or draw its outline of width `line` (relative to the canvas's width)."""
        centre, axes = self._points([(x, y), (rx, ry)])
        thickness = -1 if line == 0 else max(1, round(line * self.pixels.shape[1]))
        cv2.ellipse(self.pixels, tuple(map(int, centre)), tuple(map(int, axes)), 0, 0, 360, (*rgb, 255), thickness)

    def line(self, points: list[tuple[float, float]], width: float, rgb: tuple[int, ...]) -> None:
        """Draw a poly-line of width `width` (relative to the canvas's width)."""
        thickness = max(1, round(width * self.pixels.shape[1]))
        cv2.polylines(self.pixels, [self._points(points)], False, (*rgb, 255), thickness)

    def done(self) -> Texture:
        """Return the canvas at its final size."""
        return average(self.pixels, self.size)


def average(rgba: Texture, size: tuple[int, int]) -> Texture:
    """Down-sample to (width, height) with colours weighted by alpha, so that edges do not darken."""
    if rgba[..., 3].min() == 255:
        return np.asarray(cv2.resize(rgba, size, interpolation=cv2.INTER_AREA), np.uint8)
    small = cv2.resize(premultiplied(rgba), size, interpolation=cv2.INTER_AREA)
    alpha = cv2.extractChannel(small, 3)
    colours = cv2.divide(small, cv2.merge([alpha] * 4), scale=255)
    return np.asarray(cv2.insertChannel(alpha, colours, 3), np.uint8)


def premultiplied(rgba: Texture) -> Texture:
    """Premultiply the colours by alpha."""
    alpha = cv2.extractChannel(rgba, 3)
    return np.asarray(cv2.multiply(rgba, cv2.merge([alpha] * 3 + [np.full_like(alpha, 255)]), scale=1 / 255), np.uint8)


def mips(texture: Texture) -> Mips:
    """Build mip levels down to about 4 pixels; RGB if opaque, else premultiplied RGBA."""
    if texture.shape[2] == 4 and texture[..., 3].min() == 255:
        texture = np.ascontiguousarray(texture[..., :3])
    elif texture.shape[2] == 4:
        texture = premultiplied(texture)
    levels = [texture]
    while min(levels[-1].shape[:2]) > 7:
        height, width = levels[-1].shape[:2]
        smaller = cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(smaller, np.uint8))
    return tuple(levels)


def flat(rgb: Colour) -> Mips:
    """Build mips of an opaque colour in [0, 1]."""
    return (np.full((1, 1, 3), rgb8(rgb), np.uint8),)


def rgb8(rgb: tuple[float, float, float], gain: float = 1.0) -> tuple[int, int, int]:
    """Convert a colour in [0, 1] to bytes."""
    r, g, b = (int(min(max(value * gain, 0.0), 1.0) * 255) for value in rgb)
    return r, g, b


def noise(rng: np.random.Generator, height: int, width: int, cells: int) -> NDArray[np.float32]:
    """Sample smooth noise in [-1, 1] with about `cells` bumps along the longer side."""
    rows, columns = max(2, cells * height // max(height, width)), max(2, cells * width // max(height, width))
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def roughen(texture: Texture, rng: np.random.Generator, strength: float, cells: int = 24) -> Texture:
    """Modulate the colours by two octaves of noise."""
    height, width = texture.shape[:2]
    grain = 1 + strength * (0.10 * noise(rng, height, width, cells) + 0.05 * noise(rng, height, width, cells * 4))
    return brightened(texture, np.asarray(grain, np.float32))


def brightened(texture: Texture, gain: NDArray[np.float32]) -> Texture:
    """Multiply the texture's colours by a gain per pixel [H, W]."""
    gains = cv2.merge([gain] * 3 + [np.ones_like(gain)])
    return np.asarray(cv2.multiply(texture, gains, dtype=cv2.CV_8U), np.uint8)


def plain(rgb: tuple[int, int, int], height: int = 8, width: int = 8) -> Texture:
    """Build a texture of one opaque colour."""
    return np.full((height, width, 4), (*rgb, 255), np.uint8)


# ---------------------------------------------------------------------- houses


def facade(style: Style, rng: np.random.Generator) -> Texture:
    """Draw a façade, 20 m x 16 m: five storeys by six bays of windows above a shop or a plinth."""
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
    """Draw shops with an awning, or doors and small windows, in the lowest 36 rows."""
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
    """Draw a wall of stones or bricks."""
    sheet = roughen(plain(rgb8(colour(rng, style.bricks), 0.9), 32, 128), rng, 1.5)
    sheet[::6, :, :3] = (sheet[::6, :, :3] * 0.75).astype(np.uint8)
    for row in range(0, 32, 6):
        sheet[row : row + 6, (row % 12) :: 12, :3] = (sheet[row : row + 6, (row % 12) :: 12, :3] * 0.8).astype(np.uint8)
    sheet[:3, :, :3] = (sheet[:3, :, :3] * 1.15).clip(0, 255).astype(np.uint8)
    return sheet


def fence(style: Style, rng: np.random.Generator) -> Texture:
    """Draw railings with posts, or boards."""
    canvas, tone = Canvas(40, 160), rgb8(colour(rng, style.metal))
    bars = 26 if rng.random() < 0.6 else 14
    for x in np.linspace(0.005, 0.99, bars):
        canvas.box(x, 0.06, x + 0.4 / bars, 1.0, tone)
    for y in (0.1, 0.8):
        canvas.box(0, y, 1, y + 0.09, tone)
    return canvas.done()


# ---------------------------------------------------------------------- plants


def crown(style: Style, rng: np.random.Generator) -> Texture:
    """Draw foliage: many blobs within a few lobes, lighter at the top, with holes."""
    size = 112
    canvas, tone = Canvas(size, size), colour(rng, style.foliage)
    lobes = [(0.5, 0.5, 0.3)] + [
        (0.5 + 0.26 * np.cos(a), 0.5 + 0.24 * np.sin(a), rng.uniform(0.15, 0.22)) for a in np.linspace(0, 6.28, 7)[:-1]
    ]
    which, side = rng.integers(len(lobes), size=260), size * SUPER
    angle, reach = rng.uniform(0, 2 * np.pi, 260), np.sqrt(rng.random(260))
    blobs, shades = rng.uniform(0.02, 0.045, 260), rng.uniform(0.75, 1.2, 260)
    x0, y0, r0 = np.array(lobes)[which].T
    places = np.stack([x0 + r0 * reach * np.cos(angle), y0 + r0 * reach * np.sin(angle)], axis=1).tolist()
    for (x, y), blob_size, shade in zip(places, blobs.tolist(), shades.tolist(), strict=True):
        ink = (*rgb8(tone, (0.62 + 0.55 * (1 - y)) * shade), 255)
        cv2.circle(canvas.pixels, (round(x * side), round(y * side)), round(blob_size * side), ink, -1)
    return canvas.done()


def bare(style: Style, rng: np.random.Generator) -> Texture:
    """Draw leafless branches that fork five times."""
    canvas, tone = Canvas(112, 112), rgb8(colour(rng, ((0.05, 0.1), (0.1, 0.35), (0.18, 0.32))))

    def branch(x: float, y: float, angle: float, length: float, depth: int) -> None:
        x1, y1 = x + length * math.sin(angle), y - length * math.cos(angle)
        canvas.line([(x, y), (x1, y1)], 0.006 + 0.006 * depth, tone)
        if depth:
            for turn in rng.uniform(-0.75, 0.75, 3).tolist():
                branch(x1, y1, angle + turn, length * rng.uniform(0.65, 0.85), depth - 1)

    branch(0.5, 1.0, 0.0, 0.26, 4)
    return canvas.done()


def hedge(style: Style, rng: np.random.Generator) -> Texture:
    """Draw a clipped hedge."""
    sheet = roughen(plain(rgb8(colour(rng, style.foliage)), 40, 120), rng, 3.0, cells=40)
    sheet[28:, :, :3] = (sheet[28:, :, :3] * 0.75).astype(np.uint8)
    return sheet


# ---------------------------------------------------------------------- street furniture


def traffic_light(style: Style, rng: np.random.Generator) -> Texture:
    """Draw a traffic light, 0.45 m x 1.15 m, with one of three lamps lit."""
    canvas = Canvas(72, 28)
    canvas.box(0, 0, 1, 1, rgb8(colour(rng, style.metal), 0.35))
    lit = int(rng.integers(3))
    for lamp, rgb in enumerate(((255, 60, 40), (255, 190, 40), (70, 255, 130))):
        tone = rgb if lamp == lit else tuple(int(v * 0.25) for v in rgb)
        canvas.ellipse(0.5, 0.18 + 0.32 * lamp, 0.32, 0.125, tone)
    return canvas.done()


def sign(style: Style, rng: np.random.Generator) -> Texture:
    """Draw a round, triangular, square or rectangular traffic sign."""
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


def blob() -> Texture:
    """Draw the soft shadow under an object: black, densest in the centre."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    sheet = np.zeros((32, 32, 4), np.uint8)
    sheet[..., 3] = 255 * np.clip(3.0 * (1 - np.maximum(abs(x), abs(y)) ** 2), 0, 1)
    return sheet


def ground_grain(rng: np.random.Generator) -> NDArray[np.float32]:
    """Sample tileable zero-mean noise for the ground, [256, 256], fine and coarse."""
    fine, coarse = rng.normal(0, 1, (2, GRAIN, GRAIN)).astype(np.float32)
    coarse = cv2.GaussianBlur(np.pad(coarse, 36, mode="wrap"), (0, 0), 9)[36:-36, 36:-36]
    return np.asarray((0.45 * fine + 0.8 * coarse / coarse.std()).clip(-2.5, 2.5), np.float32)
