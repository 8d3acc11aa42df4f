"""Visualisations, RGB uint8 [H, W, 3]: coloured labels, heat maps, captioned panels, confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = NDArray[np.uint8]

INK, FAINT, PAPER = (33, 37, 41), (120, 126, 133), (255, 255, 255)


class Captioned(NamedTuple):
    """A picture of a panel: an RGB image uint8 [H, W, 3] and its caption."""

    caption: str
    image: RGB


class Row(NamedTuple):
    """A row of a panel: a name written vertically at the left ("" = none) and its pictures."""

    name: str
    images: Sequence[Captioned]


def colorize(label: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> RGB:
    """Map class ids [H, W] to RGB colours; ids beyond the palette (255 = ignore) are black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    painted: RGB = colours[label]
    return painted


def overlay(image: RGB, colour: RGB, alpha: float = 0.5) -> RGB:
    """Blend a picture over an image of the same size: (1 - alpha) * image + alpha * colour."""
    return _u8(cv2.addWeighted(image, 1.0 - alpha, colour, alpha, 0.0))


def mistakes(image: RGB, prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> RGB:
    """Paint wrong pixels red over the greyed image of the same size; pixels labelled 255 are not judged."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, 2)
    wrong = (prediction != label) & (label != 255)
    return _u8(np.where(wrong[..., None], np.array((214, 39, 40), np.uint8), grey // 2 + 96))


def heat(values: NDArray[np.floating]) -> RGB:
    """Map values [H, W] in [0, 1] to the viridis colour map (dark violet = 0, yellow = 1); NaN is grey."""
    grey = np.nan_to_num(np.clip(values, 0.0, 1.0)) * 255.0
    picture = cv2.applyColorMap(grey.round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return _u8(np.where(np.isnan(values)[..., None], 160, picture))


def panel_grid(rows: Sequence[Row], height: int = 256, gap: int = 8) -> RGB:
    """Arrange rows of captioned pictures on a white sheet.

    Args:
        rows: at least one row with one picture; rows may differ in length.
        height: height in pixels that every picture is scaled to, keeping its aspect ratio.
        gap: margin in pixels.
    """
    scaled = [[_to_height(c.image, height) for c in row.images] for row in rows]
    columns = max(len(row) for row in scaled)
    widths = [max(p.shape[1] for row in scaled for p in row[i : i + 1]) for i in range(columns)]
    side = 22 if any(row.name for row in rows) else 0
    strip = 22 if any(c.caption for row in rows for c in row.images) else 0
    lefts = [gap + side + sum(widths[:i]) + gap * i for i in range(columns)]
    pitch = strip + height + gap
    sheet = Image.new("RGB", (lefts[-1] + widths[-1] + gap, gap + pitch * len(rows)), PAPER)
    for top, row, pictures in zip(range(gap, gap + pitch * len(rows), pitch), rows, scaled, strict=True):
        if row.name:
            _write_upwards(sheet, row.name, (gap // 2, top + strip), (side, height))
        for left, width, (caption, _), picture in zip(lefts, widths, row.images, pictures, strict=False):
            _write(sheet, _fitted(caption, 15, width), (left, top + strip // 2 - 1), "lm")
            sheet.paste(Image.fromarray(picture), (left, top + strip))
    return np.array(sheet)


def legend(names: Sequence[str], palette: Sequence[tuple[int, int, int]], width: int = 1024) -> RGB:
    """Draw the classes' colours and names, wrapped to the width in pixels."""
    font, line, box = _font(14), 24, 16
    spots, x, y = [], 8, 8
    for name in names:
        extent = box + 6 + round(font.getlength(name)) + 18
        if x > 8 and x + extent > width:
            x, y = 8, y + line
        spots.append((x, y))
        x += extent
    sheet = Image.new("RGB", (width, y + line + 4), PAPER)
    draw = ImageDraw.Draw(sheet)
    for name, colour, (x, y) in zip(names, palette, spots, strict=True):
        draw.rounded_rectangle((x, y, x + box, y + box), radius=3, fill=colour)
        draw.text((x + box + 6, y + box // 2), name, INK, font, anchor="lm")
    return np.array(sheet)


def bars(values: Mapping[str, float], colours: Sequence[tuple[int, int, int]] = (), width: int = 640) -> RGB:
    """Draw one horizontal bar per value, by name.

    Args:
        values: in [0, 1], written as percentages; NaN has no bar.
        colours: of the bars, e.g. the classes'; blue without.
        width: of the picture in pixels.
    """
    font, line = _font(14), 24
    left = 16 + round(max(font.getlength(name) for name in values))
    full = width - left - 60
    sheet = Image.new("RGB", (width, line * len(values) + 12), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (name, value) in enumerate(values.items()):
        middle = 6 + line * i + line // 2
        draw.text((left - 8, middle), name, INK, font, anchor="rm")
        if np.isnan(value):
            draw.text((left, middle), "none", FAINT, font, anchor="lm")
            continue
        end = left + round(full * min(max(value, 0.0), 1.0))
        draw.rectangle((left, middle - 8, end, middle + 8), fill=colours[i] if colours else (49, 130, 189))
        draw.text((end + 6, middle), f"{100 * value:.1f}", INK, font, anchor="lm")
    return np.array(sheet)


def confusion_heat(confusion: NDArray[np.int64], names: Sequence[str], cell: int = 40) -> RGB:
    """Draw a confusion matrix: cells are percentages of the row's label predicted as the column's class.

    Args:
        confusion: int64 [C, C] pixels, row = label, column = prediction. A row without pixels is grey.
        names: the C class names.
        cell: side of a cell in pixels.
    """
    total = confusion.sum(1, keepdims=True)
    share = np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    font, count = _font(15), len(names)
    margin = round(max(font.getlength(name) for name in names)) + 20
    head, left = margin + 30, margin + 26
    sheet = Image.new("RGB", (left + cell * count + 12, head + cell * count + 12), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        middle = cell * i + cell // 2
        draw.text((left - 8, head + middle), name, INK, font, anchor="rm")
        _write_upwards(sheet, name, (left + cell * i, head - margin), (cell, margin - 8), 15, bottom=True)
        for j in range(count):
            _draw_cell(draw, share[i, j], (left + cell * j, head + cell * i), cell)
    _write(sheet, "predicted class (percent of the labelled)", (left + cell * count // 2, 14), "mm", FAINT)
    _write_upwards(sheet, "labelled class", (2, head), (24, cell * count), colour=FAINT)
    return np.array(sheet)


def _draw_cell(draw: ImageDraw.ImageDraw, share: float, corner: tuple[int, int], cell: int) -> None:
    x, y = corner
    box = (x, y, x + cell - 2, y + cell - 2)
    if np.isnan(share):
        draw.rectangle(box, fill=(226, 229, 233))
        return
    # The square root makes small confusions, the interesting ones, visible against white.
    draw.rectangle(box, fill=_blue(float(np.sqrt(share))))
    percent = round(100 * share)
    if percent > 0:
        ink = PAPER if share > 0.3 else INK
        draw.text((x + cell / 2 - 1, y + cell / 2 - 1), str(percent), ink, _font(14), anchor="mm")


def _blue(value: float) -> tuple[int, int, int]:
    """Map [0, 1] to a colour from near white through blue to dark blue."""
    stops = np.array([(245, 247, 250), (158, 202, 225), (49, 130, 189), (8, 48, 107)], float)
    red, green, blue = (round(np.interp(value, [0.0, 0.4, 0.75, 1.0], stops[:, i])) for i in range(3))
    return int(red), int(green), int(blue)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(
    sheet: Image.Image,
    text: str,
    at: tuple[int, int],
    anchor: str,
    colour: tuple[int, int, int] = INK,
    size: int = 15,
) -> None:
    ImageDraw.Draw(sheet).text(at, text, colour, _font(size), anchor=anchor)


def _write_upwards(
    sheet: Image.Image,
    text: str,
    corner: tuple[int, int],
    box: tuple[int, int],
    size: int = 15,
    colour: tuple[int, int, int] = INK,
    *,
    bottom: bool = False,
) -> None:
    """Draw vertical text into a box (width, height), centred or starting at its bottom."""
    width, height = box
    lying = Image.new("RGB", (height, width), PAPER)
    start, anchor = (0, "lm") if bottom else (height // 2, "mm")
    _write(lying, _fitted(text, size, height), (start, width // 2), anchor, colour, size)
    sheet.paste(lying.transpose(Image.Transpose.ROTATE_90), corner)


def _fitted(text: str, size: int, width: int) -> str:
    """Truncate a text to the width in pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _to_height(image: RGB, height: int) -> RGB:
    """Scale to a height; up-scaling is by nearest neighbour, so that small labels stay sharp."""
    size = (max(1, round(image.shape[1] * height / image.shape[0])), height)
    return _u8(cv2.resize(image, size, interpolation=cv2.INTER_AREA if image.shape[0] > height else cv2.INTER_NEAREST))


def _u8(array: NDArray[np.generic] | cv2.Mat) -> RGB:
    return np.asarray(array, dtype=np.uint8)
