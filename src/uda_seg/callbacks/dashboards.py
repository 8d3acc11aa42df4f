"""Contents of dashboards besides numbers: one protocol of pictures, tables, bars and alerts.

A callback calls `show` (or asks `dashboards` first, where drawing itself takes time); the logger of each dashboard says
how it looks there. The CSV log is no dashboard: without `logger=wandb` or `logger=tensorboard` there is none, and
nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from uda_seg.data.labels import ClassSet

RGB = NDArray[np.uint8]
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image, and label maps over it that a dashboard can switch on and off.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        caption: one line.
        masks: label maps by name (`prediction`, `label`, `pseudo-label`, ...), class ids uint8 [H, W], 255 = none.
        classes: names and colours of the masks' ids; None if there are no masks.
    """

    image: RGB
    caption: str = ""
    masks: Mapping[str, Labels] = field(default_factory=dict)
    classes: ClassSet | None = None


@dataclass(frozen=True)
class Table:
    """Rows that a dashboard can sort; a cell is a text, a number (NaN: none) or a picture."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | Picture]]


@dataclass(frozen=True)
class Ending:
    """End of a run.

    Attributes:
        failed: it ended by an error or a signal.
        scores: `miou` of the last step and of the `best` one, in [0, 1]; without validation sets, none.
        checkpoints: existing files by name, `last` and `best`, with the step of each.
    """

    failed: bool
    scores: Mapping[str, float] = field(default_factory=dict)
    checkpoints: Mapping[str, tuple[Path, int]] = field(default_factory=dict)


@runtime_checkable
class Dashboard(Protocol):
    """Interface of a logger that shows more than numbers; `step` counts completed optimiser steps."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Draw numbers as curves, as every logger does."""

    def show_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Show pictures under a name such as `val/target/pictures`."""

    def show_table(self, name: str, table: Table, step: int) -> None:
        """Show a table."""

    def show_bars(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Show one bar per value, by name, in [0, 1]; NaN: no bar."""

    def alert(self, title: str, text: str, step: int) -> None:
        """Tell whoever follows the run that something went wrong."""

    def close(self, ending: Ending) -> None:
        """End the run."""


def dashboards(trainer: pl.Trainer) -> list[Dashboard]:
    """Return the run's dashboards; none on ranks other than the first."""
    return [logger for logger in trainer.loggers if isinstance(logger, Dashboard)] if trainer.is_global_zero else []


def show(trainer: pl.Trainer, name: str, *pictures: Picture) -> None:
    """Send pictures to all dashboards of the run, at its current step."""
    for dashboard in dashboards(trainer):
        dashboard.show_pictures(name, pictures, trainer.global_step)
