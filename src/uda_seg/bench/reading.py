"""Reading of training crops from the disk cache and from shards, against decoding the whole image."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.bench.measure import Row, alternate
from uda_seg.bench.parts import faster
from uda_seg.config.commands import BenchConfig
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.specs import SPECS
from uda_seg.data.storage.disk_cache import find_cache, write_cache
from uda_seg.data.storage.packing import pack
from uda_seg.data.storage.shards import ShardDataset
from uda_seg.data.stream import SampleReader
from uda_seg.data.transforms import CropRule, Resize, training_crop
from uda_seg.errors import UserError
from uda_seg.storage.files import save_png

PICTURES = 4


def measure_reading(config: BenchConfig, size: tuple[int, int] = (1024, 2048), crop: int = 512) -> list[Row]:
    """Compare a 512 x 512 crop of memory-mapped images with decoding a 2048 x 1024 PNG, optionally with its label.

    Images have full or half size, as DAFormer trains; with and without a label, whose class rule (at most 75 % of one
    class) is part of the crop. The crop is copied as for a batch; files are in the page cache. Finally, the same crop
    from a shard and from a PNG file, both decoded.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(PICTURES):
            _write_pair(folder / "root", index, size)
        for title, box in (("full", size), ("half", (size[0] // 2, size[1] // 2))):
            for kind, labeled in (("image", False), ("image+label", True)):
                reader = _stored(folder, box, size, labeled)
                rule = CropRule((crop, crop), 0.75 if labeled else 1.0)
                rows.append(_compare(f"reading/{title}/{kind}", reader, rule, config.bench.pairs))
        rows.append(_from_shards(folder, CropRule((crop, crop), 1.0), config.bench.pairs))
    return rows


def _compare(name: str, reader: SampleReader, rule: CropRule, pairs: int) -> Row:
    dataset, rng = reader.dataset, np.random.default_rng(0)

    def take() -> list[NDArray[np.uint8]]:
        sample = training_crop(reader[int(rng.integers(PICTURES))], rule, rng)
        return [np.ascontiguousarray(plane) for plane in (sample.image, sample.label) if plane is not None]

    return faster(name, "crop from disk", "decode the PNGs", alternate(take, lambda: dataset.read(0), pairs), 50.0)


def _from_shards(folder: Path, rule: CropRule, pairs: int) -> Row:
    files = SegmentationDataset(SPECS["streets"], folder / "root", "train", CITYSCAPES, labeled=False)
    pack(files, folder / "shards", PICTURES)
    shards = ShardDataset(str(folder / "shards"), "data.target", count=None, cache_bytes=0, cure="")

    def take(dataset: SegmentationDataset | ShardDataset, rng: np.random.Generator) -> NDArray[np.uint8]:
        sample = training_crop(dataset.read(int(rng.integers(PICTURES))), rule, rng)
        return np.ascontiguousarray(sample.image)

    ways = [partial(take, dataset, np.random.default_rng(0)) for dataset in (shards, files)]
    return faster("reading/shard", "crop from a shard", "crop from a PNG", alternate(ways[0], ways[1], pairs))


def _stored(folder: Path, box: tuple[int, int], size: tuple[int, int], labeled: bool) -> SampleReader:
    dataset = SegmentationDataset(SPECS["streets"], folder / "root", "train", CITYSCAPES, labeled=labeled)
    write_cache(dataset, Resize(box), folder / "cache", [size] * PICTURES)
    stored = find_cache(dataset, Resize(box), folder / "cache")
    if stored is None:
        raise UserError(f"the pictures in {folder} changed while they were read: run the same command again")
    return SampleReader(dataset, Resize(box), stored=stored)


def _write_pair(root: Path, index: int, size: tuple[int, int]) -> None:
    """Write a smooth image with camera noise, similar in file size to Cityscapes' PNGs, and a label of patches."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    smooth = np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), np.int16)
    noisy = np.clip(smooth + rng.integers(-2, 3, smooth.shape, dtype=np.int16), 0, 255).astype(np.uint8)
    patches = rng.integers(0, len(CITYSCAPES), (size[0] // 32, size[1] // 32), dtype=np.uint8)
    save_png(root / f"image/{index}.png", noisy)
    save_png(root / f"label/{index}.png", np.kron(patches, np.ones((32, 32), np.uint8)))
