"""What air, lens and chip make of a street: haze, light, colour, blur, noise, compression.

Images are worked on as three planes [3, H, W]: whatever weighs pixels then runs over whole rows.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.ground import HORIZON, Plane
from uda_seg.data.streets.raster import Canvas
from uda_seg.data.streets.styles import Style, colour, draw

IGNORE = 255
LUMA = (0.299, 0.587, 0.114)


@lru_cache(maxsize=1)
def noise_bank() -> NDArray[np.float32]:
    """Unit Gaussian noise, read from random offsets on."""
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)


def draw_sky(size: tuple[int, int], style: Style, rng: np.random.Generator) -> Plane:
    """A gradient from zenith to horizon with clouds, [H, W, 3]; dull skies blow out to white."""
    height, width = size
    top, low = (np.array(colour(rng, p), np.float32) for p in (style.sky_top, style.sky_low))
    ramp = np.minimum(np.linspace(0, 1 / 0.55, height, dtype=np.float32), 1)[:, None]
    cover = max(0.0, draw(rng, style.clouds))
    grid = rng.normal(0, 1, (7, 11)).astype(np.float32) + 0.5 * rng.normal(0, 1, (7, 11)).astype(np.float32)
    clouds = cv2.resize(grid * np.float32(0.5), (width, height), interpolation=cv2.INTER_CUBIC)
    clouds = np.clip(clouds + np.float32(cover - 0.3), 0, 1)
    planes = []
    for start, end in zip(top, low, strict=True):
        clear = start + (end - start) * ramp
        planes.append(clear + clouds * (end * np.float32(1.02) - clear))
    return np.asarray(cv2.merge(planes), np.float32)


def expose(canvas: Canvas, style: Style, look: np.random.Generator, grain: np.random.Generator) -> NDArray[np.uint8]:
    """Turn a drawn street into a photograph, uint8 [H, W, 3]; the label gets the ego car's hood (255).

    Args:
        canvas: what was drawn; under the hood its label becomes 255 and its inverse depth infinite.
        style: the domain.
        look: the scene's stream: the same for every view of it.
        grain: this very picture's stream: two views never share their noise.
    """
    ambient = draw(look, style.ambient) + 0.5 * draw(look, style.sun)
    image = np.asarray(cv2.split(canvas.colour), np.float32)
    image *= np.where(canvas.inverse == 0, np.float32(1), np.float32(ambient))
    night(image, canvas, style, look, grain)
    haze(image, canvas, draw(look, style.haze), np.array(colour(look, style.sky_low), np.float32) * np.float32(0.92))
    hood(image, canvas, style, look)
    balance(image, style, look)
    lens(image, style, look)
    exposure, gamma, noise = draw(look, style.exposure), draw(look, style.gamma), max(0.0, draw(look, style.noise))
    image *= np.float32(exposure)
    knee(image)
    image = np.asarray(cv2.pow(image.reshape(-1, image.shape[2]), gamma), np.float32).reshape(image.shape)
    if noise > 0:
        image += np.float32(noise) * shot_noise(image.shape, grain) * np.sqrt(image + np.float32(0.05))
    pixels = np.asarray(cv2.merge([cv2.convertScaleAbs(np.maximum(p, 0), alpha=255) for p in image]), np.uint8)
    quality = int(draw(look, style.jpeg))
    if quality >= 98:
        return pixels
    packed = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB)
    assert unpacked is not None
    return np.asarray(unpacked, np.uint8)


def shot_noise(shape: tuple[int, ...], grain: np.random.Generator) -> Plane:
    """Unit Gaussian noise of a shape, from the bank while it is large enough."""
    count, bank = int(np.prod(shape)), noise_bank()
    if count >= len(bank) // 2:
        return grain.standard_normal(shape, dtype=np.float32)
    start = int(grain.integers(len(bank) - count))
    return bank[start : start + count].reshape(shape)


def haze(image: Plane, canvas: Canvas, density: float, air: Plane) -> None:
    """Air light over distance, Koschmieder's law: I = J t + A (1 - t), t = exp(-density depth)."""
    if density > 0:
        depth = 1 / np.maximum(canvas.inverse, np.float32(1 / HORIZON))
        clear = cv2.exp(depth * np.float32(-density))
        clear[canvas.inverse == 0] = np.exp(-density * 120)  # the sky is as hazy as the end of the street
        image *= clear
        image += air[:, None, None] * (1 - clear)


def night(
    image: Plane, canvas: Canvas, style: Style, look: np.random.Generator, grain: np.random.Generator
) -> None:  # fmt: skip
    """Street lamps, head lights on the road, a wet ground that mirrors what stands on it, streaks of rain."""
    height, width = canvas.label.shape
    lamps, beam, wet, rain = (
        max(0.0, draw(look, r)) for r in (style.lamp_light, style.headlight, style.wetness, style.rain)
    )
    if lamps + beam > 0:
        u = (np.arange(width, dtype=np.float32) - width / 2) / width
        reach = np.minimum(canvas.inverse * 9, 1.0) * np.exp(-(u**2) / np.float32(0.06))
        pools = 0.6 + 0.4 * np.sin(np.minimum(1 / np.maximum(canvas.inverse, 1e-3), 400) * np.float32(0.45))
        image *= 1 + np.float32(beam) * reach + np.float32(lamps) * pools * (canvas.inverse > 0)
    ground = canvas.label <= 1
    if wet > 0 and ground.any():
        horizon = int(np.argmax(ground.any(1)))
        rows = np.clip(2 * horizon - np.arange(height), 0, height - 1)
        share = ground * np.float32(0.45 * wet)
        for plane in image:
            mirror = cv2.blur(plane[rows], (1, max(3, height // 16)))
            plane += share * (mirror - plane)
    if rain > 0:
        drops = (grain.random((height, width), dtype=np.float32) < 0.004 * rain / 0.1).astype(np.float32)
        image += np.float32(0.35) * cv2.filter2D(drops, -1, np.eye(9, dtype=np.float32)[:, ::-1] / 3)


def hood(image: Plane, canvas: Canvas, style: Style, look: np.random.Generator) -> None:
    """The ego car's bonnet along the lower edge."""
    share = draw(look, style.hood)
    tone = np.array(colour(look, ((0.0, 1.0), (0.0, 0.3), (0.03, 0.2))), np.float32)
    if share <= 0:
        return
    height, width = canvas.label.shape
    u = (np.arange(width) - width / 2) / (width / 2)
    inside = np.arange(height)[:, None] >= height * (1 - share * (1 - 0.45 * u**2))
    canvas.label[inside] = IGNORE
    canvas.inverse[inside] = np.inf
    image[:, inside] = tone[:, None]


def balance(image: Plane, style: Style, look: np.random.Generator) -> None:
    """White balance, then saturation: a mixture of the colours and their luma (ITU-R BT.601)."""
    warm, green = draw(look, style.warmth), draw(look, style.green)
    keep = np.float32(max(0.0, draw(look, style.saturation)))
    for plane, gain in zip(image, (1 + warm / 2, 1 + green, 1 - warm / 2), strict=True):
        plane *= np.float32(gain)
    luma = sum(np.float32(share) * plane for share, plane in zip(LUMA, image, strict=True))
    image *= keep
    image += (1 - keep) * luma


def lens(image: Plane, style: Style, look: np.random.Generator) -> None:
    """Blur and vignette."""
    height, width = image.shape[1:]
    sigma, dark = max(0.0, draw(look, style.blur)) * width / 512, max(0.0, draw(look, style.vignette))
    if sigma > 0.12:
        for plane in image:
            cv2.GaussianBlur(plane, (0, 0), sigma, plane)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    image *= 1 - np.float32(0.5 * dark) * (x * x + y * y)


def knee(image: Plane) -> None:
    """Compress what is brighter than 0.8, as sensors do: a parabola that reaches 1 at 1.2, level."""
    np.clip(image, 0, 1.2, out=image)
    bright = np.maximum(image - np.float32(0.8), 0)
    image -= bright * bright * np.float32(1.25)
