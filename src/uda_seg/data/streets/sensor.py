"""What air, lens and chip make of a street: haze, light, colour, blur, noise, compression."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.raster import Canvas, Plane
from uda_seg.data.streets.styles import Style, colour, draw

IGNORE = 255
BANK = np.random.default_rng(0).normal(0, 1, (1 << 20,)).astype(np.float32)  # noise is read from here at random offsets


def draw_sky(size: tuple[int, int], style: Style, rng: np.random.Generator) -> Plane:
    """A gradient from zenith to horizon with clouds, [H, W, 3]; dull skies blow out to white."""
    height, width = size
    top, low = (np.array(colour(rng, p), np.float32) for p in (style.sky_top, style.sky_low))
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None].clip(0, 0.55) / 0.55
    sky = top + (low - top) * ramp
    cover = max(0.0, draw(rng, style.clouds))
    grid = rng.normal(0, 1, (7, 11)).astype(np.float32) + 0.5 * rng.normal(0, 1, (7, 11)).astype(np.float32)
    clouds = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    clouds = (clouds * 0.5 + cover - 0.3).clip(0, 1)[..., None]
    return np.asarray(sky + clouds * (low * np.float32(1.02) - sky), np.float32)


def expose(canvas: Canvas, style: Style, look: np.random.Generator, grain: np.random.Generator) -> NDArray[np.uint8]:
    """Turn a drawn street into a photograph, uint8 [H, W, 3]; the label gets the ego car's hood (255).

    Args:
        canvas: what was drawn; its label is changed in place.
        style: the domain.
        look: the scene's stream: the same for every view of it.
        grain: this very picture's stream: two views never share their noise.
    """
    height, width = canvas.label.shape
    image = canvas.colour
    ambient = draw(look, style.ambient) + 0.5 * draw(look, style.sun)
    sky = canvas.inverse == 0
    image = np.where(sky[..., None], image, image * np.float32(ambient))
    image = night(image, canvas, style, look)
    density = draw(look, style.haze)
    far = np.exp(-density / np.maximum(canvas.inverse, 1 / 400)).astype(np.float32)[..., None]
    air = np.array(colour(look, style.sky_low), np.float32) * np.float32(0.92)
    image = image * far + air * (1 - far) if density > 0 else image
    hood(image, canvas, style, look)
    image = balance(image, style, look)
    image = lens(image, style, look)
    exposure, gamma, noise = draw(look, style.exposure), draw(look, style.gamma), max(0.0, draw(look, style.noise))
    image = knee(image * np.float32(exposure))
    image = np.power(image, np.float32(gamma))
    if noise > 0:
        start = int(grain.integers(len(BANK) - 3 * height * width)) if 3 * height * width < len(BANK) else 0
        shot = np.resize(BANK[start : start + 3 * height * width], image.shape)
        image = image + np.float32(noise) * shot * np.sqrt(image + np.float32(0.05))
    pixels: NDArray[np.uint8] = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    quality = int(draw(look, style.jpeg))
    if quality >= 98:
        return pixels
    packed = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    assert unpacked is not None
    return np.asarray(unpacked[..., ::-1], np.uint8)


def night(image: Plane, canvas: Canvas, style: Style, look: np.random.Generator) -> Plane:
    """Head lights on the road, a wet ground that mirrors what stands on it, streaks of rain."""
    height, width = canvas.label.shape
    beam, wet, rain = (max(0.0, draw(look, r)) for r in (style.headlight, style.wetness, style.rain))
    if beam > 0:
        u = (np.arange(width, dtype=np.float32) - width / 2) / width
        reach = np.minimum(canvas.inverse * 9, 1.0) * np.exp(-(u**2) / 0.06)
        image = image * (1 + np.float32(beam) * reach[..., None])
    if wet > 0:
        horizon = int(np.argmax((canvas.label <= 1).any(1)))
        rows = np.clip(2 * horizon - np.arange(height), 0, height - 1)
        mirror = cv2.GaussianBlur(image[rows], (1, 15), 0)
        ground = (canvas.label <= 1)[..., None] * np.float32(0.45 * wet)
        image = image * (1 - ground) + mirror * ground
    if rain > 0:
        drops = (look.random((height, width)) < 0.004 * rain / 0.1).astype(np.float32)
        streaks = cv2.filter2D(drops, -1, np.eye(9, dtype=np.float32)[:, ::-1] / 3)
        image = image + 0.35 * streaks[..., None]
    return np.asarray(image, np.float32)


def hood(image: Plane, canvas: Canvas, style: Style, look: np.random.Generator) -> None:
    """The ego car's bonnet along the lower edge."""
    share = draw(look, style.hood)
    tone = np.array(colour(look, ((0.0, 1.0), (0.0, 0.3), (0.03, 0.2))), np.float32)
    if share <= 0:
        return
    height, width = canvas.label.shape
    u = (np.arange(width) - width / 2) / (width / 2)
    edge = height * (1 - share * (1 - 0.45 * u**2))
    inside = np.arange(height)[:, None] >= edge
    canvas.label[inside] = IGNORE
    image[inside] = tone


def balance(image: Plane, style: Style, look: np.random.Generator) -> Plane:
    """White balance and saturation."""
    warm, green = draw(look, style.warmth), draw(look, style.green)
    gains = (1 + warm / 2, 1 + green, 1 - warm / 2)
    keep = max(0.0, draw(look, style.saturation))
    mix = keep * np.eye(3) + (1 - keep) * np.array([[0.3, 0.59, 0.11]] * 3)
    return np.asarray(cv2.transform(image, (mix @ np.diag(gains)).astype(np.float32)), np.float32)


def lens(image: Plane, style: Style, look: np.random.Generator) -> Plane:
    """Blur and vignette."""
    height, width = image.shape[:2]
    sigma, dark = max(0.0, draw(look, style.blur)) * width / 512, max(0.0, draw(look, style.vignette))
    if sigma > 0.12:
        image = cv2.GaussianBlur(image, (0, 0), sigma)  # type: ignore[assignment]
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return np.asarray(image * (1 - np.float32(0.5 * dark) * (x * x + y * y))[..., None], np.float32)


def knee(image: Plane) -> Plane:
    """Compress what is brighter than 0.8, as sensors do; only the brightest clips."""
    bright = np.maximum(image, 0)
    return np.asarray(np.where(bright > 0.8, 0.8 + 0.28 * np.tanh((bright - 0.8) / 0.28), bright), np.float32).clip(
        0, 1
    )
