"""Parallelograms on the screen: what shines brighter than the canvas can hold."""

from __future__ import annotations

import numpy as np
import pytest

from uda_seg.data.streets.camera import Camera, intrinsics
from uda_seg.data.streets.plan import BUILDING, POLE, SKY
from uda_seg.data.streets.raster import BRIGHTEST, Canvas, draw_quads
from uda_seg.data.streets.stage import FLAT, Quads
from uda_seg.data.streets.textures import Mips

HEIGHT, WIDTH = 32, 64
CUTOUT: Mips = (np.full((16, 16, 4), 255, np.uint8),)  # could have holes: drawn after the lamp, not before


@pytest.mark.parametrize("cover", [FLAT, CUTOUT], ids=["surface", "cutout"])
def test_lamp_shines_only_where_nothing_hides_it(cover: Mips) -> None:
    canvas = Canvas(
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        np.full((HEIGHT, WIDTH), SKY, np.uint8),
        np.zeros((HEIGHT, WIDTH), np.float32),
    )
    camera = Camera(intrinsics(90.0, (HEIGHT, WIDTH)), np.eye(3), np.zeros(3))
    quads, down = Quads(), (0.0, 1.0, 0.0)
    quads.add((-2.0, -0.5, 4.0), (4.0, 0.0, 0.0), down, FLAT, POLE, light=3.0)  # the lamp, 4 m away
    quads.add((-2.0, -1.0, 2.0), (2.0, 0.0, 0.0), (0.0, 2.0, 0.0), cover, BUILDING)  # hides its left half
    draw_quads(canvas, camera, quads, 0.0)
    assert canvas.glow is not None
    # Pinhole by hand: focal length 32, centre (31.5, 15.5); the lamp spans columns 15.5-47.5 and rows 11.5-19.5.
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    shown = (u >= 33) & (u <= 46) & (v >= 13) & (v <= 18)
    near_edge = (u >= 31) & (u <= 49) & (v >= 11) & (v <= 20)
    assert np.allclose(canvas.glow[shown], 3.0 / BRIGHTEST)
    assert (canvas.glow[~near_edge] == 1).all()
    assert (canvas.label[shown] == POLE).all()
    assert (canvas.label[13:19, 17:30] == BUILDING).all()
