"""Opening the configured domains for reading."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.declared import Contents, check_labels
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import ClassSet
from uda_seg.data.parts import Part
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
        margins: Mark pixels in the target's `margins` as not valid.

    Attributes:
        check: Check a sample of the labels of what is opened (on one rank is enough).
        looked: What that sample contains, by the domain's key.
    """

    def __init__(
        self, settings: DataSettings, classes: ClassSet, eval_classes: tuple[int, ...], *, depth: bool, margins: bool
    ) -> None:
        self.settings, self.classes, self.eval_classes = settings, classes, eval_classes
        self.depth, self.margins, self.check = depth, margins, True
        self._found: dict[str, SegmentationDataset] = {}
        self.looked: dict[str, Contents] = {}

    def find(self, part: Part) -> None:
        """Find a data set on disk; one that has yet to be rendered is passed over.

        Raises:
            UserError: a folder that is not set or does not exist; names the command that helps.
        """
        if self._in_shards(part):
            open_shards(part.domain, self.settings, part.option)
        elif not part.domain.rendered:
            self._found[part.key] = self._open(part)

    def _open(self, part: Part) -> SegmentationDataset:
        """Open a data set unless `find` has already."""
        found = self._found.pop(part.key, None)
        if found is not None:
            return found
        return open_domain(
            part.domain,
            self.settings,
            self.classes,
            part.option,
            labeled=part.labeled,
            depth=self.depth and part.of_training,
            choose=part.choose,
        )

    def reader(self, part: Part, *, wanted: Iterable[int] | None = None) -> SampleReader:
        """Open a data set for reading; labels of validation sets keep their size.

        Args:
            part: The domain.
            wanted: Train ids whose absence from the labels' encoding is warned of; None: the evaluated ones.

        Raises:
            UserError: invalid files or settings.
        """
        dataset: SegmentationDataset | ShardDataset
        cache, stored = self.settings.cache, None
        if self._in_shards(part):
            dataset = open_shards(part.domain, self.settings, part.option)
        else:
            dataset = self._open(part)
            if part.labeled and self.check:
                self.looked[part.key] = check_labels(dataset, part.key, self.eval_classes if wanted is None else wanted)
            if part.choose is not None:  # few images, which `prepare` does not know
                cache = "auto" if cache == "disk" else cache
            elif part.of_training:
                stored = self._stored(dataset, part.domain, part.option)
        return SampleReader(
            dataset,
            resize_of(part.domain),
            margins=_margins(part.domain, part.option) if self.margins and not part.labeled else None,
            cache=cache,
            stored=stored,
            resize_label=part.of_training,
        )

    def _in_shards(self, part: Part) -> bool:
        return self.settings.reader == "shards" and part.option == "data.target"

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
                f"data.cache=disk: there is no cache for {option} with these files, sizes and filters: run, with this "
                "command's experiment=, method= and sizes if it has any, "
                f"{prepare_command(self.settings)} data.cache=disk"
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
