"""Logger that is always active: one CSV file with a line per value, appended to when a run is resumed."""

from __future__ import annotations

import csv
import io
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import RUN, read_bytes, spare_name, write_text

log = logging.getLogger(__name__)

HEADER = ("step", "name", "value")


class CSVLog(Logger):
    """A logger of `step,name,value` lines. A resumed run replaces the lines after its checkpoint.

    `step` is the number of completed optimiser steps: 1 for the losses of the first step.

    Lightning's CSV logger deletes the file of a resumed run and rewrites it for every new column; this long format
    needs neither.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[tuple[int, str, float]] = []
        self.opened = False

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.stem

    @property
    def version(self) -> str:
        """Empty, as there is one log per run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: hyperparameters are in the run's record."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Buffer the values of a step."""
        self.rows += [(step or 0, name, float(value)) for name, value in metrics.items() if name != "epoch"]
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Append the buffered values to the file."""
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
        """Open the file and drop lines of an earlier run from the given value on.

        Unreadable lines are dropped and the original file is set aside: a broken log does not stop a run.
        """
        rows, whole = _rows(self.path)
        if not whole:
            aside = spare_name(self.path, "damaged")
            try:
                os.replace(self.path, aside)
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {error.strerror or error}; {RUN}") from error
            log.warning(
                "%s is damaged: it is now %s, and the log continues with the readable lines", self.path, aside.name
            )
        again = next((i for i, row in enumerate(rows) if row[:2] == (step, name)), len(rows))
        kept = [row for i, row in enumerate(rows) if row[0] < step or (row[0] == step and i < again)]
        text = io.StringIO()
        csv.writer(text).writerows([HEADER, *kept])
        write_text(self.path, text.getvalue())
        self.opened = True


def _rows(path: Path) -> tuple[list[tuple[int, str, str]], bool]:
    """Read the rows of a log, each (step, name) once, and whether that is all of the file; no rows if it is missing.

    The last line may be truncated by a kill.
    """
    if not os.path.lexists(path):
        return [], True
    try:
        lines = read_bytes(path, RUN, 2**31).decode(errors="replace").splitlines(keepends=True)
    except Damaged:
        return [], False
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows: dict[tuple[int, str], str] = {}
    whole = [line.strip() for line in lines[:1]] in ([], [",".join(HEADER)])
    for line in lines[1:] if whole else lines:
        row = None if "\ufffd" in line else _row(line)
        if row is None or row[:2] in rows:
            whole = False
        else:
            rows[row[:2]] = row[2]
    return [(*key, value) for key, value in rows.items()], whole


def _row(line: str) -> tuple[int, str, str] | None:
    """Parse step, name and value; None for a malformed line."""
    try:
        step, name, value = next(csv.reader([line]), [])
        float(value)
        return int(step), name, value
    except (csv.Error, ValueError):
        return None
