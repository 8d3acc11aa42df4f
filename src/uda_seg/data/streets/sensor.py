"""From radiance to a photograph: air, night lights, wet road, lens, white balance, noise, bonnet, JPEG."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.camera import Camera
from uda_seg.data.streets.raster import SKY, Canvas
from uda_seg.data.streets.scene import Scene
from uda_seg.data.streets.styles import draw
from uda_seg.data.streets.textures import RNG, Floats32, sensor_noise

HOOD = 255  # the ego car has no class
LUMA = np.float32([0.299, 0.587, 0.114])


def photograph(canvas: Canvas, scene: Scene, camera: Camera, fixed: RNG, noise: RNG) -> NDArray[np.uint8]:
    """Turn radiance into an image [H, W, 3] uint8; marks the bonnet in the canvas's label (`HOOD`) and depth (0).

    Args:
        canvas: Radiance, label, inverse depth; label and inverse depth are changed under the bonnet.
        scene: What is seen.
        camera: From where.
        fixed: Draws what all views of a scene share: air, exposure, lens.
        noise: Draws what every view has for itself: the sensor's noise, drops of rain.
    """
    style, colour = scene.style, canvas.colour
    height, width = canvas.label.shape
    scale = width / 512
    lamp, head, wet = (draw(fixed, r) for r in (style.lamp_light, style.headlight, style.wetness))
    if max(lamp, head) > 0:
        _artificial_light(canvas, scene, camera, lamp, head)
    if wet > 0:
        _reflect(canvas, camera, wet)
    transmission = cv2.exp(np.float32(-draw(fixed, style.haze)) / np.maximum(canvas.inverse, np.float32(1 / 300)))
    transmission[canvas.label == SKY] = 1
    air = np.float32(scene.sky_low) * np.float32(0.9)
    colour = air + (colour - air) * transmission[..., None]
    colour = cv2.transform(colour, _grading(scene, fixed))
    blur = draw(fixed, style.blur) * scale
    if blur > 0.2:
        colour = cv2.GaussianBlur(colour, (0, 0), blur)
    colour *= _vignette(height, width, draw(fixed, style.vignette))[..., None]
    rain = draw(fixed, style.rain)
    gamma, sigma, quality = draw(fixed, style.gamma), draw(fixed, style.noise), draw(fixed, style.jpeg)
    hood = draw(fixed, style.hood)
    if hood > 0:
        _bonnet(canvas, colour, hood, fixed)
    if rain > 0:
        _drops(colour, rain, noise)
    np.clip(colour, 0, 4, out=colour)
    colour = cv2.pow(colour, gamma)
    bright = np.maximum(colour - np.float32(0.8), 0)  # soft knee above 0.8
    colour -= bright * bright / (bright + np.float32(0.2))
    if sigma > 0:
        grain = _window(sensor_noise(), noise, height, width)
        colour += cv2.sqrt(np.maximum(colour, np.float32(0.05))) * (grain * np.float32(1.3 * sigma))
    image: NDArray[np.uint8] = cv2.convertScaleAbs(np.clip(colour, 0, 1, out=colour), alpha=255.0).astype(np.uint8)
    if quality < 97:
        _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
        image = np.ascontiguousarray(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)[..., ::-1])
    return image


def _grading(scene: Scene, rng: RNG) -> Floats32:
    """Exposure, white balance and saturation as one colour matrix."""
    style = scene.style
    warm, green = draw(rng, style.warmth), draw(rng, style.green)
    gains = draw(rng, style.exposure) * np.array([1 + warm / 2, 1 + green, 1 - warm / 2])
    saturation = draw(rng, style.saturation)
    mix = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
    return np.asarray(mix * gains[:, None], dtype=np.float32)


def _artificial_light(canvas: Canvas, scene: Scene, camera: Camera, lamp: float, head: float) -> None:
    """Pools of street light along the road and the cone of the headlights."""
    height, width = canvas.label.shape
    depth = 1 / np.maximum(canvas.inverse, np.float32(1 / 300))
    u = np.linspace(-1, 1, width, dtype=np.float32)
    v = (np.arange(height, dtype=np.float32)[:, None] - np.float32(camera.horizon(width)[0])) / height
    pools = np.float32(lamp) * (np.float32(0.6) + np.float32(0.4) * np.sin(depth * np.float32(2 * np.pi / 14)))
    cone = np.exp(-(u * u) / np.float32(0.6) - np.square(np.minimum(v, 0) / np.float32(0.25)))
    beam = np.float32(head) * cone / (1 + np.square(depth / np.float32(16)))
    gain = 1 + (pools + beam) / np.float32(scene.ambient)
    gain[canvas.label == SKY] = 1
    canvas.colour *= gain[..., None]


def _reflect(canvas: Canvas, camera: Camera, wet: float) -> None:
    """Mirror what stands above the horizon in the wet ground, smeared along the vertical."""
    height, width = canvas.label.shape
    horizon = int(np.clip(camera.horizon(width)[0], 4, height - 4))
    rows = np.clip(2 * horizon - np.arange(horizon, height), 0, height - 1)
    mirror = cv2.blur(canvas.colour[rows], (3, max(3, height // 12)))
    ground = canvas.label[horizon:] <= 1
    strength = np.float32(wet) * np.linspace(0.9, 0.35, height - horizon, dtype=np.float32)[:, None] * ground
    view = canvas.colour[horizon:]
    view *= (1 - np.float32(0.6) * strength)[..., None]
    view += strength[..., None] * np.float32(0.7) * mirror


def _vignette(height: int, width: int, strength: float) -> Floats32:
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return np.float32(1) - np.float32(strength / 2) * (x * x + y * y)


def _bonnet(canvas: Canvas, colour: Floats32, share: float, rng: RNG) -> None:
    height, width = canvas.label.shape
    x = np.linspace(-1, 1, width, dtype=np.float32)
    top = height * (1 - np.float32(share) * (1 - np.float32(0.45) * x**4))
    row = np.arange(height, dtype=np.float32)[:, None]
    under = row > top
    shine = np.float32(rng.uniform(0.02, 0.12)) * (np.float32(1.4) - (row - top) / (height * share))
    colour[under] = np.broadcast_to(np.clip(shine, 0.01, 1)[..., None], colour.shape)[under]
    canvas.label[under] = HOOD
    canvas.inverse[under] = np.inf


def _drops(colour: Floats32, strength: float, rng: RNG) -> None:
    """Streaks of rain between the camera and the street."""
    height, width = colour.shape[:2]
    grain = _window(sensor_noise(), rng, height, width)[..., 0]
    streaks = cv2.blur(np.maximum(grain - np.float32(2.2), 0), (1, max(3, height // 14)))
    colour += (streaks * np.float32(12 * strength))[..., None]


def _window(bank: Floats32, rng: RNG, height: int, width: int) -> Floats32:
    """A random crop of the noise bank, tiled where the image is larger."""
    if height > bank.shape[0] // 2 or width > bank.shape[1] // 2:
        return rng.standard_normal((height, width, 3), dtype=np.float32)
    top, left = int(rng.integers(bank.shape[0] - height)), int(rng.integers(bank.shape[1] - width))
    return bank[top : top + height, left : left + width]
