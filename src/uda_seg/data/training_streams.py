"""The training streams of the configured domains."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.declared import unnamed_classes, warn_of_absent
from uda_seg.data.parts import Part
from uda_seg.data.readers import DomainReaders
from uda_seg.data.sampling import DomainOrder, Order, ShuffledOrder, quotas
from uda_seg.data.settings import DataSettings, prepare_command
from uda_seg.data.statistics import (
    ClassStatistics,
    class_statistics,
    kept_statistics,
    min_crop_pixels,
    rare_class_order,
)
from uda_seg.data.storage.shard_order import ShardOrder
from uda_seg.data.storage.shards import ShardDataset
from uda_seg.data.stream import DomainStream, JointStream, SampleReader, Stream
from uda_seg.data.transforms import CropRule
from uda_seg.errors import UserError
from uda_seg.storage.user_cache import user_cache

log = logging.getLogger(__name__)

SOURCE, TARGET = 0, 1  # ids of the streams, and of their first domains, in random draws


class TrainingStreams:
    """Builds the streams of one process; a batch of theirs depends on seed, rank, world size and step alone.

    Args:
        readers: Opens the domains.
        settings: The `data` node.
        seed: Seed of order, crops and flips.

    Attributes:
        class_shares: float64 [K], the classes' shares of the labelled pixels, once the source is open; of several
            domains the mean by their `share`. From the labels that were counted, or else from a sample of them; None
            where no sample was checked.
    """

    def __init__(self, readers: DomainReaders, settings: DataSettings, seed: int) -> None:
        self.readers, self.settings, self.seed = readers, settings, seed
        self.class_shares: NDArray[np.float64] | None = None

    def source(self, parts: Sequence[Part]) -> Stream:
        """Open the labelled domains.

        Raises:
            UserError: invalid files or settings, or classes that cannot be trained together.
        """
        streams, batch = [], self.settings.source_batch
        counts: list[tuple[Part, SegmentationDataset, ClassStatistics | None]] = []
        for part, domain in zip(parts, _ids(parts, SOURCE), strict=True):
            samples = self.readers.reader(part, wanted=() if len(parts) > 1 else self.readers.eval_classes)
            assert isinstance(samples.dataset, SegmentationDataset)
            stream, counted = self._labelled(part, samples, domain, batch)
            streams.append(stream)
            counts.append((part, samples.dataset, counted))
        self._say_absent(counts)
        self.class_shares = self._class_shares(counts)
        return self._joined(streams, parts, SOURCE, batch)

    def target(self, parts: Sequence[Part], batch: int) -> Stream:
        """Open the unlabelled domains, `batch` images per step and rank together."""
        streams = [self._unlabelled(p, i, batch) for p, i in zip(parts, _ids(parts, TARGET), strict=True)]
        return self._joined(streams, parts, TARGET, batch)

    def _joined(self, streams: Sequence[DomainStream], parts: Sequence[Part], domain: int, batch: int) -> Stream:
        if len(streams) == 1:
            return streams[0]
        order = DomainOrder(quotas([part.share for part in parts]), self.seed, domain)
        return JointStream(tuple(streams), order, batch)

    def _labelled(
        self, part: Part, samples: SampleReader, domain: int, batch: int
    ) -> tuple[DomainStream, ClassStatistics | None]:
        """Build the stream of a labelled domain; return its class statistics, if they are known, with it."""
        rule = self._rule(samples, part.option, self.settings.crop_max_ratio)
        rare, dataset = self.settings.rare_class, samples.dataset
        assert isinstance(dataset, SegmentationDataset)
        if not rare.enabled:
            order = ShuffledOrder(len(samples), self.seed, domain)
            counted = kept_statistics(dataset, user_cache())
            return DomainStream(samples, order, rule, self.seed, domain, batch), counted
        statistics = class_statistics(dataset, user_cache(), prepare_command(self.settings))
        stream = DomainStream(
            samples,
            rare_class_order(statistics, rare, self.readers.classes.names, self.seed, domain),
            rule,
            self.seed,
            domain,
            batch,
            rare_pixels=min_crop_pixels(rare, rule.size),
            rare_tries=rare.tries,
        )
        return stream, statistics

    def _say_absent(self, parts: Sequence[tuple[Part, SegmentationDataset, ClassStatistics | None]]) -> None:
        """Warn of evaluated classes without pixels in any source, from counts of all labels or else from samples."""
        if any(part.key not in self.readers.looked for part, _, _ in parts):
            return
        unnamed = [set(unnamed_classes(dataset, self.readers.eval_classes)) for _, dataset, _ in parts]
        if len(parts) > 1 and (nowhere := sorted(set.intersection(*unnamed))):
            names = ", ".join(self.readers.classes.names[c] for c in nowhere)
            log.warning(
                "%s: no id in their labels maps to %s, evaluated", " and ".join(p.key for p, _, _ in parts), names
            )
        seen = [self._seen(*part) for part in parts]
        wanted = [c for c in self.readers.eval_classes if not any(pixels[c] for pixels, _ in seen)]
        for (part, dataset, _), (pixels, looked) in zip(parts, seen, strict=True):
            warn_of_absent(dataset, part.key, wanted, pixels, looked, prepare_command(self.settings))

    def _class_shares(
        self, parts: Sequence[tuple[Part, SegmentationDataset, ClassStatistics | None]]
    ) -> NDArray[np.float64] | None:
        if any(counted is None and part.key not in self.readers.looked for part, _, counted in parts):
            return None
        pixels = [self._seen(*part)[0] for part in parts]
        shares = [part.share * p / max(1, p.sum()) for (part, _, _), p in zip(parts, pixels, strict=True)]
        mean: NDArray[np.float64] = np.sum(shares, axis=0) / sum(part.share for part, _, _ in parts)
        return mean

    def _seen(
        self, part: Part, dataset: SegmentationDataset, counted: ClassStatistics | None
    ) -> tuple[NDArray[np.int64], int]:
        """Return the pixels of each class in a data set's labels, or in the sample of them, and the labels' number."""
        if counted is not None:
            return counted.pixels.sum(0), len(dataset)
        return self.readers.looked[part.key].pixels, self.readers.looked[part.key].looked

    def _unlabelled(self, part: Part, domain: int, batch: int) -> DomainStream:
        samples = self.readers.reader(part)
        valid = samples[0].valid
        if valid is not None and not valid.any():
            log.warning(
                "%s.margins=%s leave no pixel of an image, so methods that use them have no "
                "pseudo-labels; margins are in pixels of the files on disk",
                *(part.option, part.domain.margins),
            )
        rule = self._rule(samples, part.option, max_ratio=1.0)
        order: Order = ShuffledOrder(len(samples), self.seed, domain)
        if isinstance(samples.dataset, ShardDataset):
            sizes = tuple(shard.images for shard in samples.dataset.shards)
            order = ShardOrder(sizes, self.seed, domain, self.settings.shards.window)
        return DomainStream(samples, order, rule, self.seed, domain, batch)

    def _rule(self, samples: SampleReader, option: str, max_ratio: float) -> CropRule:
        """Build the rule of a domain's crops; images of a few sizes may be smaller than a crop, but not all of them."""
        height, width = self.settings.crop
        small = [index for index, size in samples.sizes.items() if size[0] < height or size[1] < width]
        if len(small) == len(samples.sizes):
            raise UserError(
                f"data.crop=[{height},{width}] is larger than the images of {option}, which are "
                f"{list(samples.image_size)} (height, width) after the resize: make the crop smaller or "
                f"{option}.size larger"
            )
        if small:
            first = min(small)
            log.warning(
                "%s: %d of %d images looked at are smaller than data.crop=[%d,%d] after the resize, the first "
                "is %s, %dx%d (height x width): such images are padded with ignored pixels; a smaller crop or a larger "
                "%s.size avoids it",
                *(option, len(small), len(samples.sizes), height, width),
                *(samples.dataset.file_name(first), *samples.sizes[first], option),
            )
        return CropRule((height, width), max_ratio, self.settings.flip, self.settings.crop_tries)


def _ids(parts: Sequence[Part], first: int) -> list[int]:
    """Return the domains' ids in random draws: the stream's for the first, digests of the keys for the others.

    So a domain's crops do not depend on which others there are.
    """
    return [first, *(zlib.crc32(part.key.encode()) for part in parts[1:])]
