"""How many pixels each image has of each class, counted once and cached, for rare-class sampling."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.labels import IGNORE
from uda_seg.data.sampling import RareClassOrder, rare_class_probabilities
from uda_seg.data.settings import RareClassSettings
from uda_seg.errors import UserError
from uda_seg.files import CACHE, write_text

log = logging.getLogger(__name__)

GTA_AREA, GTA_MIN_PIXELS = 1914 * 1052, 3000
CROP_AREA, CROP_MIN_PIXELS = 512 * 512, 1500


@dataclass(frozen=True)
class ClassStatistics:
    """Pixel counts on disk.

    Args:
        pixels: int64 [N, C], pixels of each class in each label.
        areas: int64 [N], all pixels of each label, the ignored ones included.
    """

    pixels: NDArray[np.int64]
    areas: NDArray[np.int64]


def class_statistics(dataset: SegmentationDataset, cache: Path) -> ClassStatistics:
    """The counts of a labelled data set, from `cache` or counted, a thread per core, and put there.

    The file's name holds a digest of the label files' names, sizes and times: changed labels are counted anew.
    """
    file = cache / "statistics" / f"{dataset.root.name}-{dataset.split}-{_digest(dataset)}.json"
    if not file.is_file():
        _write(file, count_classes(dataset))
    content = json.loads(file.read_text())
    return ClassStatistics(np.array(content["pixels"], np.int64), np.array(content["areas"], np.int64))


def count_classes(dataset: SegmentationDataset) -> ClassStatistics:
    """Read every label and count, with a progress bar."""

    def count(index: int) -> NDArray[np.int64]:
        return np.bincount(dataset.read_label(index).ravel(), minlength=IGNORE + 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = track(
            pool.map(count, range(len(dataset))),
            f"counting classes in {dataset.label_root}",
            total=len(dataset),
            console=Console(stderr=True),
            transient=True,
        )
        table = np.stack(list(counts))
    return ClassStatistics(table[:, : len(dataset.classes)], table.sum(axis=1))


def rare_class_order(
    statistics: ClassStatistics, settings: RareClassSettings, names: tuple[str, ...], seed: int, domain: int
) -> RareClassOrder:
    """DAFormer's rare-class sampling over these statistics.

    A class without any image above the threshold is never drawn; a warning names it (DAFormer stops there).
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
    """How many pixels of the drawn class a crop of (H, W) should show."""
    if settings.min_crop_pixels is not None:
        return settings.min_crop_pixels
    return CROP_MIN_PIXELS * crop[0] * crop[1] / CROP_AREA


def _digest(dataset: SegmentationDataset) -> str:
    files = []
    for index in range(len(dataset)):
        path = dataset.label_path(index)
        status = path.stat()
        files.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
    described = json.dumps([dataset.spec.title, dataset.classes.name, files])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _write(file: Path, statistics: ClassStatistics) -> None:
    content = {"pixels": statistics.pixels.tolist(), "areas": statistics.areas.tolist()}
    write_text(file, json.dumps(content), cure=CACHE)
