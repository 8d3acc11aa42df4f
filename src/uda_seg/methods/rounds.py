"""Self-training in rounds: the network labels the whole target at the start of each round and trains on the labels."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from uda_seg.data.batch import DomainBatch
from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.storage.label_store import LabelDraft, LabelStore
from uda_seg.errors import Damaged, UserError
from uda_seg.methods.base import UDAModule
from uda_seg.models.compilation import as_written
from uda_seg.models.norm import batch_norms, batch_statistics, frozen_statistics
from uda_seg.ops.confident import LEVELS, certainty, histogram, select, top_share
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import IGNORE

log = logging.getLogger(__name__)

FOLDER = "pseudo_labels"


@dataclass(frozen=True)
class RoundSchedule:
    """Schedule of rounds: equally spaced after the warm-up.

    Args:
        steps: length of the run.
        warmup: fraction of the steps before the first round.
        rounds: number of rounds, at most one per step.
    """

    steps: int
    warmup: float
    rounds: int

    @property
    def first(self) -> int:
        """First step of the first round."""
        return round(self.warmup * self.steps)

    def at(self, step: int) -> int | None:
        """Return the round of `step`; None in the warm-up and after the end."""
        if not self.first <= step < self.steps:
            return None
        return (step - self.first) * self.rounds // (self.steps - self.first)

    def span(self, step: int) -> tuple[int, int] | None:
        """Return the number and the first step of the round of `step`."""
        current = self.at(step)
        return (
            None if current is None else (current, self.first - (-current * (self.steps - self.first) // self.rounds))
        )


@dataclass(frozen=True)
class Shares:
    """Shares of predictions that become labels (CCM, Li et al., ECCV 2020).

    Args:
        of_class: most confident share of the pixels predicted as a class, over the whole target.
        of_image: most confident share of an image's pixels.
    """

    of_class: float
    of_image: float


class StaticLabels:
    """The labels y_F of the current round: predicted by the run's own network, cropped with the target images.

    They depend only on the weights at the round's start, so an interrupted or resumed run creates or finds the same
    ones.

    Args:
        module: the module whose network labels the target and whose batches get the labels.
        schedule: schedule of the rounds.
        shares: shares of predictions that become labels.
        passes: minimum passes over the target per round; the number of rounds is reduced to satisfy it.
    """

    def __init__(self, module: UDAModule, schedule: RoundSchedule, shares: Shares, passes: float) -> None:
        self.module, self.schedule, self.shares, self.passes = module, schedule, shares, passes
        self.store: LabelStore | None = None
        self.round: int | None = None
        self.begun: RoundSchedule | None = None

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: the schedule."""
        return asdict(self.schedule)

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Restore such a state; None for a checkpoint without one."""
        if state is None:
            return
        said = state if isinstance(state, Mapping) else {}
        steps, warmup, rounds = (said.get(key) for key in ("steps", "warmup", "rounds"))
        if not (isinstance(steps, int) and isinstance(warmup, int | float) and isinstance(rounds, int) and rounds > 0):
            raise Damaged("the checkpoint is damaged, rounds is nonsense: resume from another one, or use init=")
        self.begun = RoundSchedule(steps, warmup, rounds)

    def start(self) -> None:
        """Find or create the labels of the first step, and delete labels of later rounds left by another run.

        Without a data module, batches are expected to contain the labels.

        Raises:
            UserError: batch norm cannot compute statistics of a rank's images.
        """
        data = getattr(self.module.trainer, "datamodule", None)
        if not isinstance(data, UDADataModule):
            return
        synchronised = any(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(self.module.segmentor))
        if synchronised and self.module.plan.teacher.batch_norm != "eval":
            raise UserError(
                "trainer.sync_batchnorm=true: the ranks label different numbers of images, and would wait for each "
                "other's statistics for ever: add teacher.batch_norm=eval"
            )
        count, height, width = data.target_shape
        self.schedule = self.possible(count, data.images_per_step - data.source_images_per_step)
        folder = Path(self.module.trainer.default_root_dir) / FOLDER
        self.store, self.round = LabelStore(folder, count, (height, width)), None
        step = self.module.trainer.global_step
        current = self.schedule.at(step)
        if self.module.trainer.is_global_zero:
            before = self.schedule if self.begun is None else self.begun
            other = before.span(step) != self.schedule.span(step)
            self.store.forget_from(0 if current is None else current + (not other))
            if current is not None and other:
                log.warning(
                    "resumed with %d rounds in %d steps instead of %d in %d: the target is labelled again for this "
                    "one, with the weights of step %d",
                    *(self.schedule.rounds, self.schedule.steps, before.rounds, before.steps), step,
                )  # fmt: skip
            elif current is not None and not self.store.has(current):
                self.recover(self.store, current)
        _barrier()
        self.advance()

    def possible(self, count: int, per_step: int) -> RoundSchedule:
        """Reduce the rounds to those that `count` target images allow at `per_step` per step; resumed runs keep theirs.

        Resuming with another number of ranks keeps the rounds, which then pass over the target more or fewer times.
        """
        asked, begun = self.schedule, self.begun
        if begun is not None and (begun.steps, begun.warmup) == (asked.steps, asked.warmup):
            return begun
        images = per_step * (asked.steps - asked.first)
        most = int(images / (self.passes * count)) if self.passes > 0 else asked.rounds
        return replace(asked, rounds=max(1, min(asked.rounds, most)))

    def recover(self, store: LabelStore, current: int) -> None:
        """Copy a round's labels from the folder of the resumed checkpoint; warn if a started round has none."""
        trainer = self.module.trainer
        if trainer.ckpt_path is not None:
            store.take(Path(trainer.ckpt_path).resolve().parent.parent / FOLDER, current)
        if self.schedule.at(trainer.global_step - 1) == current and not store.has(current):
            log.warning(
                "round %d has no readable labels in %s: the target is labelled again with the weights of step %d "
                "instead of those of the round's start", current + 1, store.folder, trainer.global_step,
            )  # fmt: skip

    def advance(self) -> None:
        """Label the target if the next step begins a round.

        The labels of every round are kept, because a run may be resumed from an earlier checkpoint.
        """
        trainer = self.module.trainer
        current = self.schedule.at(trainer.global_step)
        if self.store is None or current is None or current == self.round or trainer.global_step >= trainer.max_steps:
            return
        if not trainer.strategy.broadcast(self.store.has(current)):  # shared disks may lag, so rank 0 decides
            self.make(self.store, current)
        self.round = current

    def give(self, target: DomainBatch) -> DomainBatch:
        """Add this round's labels to the batch; unchanged in the warm-up, or if it has labels."""
        if self.store is None or self.round is None or target.pseudo is not None:
            return target
        assert target.window is not None, "the data module says where crops lie"
        size = (target.image.shape[2], target.image.shape[3])
        pseudo = self.store.read(self.round, target.index, target.window, size)
        # The loader has pinned the rest; a copy from pageable memory would stall the step.
        return replace(target, pseudo=pseudo.pin_memory() if torch.cuda.is_available() else pseudo)

    # ------------------------------------------------------------------ one round

    def make(self, store: LabelStore, current: int) -> None:
        """Label every target image: predict, compute thresholds over all predictions, then select."""
        module, data = self.module, self.module.trainer.datamodule  # type: ignore[attr-defined]
        draft = LabelDraft(store, current, data.settings.val_batch, identity(module.segmentor))
        mine = range(module.global_rank, len(draft.batches), module.trainer.world_size)
        if module.trainer.is_global_zero:
            draft.begin()
        _barrier()
        self.predict(draft, data, mine)
        _barrier()
        counts = torch.zeros(len(module.plan.classes), LEVELS, dtype=torch.float64)
        for _, label, level in _images(draft, mine):
            counts += histogram(label, level, len(counts))
        counts = module.mean_over_ranks(counts.to(module.device)).cpu()
        thresholds = self.thresholds(counts)
        kept = torch.zeros(2, dtype=torch.float64)
        for first, label, level in _images(draft, mine):
            one_class = torch.where(label < len(counts), 0, IGNORE)  # none in the padding of smaller images
            by_image = torch.cat([histogram(*pair, 1) for pair in zip(one_class, level, strict=True)])
            chosen = select(label, level, thresholds, top_share(by_image, self.shares.of_image))
            draft.write("selected", first, chosen.numpy())
            kept += torch.tensor([(chosen < len(counts)).sum(), chosen.numel()], dtype=torch.float64)
        _barrier()
        if module.trainer.is_global_zero:
            draft.finish()
            share = (kept[0] / kept[1]).item()
            log.info("round %d of %d: %.1f %% of the target labelled", current + 1, self.schedule.rounds, 100 * share)
        _barrier()

    def thresholds(self, counts: Tensor) -> Tensor:
        """Compute the level from which each class is labelled, int64 [K], from its histogram of levels [K, LEVELS].

        Classes that are not evaluated do not occur in the source and get no share: SYNTHIA's terrain, truck and train.
        The share per image includes all classes, as in the released code.
        """
        levels = top_share(counts, self.shares.of_class)
        levels[[c for c in range(len(counts)) if c not in self.module.plan.eval_classes]] = LEVELS
        return levels

    def predict(self, draft: LabelDraft, data: UDADataModule, mine: Sequence[int]) -> None:
        """Write this rank's predictions with a progress bar, skipping those of an interrupted draft."""
        batches, done = draft.batches, draft.plane("done")
        left = [i for i in mine if not done[i]]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden, infer = not self.module.trainer.is_global_zero, self.module.infer.single()
        with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar, labelling(self.module):
            task = bar.add_task(f"labelling the target, round {draft.version + 1}", total=len(mine))
            bar.advance(task, len(mine) - len(left))
            for i, batch in zip(left, data.target_images([batches[i] for i in left]), strict=True):
                found = certainty(infer(self.module.segmentor, to_float(batch.image.to(self.module.device))))
                beyond = (0, draft.shape[2] - batch.image.shape[3], 0, draft.shape[1] - batch.image.shape[2])
                for name, plane, fill in (("label", found.label, IGNORE), ("level", found.level, 0)):
                    draft.write(name, batches[i][0], F.pad(plane, beyond, value=fill).cpu().numpy())
                draft.write("done", i, np.ones(1))
                bar.advance(task)


def identity(network: nn.Module) -> str:
    """Compute a fingerprint of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def labelling(module: UDAModule) -> Iterator[None]:
    """Switch the network to teacher mode within the block, with the statistics selected by `teacher.batch_norm`."""
    network, mode = module.segmentor, module.segmentor.training
    network.eval()
    try:
        with torch.no_grad(), as_written(network), module.trainer.precision_plugin.forward_context():
            if module.plan.teacher.batch_norm == "eval":
                yield
            else:
                with batch_statistics(network), frozen_statistics(network):
                    yield
    finally:
        network.train(mode)


def _images(draft: LabelDraft, mine: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the index of each batch's first image, and views of its labels and levels."""
    label, level = draft.plane("label"), draft.plane("level")
    for i in mine:
        first = draft.batches[i][0]
        place = slice(first, draft.batches[i][-1] + 1)
        yield first, torch.from_numpy(label[place].copy()), torch.from_numpy(level[place].copy())


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
