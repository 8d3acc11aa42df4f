"""Pictures show the right colours in the right places, and are written whole or not at all."""

from __future__ import annotations

import numpy as np

from uda_seg.visualize.pictures import Captioned, Row, colorize, confusion_heat, heat, legend, overlay, panel_grid

PALETTE = ((128, 64, 128), (0, 0, 142))


def flat(colour: tuple[int, int, int], height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_colorize_paints_classes_and_leaves_the_rest_black():
    painted = colorize(np.array([[0, 1], [255, 2]], np.uint8), PALETTE)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[128, 64, 128], [0, 0, 142]], [[0, 0, 0], [0, 0, 0]]]


def test_overlay_blends():
    image, colour = flat((200, 100, 0)), flat((0, 100, 200))
    assert overlay(image, colour, 0.25)[0, 0].tolist() == [150, 100, 50]
    assert np.array_equal(overlay(image, colour, 0.0), image)
    assert np.array_equal(overlay(image, colour, 1.0), colour)


def test_heat_runs_from_violet_to_yellow_and_greys_what_is_unknown():
    low, high, below, above, unknown = heat(np.array([[0.0, 1.0, -3.0, 7.0, np.nan]]))[0].astype(int)
    assert low[2] > low[1]  # violet: blue over green
    assert high[0] > 200 > high[2]  # yellow: red, hardly blue
    assert high[1] > 200
    assert below.tolist() == low.tolist()
    assert above.tolist() == high.tolist()
    assert unknown.tolist() == [160, 160, 160]


def test_panel_keeps_every_picture_whole():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    rows = [
        Row("target 0", [Captioned("image", flat(colours[0])), Captioned("prediction", flat(colours[1]))]),
        Row("target 1", [Captioned("image", flat(colours[2], 40, 40))]),
    ]
    sheet = panel_grid(rows, height=40)
    for colour, width in zip(colours, (60, 60, 40), strict=True):
        assert (sheet == colour).all(-1).sum() == 40 * width
    dark = (sheet < 80).all(-1)
    assert dark.sum() > 50  # captions and names are there
    first = np.argwhere((sheet == colours[0]).all(-1)).min(0)
    assert dark[: first[0]].any()  # above the picture: its caption
    assert dark[first[0] :, : first[1]].any()  # left of it: the row's name


def test_panel_without_words_has_no_room_for_them():
    sheet = panel_grid([Row("", [Captioned("", flat((9, 9, 9)))])], height=20, gap=4)
    assert sheet.shape == (28, 38, 3)


def test_long_captions_do_not_reach_the_next_picture():
    long = Captioned("w" * 200, flat((200, 0, 0)))
    short = Captioned("", flat((0, 200, 0)))
    sheet = panel_grid([Row("", [long, short])], height=40)
    column = np.argwhere((sheet == (0, 200, 0)).all(-1))[:, 1].min()
    assert (sheet[:28, column:] == 255).all()


def test_legend_has_every_colour_and_wraps():
    wide, narrow = (legend(("road", "car"), PALETTE, width) for width in (400, 70))
    assert narrow.shape[0] > wide.shape[0]
    for picture in (wide, narrow):
        assert all((picture == colour).all(-1).sum() > 100 for colour in PALETTE)


def test_confusion_heat_is_dark_where_the_pixels_are():
    confusion = np.array([[90, 10, 0], [0, 0, 0], [0, 0, 5]], np.int64)
    cell = 40
    picture = confusion_heat(confusion, ("road", "car", "sky"), cell)
    left, top = picture.shape[1] - 12 - 3 * cell, picture.shape[0] - 12 - 3 * cell
    corner = picture[top + 2 :: cell, left + 2 :: cell].astype(int).sum(-1)[:3, :3]
    assert corner[0, 0] < corner[0, 1] < corner[0, 2]
    assert corner[2, 2] < corner[0, 0]
    assert len(set(corner[1].tolist())) == 1  # no pixel of "car": the row is grey
    assert picture[top + 2 + cell, left + 2].tolist() == [226, 229, 233]
