"""The log that is always there: one CSV file, a line per value, appended across resumes."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.errors import UserError
from uda_seg.files import RUN, write_text


class CSVLog(Logger):
    """Writes `step,name,value` lines to a file. What a killed run had logged after its checkpoint is logged anew.

    `step` is the number of optimiser steps done: 1 beside the losses of the first.

    Lightning's own CSV logger deletes the file of the run that is resumed and rewrites it whenever a column is new; the
    long form needs neither.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[tuple[int, str, float]] = []
        self.opened = False

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.stem

    @property
    def version(self) -> str:
        """There is one log a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's record holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take values of a step."""
        self.rows += [(step or 0, name, float(value)) for name, value in metrics.items() if name != "epoch"]
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Append what was taken to the file."""
        if not self.rows:
            return
        if not self.opened:
            self._open(*self.rows[0][:2])
        try:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerows(self.rows)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}; {RUN}") from error
        self.rows.clear()

    def _open(self, step: int, name: str) -> None:
        """Keep of an earlier file what comes before the value that is logged now, or would have."""
        kept: list[list[str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                # A line that a kill cut short has no three cells.
                rows = [row for row in list(csv.reader(file))[1:] if len(row) == 3]
            again = next((i for i, row in enumerate(rows) if int(row[0]) > step or row[:2] == [str(step), name]), None)
            kept = rows[:again]
        text = io.StringIO()
        csv.writer(text).writerows([("step", "name", "value"), *kept])
        write_text(self.path, text.getvalue())
        self.opened = True
