"""Rendering of an image as a pure function of (seed, domain, index, size, view)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.bank import Bank, build_bank
from uda_seg.data.streets.camera import Camera, intrinsics, rotation
from uda_seg.data.streets.ground import ground_paint
from uda_seg.data.streets.raster import draw_background, draw_quads
from uda_seg.data.streets.scene import build_scene
from uda_seg.data.streets.sensor import expose
from uda_seg.data.streets.sky import sky_paint
from uda_seg.data.streets.styles import draw, generator, style_of
from uda_seg.errors import UserError

VIEWS = ("left", "right", "previous", "next")
BASELINE = 0.5  # metres between the left and the right camera
STRIDE = 0.8  # camera motion between frames in metres
BANKS = 4  # texture banks per world and domain; a scene uses one of them


@dataclass(frozen=True)
class Frame:
    """A rendered image with its ground truth.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        label: uint8 [H, W], Cityscapes train ids, 255 on the ego car.
        depth: float32 [H, W], metres along the optical axis; inf in the sky, 0 on the ego car.
        intrinsics: float64 [3, 3], pixels; integer coordinates are pixel centres.
        pose: float64 [4, 4], camera to world (X right, Y down, Z along the street).
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    depth: NDArray[np.float32]
    intrinsics: NDArray[np.float64]
    pose: NDArray[np.float64]


def render(seed: int, domain: str, index: int, size: tuple[int, int], view: str = "left") -> Frame:
    """Render scene `index` of a domain.

    Args:
        seed: seed of the world.
        domain: game, camera, night_rain, random; game_alike and camera_alike, where road, pavement and grass have one
            look; or `name:t` for strength t in [0, 1] between game and that domain.
        index: index of the scene, >= 0.
        size: height and width in pixels.
        view: `left`; `right`, its stereo partner; `previous` and `next`, one frame earlier or later.

    Raises:
        UserError: unknown domain or view.
    """
    if view not in VIEWS:
        raise UserError(f"streets has no view '{view}': use one of {', '.join(VIEWS)}")
    style = style_of(domain)
    plan, look = generator(seed, domain, 1, index), generator(seed, domain, 2, index)
    bank = texture_bank(seed, domain, int(plan.integers(BANKS)))
    scene, paint = build_scene(style, bank, plan), ground_paint(style, bank.grain, plan)
    sky = sky_paint(style, plan)
    camera = place_camera(size, scene.layout.lane_width * (-scene.layout.hand), plan, domain)
    frames = {"previous": -1.0, "next": 1.0}.get(view, 0.0)
    turn = float(look.normal(0, 0.004))
    camera = camera.moved(np.array([BASELINE if view == "right" else 0.0, 0.0, STRIDE * frames]), turn * frames)
    canvas = draw_background(camera, size, scene, paint, sky)
    draw_quads(canvas, camera, scene.quads, frames)
    image = expose(canvas, style, look, generator(seed, domain, 3, index, VIEWS.index(view)))
    with np.errstate(divide="ignore"):
        depth = np.float32(1) / canvas.inverse
    return Frame(image, canvas.label, depth, camera.intrinsics, camera.pose)


@lru_cache(maxsize=16)
def texture_bank(seed: int, domain: str, number: int) -> Bank:
    """Build the textures of a bank, which takes a fraction of a second, and cache them."""
    return build_bank(style_of(domain), generator(seed, domain, 0, number))


def place_camera(size: tuple[int, int], lane: float, rng: np.random.Generator, domain: str) -> Camera:
    """Place the ego car's camera in its lane."""
    style = style_of(domain)
    matrix = intrinsics(draw(rng, style.field_of_view), size)
    pitch, yaw, roll = np.radians([draw(rng, style.pitch), rng.normal(0, 1.2), rng.normal(0, 0.4)])
    position = np.array([lane / 2 + float(rng.normal(0, 0.25)), -draw(rng, style.camera_height), 0.0])
    return Camera(matrix, rotation(yaw, pitch, roll), position)
