"""Sheets of maps: what is drawn where, and the legend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from uda_seg.data.labels import CITYSCAPES
from uda_seg.visualize.maps import Heat, draw_maps

LABEL = torch.tensor([[0, 10], [10, 255]], dtype=torch.uint8).repeat_interleave(32, 0).repeat_interleave(32, 1)
PLACES = {(0.2, 0.2): (128, 64, 128), (0.8, 0.2): (70, 130, 180), (0.8, 0.8): (0, 0, 0)}  # road, sky, none


def test_a_label_is_drawn_in_its_classes_colours_and_named(monkeypatch):
    named = []
    legend = Figure.legend
    monkeypatch.setattr(
        Figure, "legend", lambda self, handles, **how: named.extend(handles) or legend(self, handles=handles, **how)
    )
    picture = np.array(draw_maps({"label": LABEL, "values": torch.rand(8, 8), "none": None}, classes=CITYSCAPES))
    assert [patch.get_label() for patch in named] == ["road", "sky"]
    painted = (picture[..., :3] == (70, 130, 180)).all(-1)
    rows, columns = np.nonzero(painted[: int(0.8 * len(painted))])
    top, right = rows.min(), columns.max()
    side = 2 * (right - columns[rows == top].min() + 1)
    for (x, y), colour in PLACES.items():
        assert tuple(picture[int(top + y * side), int(right + 1 - side + x * side), :3]) == colour


def test_images_masks_and_ranges_are_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", seen(drawn))
    row = {
        "image": torch.full((3, 4, 6), 0.5),
        "bytes": np.full((4, 6, 3), 7, np.uint8),
        "mask": torch.ones(4, 6, dtype=torch.bool),
        "cosine": Heat(torch.zeros(4, 6), -1, 1, "coolwarm"),
    }
    draw_maps(row, {"mask": row["mask"]}, classes=CITYSCAPES)
    assert [array.shape for array, _ in drawn] == [(4, 6, 3), (4, 6, 3), (4, 6), (4, 6), (4, 6)]
    assert int(drawn[0][0][0, 0, 0]) == 128
    assert (drawn[3][1]["vmin"], drawn[3][1]["vmax"]) == (-1, 1)


def seen(drawn):
    from matplotlib.axes import Axes

    imshow = Axes.imshow

    def draw(self, array, **how):
        drawn.append((array, how))
        return imshow(self, array, **how)

    return draw


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match=r"float32 \[2, 4, 4\]"):
        draw_maps({"features": torch.rand(2, 4, 4)}, classes=CITYSCAPES)
    with pytest.raises(ValueError, match=r"vector: a map of float32 \[4\]"):
        draw_maps({"image": torch.rand(3, 4, 4), "vector": torch.rand(4)}, classes=CITYSCAPES)
