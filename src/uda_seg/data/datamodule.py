"""UDADataModule: the paired training loader and the validation loaders, built from the `data` settings."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from torch.utils.data import DataLoader, Sampler

from uda_seg.data.batch import DomainBatch, Sample, collate
from uda_seg.data.custom import classes_of
from uda_seg.data.datasets import SegmentationDataset, open_domain
from uda_seg.data.declared import Contents, check_labels, warn_of_absent
from uda_seg.data.labels import ClassSet
from uda_seg.data.parallel import cores
from uda_seg.data.sampling import Order, ShuffledOrder
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.statistics import (
    ClassStatistics,
    class_statistics,
    kept_statistics,
    min_crop_pixels,
    rare_class_order,
)
from uda_seg.data.storage.disk_cache import DiskCache, find_cache
from uda_seg.data.storage.shards import ShardDataset, ShardOrder, open_shards
from uda_seg.data.stream import DomainStream, PairedSteps, SampleReader, ValidationImages
from uda_seg.data.transforms import CropRule, Resize
from uda_seg.errors import UserError
from uda_seg.storage.user_cache import user_cache

log = logging.getLogger(__name__)

SOURCE, TARGET = 0, 1  # ids of the domains in random draws


def choose_workers(in_memory: bool, cores: int) -> int:
    """Choose the number of loader processes of a rank with this many cores, for `data.workers=null`.

    Zero for images in memory: cropping a batch takes a few milliseconds, less than another process costs on a small
    machine. Otherwise decoding dominates: up to 4, leaving a core for the rank's training process.
    """
    return 0 if in_memory else min(4, max(1, cores - 1))


def bound_workers(asked: int, items: int) -> int:
    """Limit `data.workers` to two per core and one per item."""
    most = min(2 * cores(), items)
    if asked > most:
        _tell_bound(asked, cores(), items)
    return min(asked, most)


@functools.cache  # warn once per combination
def _tell_bound(asked: int, machine: int, items: int) -> None:
    log.warning(
        "data.workers=%d: %d are started, for %d cores and %d items to load: more would be idle",
        *(asked, min(2 * machine, items), machine, items),
    )


def cores_of_rank(trainer: pl.Trainer | None) -> int:
    """Return this machine's number of cores per rank.

    SLURM tasks have their own cores if `--cpus-per-task` is set; other ranks share the cores available to each of them.
    """
    if trainer is None:
        return cores()
    own = os.environ.get("SLURM_CPUS_PER_TASK")
    if own is not None and isinstance(getattr(trainer.strategy, "cluster_environment", None), SLURMEnvironment):
        return min(int(own), cores())
    return cores() // trainer.num_devices


class StepSampler(Sampler[int]):
    """Sampler of steps from `start` on, or of step 0 repeatedly to overfit on it.

    Its length is that of the whole run, because Lightning counts batches by it.
    """

    def __init__(self, start: int, steps: int, overfit: bool = False) -> None:
        self.start, self.steps, self.overfit = start, steps, overfit

    def __iter__(self) -> Iterator[int]:
        return (0 if self.overfit else step for step in range(self.start, self.steps))

    def __len__(self) -> int:
        return self.steps


class StepLoader(DataLoader[dict[str, DomainBatch]]):
    """A stateless loader, as batches depend only on the step. The state methods let Lightning resume it."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: `UDADataModule.train_dataloader` starts at the trainer's step."""


class UDADataModule(pl.LightningDataModule):
    """Pairs labelled source and unlabelled target crops; a batch depends only on seed, rank, world size and step.

    The oracle trains on the target's labels: the labelled target replaces the source, and there is no target. Without a
    target in the settings or the method, batches have no "target" key.

    Args:
        settings: The `data` node.
        steps: Length of the whole run.
        seed: Seed of order, crops and flips.
        needs_target: The method reads unlabelled target images.
        target_in_step: The method reads them in every step; otherwise only through `target_batches`.
        target_labels: Train on the labelled target instead of the source (the oracle).
        needs_depth: The method reads the depth of source and target.
        overfit: Train repeatedly on the first batch; validation is unchanged.

    Raises:
        UserError: invalid settings or files; names the cure.
    """

    def __init__(
        self,
        settings: DataSettings,
        steps: int,
        seed: int,
        needs_target: bool = True,
        target_in_step: bool = True,
        target_labels: bool = False,
        needs_depth: bool = False,
        overfit: bool = False,
    ) -> None:
        super().__init__()
        self.settings, self.steps, self.seed, self.overfit = settings, steps, seed, overfit
        self.target_in_step, self.needs_depth = target_in_step, needs_depth
        self.classes: ClassSet = classes_of(settings)
        self.eval_classes = self.classes.subset(settings.eval_classes)
        self.validation_names = tuple(settings.validation)
        if (needs_target or target_labels) and settings.target is None:
            raise UserError(f"the method needs target images but data={settings.name} sets no data.target")
        if settings.cache not in ("auto", "memory", "disk", "none"):
            raise UserError(f"data.cache={settings.cache} is unknown; choose one of auto, memory, disk, none")
        if settings.reader == "shards" and (target_labels or needs_depth):
            what = "labels of the target" if target_labels else "depth"
            raise UserError(f"data.reader=shards has only images, and the method reads {what}: use data.reader=files")
        self._labeled = ("data.source", settings.source)
        if target_labels and settings.target is not None:
            self._labeled = ("data.target", settings.target)
        self._target = settings.target if needs_target and not target_labels else None
        self._found: dict[str, SegmentationDataset] = {}
        self._streams: dict[str, DomainStream] = {}
        self._validation: dict[str, SampleReader] = {}
        self._looked: dict[str, Contents] = {}

    @property
    def rank(self) -> int:
        """Rank of this process; 0 without a trainer."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        """Number of ranks; 1 without a trainer."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def source_images_per_step(self) -> int:
        """Labelled images per step over all ranks."""
        return self.settings.source_batch * self.world_size

    @property
    def images_per_step(self) -> int:
        """Images of both domains per step over all ranks."""
        return self.source_images_per_step + self.target_batch * self.world_size

    @property
    def target_batch(self) -> int:
        """Target images per step and rank."""
        return self._target_batch if self._target and self.target_in_step else 0

    def find(self) -> None:
        """Find the data sets on disk, except those that have yet to be rendered.

        Raises:
            UserError: a folder that is not set or does not exist; names the command that helps.
        """
        labeled, target = (*self._labeled, True), ("data.target", self._target, False)
        validation = [(f"data.validation.{name}", domain, True) for name, domain in self.settings.validation.items()]
        for option, domain, read in [labeled, target, *validation]:
            if domain is not None and self._in_shards(option):
                open_shards(domain, self.settings, option)
            elif domain is not None and (domain.dataset != "streets" or domain.root is not None):
                depth = self.needs_depth and not option.startswith("data.validation.")
                self._found[option] = self._open(domain, option, labeled=read, depth=depth)

    def _open(self, domain: DomainSettings, option: str, *, labeled: bool, depth: bool) -> SegmentationDataset:
        """Open a data set unless `find` has already."""
        found = self._found.pop(option, None)
        if found is not None:
            return found
        return open_domain(domain, self.settings, self.classes, option, labeled=labeled, depth=depth)

    def prepare_data(self) -> None:
        """Render and count what is missing from the cache (Lightning calls it once per machine, before `setup`)."""
        self.setup(self.trainer.state.fn if self.trainer else None)

    def setup(self, stage: str | None = None) -> None:
        """Open the data sets; those for training only if `stage` requires them (Lightning hook)."""
        if stage in (None, "fit") and not self._streams:
            self._streams["source"] = self._source_stream()
            if self._target is not None:
                self._streams["target"] = self._target_stream(self._target)
        if not self._validation:
            for name, domain in self.settings.validation.items():
                self._validation[name] = self._samples(
                    domain, f"data.validation.{name}", labeled=True, resize_label=False
                )
                self._compare_bits(name, domain)

    def _compare_bits(self, name: str, domain: DomainSettings) -> None:
        """Warn if validation images in the target's folder use another bit depth than those for training."""
        target, same = self._streams.get("target"), self._target is not None and self._target.root == domain.root
        if target is None or not same or domain.root is None:
            return
        train, validation = target.samples.dataset.bits, self._validation[name].dataset.bits
        if train and validation and train != validation:
            log.warning(
                "data.target uses %d of 16 bits per channel, data.validation.%s uses %d: set bits= of both alike",
                *(train, name, validation),
            )

    def train_dataloader(self) -> StepLoader:
        """Build the training loader, one batch per item, from the trainer's step on."""
        start = self.trainer.global_step if self.trainer else 0
        read = ("source", "target") if self.target_in_step else ("source",)
        streams = {name: self._of_rank(stream) for name, stream in self._streams.items() if name in read}
        workers = self._workers([stream.samples for stream in streams.values()], max(0, self.steps - start))
        return StepLoader(
            PairedSteps(streams, self.steps),
            batch_size=None,
            sampler=StepSampler(start, self.steps, self.overfit),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> dict[str, DataLoader[tuple[Sample, int]]]:
        """Build one loader per validation set, in the settings' order; images are split over ranks without repetition.

        A rank without images left reads the first one, which `UDAModule` does not count.
        """
        return {
            name: DataLoader(
                ValidationImages(samples),
                batch_size=self.settings.val_batch,
                # Lightning would skip a rank without images, and the others would wait for it.
                sampler=range(self.rank, len(samples), self.world_size) or range(1),
                num_workers=self._workers([samples], -(-len(samples) // self.settings.val_batch)),
                collate_fn=_collate,
                worker_init_fn=start_worker,
                pin_memory=torch.cuda.is_available(),
            )
            for name, samples in self._validation.items()
        }

    @property
    def validation_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the first image of each validation set, as input of the network."""
        return [samples.image_size for samples in self._validation.values()]

    @property
    def has_target(self) -> bool:
        """True if there are unlabelled target images."""
        return self._target is not None

    @property
    def bits(self) -> int | None:
        """Used bits per channel of 16-bit images, preferably the target's; None for 8-bit images."""
        target = [self._streams["target"].samples] if "target" in self._streams else []
        source = [self._streams["source"].samples] if "source" in self._streams else []
        return next((s.dataset.bits for s in (*target, *self._validation.values(), *source) if s.dataset.bits), None)

    @property
    def target_shape(self) -> tuple[int, int, int]:
        """Number of target images for training, and the maximum height and width."""
        samples = self._streams["target"].samples
        height, width = samples.resize.box if samples.resize else samples.image_size
        return len(samples), height, width

    def target_images(self, batches: Sequence[Sequence[int]]) -> DataLoader[tuple[Sample, int]]:
        """Load whole unlabelled target images of training in the given batches of indices."""
        samples = self._streams["target"].samples
        return DataLoader(
            ValidationImages(samples),
            batch_sampler=[list(places) for places in batches],
            num_workers=self._workers([samples], len(batches)),
            collate_fn=_collate,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
        )

    def target_batches(self, count: int) -> Iterator[DomainBatch]:
        """Yield the first `count` target batches of training, regardless of the step (for batch statistics)."""
        stream = self._of_rank(self._streams["target"])
        return (stream.batch_at(step) for step in range(count))

    @property
    def _target_batch(self) -> int:
        return self.settings.target_batch or self.settings.source_batch

    def _of_rank(self, stream: DomainStream) -> DomainStream:
        return replace(stream, rank=self.rank, world_size=self.world_size)

    def _workers(self, readers: Sequence[SampleReader], items: int) -> int:
        if self.settings.workers is not None:
            return bound_workers(self.settings.workers, items)
        return choose_workers(all(r.in_memory for r in readers), cores_of_rank(self.trainer))

    def _samples(
        self, domain: DomainSettings, option: str, *, labeled: bool, resize_label: bool = True, depth: bool = False
    ) -> SampleReader:
        dataset: SegmentationDataset | ShardDataset
        if self._in_shards(option):
            dataset, stored = open_shards(domain, self.settings, option), None
        else:
            dataset = self._open(domain, option, labeled=labeled, depth=depth)
            if labeled and self.rank == 0:  # on one rank is enough
                self._looked[option] = check_labels(dataset, option, self.eval_classes)
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

    def _source_stream(self) -> DomainStream:
        option, domain = self._labeled
        samples = self._samples(domain, option, labeled=True, depth=self.needs_depth)
        rule = self._rule(samples, option, self.settings.crop_max_ratio)
        rare, batch = self.settings.rare_class, self.settings.source_batch
        assert isinstance(samples.dataset, SegmentationDataset)
        if not rare.enabled:
            self._say_absent(samples.dataset, option, kept_statistics(samples.dataset, user_cache()))
            return DomainStream(samples, ShuffledOrder(len(samples), self.seed, SOURCE), rule, self.seed, SOURCE, batch)
        statistics = class_statistics(samples.dataset, user_cache(), prepare_command(self.settings))
        self._say_absent(samples.dataset, option, statistics)
        order = rare_class_order(statistics, rare, self.classes.names, self.seed, SOURCE)
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
        if option not in self._looked:
            return
        found, looked = self._looked[option].pixels, self._looked[option].looked
        if counted is not None:
            found, looked = counted.pixels.sum(0), len(dataset)
        warn_of_absent(dataset, option, self.eval_classes, found, looked, prepare_command(self.settings))

    def _target_stream(self, domain: DomainSettings) -> DomainStream:
        samples = self._samples(domain, "data.target", labeled=False, depth=self.needs_depth)
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
        return DomainStream(samples, order, rule, self.seed, TARGET, self._target_batch)

    def _rule(self, samples: SampleReader, option: str, max_ratio: float) -> CropRule:
        height, width = self.settings.crop
        if height > samples.image_size[0] or width > samples.image_size[1]:
            raise UserError(
                f"data.crop=[{height},{width}] is larger than the images of {option}, which are "
                f"{list(samples.image_size)} (height, width) after the resize: make the crop smaller or "
                f"{option}.size larger"
            )
        return CropRule((height, width), max_ratio, self.settings.flip, self.settings.crop_tries)


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


def start_worker(worker: int) -> None:
    """Initialise a loader process."""
    cv2.setNumThreads(0)  # parallelism is over workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the loader stops its workers


def _collate(items: Sequence[tuple[Sample, int]]) -> DomainBatch:
    return collate([sample for sample, _ in items], [index for _, index in items])
