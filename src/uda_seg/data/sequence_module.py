"""SequenceData: data module of self-supervised depth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from uda_seg.data.custom import classes_of
from uda_seg.data.labels import ClassSet
from uda_seg.data.loading import StepSampler, bound_workers, choose_workers, cores_of_rank, start_worker
from uda_seg.data.sequences import VIEWS, SequenceBatch, SequenceDataset, SequenceSteps, stack
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.errors import UserError

log = logging.getLogger(__name__)


class SequenceLoader(DataLoader[SequenceBatch]):
    """A stateless loader, as batches depend only on the step. The state methods let Lightning resume it."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: `SequenceData.train_dataloader` starts at the trainer's step."""


class SequenceData(pl.LightningDataModule):
    """Sequences and stereo pairs of the given domains, with validation on streets' exact depth.

    Args:
        settings: The `data` node.
        domains: `source`, `target` or both.
        supervision: A key of `VIEWS`.
        batch: Images per step and rank.
        steps: Length of the run.
        seed: Seed of the order.
        val_count: Images of streets' validation split, per domain.

    Raises:
        UserError: a missing domain, or invalid files.
    """

    def __init__(
        self,
        settings: DataSettings,
        domains: Sequence[str],
        supervision: str,
        batch: int,
        steps: int,
        seed: int,
        val_count: int = 100,
    ) -> None:
        super().__init__()
        self.settings, self.batch, self.steps, self.seed, self.val_count = settings, batch, steps, seed, val_count
        self.classes: ClassSet = classes_of(settings)
        self.views = VIEWS[supervision]
        self.domains = {name: self.domain(name) for name in domains}
        files = [name for name in self.domains if name != "target" or settings.reader == "files"]
        self.validation_names = tuple(n for n in files if self.domains[n].dataset == "streets")
        self.train: list[SequenceDataset] = []
        self.validation: dict[str, SequenceDataset] = {}

    def domain(self, name: str) -> DomainSettings:
        """Return the settings of `source` or `target`."""
        found = {"source": self.settings.source, "target": self.settings.target}.get(name)
        if found is None:
            raise UserError(f"depth.domains names {name}, but data={self.settings.name} has no such domain")
        return found

    def check_learnable(self) -> None:
        """Raise UserError if a domain is not a single one of files. Maps can be exported of any domain nevertheless."""
        for name in self.domains:
            if more := getattr(self.settings, f"more_{name}s"):
                raise UserError(
                    f"depth learns from data.{name} alone, but data={self.settings.name} also has data.more_{name}s."
                    f"{', '.join(more)}: choose a pair of domains, and train on each of the others as data.{name}"
                )
            if name == "target" and self.settings.reader == "shards":
                raise UserError(
                    "data.reader=shards has single images: depth learns from sequences, so data.reader=files"
                )

    @property
    def seen(self) -> str:
        """Caveat about scores on images that are also trained on; empty if there are none."""
        # A folder of streets is a single split; the cache has one folder per split.
        names = [f"data.{name}" for name in self.validation_names if self.domains[name].root is not None]
        return f"{' and '.join(names)} scored on training images" if names else ""

    @property
    def images_per_step(self) -> int:
        """Images per step over all ranks."""
        return self.batch * (self.trainer.world_size if self.trainer else 1)

    def setup(self, stage: str | None = None) -> None:
        """Open the data sets, rendering streets first; those for training only if `stage` requires them."""
        if stage in (None, "fit"):
            self.check_learnable()
        if not self.validation:
            if self.seen:
                log.warning("a given root has no separate validation images: %s", self.seen)
            for name in self.validation_names:
                domain = replace(self.domains[name], split="val", count=self.val_count)
                self.validation[name] = self._open(domain, name, (), depth=True)
        if stage in (None, "fit") and not self.train:
            self.train = [self._open(domain, name, self.views) for name, domain in self.domains.items()]

    def prepare_data(self) -> None:
        """Render missing images (Lightning calls it once per machine, before `setup`)."""
        self.setup(self.trainer.state.fn if self.trainer else None)

    def _open(self, domain: DomainSettings, name: str, views: Sequence[str], depth: bool = False) -> SequenceDataset:
        return SequenceDataset(domain, self.settings, self.classes, f"data.{name}", views, depth)

    def train_dataloader(self) -> SequenceLoader:
        """Build the training loader, one batch per item, from the trainer's step on."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        start = trainer.global_step if trainer else 0
        asked = self.settings.workers
        if asked is None:
            workers = choose_workers(all(d.in_memory for d in self.train), cores_of_rank(trainer))
        else:
            workers = bound_workers(asked, max(0, self.steps - start))
        return SequenceLoader(
            SequenceSteps(self.train, self.batch, self.steps, self.seed, rank, world_size),
            batch_size=None,
            sampler=StepSampler(start, self.steps),
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> list[DataLoader[SequenceBatch]]:
        """Build one loader per domain with exact depth; images are split over ranks without repetition."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        loaders = []
        for samples in self.validation.values():
            mine = range(rank, len(samples), world_size)
            # Lightning would skip a rank without images, and the others would wait for it.
            views, mine = (Views(samples), mine) if mine else (ViewsOfUnknownDepth(samples), range(1))
            size = self.settings.val_batch
            loaders.append(DataLoader(views, batch_size=size, sampler=mine, collate_fn=stack))
        return loaders


class Views(torch.utils.data.Dataset[SequenceBatch]):
    """Map-style data set of a SequenceDataset."""

    def __init__(self, samples: SequenceDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> SequenceBatch:
        return self.samples[index]


class ViewsOfUnknownDepth(Views):
    """Samples with unknown depth, which do not affect scores."""

    def __getitem__(self, index: int) -> SequenceBatch:
        sample = super().__getitem__(index)
        return replace(sample, depth=None if sample.depth is None else torch.zeros_like(sample.depth))
