"""Loader processes, and the samplers and loaders of steps."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from torch.utils.data import DataLoader, Sampler

from uda_seg.data.batch import DomainBatch, Sample, collate
from uda_seg.data.parallel import cores

log = logging.getLogger(__name__)


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


def start_worker(worker: int) -> None:
    """Initialise a loader process."""
    cv2.setNumThreads(0)  # parallelism is over workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the loader stops its workers


def collate_items(items: Sequence[tuple[Sample, int]]) -> DomainBatch:
    """Stack samples with their indices into a batch."""
    return collate([sample for sample, _ in items], [index for _, index in items])
