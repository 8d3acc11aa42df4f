"""Training batches as functions of the step: sample readers, domain streams, the paired data set."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uda_seg.data.batch import Array, DomainBatch, Sample, collate
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.images import shown_size, spread
from uda_seg.data.sampling import DomainOrder, Draw, Order, generator, positions
from uda_seg.data.storage.disk_cache import DiskCache
from uda_seg.data.storage.shards import ShardDataset
from uda_seg.data.transforms import CropRule, RareClass, Resize, training_crop
from uda_seg.errors import Damaged, UserError

log = logging.getLogger(__name__)

AUTO_CACHE_BYTES = 512 * 2**20
SLAB_BYTES = 64 * 2**20


class Slabs:
    """Copies of arrays, stored contiguously in large blocks.

    Long-lived small arrays between the short-lived large ones of a step fragment the heap, which was measured to grow
    to several times the required memory.
    """

    def __init__(self) -> None:
        self._slab, self._used = np.empty(0, np.uint8), 0

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        """Copy `array` into a block and return the copy."""
        if array.nbytes > self._slab.nbytes - self._used:
            self._slab, self._used = np.empty(max(SLAB_BYTES, array.nbytes), np.uint8), 0
        room = self._slab[self._used : self._used + array.nbytes]
        self._used += -(-array.nbytes // 64) * 64  # aligned for every dtype
        copy = room.view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy


class SampleReader:
    """Decoded and resized samples of a data set, from its disk cache or kept in memory if small.

    Args:
        dataset: The data set.
        resize: Resize of the samples; None: as on disk.
        margins: (top, bottom, left, right) pixels on disk in which `valid` is 0; None: no margins.
        cache: "memory", "none", or "auto": memory if all samples take at most 512 MiB.
        stored: Disk cache of resized samples, of which views are returned without decoding.
        resize_label: Resize the label with the image; in validation it keeps its size on disk.
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
        self.image_size: tuple[int, int] = first.image.shape[:2]
        self.in_memory = stored is None and (
            cache == "memory" or (cache == "auto" and self._bytes_of_all(first) <= AUTO_CACHE_BYTES)
        )

    def _bytes_of_all(self, first: Sample) -> float:
        """Estimate the bytes of all samples from those of the first and the areas of the sample of sizes."""
        total, on_disk = 0.0, self._disk_sizes or self.sizes
        for plane in (first.image, first.label, first.valid, first.depth):
            if plane is not None:
                sizes = on_disk if plane is first.label and not self.resize_label else self.sizes
                area = float(np.mean([height * width for height, width in sizes.values()]))
                total += plane.nbytes * area / (plane.shape[0] * plane.shape[1])
        return len(self.dataset) * total

    @cached_property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """(H, W) of a sample of the images after the resize by index: the first, and others spread over the set."""
        resized = {i: size if self.resize is None else self.resize.size(*size) for i, size in self._disk_sizes.items()}
        return resized | {0: self.image_size}

    @cached_property
    def _disk_sizes(self) -> dict[int, tuple[int, int]]:
        """(H, W) of these images on disk, without those whose size cannot be told before they are decoded."""
        data = self.dataset  # other shards may have to be fetched
        indices = spread(range(data.shards[0].images if isinstance(data, ShardDataset) else len(data)))
        if self.stored is not None:
            return {index: self.stored.disk_size(index) for index in indices}
        found = {}
        for index in indices:
            with contextlib.suppress(UserError):  # told when the image is used
                found[index] = shown_size(data.image_content(index))
        return {index: size for index, size in found.items() if size is not None}

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
        """Read the sample and its file's (H, W) from the cache; None, with one warning, if it is damaged."""
        try:
            return stored.sample(index), stored.disk_size(index)
        except Damaged as error:
            if index not in self._told:
                log.warning("%s; until then it is decoded from its file", error)
            self._told.add(index)
            return None

    def _inside(self, margins: tuple[int, int, int, int], size: tuple[int, int]) -> Array:
        """Build `valid` for images whose file has `size` (H, W), shared by all of them."""
        if size not in self._valid:
            (top, bottom, left, right), (height, width) = margins, size
            valid = np.zeros(size, np.uint8)
            valid[top : max(0, height - bottom), left : max(0, width - right)] = 1  # not from the other side
            self._valid[size] = valid if self.resize is None else self.resize.plane(valid)
        return self._valid[size]


@dataclass(frozen=True)
class DomainStream:
    """Infinite stream of a domain's training crops.

    Args:
        samples: Decoded samples.
        order: Mapping from positions to samples.
        rule: Cropping rule.
        seed: Seed of the run.
        domain: Id of the domain; domains with different ids draw independently.
        batch: Images per step and rank.
        rank: Rank of this process.
        world_size: Number of ranks.
        rare_pixels: Minimum pixels in a crop of the class it was drawn for.
        rare_tries: Number of further crops if there are fewer.
    """

    samples: SampleReader
    order: Order
    rule: CropRule
    seed: int
    domain: int
    batch: int
    rank: int = 0
    world_size: int = 1
    rare_pixels: float = 0.0
    rare_tries: int = 0

    @property
    def readers(self) -> tuple[SampleReader, ...]:
        """The reader of the domain's samples."""
        return (self.samples,)

    def batch_at(self, step: int) -> DomainBatch:
        """Return this rank's batch at `step`, identical in every process and run."""
        crops = [self.crop_at(p) for p in positions(step, self.batch, self.rank, self.world_size)]
        return collate([crop for crop, _ in crops], [index for _, index in crops])

    def crop_at(self, position: int) -> tuple[Sample, int]:
        """Return the crop at `position` of the stream of all ranks, and the index of its image."""
        pick = self.order.pick(position, self.world_size)
        rng = generator(self.seed, self.domain, Draw.CROP, position)
        rare = None if pick.rare is None else RareClass(pick.rare, self.rare_pixels, self.rare_tries)
        return training_crop(self.samples[pick.image], self.rule, rng, rare), pick.image


@dataclass(frozen=True)
class JointStream:
    """Infinite stream of the crops of several domains, each of which passes over its images on its own.

    Args:
        parts: The domains' streams; images are numbered on from one to the next.
        order: Division of positions among them.
        batch: Images per step and rank, over all domains.
        rank: Rank of this process.
        world_size: Number of ranks.
    """

    parts: tuple[DomainStream, ...]
    order: DomainOrder
    batch: int
    rank: int = 0
    world_size: int = 1

    @property
    def readers(self) -> tuple[SampleReader, ...]:
        """The readers of the domains, in order."""
        return tuple(part.samples for part in self.parts)

    def batch_at(self, step: int) -> DomainBatch:
        """Return this rank's batch at `step`, identical in every process and run."""
        crops, indices = [], []
        for position in positions(step, self.batch, self.rank, self.world_size):
            domain, own = self.order.place(position)
            crop, index = self.parts[domain].crop_at(own)
            crops.append(crop)
            indices.append(index + sum(len(part.samples) for part in self.parts[:domain]))
        return collate(crops, indices)


Stream = DomainStream | JointStream


class PairedSteps(torch.utils.data.Dataset[dict[str, DomainBatch]]):
    """Map-style data set of training batches: item `step` contains one batch per domain."""

    def __init__(self, streams: Mapping[str, Stream], steps: int) -> None:
        self.streams, self.steps = dict(streams), steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, DomainBatch]:
        return {name: stream.batch_at(step) for name, stream in self.streams.items()}


class WholeImages(torch.utils.data.Dataset[tuple[Sample, int]]):
    """All images of one or several readers, numbered on from one to the next.

    In validation the image has the network's size, and the label its size on disk.
    """

    def __init__(self, *readers: SampleReader) -> None:
        self.readers = readers

    def __len__(self) -> int:
        return sum(map(len, self.readers))

    def __getitem__(self, index: int) -> tuple[Sample, int]:
        own = index
        for samples in self.readers:
            if own < len(samples):
                return samples[own], index
            own -= len(samples)
        raise IndexError(index)
