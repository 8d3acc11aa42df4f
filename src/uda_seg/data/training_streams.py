"""The training streams of the configured domains."""

from __future__ import annotations

import logging

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.declared import warn_of_absent
from uda_seg.data.readers import DomainReaders
from uda_seg.data.sampling import Order, ShuffledOrder
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.statistics import (
    ClassStatistics,
    class_statistics,
    kept_statistics,
    min_crop_pixels,
    rare_class_order,
)
from uda_seg.data.storage.shard_order import ShardOrder
from uda_seg.data.storage.shards import ShardDataset
from uda_seg.data.stream import DomainStream, SampleReader
from uda_seg.data.transforms import CropRule
from uda_seg.errors import UserError
from uda_seg.storage.user_cache import user_cache

log = logging.getLogger(__name__)

SOURCE, TARGET = 0, 1  # ids of the domains in random draws


class TrainingStreams:
    """Builds the streams of one process; a batch of theirs depends on seed, rank, world size and step alone.

    Args:
        readers: Opens the domains.
        settings: The `data` node.
        seed: Seed of order, crops and flips.
    """

    def __init__(self, readers: DomainReaders, settings: DataSettings, seed: int) -> None:
        self.readers, self.settings, self.seed = readers, settings, seed

    def source(self, domain: DomainSettings, option: str) -> DomainStream:
        """Open a labelled domain."""
        samples = self.readers.reader(domain, option, labeled=True)
        rule = self._rule(samples, option, self.settings.crop_max_ratio)
        rare, batch = self.settings.rare_class, self.settings.source_batch
        assert isinstance(samples.dataset, SegmentationDataset)
        if not rare.enabled:
            self._say_absent(samples.dataset, option, kept_statistics(samples.dataset, user_cache()))
            return DomainStream(samples, ShuffledOrder(len(samples), self.seed, SOURCE), rule, self.seed, SOURCE, batch)
        statistics = class_statistics(samples.dataset, user_cache(), prepare_command(self.settings))
        self._say_absent(samples.dataset, option, statistics)
        order = rare_class_order(statistics, rare, self.readers.classes.names, self.seed, SOURCE)
        return DomainStream(
            samples,
            order,
            rule,
            self.seed,
            SOURCE,
            batch,
            rare_pixels=min_crop_pixels(rare, rule.size),
            rare_tries=rare.tries,
        )

    def _say_absent(self, dataset: SegmentationDataset, option: str, counted: ClassStatistics | None) -> None:
        """Warn of evaluated classes without pixels, from the counts of all labels or else from a sample."""
        if option not in self.readers.looked:
            return
        found, looked = self.readers.looked[option].pixels, self.readers.looked[option].looked
        if counted is not None:
            found, looked = counted.pixels.sum(0), len(dataset)
        warn_of_absent(dataset, option, self.readers.eval_classes, found, looked, prepare_command(self.settings))

    def target(self, domain: DomainSettings, batch: int) -> DomainStream:
        """Open the unlabelled target, `batch` images per step and rank."""
        samples = self.readers.reader(domain, "data.target", labeled=False)
        valid = samples[0].valid
        if valid is not None and not valid.any():
            log.warning(
                "data.target.margins=%s leave no pixel of an image, so methods that use them have no "
                "pseudo-labels; margins are in pixels of the files on disk",
                domain.margins,
            )
        rule = self._rule(samples, "data.target", max_ratio=1.0)
        order: Order = ShuffledOrder(len(samples), self.seed, TARGET)
        if isinstance(samples.dataset, ShardDataset):
            sizes = tuple(shard.images for shard in samples.dataset.shards)
            order = ShardOrder(sizes, self.seed, TARGET, self.settings.shards.window)
        return DomainStream(samples, order, rule, self.seed, TARGET, batch)

    def _rule(self, samples: SampleReader, option: str, max_ratio: float) -> CropRule:
        height, width = self.settings.crop
        if height > samples.image_size[0] or width > samples.image_size[1]:
            raise UserError(
                f"data.crop=[{height},{width}] is larger than the images of {option}, which are "
                f"{list(samples.image_size)} (height, width) after the resize: make the crop smaller or "
                f"{option}.size larger"
            )
        return CropRule((height, width), max_ratio, self.settings.flip, self.settings.crop_tries)
