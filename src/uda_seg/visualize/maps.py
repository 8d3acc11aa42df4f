"""Sheets of images, labels and maps for notebooks, with colour bars and a legend of the classes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from uda_seg.data.labels import ClassSet
from uda_seg.visualize.pictures import RGB, colorize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 11.0, 100  # inches, and pixels per inch
LINE, TITLE, GAP = 0.23, 0.32, 0.12  # inches: of a legend, above a row, between columns


class Heat(NamedTuple):
    """A map [H, W] with its own range and colour map; NaN is grey.

    Attributes:
        values: [H, W].
        low: value of the first colour; None: the smallest value.
        high: value of the last colour; None: the largest value.
        colours: name of a colour map of matplotlib.
    """

    values: Tensor | NDArray[Any]
    low: float | None = None
    high: float | None = None
    colours: str = "viridis"


Map = Tensor | NDArray[Any] | Heat


def draw_maps(*rows: Mapping[str, Map | None], classes: ClassSet, columns: int | None = None) -> Image.Image:
    """Draw rows of captioned maps, and a legend of the classes that occur in the labels among them.

    The type of a map says what it is: float [3, H, W] in [0, 1] and uint8 [H, W, 3] are images, uint8 [H, W] are labels
    (255 = none, black), bool [H, W] is a mask, and other [H, W] are values, drawn with a colour bar.

    Args:
        rows: caption -> map; None leaves a place empty.
        classes: of the labels.
        columns: width of the sheet in maps; default: the longest row.

    Raises:
        ValueError: a map of another type or shape.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or max(len(row) for row in rows)
    maps = [value for row in rows for value in row.values() if value is not None]
    height, width = _size(maps[0])
    side = (WIDTH - GAP * (columns + 1)) / columns
    tall = min(side * height / width, 3.2)
    shown = sorted({int(c) for value in maps if _is_label(value) for c in np.unique(_array(value)) if c < len(classes)})
    lines = _lines([classes.names[c] for c in shown])
    total = len(rows) * (tall + TITLE) + LINE * len(lines) + GAP * (1 + bool(lines))
    figure = Figure(figsize=(WIDTH, total), dpi=DPI)
    for y, row in enumerate(rows):
        bottom = total - (y + 1) * (tall + TITLE)
        for x, (caption, value) in enumerate(row.items()):
            if value is not None:
                box = ((GAP + x * (side + GAP)) / WIDTH, bottom / total, side / WIDTH, tall / total)
                _draw(figure, box, caption, value, classes)
    _legend(figure, lines, classes, total)
    written = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(written, format="png")
    return Image.open(written)


def _draw(figure: Figure, box: tuple[float, float, float, float], caption: str, value: Map, classes: ClassSet) -> None:
    axes = figure.add_axes(box)
    axes.set_axis_off()
    letters = 16 * WIDTH * box[2]  # of size 9 that are as wide as the map
    axes.set_title(caption, fontsize=9 * min(1.0, letters / max(1, len(caption))), pad=3)
    array = _array(value)
    if array.ndim == 3:
        axes.imshow(_rgb(array))
    elif array.dtype == np.uint8:
        axes.imshow(colorize(array, classes.palette), interpolation="nearest")
    elif array.dtype == np.bool_:
        axes.imshow(array, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    elif array.ndim == 2:
        _heat(axes, value if isinstance(value, Heat) else Heat(array))
    else:
        raise ValueError(f"{caption}: a map of {array.dtype} {list(array.shape)} is neither image, label nor values")


def _heat(axes: Axes, heat: Heat) -> None:
    from matplotlib import colormaps

    colours = colormaps[heat.colours].with_extremes(bad="0.75")
    drawn = axes.imshow(_array(heat), cmap=colours, vmin=heat.low, vmax=heat.high, interpolation="nearest")
    inside = axes.inset_axes((0.03, 0.06, 0.03, 0.5))
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(drawn, cax=inside)
    low, high = bar.mappable.get_clim()
    bar.set_ticks([low, high], labels=[f"{low:.2g}", f"{high:.2g}"])
    bar.ax.tick_params(labelsize=7, length=0, pad=2)
    for text in bar.ax.get_yticklabels():
        text.set_bbox({"facecolor": "white", "alpha": 0.7, "pad": 0.8, "edgecolor": "none"})


def _lines(names: Sequence[str], letters: int = 190) -> list[list[str]]:
    """Break a legend into lines that fit the sheet."""
    lines: list[list[str]] = []
    used = letters
    for name in names:
        if used + len(name) + 6 > letters:
            lines.append([])
            used = 0
        lines[-1].append(name)
        used += len(name) + 6
    return lines


def _legend(figure: Figure, lines: Sequence[Sequence[str]], classes: ClassSet, total: float) -> None:
    from matplotlib.patches import Patch

    colours = dict(zip(classes.names, classes.palette, strict=True))
    for number, names in enumerate(lines):
        patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*colours[name]), label=name) for name in names]
        place = (0.5, (LINE * (len(lines) - number - 0.5) + 0.04) / total)
        legend = figure.legend(
            handles=patches, loc="center", bbox_to_anchor=place, ncols=len(names), frameon=False, fontsize=8,
            handlelength=1.0, handleheight=0.9, columnspacing=1.1, handletextpad=0.4,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)  # names are written as they are


def _array(value: Map) -> NDArray[Any]:
    """Return the plain array of a map."""
    values = value.values if isinstance(value, Heat) else value
    array: NDArray[Any] = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array


def _size(value: Map) -> tuple[int, int]:
    array = _array(value)
    size = array.shape if array.ndim == 2 or array.shape[-1] == 3 else array.shape[1:]
    return int(size[0]), int(size[1])


def _is_label(value: Map) -> bool:
    array = _array(value)
    return array.dtype == np.uint8 and array.ndim == 2


def _rgb(array: NDArray[Any]) -> RGB:
    """Convert an image [3, H, W] in [0, 1], or [H, W, 3] of 8 bits, to 8 bits [H, W, 3]."""
    if array.dtype == np.uint8 and array.shape[-1] == 3:
        return array
    if array.shape[0] != 3:
        raise ValueError(f"an image of {array.dtype} {list(array.shape)}: give float [3, H, W] or uint8 [H, W, 3]")
    return (array.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
