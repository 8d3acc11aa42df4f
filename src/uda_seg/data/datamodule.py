"""UDADataModule: the paired training loader and the validation loaders, built from the `data` settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from uda_seg.data.batch import DomainBatch, Sample
from uda_seg.data.custom import classes_of
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.images import spread
from uda_seg.data.labelled import LabelledImages
from uda_seg.data.labels import ClassSet
from uda_seg.data.loading import (
    StepLoader,
    StepSampler,
    bound_workers,
    choose_workers,
    collate_items,
    cores_of_rank,
    start_worker,
)
from uda_seg.data.parts import check_domains, labeled_parts, target_parts, validation_parts
from uda_seg.data.readers import DomainReaders
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.storage.label_store import StoredLabels
from uda_seg.data.storage.shards import ShardDataset
from uda_seg.data.stream import PairedSteps, SampleReader, Stream, WholeImages
from uda_seg.data.training_streams import TrainingStreams
from uda_seg.errors import UserError

log = logging.getLogger(__name__)


class UDADataModule(pl.LightningDataModule):
    """Pairs labelled source and unlabelled target crops; a batch depends only on seed, rank, world size and step.

    The labelled images of a target (`labelled`) are a further source of every method. The oracle trains on the target's
    labels: the labelled target replaces the source, and there is no target. Without a target in the settings or the
    method, batches have no "target" key.

    Args:
        settings: The `data` node.
        steps: Length of the whole run.
        seed: Seed of order, crops and flips.
        needs_target: The method reads unlabelled target images.
        target_in_step: The method reads them in every step; otherwise only through `target_batches`.
        target_labels: Train on the labelled target instead of the source (the oracle).
        needs_depth: The method reads the depth of source and target.
        margins: Pixels in the target's `margins` are not `valid`, like padding.
        overfit: Train repeatedly on the first batch; validation is unchanged.
        resumed: Folder of the run that is resumed, whose labelled target images are used again.
        sample: Number of the target's images that `target_sample` yields; also for methods that read none.

    Attributes:
        pseudo_labels: stored labels to add to the target images of training batches, from the next batch on.

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
        margins: bool = True,
        overfit: bool = False,
        resumed: Path | None = None,
        sample: int = 0,
    ) -> None:
        super().__init__()
        self.settings, self.steps, self.seed, self.overfit = settings, steps, seed, overfit
        self.target_in_step, self.needs_depth = target_in_step, needs_depth
        self.classes: ClassSet = classes_of(settings)
        self.eval_classes = self.classes.subset(settings.eval_classes)
        self.validation_names = tuple(validation_parts(settings))
        if (needs_target or target_labels) and settings.target is None:
            raise UserError(f"the method needs target images but data={settings.name} sets no data.target")
        if settings.cache not in ("auto", "memory", "disk", "none"):
            raise UserError(f"data.cache={settings.cache} is unknown; choose one of auto, memory, disk, none")
        if sample and settings.target is None:
            raise UserError(
                f"evaluator.label_free needs unlabelled target images, but data={settings.name} sets no data.target"
            )
        self.pseudo_labels: StoredLabels | None = None
        check_domains(settings, labels=target_labels, depth=needs_depth)
        self.labelled = LabelledImages(seed, resumed)
        self._sources = labeled_parts(settings, self.labelled, target_labels=target_labels)
        self._targets = target_parts(settings) if needs_target and not target_labels else []
        self._readers = DomainReaders(settings, self.classes, self.eval_classes, depth=needs_depth, margins=margins)
        self._sample, self._sampled = sample, WholeImages()
        self._source_shares: NDArray[np.float64] | None = None
        self._streams: dict[str, Stream] = {}
        self._validation: dict[str, SampleReader] = {}

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
        return self._target_batch if self._targets and self.target_in_step else 0

    def find(self) -> None:
        """Find the data sets on disk, except those that have yet to be rendered.

        Raises:
            UserError: a folder that is not set or does not exist; names the command that helps.
        """
        for part in (*self._sources, *self._targets, *validation_parts(self.settings).values()):
            self._readers.find(part)

    def prepare_data(self) -> None:
        """Render and count what is missing from the cache (Lightning calls it once per machine, before `setup`)."""
        self.setup(self.trainer.state.fn if self.trainer else None)

    def setup(self, stage: str | None = None) -> None:
        """Open the data sets; those for training only if `stage` requires them (Lightning hook)."""
        self._readers.check = self.rank == 0
        if stage in (None, "fit") and not self._streams:
            streams = TrainingStreams(self._readers, self.settings, self.seed)
            self._streams["source"] = streams.source(self._sources)
            self._source_shares = streams.class_shares
            if self._targets:
                self._streams["target"] = streams.target(self._targets, self._target_batch)
            if self._sample:
                self._sampled = WholeImages(*self._target_readers())
        if not self._validation:
            for name, part in validation_parts(self.settings).items():
                self._validation[name] = self._readers.reader(part)
                self._compare_bits(name, part.domain)

    @property
    def labelled_target_images(self) -> int:
        """Number of target images whose labels are trained on."""
        parts = zip(self._sources, self._streams["source"].readers, strict=True)
        return sum(len(samples) for part, samples in parts if part.option in self.settings.targets)

    def _compare_bits(self, name: str, domain: DomainSettings) -> None:
        """Warn if validation images in the target's folder use another bit depth than those for training."""
        validation, streams = self._validation[name].dataset.bits, self._streams.get("target")
        for part, samples in zip(self._targets, streams.readers if streams else (), strict=bool(streams)):
            train, same = samples.dataset.bits, domain.root is not None and part.domain.root == domain.root
            if same and train and validation and train != validation:
                log.warning(
                    "%s uses %d of 16 bits per channel, data.validation.%s uses %d: set bits= of both alike",
                    *(part.option, train, name, validation),
                )

    def train_dataloader(self) -> StepLoader:
        """Build the training loader, one batch per item, from the trainer's step on."""
        start = self.trainer.global_step if self.trainer else 0
        read = ("source", "target") if self.target_in_step else ("source",)
        streams = {name: self._of_rank(stream) for name, stream in self._streams.items() if name in read}
        workers = self._workers([r for stream in streams.values() for r in stream.readers], max(0, self.steps - start))
        return StepLoader(
            PairedSteps(streams, self.steps),
            batch_size=None,
            sampler=StepSampler(start, self.steps, self.overfit),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Add the current pseudo-labels, if any, to a training batch's target images (Lightning hook).

        Not in the loader, whose processes read ahead and would give the next batches the labels of before.
        """
        target = batch.get("target") if isinstance(batch, dict) else None
        if self.pseudo_labels is None or target is None:
            return batch
        return batch | {"target": self.pseudo_labels.add_to(target)}

    def val_dataloader(self) -> dict[str, DataLoader[tuple[Sample, int]]]:
        """Build one loader per validation set, in the settings' order; images are split over ranks without repetition.

        A rank without images left reads the first one, which `UDAModule` does not count.
        """
        return {
            name: DataLoader(
                WholeImages(samples),
                batch_size=self.settings.val_batch,
                # Lightning would skip a rank without images, and the others would wait for it.
                sampler=range(self.rank, len(samples), self.world_size) or range(1),
                num_workers=self._workers([samples], -(-len(samples) // self.settings.val_batch)),
                collate_fn=collate_items,
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
    def validation_images(self) -> dict[str, list[str]]:
        """Names of the images of each validation set, in the order of their indices."""
        sets = {name: samples.dataset for name, samples in self._validation.items()}
        return {name: list(found.names) for name, found in sets.items() if isinstance(found, SegmentationDataset)}

    @property
    def has_target(self) -> bool:
        """True if there are unlabelled target images."""
        return bool(self._targets)

    @property
    def bits(self) -> int | None:
        """Used bits per channel of 16-bit images, preferably the target's; None for 8-bit images."""
        target, source = (self._streams[n].readers if n in self._streams else () for n in ("target", "source"))
        return next((s.dataset.bits for s in (*target, *self._validation.values(), *source) if s.dataset.bits), None)

    @property
    def target_shape(self) -> tuple[int, int, int]:
        """Number of target images for training, and the maximum height and width."""
        readers = self._streams["target"].readers
        sizes = [samples.resize.box if samples.resize else samples.image_size for samples in readers]
        return sum(map(len, readers)), max(height for height, _ in sizes), max(width for _, width in sizes)

    def target_images(self, batches: Sequence[Sequence[int]]) -> DataLoader[tuple[Sample, int]]:
        """Load whole unlabelled target images of training in the given batches of indices."""
        readers = self._streams["target"].readers
        return DataLoader(
            WholeImages(*readers),
            batch_sampler=[list(places) for places in batches],
            num_workers=self._workers(readers, len(batches)),
            collate_fn=collate_items,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
        )

    def target_batches(self, count: int) -> Iterator[DomainBatch]:
        """Yield the first `count` target batches of training, regardless of the step (for batch statistics)."""
        stream = self._of_rank(self._streams["target"])
        return (stream.batch_at(step) for step in range(count))

    @property
    def sample_size(self) -> int:
        """Number of images that `target_sample` yields over all ranks."""
        return min(self._sample, self._sampled_from)

    @property
    def _sampled_from(self) -> int:
        """Number of images, the first of the target's, that the sample is drawn from."""
        shards = [r.dataset.shards[0].images for r in self._sampled.readers if isinstance(r.dataset, ShardDataset)]
        return shards[0] if shards else len(self._sampled)

    def target_sample(self) -> Iterator[tuple[int, DomainBatch]]:
        """Yield this rank's images of a random sample of the target's training images: (place in the sample, image).

        They are whole and unlabelled, and the same in every run on these images, whatever its seed. Of shards, which
        may have to be fetched, they are all in the first.
        """
        chosen = np.random.default_rng(0).permutation(self._sampled_from)[: self._sample]
        for place in range(self.rank, len(chosen), self.world_size):
            yield place, collate_items([self._sampled[int(chosen[place])]])

    def validation_sample(self, count: int) -> list[DomainBatch]:
        """Read labelled validation images, one per batch: at most `count`, spread evenly over every set."""
        each = -(-count // max(1, len(self._validation)))
        sets = [WholeImages(samples) for samples in self._validation.values()]
        return [collate_items([images[i]]) for images in sets for i in spread(range(len(images)), each)][:count]

    def source_sample(self, count: int) -> list[DomainBatch]:
        """Read whole labelled images of training, one per batch: the same `count` at random, or all."""
        images = WholeImages(*self._streams["source"].readers)
        chosen = np.random.default_rng(0).permutation(len(images))[:count]
        return [collate_items([images[int(i)]]) for i in chosen]

    @property
    def source_shares(self) -> NDArray[np.float64]:
        """The classes' shares of the sources' labelled pixels, float64 [K]; known on the first rank."""
        assert self._source_shares is not None
        return self._source_shares

    def _target_readers(self) -> Sequence[SampleReader]:
        """Return the readers of the target's images, opened for methods that read none."""
        if "target" in self._streams:
            return self._streams["target"].readers
        return [self._readers.reader(part) for part in target_parts(self.settings)]

    @property
    def _target_batch(self) -> int:
        return self.settings.target_batch or self.settings.source_batch

    def _of_rank(self, stream: Stream) -> Stream:
        return replace(stream, rank=self.rank, world_size=self.world_size)

    def _workers(self, readers: Sequence[SampleReader], items: int) -> int:
        if self.settings.workers is not None:
            return bound_workers(self.settings.workers, items)
        return choose_workers(all(r.in_memory for r in readers), cores_of_rank(self.trainer))
