"""Confusions of classes in a table of groups, and scores of single images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uda_seg.results.groups import Group
from uda_seg.results.packing import Counts
from uda_seg.results.tables import Table

# Pairs that adaptation is known to mix up; shown wherever the class set has them, in both directions.
KNOWN_PAIRS = (
    ("person", "rider"),
    ("road", "sidewalk"),
    ("truck", "bus"),
    ("truck", "train"),
    ("bus", "train"),
    ("road", "pavement"),  # as CamVid calls them
    ("pedestrian", "bicyclist"),
)


def confusion_pairs(
    table: Table, reference: Group, most: int = 12
) -> tuple[list[str], list[tuple[str, str, list[float]]]]:
    """Tabulate confusions of two classes: the known pairs, then those that change most against a reference.

    A change is the difference of shares times the root of the label's pixels, so that small classes are not drowned.

    Returns:
        Labels of the groups that have confusion matrices; and label, prediction and, for each of these groups, the
        share in [0, 1] of the label's pixels that is predicted so, over all seeds.
    """
    found = {group.label: c for group in table.groups if (c := group.confusion(table.target)) is not None}
    if reference.label not in found or len(found) < 2:
        return [], []
    shares = {label: c / np.maximum(c.sum(1, keepdims=True), 1) for label, c in found.items()}
    pixels = np.sqrt(found[reference.label].sum(1, keepdims=True))
    change = np.max([np.abs(share - shares[reference.label]) for share in shares.values()], axis=0) * pixels
    np.fill_diagonal(change, 0)
    names = table.classes
    pairs = [pair for known in KNOWN_PAIRS for pair in (known, known[::-1]) if set(pair) <= set(names)]
    order = np.dstack(np.unravel_index(np.argsort(-change, axis=None, kind="stable"), change.shape))[0][:most]
    pairs += [(names[i], names[j]) for i, j in order if change[i, j] > 0]
    rows = []
    for label, taken in dict.fromkeys(pairs):
        i, j = names.index(label), names.index(taken)
        if pixels[i, 0] > 0:
            rows.append((label, taken, [float(share[i, j]) for share in shares.values()]))
    return list(shares), rows


def image_scores(table: Table) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Compute the mIoU of every image by itself, mean over seeds: names, and label -> float64 [N].

    Only groups with counts on the same images as the first such group are in it.
    """
    names: tuple[str, ...] = ()
    found: dict[str, Any] = {}
    for group in table.groups:
        images = [scores.unpacked for scores in group.scores(table.target)]
        if any(i is None for i in images):
            continue
        names = names or images[0].names  # type: ignore[union-attr]
        if all(i.names == names for i in images if i is not None):
            subset = group.scores(table.target)[0].subset
            found[group.label] = np.mean([_image_miou(i.counts, subset) for i in images if i is not None], axis=0)
    return names, found


def _image_miou(counts: Counts, subset: Sequence[int]) -> Any:
    """Compute each image's mIoU over the classes in its label, [N, C, C] -> [N]."""
    hit = np.diagonal(counts, axis1=1, axis2=2)[:, subset]
    labels = counts.sum(2)[:, subset]
    union = labels + counts.sum(1)[:, subset] - hit
    present = labels > 0
    return np.where(present, hit / np.maximum(union, 1), 0).sum(1) / np.maximum(present.sum(1), 1)
