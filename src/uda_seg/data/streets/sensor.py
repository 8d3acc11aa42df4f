"""Camera model: haze, light, colour, blur, noise, compression.

Images are processed as three planes [3, H, W], so that per-pixel weights apply to contiguous rows.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.labels import IGNORE
from uda_seg.data.streets.ground import HORIZON, LEVELS, Plane, by_material, limited
from uda_seg.data.streets.raster import Canvas
from uda_seg.data.streets.sky import shot_noise
from uda_seg.data.streets.styles import Style, colour, draw

LUMA = (0.299, 0.587, 0.114)
STREAK = 9  # pixels


def expose(canvas: Canvas, style: Style, look: np.random.Generator, grain: np.random.Generator) -> NDArray[np.uint8]:
    """Turn a drawn street into a photograph, uint8 [H, W, 3], and add the ego car's hood to the label (255).

    Args:
        canvas: the drawn street; under the hood its label becomes 255 and its inverse depth infinite.
        style: style of the domain.
        look: random stream of the scene, shared by its views.
        grain: random stream of the image, so that views do not share noise.
    """
    ambient = draw(look, style.ambient) + 0.5 * draw(look, style.sun)
    sky = (canvas.inverse == 0).astype(np.uint8)
    light = by_material(np.array([ambient / LEVELS, 1 / LEVELS], np.float32), sky)
    if canvas.glow is not None:
        light *= canvas.glow
    image = np.array(cv2.split(canvas.colour), np.float32)
    night(image, light, canvas, style, look, grain)
    haze(image, canvas.inverse, sky, draw(look, style.haze), [0.92 * c for c in colour(look, style.sky_low)])
    hood(image, canvas, style, look)
    balance(image, style, look)
    shade = lens(image, style, look)
    shade *= np.float32(draw(look, style.exposure))
    gamma, noise = draw(look, style.gamma), max(0.0, draw(look, style.noise))
    specks = shot_noise(image.shape, grain) if noise > 0 else image
    planes = [develop(*each, shade, gamma, noise) for each in zip(image, specks, strict=True)]
    quality = int(draw(look, style.jpeg))
    if quality >= 98:
        return np.asarray(cv2.merge(planes), np.uint8)
    packed = cv2.imencode(".jpg", cv2.merge(planes[::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB)
    assert unpacked is not None
    return np.asarray(unpacked, np.uint8)


def haze(image: Plane, inverse: Plane, sky: NDArray[np.uint8], density: float, air: list[float]) -> None:
    """Add haze by Koschmieder's law: I = J t + A (1 - t), t = exp(-density depth)."""
    if density > 0:
        depth = np.float32(-density) / np.maximum(inverse, np.float32(1 / HORIZON))
        # The sky gets the haze of the street's end.
        cv2.copyTo(np.full_like(depth, -density * 120), sky, depth)
        clear = np.asarray(cv2.exp(depth), np.float32)
        veil = 1 - clear
        for plane, tone in zip(image, air, strict=True):
            plane *= clear
            cv2.scaleAdd(veil, tone, plane, plane)


def night(
    image: Plane, light: Plane, canvas: Canvas, style: Style, look: np.random.Generator, grain: np.random.Generator
) -> None:  # fmt: skip
    """Apply the light level and, at night, street lamps, headlights, reflections on wet ground, and rain."""
    height, width = canvas.label.shape
    lamps, beam, wet, rain = (
        max(0.0, draw(look, r)) for r in (style.lamp_light, style.headlight, style.wetness, style.rain)
    )
    if lamps + beam > 0:
        u = (np.arange(width, dtype=np.float32) - width / 2) / width
        reach = np.minimum(canvas.inverse * np.float32(9), 1)
        reach *= np.float32(beam) * np.exp(-(u**2) / np.float32(0.06))
        pools = np.sin(np.float32(0.45) / np.maximum(canvas.inverse, np.float32(1 / 400)))
        pools *= np.float32(0.4 * lamps)
        pools += np.float32(0.6 * lamps)
        pools *= canvas.inverse > 0
        reach += pools
        reach += 1
        light *= reach
    image *= light
    ground = canvas.label <= 1
    if wet > 0 and ground.any():
        horizon = int(np.argmax(ground.any(1)))
        rows = np.maximum(2 * horizon - np.arange(horizon, height), 0)
        share = ground[horizon:] * np.float32(0.45 * wet)
        for plane in image:
            mirror = np.asarray(cv2.blur(plane[rows], (1, max(3, height // 16))), np.float32)
            mirror -= plane[horizon:]
            mirror *= share
            plane[horizon:] += mirror
    if rain > 0:
        image += streaks((height, width), 0.004 * rain / 0.1, grain)


def streaks(size: tuple[int, int], density: float, grain: np.random.Generator) -> Plane:
    """Draw rain as slanted lines, `density` per pixel."""
    height, width = size
    count = int(grain.binomial(height * width, density))
    row, column = (grain.integers(n, size=count) for n in size)
    field = np.zeros((height + STREAK, width + STREAK), np.float32)
    for k in range(STREAK):
        field[row + k, column + STREAK - k] += np.float32(0.35 / 3)
    return field[STREAK // 2 :, STREAK // 2 :][:height, :width]


def hood(image: Plane, canvas: Canvas, style: Style, look: np.random.Generator) -> None:
    """Draw the ego car's bonnet along the lower edge."""
    share = draw(look, style.hood)
    tone = colour(look, ((0.0, 1.0), (0.0, 0.3), (0.03, 0.2)))
    if share <= 0:
        return
    height, width = canvas.label.shape
    first = int(height * (1 - share))
    u = (np.arange(width) - width / 2) / (width / 2)
    inside = np.arange(first, height)[:, None] >= height * (1 - share * (1 - 0.45 * u**2))
    np.copyto(canvas.label[first:], np.uint8(IGNORE), where=inside)
    np.copyto(canvas.inverse[first:], np.float32(np.inf), where=inside)
    for plane, value in zip(image, tone, strict=True):
        np.copyto(plane[first:], np.float32(value), where=inside)


def balance(image: Plane, style: Style, look: np.random.Generator) -> None:
    """Apply white balance, then saturation by blending with luma (ITU-R BT.601)."""
    warm, green = draw(look, style.warmth), draw(look, style.green)
    keep, gains = max(0.0, draw(look, style.saturation)), (1 + warm / 2, 1 + green, 1 - warm / 2)
    r, g, b = (share * gain for share, gain in zip(LUMA, gains, strict=True))
    luma = cv2.scaleAdd(image[2], b, cv2.addWeighted(image[0], r, image[1], g, 0))
    for plane, gain in zip(image, gains, strict=True):
        cv2.addWeighted(plane, keep * gain, luma, 1 - keep, 0, plane)


def lens(image: Plane, style: Style, look: np.random.Generator) -> Plane:
    """Blur the image and return the vignette [H, W], the share of light that reaches the sensor."""
    height, width = image.shape[1:]
    sigma, dark = max(0.0, draw(look, style.blur)) * width / 512, max(0.0, draw(look, style.vignette))
    if sigma > 0.12:
        side = 2 * math.ceil(3 * sigma) + 1
        for plane in image:
            cv2.GaussianBlur(plane, (side, side), sigma, plane)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return np.asarray(1 - np.float32(0.5 * dark) * (x * x + y * y), np.float32)


def develop(plane: Plane, specks: Plane, shade: Plane, gamma: float, noise: float) -> NDArray[np.uint8]:
    """Convert a plane [H, W] of light to sensor values: times `shade`, with knee, gamma and noise.

    The knee compresses values above 0.8, as sensors do, by a parabola that reaches 1 with slope 0 at 1.2. Shot noise
    grows with the square root of the light.
    """
    plane *= shade
    limited(plane, 1.2)
    bright = limited(plane - np.float32(0.8), 1.0)
    bright *= bright
    cv2.scaleAdd(bright, -1.25, plane, plane)
    cv2.pow(plane, gamma, plane)
    if noise > 0:
        root = plane + np.float32(0.05)
        np.sqrt(root, out=root)
        root *= specks
        cv2.scaleAdd(root, noise, plane, plane)
        cv2.threshold(plane, 0, 0, cv2.THRESH_TOZERO, plane)
    return np.asarray(cv2.convertScaleAbs(plane, alpha=255), np.uint8)
