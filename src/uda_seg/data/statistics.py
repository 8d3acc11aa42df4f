"""Cached pixel counts per class and image, for rare-class sampling."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uda_seg.data.class_files import official_pixels
from uda_seg.data.counting import count_ids
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.parallel import in_threads
from uda_seg.data.sampling import RareClassOrder, rare_class_probabilities
from uda_seg.data.settings import RareClassSettings
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import CACHE, first_line, open_file, read_sealed, write_sealed

log = logging.getLogger(__name__)

GTA_AREA, GTA_MIN_PIXELS = 1914 * 1052, 3000
MANY = 1000  # number of labels from which counting is announced in the log
CROP_AREA, CROP_MIN_PIXELS = 512 * 512, 1500


@dataclass(frozen=True)
class ClassStatistics:
    """Pixel counts of labels at their size on disk.

    Args:
        pixels: int64 [N, C], pixels of each class in each label.
        areas: int64 [N], all pixels of each label, including ignored ones.
    """

    pixels: NDArray[np.int64]
    areas: NDArray[np.int64]


def class_statistics(dataset: SegmentationDataset, cache: Path, prepare: str = "") -> ClassStatistics:
    """Get the counts of a labelled data set from `cache`, from its official files, or by counting, and cache them.

    The file's name contains a digest of the label files' names, sizes and times, so changed labels are counted again.

    Args:
        dataset: labelled data set.
        cache: root of all caches.
        prepare: command that counts in advance, suggested in the log for large sets; empty if there is none.
    """
    file = statistics_file(dataset, cache)
    if (kept := _read(file, len(dataset), len(dataset.classes))) is not None:
        return kept
    if (official := official_statistics(dataset)) is None:
        if prepare and len(dataset) > MANY:
            log.warning("counting the classes of %d labels first; %s does it once", len(dataset), prepare)
        official = count_classes(dataset)
    save_statistics(dataset, cache, official)
    return official


def kept_statistics(dataset: SegmentationDataset, cache: Path) -> ClassStatistics | None:
    """Read the up-to-date counts of a data set's labels from `cache`; None if there are none."""
    start = f"{dataset.root.name}-{dataset.split}-"
    if not any(path.name.startswith(start) for path in cache.glob("statistics/*")):
        return None  # avoids reading the times of all files
    return _read(statistics_file(dataset, cache), len(dataset), len(dataset.classes))


def statistics_file(dataset: SegmentationDataset, cache: Path) -> Path:
    """Return the path of the counts of a data set's current labels."""
    return cache / "statistics" / f"{dataset.root.name}-{dataset.split}-{_digest(dataset)}.json"


def save_statistics(dataset: SegmentationDataset, cache: Path, statistics: ClassStatistics) -> None:
    """Save counts for `class_statistics`."""
    content = {"pixels": statistics.pixels.tolist(), "areas": statistics.areas.tolist()}
    write_sealed(statistics_file(dataset, cache), content, CACHE)


def official_statistics(dataset: SegmentationDataset) -> ClassStatistics | None:
    """Read DAFormer's files in the data set's root, adding the areas that they lack; None if unusable."""
    pixels = official_pixels(dataset)
    if pixels is None:
        return None

    def area(index: int) -> int:
        path = dataset.label_path(index)
        try:
            with open_file(path) as file, Image.open(file) as label:  # reads only the header
                return label.width * label.height
        except Exception as error:  # a damaged header can raise anything
            raise Damaged(
                f"{path} cannot be read as an image ({first_line(error)}): copy or unpack it again"
            ) from error

    areas = list(in_threads(area, range(len(dataset)), f"sizes of the labels in {dataset.label_root}"))
    return ClassStatistics(pixels, np.array(areas, np.int64))


def count_classes(dataset: SegmentationDataset) -> ClassStatistics:
    """Count all labels, with a progress bar."""
    pixels = np.zeros((len(dataset), len(dataset.classes)), np.int64)
    areas = np.zeros(len(dataset), np.int64)

    def count(index: int) -> NDArray[np.int64]:
        return count_ids(dataset.read_label(index))

    counts = in_threads(count, range(len(dataset)), f"counting classes in {dataset.label_root}")
    for index, row in enumerate(counts):
        pixels[index], areas[index] = row[: len(dataset.classes)], row.sum()
    return ClassStatistics(pixels, areas)


def rare_class_order(
    statistics: ClassStatistics, settings: RareClassSettings, names: tuple[str, ...], seed: int, domain: int
) -> RareClassOrder:
    """Build DAFormer's rare-class sampling from these statistics.

    A class without an image above the threshold is never drawn, with a warning (DAFormer raises an error).
    """
    threshold = statistics.areas * GTA_MIN_PIXELS / GTA_AREA
    if settings.min_pixels is not None:
        threshold = np.full_like(threshold, settings.min_pixels)
    images = [np.flatnonzero(column > threshold) for column in statistics.pixels.T]
    total = statistics.pixels.sum(axis=0)
    drawn = np.array([len(found) > 0 for found in images])
    if not drawn.any():
        raise UserError(
            "rare-class sampling finds no class with enough pixels in any image: "
            "lower data.rare_class.min_pixels or set data.rare_class.enabled=false"
        )
    for c in np.flatnonzero((total > 0) & ~drawn):
        log.warning("rare-class sampling never draws %s: no image has enough of its pixels", names[c])
    probabilities = np.where(drawn, rare_class_probabilities(total, settings.temperature), 0.0)
    return RareClassOrder(probabilities / probabilities.sum(), images, seed, domain)


def min_crop_pixels(settings: RareClassSettings, crop: tuple[int, int]) -> float:
    """Compute the minimum pixels of the drawn class in a crop of (H, W)."""
    if settings.min_crop_pixels is not None:
        return settings.min_crop_pixels
    return CROP_MIN_PIXELS * crop[0] * crop[1] / CROP_AREA


def _digest(dataset: SegmentationDataset) -> str:
    files = []
    for name in dataset.names:  # as str: building Path objects would take longer than the stat calls
        path = f"{dataset.label_root.absolute()}/{dataset.label_name(name, dataset.encoding)}"
        try:
            status = os.stat(path)
        except OSError as error:
            raise Damaged(f"{path} cannot be opened: {error.strerror}; copy or unpack it again") from error
        files.append([path, status.st_size, status.st_mtime_ns])
    # Settings that can be changed.
    own = [len(dataset.classes), dataset.encoding.identity] if dataset.encoding.described else []
    own += [sorted(merged.items()) for merged in dataset.classes.merged.values()]
    described = json.dumps([dataset.spec.title, dataset.classes.name, files, *own])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _read(file: Path, count: int, classes: int) -> ClassStatistics | None:
    """Read saved counts; None if missing or unreadable."""
    if not os.path.lexists(file):
        return None
    try:
        content = read_sealed(file, frozenset(("pixels", "areas")), "it is made anew")
        kept = ClassStatistics(np.array(content["pixels"], np.int64), np.array(content["areas"], np.int64))
    except (Damaged, ValueError, TypeError, OverflowError) as error:
        log.warning("%s: counting the classes again", error)
        return None
    return kept if kept.areas.shape == (count,) and kept.pixels.shape == (count, classes) else None
