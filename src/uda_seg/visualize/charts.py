"""Charts of features, prototypes and confidences by class, drawn by matplotlib as RGB uint8 [H, W, 3].

Names of classes are written as they are: nothing in them is read as mathematics, and signs that no installed font has
become boxes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.labels import ClassSet
from uda_seg.visualize.pictures import RGB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]
INK, FAINT = "#212529", "#787e85"
DPI = 110
SEED = 0  # of t-SNE


def _figure(width: float, height: float) -> Figure:
    """Create a figure of this size in inches without touching matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _rgb(figure: Figure) -> RGB:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from .*font.*")
        figure.canvas.draw()
    pixels: RGB = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    return pixels


def _colour(classes: ClassSet, index: int) -> tuple[float, float, float]:
    red, green, blue = classes.palette[index]
    return red / 255, green / 255, blue / 255


def _plain(axes: Axes, title: str, size: int = 9) -> None:
    axes.set_title(title, fontsize=size, color=INK, parse_math=False)
    axes.tick_params(labelsize=7, colors=FAINT, length=2)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#ced4da")


# ---------------------------------------------------------------------- confidence


@dataclass(frozen=True)
class Confidence:
    """Pixels by predicted class and confidence, the largest softmax value, in B equal bins of [0, 1].

    Attributes:
        pixels: int64 [K, B], labelled pixels.
        right: int64 [K, B], those whose label is the predicted class.
    """

    pixels: NDArray[np.int64]
    right: NDArray[np.int64]


def confidence_chart(counted: Confidence, classes: ClassSet, threshold: float | None, title: str) -> RGB:
    """Draw one small chart per predicted class: how confident its pixels are (bars), and how often right (dots).

    On the dashed diagonal, confidence would be accuracy.

    Args:
        counted: of the predictions.
        classes: names and colours.
        threshold: confidence from which pseudo-labels count as sure; None: without a line.
        title: above all.
    """
    shown = [c for c in range(len(classes)) if counted.pixels[c].sum() > 0]
    rows = max(1, -(-len(shown) // 5))
    columns = max(1, -(-len(shown) // rows))
    width, height = 2.5 * columns + 0.4, 1.75 * rows + 0.95
    figure = _figure(width, height)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(0.5 / width, 0.5 / height, 1 - 0.15 / width, 1 - 0.75 / height, 0.12, 0.42)
    total = counted.pixels.sum()
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        c = shown[place]
        share, accuracy = counted.pixels[c].sum() / total, counted.right[c].sum() / counted.pixels[c].sum()
        _confidence_axes(axes, counted.pixels[c], counted.right[c], _colour(classes, c), threshold)
        axes.tick_params(labelbottom=place + columns >= len(shown))
        _plain(axes, f"{classes.names[c]}  {100 * accuracy:.0f} % right, {100 * share:.1f} % of all", 8)
    figure.suptitle(title, fontsize=10, color=INK, x=0.5, y=1 - 0.1 / height, va="top", parse_math=False)
    axis = "confidence" if threshold is None else f"confidence (red: from {threshold:g} on, a label counts as sure)"
    figure.supxlabel(axis, fontsize=8, color=FAINT, y=0.06 / height)
    return _rgb(figure)


def _confidence_axes(
    axes: Axes,
    pixels: NDArray[np.int64],
    right: NDArray[np.int64],
    colour: tuple[float, float, float],
    threshold: float | None,
) -> None:
    edges = np.linspace(0, 1, len(pixels) + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    axes.plot([0, 1], [0, 1], "--", color="#adb5bd", linewidth=0.8)
    axes.bar(middle, pixels / pixels.sum(), 0.92 / len(pixels), color=colour, edgecolor=INK, linewidth=0.4)
    known = pixels >= max(1, round(0.001 * pixels.sum()))
    axes.plot(middle[known], (right / np.maximum(pixels, 1))[known], "o-", color=INK, markersize=2.8, linewidth=0.9)
    if threshold is not None:
        axes.axvline(threshold, color="#e03131", linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.03)
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])


# ---------------------------------------------------------------------- prototypes


def prototype_chart(before: Floats, after: Floats, classes: ClassSet, shown: Sequence[int], title: str) -> RGB:
    """Draw cosines of source prototypes (rows) with target prototypes (columns), before and after a calibration.

    A third matrix shows the change, on a scale of its own: it should be red on the diagonal.

    Args:
        before: [K, K], in [-1, 1].
        after: [K, K].
        classes: names of the K classes.
        shown: the classes that have both prototypes; at least one.
        title: above both.
    """
    names = [classes.names[c] for c in shown]
    side, margin, gap = max(1.9, 0.24 * len(names)), 0.075 * max(map(len, names)) + 0.2, 0.95
    width, height = margin + 3 * (side + gap) - 0.1, side + margin + 0.72
    figure = _figure(width, height)
    chosen = [cosines[np.ix_(shown, shown)] for cosines in (before, after, after - before)]
    for place, (word, values) in enumerate(zip(("before calibration", "after", "change"), chosen, strict=True)):
        left = margin + place * (side + gap)
        axes = figure.add_axes((left / width, 0.4 / height, side / width, side / height))
        limit = 1.0 if place < 2 else max(1e-6, float(np.abs(values).max()))
        image = axes.imshow(values, vmin=-limit, vmax=limit, cmap="RdBu_r")
        _matrix_axes(axes, names if place == 0 else [""] * len(names), names)
        sign = "+" if place == 2 else ""
        said = f"{word}: {float(np.mean(np.diag(values))):{sign}.3f} on the diagonal"
        axes.set_xlabel(said, fontsize=9, color=INK, labelpad=6)
        bar = figure.add_axes(((left + side + 0.08) / width, 0.4 / height, 0.12 / width, side / height))
        figure.colorbar(image, cax=bar).ax.tick_params(labelsize=7, colors=FAINT, length=2)
    figure.suptitle(title, fontsize=10, color=INK, x=0.5, y=1 - 0.1 / height, va="top", parse_math=False)
    return _rgb(figure)


def _matrix_axes(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=INK)
    for i in range(len(columns)):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=0.8))
    for spine in axes.spines.values():
        spine.set_color("#ced4da")


# ---------------------------------------------------------------------- features


@dataclass(frozen=True)
class PixelFeatures:
    """Features of labelled pixels of one domain, and its prototypes.

    Attributes:
        values: float [N, D].
        labels: int [N], the classes.
        prototypes: float [K, D], mean feature of every class.
        present: bool [K], whether a class has a pixel.
    """

    values: Floats
    labels: NDArray[np.integer[Any]]
    prototypes: Floats
    present: NDArray[np.bool_]


def feature_map(source: PixelFeatures, target: PixelFeatures, classes: ClassSet, title: str) -> RGB:
    """Draw two maps of pixel features and prototypes, by PCA and by t-SNE, coloured by class and marked by domain.

    Features are compared at unit length. t-SNE (van der Maaten and Hinton 2008), whose distances between groups mean
    little, has a fixed seed.
    """
    points, labels, target_from = _stacked(source, target)
    figure = _figure(13.0, 7.6)
    maps = {"PCA": _pca(points, 2), "t-SNE": _tsne(points)}
    for place, (word, plane) in enumerate(maps.items()):
        axes = figure.add_axes((0.015 + 0.49 * place, 0.125, 0.48, 0.79))
        _scatter(axes, plane, labels, target_from, (len(source.values), len(target.values)), classes)
        _plain(axes, word, 10)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
    figure.suptitle(title, fontsize=11, color=INK, y=0.985, parse_math=False)
    _feature_legend(figure, sorted({int(c) for c in labels}), classes)
    return _rgb(figure)


def _stacked(source: PixelFeatures, target: PixelFeatures) -> tuple[Floats, NDArray[np.int64], int]:
    """Stack unit features of pixels and prototypes, the source first: (features, classes, start of the target)."""
    parts, labels = [], []
    for domain in (source, target):
        parts += [domain.values, domain.prototypes[domain.present]]
        labels += [domain.labels, np.flatnonzero(domain.present)]
    values = np.concatenate(parts).astype(np.float64)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return values, np.concatenate(labels).astype(np.int64), len(parts[0]) + len(parts[1])


def _pca(points: Floats, width: int) -> Floats:
    from sklearn.decomposition import PCA

    found: Floats = PCA(min(width, *points.shape), svd_solver="full").fit_transform(points)
    return np.pad(found, ((0, 0), (0, width - found.shape[1])))


def _tsne(points: Floats) -> Floats:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    reduced = _pca(points, min(30, points.shape[1]))
    found: Floats = TSNE(2, perplexity=perplexity, init="random", random_state=SEED).fit_transform(reduced)
    return found


def _scatter(
    axes: Axes,
    plane: Floats,
    labels: NDArray[np.int64],
    target_from: int,
    pixels: tuple[int, int],
    classes: ClassSet,
) -> None:
    """Draw pixels small and prototypes large, the source's as circles and the target's as triangles."""
    colours = np.array(classes.palette, float)[labels] / 255
    for first, count, marker in ((0, pixels[0], "o"), (target_from, pixels[1], "^")):
        last = first + count
        x, y = plane[first:last].T
        axes.scatter(x, y, s=10, c=colours[first:last], marker=marker, alpha=0.6, linewidths=0)
    ends = ((pixels[0], target_from, "o"), (target_from + pixels[1], len(plane), "^"))
    for first, last, marker in ends:
        x, y = plane[first:last].T
        axes.scatter(x, y, s=90, c=colours[first:last], marker=marker, edgecolors=INK, linewidths=1.1, zorder=3)
    for point, label in zip(plane[pixels[0] : target_from], labels[pixels[0] : target_from], strict=True):
        _name(axes, point, classes.names[label])


def _name(axes: Axes, point: Floats, name: str) -> None:
    from matplotlib.patheffects import withStroke

    axes.annotate(
        name,
        (float(point[0]), float(point[1])),
        (6, 5),
        textcoords="offset points",
        fontsize=7.5,
        color=INK,
        zorder=4,
        path_effects=[withStroke(linewidth=2.2, foreground="white")],
        parse_math=False,
    )


def _feature_legend(figure: Figure, shown: Sequence[int], classes: ClassSet) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, size: float, label: str, colour: Any, edge: Any = "none") -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, markersize=size, color=colour, mec=edge, label=label)

    kinds = [mark("o", 4, "source pixel", FAINT), mark("^", 4, "target pixel", FAINT)]
    kinds += [mark("o", 9, "source prototype", "white", INK), mark("^", 9, "target prototype", "white", INK)]
    figure.legend(handles=kinds, loc="lower center", ncols=4, fontsize=9, frameon=False)
    handles = [mark("s", 7, classes.names[c], _colour(classes, c)) for c in shown]
    legend = figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.035), ncols=10, fontsize=8, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
