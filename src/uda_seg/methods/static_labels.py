"""Static labels: the network labels the whole target where it is most confident (CCM, Li et al., ECCV 2020)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.parallel import progress_console
from uda_seg.data.storage.label_store import LabelDraft, LabelStore
from uda_seg.methods.base import UDAModule
from uda_seg.methods.options.rounds import RoundOptions
from uda_seg.models.compilation import as_written
from uda_seg.models.norm import batch_statistics, frozen_statistics
from uda_seg.ops.confident import LEVELS, certainty, histogram, select, top_share
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import IGNORE


def label_target(module: UDAModule, store: LabelStore, version: int, options: RoundOptions) -> float:
    """Label every target image: predict, compute thresholds over all predictions, then select.

    All ranks call it together; each labels its part of the images. The labels depend only on the network's weights, so
    an interrupted or resumed run creates or finds the same ones.

    Args:
        module: the module whose network labels the target of its trainer's data module.
        store: store of the labels.
        version: number of the version to write.
        options: shares of predictions that become labels.

    Returns:
        The labelled share of this rank's pixels.
    """
    trainer = module.trainer
    data: UDADataModule = trainer.datamodule  # type: ignore[attr-defined]
    draft = LabelDraft(store, version, data.settings.val_batch, fingerprint(module.segmentor))
    mine = range(module.global_rank, len(draft.batches), trainer.world_size)
    if trainer.is_global_zero:
        draft.begin()
    trainer.strategy.barrier()
    predict(module, draft, data, mine)
    trainer.strategy.barrier()
    counts = torch.zeros(len(module.plan.classes), LEVELS, dtype=torch.float64)
    for _, label, level in _predictions(draft, mine):
        counts += histogram(label, level, len(counts))
    counts = module.mean_over_ranks(counts.to(module.device)).cpu()
    thresholds = class_thresholds(counts, options.class_share, module.plan.eval_classes)
    share = write_selected(draft, mine, thresholds, options.image_share)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        draft.finish()
    trainer.strategy.barrier()
    return share


def predict(module: UDAModule, draft: LabelDraft, data: UDADataModule, mine: Sequence[int]) -> None:
    """Write the predictions of the batches `mine` with a progress bar, skipping those of an interrupted draft."""
    batches, done = draft.batches, draft.plane("done")
    left = [i for i in mine if not done[i]]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden, infer = not module.trainer.is_global_zero, module.infer.single()
    with (
        Progress(*columns, console=progress_console(), disable=hidden) as bar,
        labelling_mode(module),
    ):
        task = bar.add_task(f"labelling the target, round {draft.version + 1}", total=len(mine))
        bar.advance(task, len(mine) - len(left))
        for i, batch in zip(left, data.target_images([batches[i] for i in left]), strict=True):
            found = certainty(infer(module.segmentor, to_float(batch.image.to(module.device))))
            beyond = (0, draft.shape[2] - batch.image.shape[3], 0, draft.shape[1] - batch.image.shape[2])
            for name, plane, fill in (("label", found.label, IGNORE), ("level", found.level, 0)):
                draft.write(name, batches[i][0], F.pad(plane, beyond, value=fill).cpu().numpy())
            draft.write("done", i, np.ones(1))
            bar.advance(task)


def class_thresholds(counts: Tensor, class_share: float, eval_classes: Collection[int]) -> Tensor:
    """Compute the level from which each class is labelled, int64 [K], from its histogram of levels [K, LEVELS].

    Classes that are not evaluated get no share, as in the released code SYNTHIA's terrain, truck and train, which do
    not occur in that source. The share per image includes all classes.
    """
    levels = top_share(counts, class_share)
    levels[[c for c in range(len(counts)) if c not in eval_classes]] = LEVELS
    return levels


def write_selected(draft: LabelDraft, mine: Sequence[int], thresholds: Tensor, image_share: float) -> float:
    """Select the labels of the batches `mine` by class or by image; return the labelled share of their pixels."""
    kept = torch.zeros(2, dtype=torch.float64)
    for first, label, level in _predictions(draft, mine):
        one_class = torch.where(label < len(thresholds), 0, IGNORE)  # none in the padding of smaller images
        by_image = torch.cat([histogram(*pair, 1) for pair in zip(one_class, level, strict=True)])
        chosen = select(label, level, thresholds, top_share(by_image, image_share))
        draft.write("selected", first, chosen.numpy())
        kept += torch.tensor([(chosen < len(thresholds)).sum(), chosen.numel()], dtype=torch.float64)
    return (kept[0] / kept[1]).item()


def fingerprint(network: nn.Module) -> str:
    """Compute a fingerprint of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def labelling_mode(module: UDAModule) -> Iterator[None]:
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


def _predictions(draft: LabelDraft, mine: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the index of each batch's first image, and copies of its labels and levels."""
    label, level = draft.plane("label"), draft.plane("level")
    for i in mine:
        first = draft.batches[i][0]
        place = slice(first, draft.batches[i][-1] + 1)
        yield first, torch.from_numpy(label[place].copy()), torch.from_numpy(level[place].copy())
