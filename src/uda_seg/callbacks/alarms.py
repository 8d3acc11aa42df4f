"""Alarms: losses that are not finite, and networks that collapse."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytorch_lightning as pl

from uda_seg.callbacks.checkpoint import Checkpoints
from uda_seg.callbacks.dashboards import dashboards
from uda_seg.evaluation.evaluator import Scores
from uda_seg.methods.base import UDAModule
from uda_seg.methods.non_finite import NotFinite

log = logging.getLogger(__name__)

# What counts as a collapse (ours).
ONE_CLASS = 0.99  # share of the labelled pixels predicted as one class ...
SKEWED = 0.9  # ... unless it is that of this share of the labels
FALLEN = 0.5  # mIoU relative to the best so far ...
LEARNT = 0.1  # ... where that was above this mIoU, below which there was nothing to lose


class Alarms(pl.Callback):
    """Logs a warning, and alerts the dashboards, when training goes wrong; once, until it has recovered.

    Args:
        checkpoints: knows the best mIoU so far, also that of a resumed run.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.told: set[str] = set()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for a collapse (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        if not trainer.is_global_zero:
            return
        found = {place: text for name, s in pl_module.scores.items() for place, text in one_class(name, s)}
        best = self.checkpoints.best_miou
        if best > LEARNT and pl_module.miou < FALLEN * best:
            found["miou"] = f"mIoU {100 * pl_module.miou:.1f} % after {100 * best:.1f} %, the best before"
        for place in found.keys() - self.told:
            text = f"step {trainer.global_step}: {found[place]}"
            log.warning("the network seems to have collapsed; %s", text)
            self.alert(trainer, "collapse", text)
        self.told = set(found)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Alert the dashboards that a loss was not finite; the error itself is reported anyway (Lightning hook)."""
        if isinstance(exception, NotFinite):
            self.alert(trainer, "not finite", str(exception))

    def alert(self, trainer: pl.Trainer, title: str, text: str) -> None:
        """Alert all dashboards of the run."""
        for dashboard in dashboards(trainer):
            dashboard.alert(title, text, trainer.global_step)


def one_class(target: str, scores: Scores) -> Iterator[tuple[str, str]]:
    """Yield target and description if nearly all pixels are predicted as one class that is not nearly all there is."""
    total = int(scores.confusion.sum())
    predicted, labelled = (scores.confusion.sum(dim).tolist() for dim in (0, 1))
    most = max(range(len(predicted)), key=predicted.__getitem__)
    if predicted[most] > ONE_CLASS * total and labelled[most] < SKEWED * total:
        name = [*scores.per_class][most]
        yield target, f"{100 * predicted[most] / total:.1f} % of the pixels of {target} are predicted as {name}"
