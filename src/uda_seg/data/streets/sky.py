"""Sky rendering: a gradient with clouds, dithered against banding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.ground import LEVELS, Plane, as_bytes, limited
from uda_seg.data.streets.styles import Style, colour, draw


@dataclass(frozen=True)
class Sky:
    """Parameters of a sky: colours at zenith and horizon [3], clouds on a grid [7, 11] and their cover."""

    top: Plane
    low: Plane
    clouds: Plane
    cover: np.float32
    dither: np.random.Generator


def sky_paint(style: Style, rng: np.random.Generator) -> Sky:
    """Sample the sky's colours and clouds."""
    top, low = (np.array(colour(rng, p), np.float32) for p in (style.sky_top, style.sky_low))
    cover = np.float32(max(0.0, draw(rng, style.clouds)) - 0.3)
    grid = rng.normal(0, 1, (7, 11)).astype(np.float32) + 0.5 * rng.normal(0, 1, (7, 11)).astype(np.float32)
    return Sky(top, low, grid * np.float32(0.5), cover, rng.spawn(1)[0])


def draw_sky(sky: Sky, size: tuple[int, int], rows: int) -> NDArray[np.uint8]:
    """Draw the upper rows of the sky, [rows, W, 3] in the scale of `as_bytes`; dull skies saturate to white."""
    height, width = size
    ramp = np.minimum(np.linspace(0, 1 / 0.55, height, dtype=np.float32)[:rows], 1)[:, None]
    resized = cv2.resize(sky.clouds, (width, height), interpolation=cv2.INTER_CUBIC)[:rows]
    clouds = np.asarray(resized, np.float32)
    clouds += sky.cover
    limited(clouds, 1.0)
    dither = np.float32(0.4 / LEVELS) * shot_noise(size, sky.dither)[:rows]  # against banding of the 8-bit canvas
    planes = []
    for start, end in zip(sky.top, sky.low, strict=True):
        clear = start + (end - start) * ramp
        plane = clouds * (end * np.float32(1.02) - clear)
        plane += clear
        plane += dither
        planes.append(plane)
    return as_bytes(planes)


def shot_noise(shape: tuple[int, ...], grain: np.random.Generator) -> Plane:
    """Sample unit Gaussian noise of a shape, from the precomputed bank if it is large enough."""
    count, bank = int(np.prod(shape)), noise_bank()
    if count >= len(bank) // 2:
        return grain.standard_normal(shape, dtype=np.float32)
    start = int(grain.integers(len(bank) - count))
    return bank[start : start + count].reshape(shape)


@lru_cache(maxsize=1)
def noise_bank() -> NDArray[np.float32]:
    """Compute unit Gaussian noise, which is read from random offsets."""
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
