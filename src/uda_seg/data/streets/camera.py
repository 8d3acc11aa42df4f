"""The pinhole camera and the projection of many parallelograms at once.

World axes: X right, Y down (the road is Y = 0, so up is negative), Z along the street. Pixel (u, v) of an image is the
point with exactly these coordinates, its centre; ``depth`` is the z coordinate in the camera frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NEAR = 0.4  # metres; nothing nearer is drawn


@dataclass(frozen=True)
class Camera:
    """Intrinsics [3, 3], camera-to-world rotation [3, 3] and position [3]."""

    intrinsics: Floats
    rotation: Floats
    position: Floats

    @property
    def pose(self) -> Floats:
        """Camera-to-world matrix [4, 4]."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.rotation, self.position
        return pose

    def moved(self, offset: Floats, yaw: float = 0.0) -> Camera:
        """The same camera shifted by ``offset`` in its own frame, then turned by ``yaw`` radians."""
        return Camera(self.intrinsics, self.rotation @ rotation(yaw), self.position + self.rotation @ offset)

    def rays(self, size: tuple[int, int], first_row: int = 0) -> tuple[NDArray[np.float32], ...]:
        """World directions (dx, dy, dz), each [H - first_row, W], scaled so that the ray's parameter is the depth."""
        height, width = size
        matrix = self.rotation @ np.linalg.inv(self.intrinsics)
        u = np.arange(width, dtype=np.float32)
        v = np.arange(first_row, height, dtype=np.float32)[:, None]
        return tuple(np.float32(m[0]) * u + (np.float32(m[1]) * v + np.float32(m[2])) for m in matrix)

    def horizon(self, width: int) -> tuple[float, float]:
        """Rows at which the left-most and the right-most pixel column look exactly level."""
        row = (self.rotation @ np.linalg.inv(self.intrinsics))[1]
        return (-row[2] / row[1], -(row[2] + row[0] * (width - 1)) / row[1])


def rotation(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Floats:
    """Camera-to-world rotation of yaw (right), pitch (down) and roll, in radians."""
    cy, sy, cp, sp, cr, sr = (
        np.cos(yaw),
        np.sin(yaw),
        np.cos(pitch),
        np.sin(pitch),
        np.cos(roll),
        np.sin(roll),
    )
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(turn @ nod @ tilt)


def intrinsics(field_of_view: float, size: tuple[int, int]) -> Floats:
    """Square pixels, principal point in the image's centre; ``field_of_view`` is horizontal, in degrees."""
    height, width = size
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


@dataclass(frozen=True)
class Projection:
    """What the rasteriser needs of the visible parallelograms.

    Attributes:
        index: [n] which of the given ones, far to near.
        matrix: [n, 3, 3] maps (u, v, 1) to (s/t, r/t, 1/t) with the plane coordinates s, r and the depth t.
        box: [n, 4] int, the screen box x0, y0, x1, y1 (exclusive).
        extent: [n, 2] width and height of the unclipped image, in pixels.
        polygon: n arrays [k, 2], the outline in pixels after the near clip.
    """

    index: NDArray[np.int64]
    matrix: Floats
    box: NDArray[np.int64]
    extent: Floats
    polygon: list[Floats]


def _clip_near(corners: Floats) -> Floats:
    """Clip a polygon of camera points [4, 3] at the near plane (Sutherland-Hodgman)."""
    kept = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(kept)


def project(
    camera: Camera, size: tuple[int, int], origin: Floats, u: Floats, v: Floats, smallest: float = 1.6
) -> Projection:
    """Project parallelograms origin + s u + r v, 0 <= s, r <= 1 (each [n, 3], world) and cull what cannot be seen.

    Those that measure less than ``smallest`` pixels along their longer side are dropped.
    """
    height, width = size
    to_camera, k = camera.rotation.T, camera.intrinsics
    base, du, dv = (origin - camera.position) @ to_camera.T, u @ to_camera.T, v @ to_camera.T
    corners = np.stack([base, base + du, base + du + dv, base + dv], axis=1)  # [n, 4, 3]
    depth = corners[..., 2]
    seen = (depth > NEAR).any(1)
    safe = np.maximum(depth, 1e-6)
    pixels = corners[..., :2] / safe[..., None] * k[0, 0] + k[:2, 2]
    low, high = pixels.min(1), pixels.max(1)
    cut = seen & (depth <= NEAR).any(1)
    outline = list(pixels)
    for i in np.flatnonzero(cut):
        clipped = _clip_near(corners[i])
        outline[i] = clipped[:, :2] / clipped[:, 2:] * k[0, 0] + k[:2, 2]
        low[i], high[i] = outline[i].min(0), outline[i].max(0)
    extent = high - low
    seen &= (high[:, 0] >= 0) & (low[:, 0] <= width - 1) & (high[:, 1] >= 0) & (low[:, 1] <= height - 1)
    seen &= extent.max(1) >= smallest
    plane = np.stack([du, dv, base], axis=2)  # columns: s, r, 1
    seen &= np.abs(np.linalg.det(plane)) > 1e-6  # seen edge-on
    index = np.flatnonzero(seen)
    index = index[np.argsort(-depth[index].mean(1), kind="stable")]
    matrix = np.linalg.inv(plane[index]) @ np.linalg.inv(k)
    box = np.concatenate([np.floor(low[index]), np.ceil(high[index]) + 1], axis=1)
    box = np.clip(box, 0, [width, height, width, height]).astype(np.int64)
    return Projection(index, matrix, box, extent[index], [outline[i] for i in index])
