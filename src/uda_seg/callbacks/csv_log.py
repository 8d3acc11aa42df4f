"""The log that is always there: one CSV file, a line per value, appended across resumes."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


class CSVLog(Logger):
    """Writes `step,name,value` lines to a file.

    Lightning's own CSV logger deletes the file of the run that is resumed and rewrites it whenever a column is new; the
    long form needs neither.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[tuple[int, str, float]] = []

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
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(("step", "name", "value"))
            writer.writerows(self.rows)
        self.rows.clear()
