"""Opening the configured domains for reading."""

from __future__ import annotations

import logging

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.declared import Contents, check_labels
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import ClassSet
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.storage.disk_cache import DiskCache, find_cache
from uda_seg.data.storage.shards import ShardDataset, open_shards
from uda_seg.data.stream import SampleReader
from uda_seg.data.transforms import Resize
from uda_seg.errors import UserError
from uda_seg.storage.user_cache import user_cache

log = logging.getLogger(__name__)


class DomainReaders:
    """Opens the data sets of the configured domains, each once.

    Args:
        settings: The `data` node.
        classes: The classes that labels are mapped to.
        eval_classes: The evaluated train ids.
        depth: Read the depth of training domains.

    Attributes:
        check: Check a sample of the labels of what is opened (on one rank is enough).
        looked: What that sample contains, by the domain's key.
    """

    def __init__(
        self, settings: DataSettings, classes: ClassSet, eval_classes: tuple[int, ...], *, depth: bool
    ) -> None:
        self.settings, self.classes, self.eval_classes = settings, classes, eval_classes
        self.depth, self.check = depth, True
        self._found: dict[str, SegmentationDataset] = {}
        self.looked: dict[str, Contents] = {}

    def find(self, domain: DomainSettings, option: str, *, labeled: bool) -> None:
        """Find a data set on disk; one that has yet to be rendered is passed over.

        Raises:
            UserError: a folder that is not set or does not exist; names the command that helps.
        """
        if self._in_shards(option):
            open_shards(domain, self.settings, option)
        elif domain.dataset != "streets" or domain.root is not None:
            self._found[option] = self._open(domain, option, labeled=labeled)

    def _open(self, domain: DomainSettings, option: str, *, labeled: bool) -> SegmentationDataset:
        """Open a data set unless `find` has already."""
        found = self._found.pop(option, None)
        if found is not None:
            return found
        depth = self.depth and not option.startswith("data.validation.")
        return open_domain(domain, self.settings, self.classes, option, labeled=labeled, depth=depth)

    def reader(self, domain: DomainSettings, option: str, *, labeled: bool, resize_label: bool = True) -> SampleReader:
        """Open a data set for reading; raises UserError if its files or settings are invalid."""
        dataset: SegmentationDataset | ShardDataset
        if self._in_shards(option):
            dataset, stored = open_shards(domain, self.settings, option), None
        else:
            dataset = self._open(domain, option, labeled=labeled)
            if labeled and self.check:
                self.looked[option] = check_labels(dataset, option, self.eval_classes)
            stored = self._stored(dataset, domain, option) if resize_label else None
        return SampleReader(
            dataset,
            resize_of(domain),
            margins=None if labeled else _margins(domain, option),
            cache=self.settings.cache,
            stored=stored,
            resize_label=resize_label,
        )

    def _in_shards(self, option: str) -> bool:
        return self.settings.reader == "shards" and option == "data.target"

    def _stored(self, dataset: SegmentationDataset, domain: DomainSettings, option: str) -> DiskCache | None:
        """Open the disk cache of training images if it is configured or exists."""
        if self.settings.cache not in ("disk", "auto"):
            return None
        try:
            found = find_cache(dataset, resize_of(domain), user_cache())
        except UserError as error:
            if self.settings.cache == "disk":
                raise
            log.warning("%s; its images are decoded from their files until then", error)
            return None
        if found is not None:
            log.info("%s: reading resized images from %s", option, found.files["image"].folder)
        elif self.settings.cache == "disk":
            raise UserError(
                f"data.cache=disk: there is no cache for {option} with these files and sizes: "
                f"run {prepare_command(self.settings)} data.cache=disk"
            )
        return found


def resize_of(domain: DomainSettings) -> Resize | None:
    """Return the resize of a domain's images to the network's size; None to keep them as on disk."""
    if domain.size is None:
        return None
    height, width = domain.size
    return Resize((height, width), domain.keep_ratio, domain.depth_resize, domain.image_resize)


def _margins(domain: DomainSettings, option: str) -> tuple[int, int, int, int] | None:
    if domain.margins is None:
        return None
    if len(domain.margins) != 4 or min(domain.margins) < 0:
        raise UserError(f"{option}.margins={domain.margins}: give [top, bottom, left, right] in pixels")
    top, bottom, left, right = domain.margins
    return top, bottom, left, right
