"""Class statistics written by DAFormer's converters to a data set's root, read instead of counting.

`sample_class_stats.json` is a list with one object per image, {"file": label, "<train id>": pixels, ...};
`sample_class_stats_dict.json` an object label -> {"<train id>": pixels}; `samples_with_class.json` an object "<train
id>" -> [[label, pixels], ...]. Labels may contain Windows back-slashes; only the base name is used, as in DAFormer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.errors import Damaged
from uda_seg.storage.files import first_line, read_json, read_text, spare_name, write_text

log = logging.getLogger(__name__)

FILES = ("sample_class_stats.json", "samples_with_class.json", "sample_class_stats_dict.json")
Counts = dict[str, dict[int, int]]  # label file as written -> train id -> pixels
CURE = "move it away, the classes are counted then"
MOST_PIXELS = 2**40  # limit of a class's pixels in a label; larger values are implausible


def find_class_files(root: Path) -> list[Path]:
    """Find the existing ones of the three files, in order of preference."""
    return [root / name for name in FILES if (root / name).is_file()]


def read_class_file(file: Path) -> Counts:
    """Read the pixels of each train id in each label.

    Raises:
        UserError: the file cannot be read, or has another structure.
    """
    content = read_json(file, CURE)
    try:
        if file.name == "sample_class_stats.json":
            return {str(entry["file"]): _numbers(entry) for entry in content}
        if file.name == "samples_with_class.json":
            counts: Counts = {}
            for train, samples in content.items():
                for label, pixels in samples:
                    counts.setdefault(str(label), {})[int(train)] = _pixels(pixels)
            return counts
        return {str(label): _numbers(entry) for label, entry in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(
            f"{file} is no file of class statistics ({type(error).__name__}: {first_line(error)}): {CURE}"
        ) from error


def _numbers(entry: Mapping[str, Any]) -> dict[int, int]:
    return {int(train): _pixels(pixels) for train, pixels in entry.items() if train != "file"}


def _pixels(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < MOST_PIXELS:
        raise ValueError(f"{value!r} is no number of pixels")
    return value


def uses_back_slashes(counts: Counts) -> bool:
    """Return whether a label is written with Windows back-slashes."""
    return any("\\" in label for label in counts)


def base_name(label: str) -> str:
    """Return the file's base name, whatever separates its folders."""
    return label.replace("\\", "/").rpartition("/")[2]


def official_pixels(dataset: SegmentationDataset) -> NDArray[np.int64] | None:
    """Read the pixels of each class in each label, int64 [N, C], from the files in the root; None if unusable.

    The files are usable if the classes are the public data set's own and every image is listed. A warning tells why a
    file is not used, and names without an image.
    """
    if dataset.classes.name != dataset.spec.classes.name or dataset.encoding.described:
        return None
    for file in find_class_files(dataset.root):
        try:
            counts = read_class_file(file)
        except Damaged as error:
            log.warning("%s", error)
            continue
        pixels, why = match_images(dataset, counts)
        if why:
            log.warning("%s: %s", file, why)
        if pixels is not None:
            log.info("class statistics of %s are read from %s", dataset.root, file.name)
            return pixels
    return None


def match_images(dataset: SegmentationDataset, counts: Counts) -> tuple[NDArray[np.int64] | None, str]:
    """Order the counts by image, and describe what is wrong with them in a line ("" = nothing)."""
    stems = {_stem(dataset, dataset.label_path(i).name): i for i in range(len(dataset))}
    pixels = np.zeros((len(dataset), len(dataset.classes)), np.int64)
    found, strange = np.zeros(len(dataset), bool), []
    for label, numbers in counts.items():
        index = stems.get(_stem(dataset, base_name(label)))
        if index is None:
            strange.append(label)
            continue
        found[index] = True
        for train, number in numbers.items():
            if not 0 <= train < pixels.shape[1]:
                return None, f"names the class {train}, of {pixels.shape[1]} classes; the classes are counted"
            pixels[index, train] = number
    if not found.all():
        first = dataset.names[int(np.argmin(found))]
        return None, f"lacks {int((~found).sum())} of {len(dataset)} images, the first is {first}; classes are counted"
    if not pixels.any():
        return None, "has no pixel of any class; the classes are counted"
    return pixels, f"{len(strange)} names belong to no image, the first is {strange[0]}" if strange else ""


def _stem(dataset: SegmentationDataset, label: str) -> str:
    """Return the common stem of an image's labels of all kinds: 00001 for 00001.png and 00001_labelTrainIds.png."""
    for suffix in sorted((encoding.suffix for encoding in dataset.spec.encodings), key=len, reverse=True):
        if label.endswith(suffix):
            return label.removesuffix(suffix)
    return label


def mend_back_slashes(file: Path) -> Path:
    """Rewrite a statistics file with forward slashes, keep the original, and return the original's new path."""
    text = read_text(file, CURE)
    content = json.loads(text)
    kept = spare_name(file, "original")
    write_text(kept, text)
    write_text(file, json.dumps(_forward(content)))
    return kept


def _forward(node: Any) -> Any:
    if isinstance(node, str):
        return node.replace("\\", "/")
    if isinstance(node, list):
        return [_forward(item) for item in node]
    if isinstance(node, dict):
        return {_forward(key): _forward(value) for key, value in node.items()}
    return node
