"""Training batches as functions of the step: decoded samples, one domain's stream, the paired data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uda_seg.data.batch import Array, DomainBatch, Sample, collate
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.sampling import Draw, Order, generator, positions
from uda_seg.data.storage.disk_cache import DiskCache
from uda_seg.data.storage.shards import ShardDataset
from uda_seg.data.transforms import CropRule, RareClass, Resize, training_crop
from uda_seg.errors import Damaged

log = logging.getLogger(__name__)

AUTO_CACHE_BYTES = 512 * 2**20
SLAB_BYTES = 64 * 2**20


class Slabs:
    """Copies of arrays, side by side in large blocks.

    One by one, small arrays that stay would lie among large ones that come and go in a step; the heap, which cannot use
    the holes between them, was measured to grow to several times what a run needs.
    """

    def __init__(self) -> None:
        self._slab, self._used = np.empty(0, np.uint8), 0

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy of `array`."""
        if array.nbytes > self._slab.nbytes - self._used:
            self._slab, self._used = np.empty(max(SLAB_BYTES, array.nbytes), np.uint8), 0
        room = self._slab[self._used : self._used + array.nbytes]
        self._used += -(-array.nbytes // 64) * 64  # where every type may begin
        copy = room.view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy


class SampleReader:
    """Decoded and resized samples of a data set: from its cache on disk, or kept in memory if it is small.

    Args:
        dataset: Where samples come from.
        resize: How they are brought to their size; None: as on disk.
        margins: (top, bottom, left, right) pixels on disk in which `valid` is 0; None: no margins.
        cache: "memory", "none", or "auto": memory where all samples take at most 512 MiB.
        stored: The samples, already resized, on disk: views into them are given out, and nothing is decoded.
        resize_label: Whether the label follows the image's size; in validation it stays as on disk.
    """

    def __init__(
        self,
        dataset: SegmentationDataset | ShardDataset,
        resize: Resize | None,
        *,
        margins: tuple[int, int, int, int] | None = None,
        cache: str = "none",
        stored: DiskCache | None = None,
        resize_label: bool = True,
    ) -> None:
        self.dataset, self.resize, self.margins, self.resize_label = dataset, resize, margins, resize_label
        self.stored = stored
        self._kept: dict[int, Sample] = {}
        self._slabs = Slabs()
        self._told: set[int] = set()
        self._valid: dict[tuple[int, int], Array] = {}
        first = self._read(0)
        planes = (first.image, first.label, first.valid, first.depth)
        total = len(dataset) * sum(plane.nbytes for plane in planes if plane is not None)
        self.in_memory = stored is None and (cache == "memory" or (cache == "auto" and total <= AUTO_CACHE_BYTES))
        self.image_size: tuple[int, int] = first.image.shape[:2]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        sample = self._read(index)
        if self.in_memory:
            self._kept[index] = sample = sample.map(self._slabs.keep, self._slabs.keep)
        return sample

    def _read(self, index: int) -> Sample:
        kept = None if self.stored is None else self._kept_on_disk(self.stored, index)
        if kept is not None:
            sample, size = kept
        else:
            raw = self.dataset.read(index)
            size = (raw.image.shape[0], raw.image.shape[1])
            sample = raw if self.resize is None else self.resize(raw)
            sample = sample if self.resize_label else replace(sample, label=raw.label)
        return sample if self.margins is None else replace(sample, valid=self._inside(self.margins, size))

    def _kept_on_disk(self, stored: DiskCache, index: int) -> tuple[Sample, tuple[int, int]] | None:
        """The sample and its file's (H, W) from the cache; None, and a warning once, where it is damaged there."""
        try:
            return stored.sample(index), stored.disk_size(index)
        except Damaged as error:
            if index not in self._told:
                log.warning("%s; until then it is decoded from its file", error)
            self._told.add(index)
            return None

    def _inside(self, margins: tuple[int, int, int, int], size: tuple[int, int]) -> Array:
        """`valid` of an image whose file has `size` (H, W): one array for all of them."""
        if size not in self._valid:
            (top, bottom, left, right), (height, width) = margins, size
            valid = np.zeros(size, np.uint8)
            valid[top : height - bottom, left : width - right] = 1
            self._valid[size] = valid if self.resize is None else self.resize.plane(valid)
        return self._valid[size]


@dataclass(frozen=True)
class DomainStream:
    """The endless stream of one domain's training crops.

    Args:
        samples: Decoded samples.
        order: Which of them stands at a position.
        rule: How they are cropped.
        seed: The run's seed.
        domain: The domain's number; domains with different numbers draw independently.
        batch: Images per step and rank.
        rank: This process.
        world: How many processes read the stream.
        rare_pixels: Pixels that a crop should show of the class it was drawn for.
        rare_tries: How often a crop without them is drawn anew.
    """

    samples: SampleReader
    order: Order
    rule: CropRule
    seed: int
    domain: int
    batch: int
    rank: int = 0
    world: int = 1
    rare_pixels: float = 0.0
    rare_tries: int = 0

    def batch_at(self, step: int) -> DomainBatch:
        """The batch of this rank at `step`: the same in whatever process and run it is asked for."""
        crops, indices = [], []
        for position in positions(step, self.batch, self.rank, self.world):
            pick = self.order.pick(position, self.world)
            rng = generator(self.seed, self.domain, Draw.CROP, position)
            rare = None if pick.rare is None else RareClass(pick.rare, self.rare_pixels, self.rare_tries)
            crops.append(training_crop(self.samples[pick.image], self.rule, rng, rare))
            indices.append(pick.image)
        return collate(crops, indices)


class PairedSteps(torch.utils.data.Dataset[dict[str, DomainBatch]]):
    """The map-style data set of whole training batches: item `step` holds one batch of each domain."""

    def __init__(self, streams: Mapping[str, DomainStream], steps: int) -> None:
        self.streams, self.steps = dict(streams), steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, DomainBatch]:
        return {name: stream.batch_at(step) for name, stream in self.streams.items()}


class ValidationImages(torch.utils.data.Dataset[tuple[Sample, int]]):
    """Every labelled image once: the image at the network's size, the label as on disk."""

    def __init__(self, samples: SampleReader) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Sample, int]:
        return self.samples[index], index
