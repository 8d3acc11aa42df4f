"""Tables of scores: per-class scores of a run, and mean and standard deviation over seeds of many runs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import rich.table
from rich.console import Console

from uda_seg.evaluation.evaluator import Scores

ABSENT = "–"  # no such class or score


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned, the others right-aligned.

    Args:
        header: one name per column.
        rows: cells, one sequence per row.
        title: a line above the table, or "".
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def markdown(self) -> str:
        """Format as GitHub-flavoured Markdown with aligned columns, ending with a newline."""
        cells = [tuple(c.replace("|", "\\|") for c in row) for row in (self.header, *self.rows)]
        widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(self.header))]
        rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
        lines = [f"| {' | '.join(_aligned(row, widths))} |" for row in (cells[0], tuple(rule), *cells[1:])]
        return "\n".join([*([f"**{self.title}**", ""] if self.title else []), *lines, ""])

    def rich(self) -> rich.table.Table:
        """Build a table for the terminal."""
        table = rich.table.Table(title=self.title or None, title_justify="left")
        for i, name in enumerate(self.header):
            # In a narrow terminal text wraps, so that no number is truncated.
            words = [word for cell in (name, *(row[i] for row in self.rows)) for word in cell.split()]
            table.add_column(name, justify="right" if i else "left", min_width=max(map(len, words), default=0))
        for row in self.rows:
            table.add_row(*row)
        return table

    def show(self) -> None:
        """Print it, limited to the terminal's width; full width for files and pipes."""
        print_table(self.rich())


def print_table(table: rich.table.Table) -> None:
    """Print a table, limited to the terminal's width; full width for files and pipes."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=Console(width=10_000).measure(table).maximum)
    console.print(table)


def class_table(columns: Mapping[str, Scores], title: str = "") -> Table:
    """Tabulate IoU per class in percent, then the means.

    Args:
        columns: column name -> scores over the same class set, e.g. {"student": ..., "teacher": ...}. Classes left out
            of the mean are in brackets. Means over all other class subsets follow and, for SYNTHIA's classes, the
            released codes' conversion.
        title: title of the table.
    """
    scores = list(columns.values())
    rows = [
        (name if name in scores[0].classes else f"({name})", *(percent(s.per_class[name]) for s in scores))
        for name in scores[0].per_class
    ]
    size = len(scores[0].classes)
    rows.append((f"mIoU ({size})", *(percent(s.miou) for s in scores)))
    others = [name for name in scores[0].means if name != str(size)]
    rows += [(f"mIoU ({name})", *(percent(s.means[name]) for s in scores)) for name in others]
    converted = [s.converted for s in scores if s.converted is not None]
    if converted and size < len(scores[0].per_class):
        rows.append(("mIoU (19) * 19/16", *map(percent, converted)))
    rows.append(("mean accuracy", *(percent(s.mean_accuracy) for s in scores)))
    rows.append(("pixel accuracy", *(percent(s.pixel_accuracy) for s in scores)))
    return Table(("class", *columns), tuple(rows), title)


def percent(value: float) -> str:
    """Format a score in [0, 1] as percent with two decimals, NaN as a dash."""
    return ABSENT if math.isnan(value) else f"{100 * value:.2f}"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (NaN for one run) of a score over runs."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise the values of a group's runs; a NaN makes the mean NaN instead of being skipped."""
        return cls(
            float(np.mean(values)) if values else math.nan,
            float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        )

    def __str__(self) -> str:
        return percent(self.mean) if math.isnan(self.std) else f"{percent(self.mean)} ± {percent(self.std)}"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed: common settings, number of runs, spread per metric."""

    settings: Mapping[str, str]
    runs: int
    metrics: Mapping[str, Spread]


def group_runs(runs: Sequence[Mapping[str, object]], metrics: Sequence[str], over: str = "seed") -> list[Group]:
    """Group runs that share every setting but one.

    Args:
        runs: settings and metrics of each run (float; None or no key for a missing metric).
        metrics: keys of metrics; all others except `over` are settings.
        over: the setting to average over.

    Returns:
        Groups in the order of their first run.
    """
    keys = [k for k in dict.fromkeys(k for run in runs for k in run) if k not in (*metrics, over)]
    members: dict[tuple[str, ...], list[Mapping[str, object]]] = {}
    for run in runs:
        members.setdefault(tuple(str(run.get(k, ABSENT)) for k in keys), []).append(run)
    return [
        Group(
            settings=dict(zip(keys, values, strict=True)),
            runs=len(group),
            metrics={m: Spread.of(_numbers(group, m)) for m in metrics},
        )
        for values, group in members.items()
    ]


def runs_table(groups: Sequence[Group], title: str = "") -> Table:
    """Tabulate groups of runs: settings, number of runs, mean ± standard deviation in percent."""
    settings, metrics = (list(groups[0].settings), list(groups[0].metrics)) if groups else ([], [])
    rows = tuple(
        (*(g.settings[k] for k in settings), str(g.runs), *(str(g.metrics[m]) for m in metrics)) for g in groups
    )
    return Table((*settings, "runs", *metrics), rows, title)


def runs_csv(groups: Sequence[Group]) -> str:
    """Format groups of runs as CSV: unrounded, in [0, 1], with mean and std in separate columns."""
    settings, metrics = (list(groups[0].settings), list(groups[0].metrics)) if groups else ([], [])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*settings, "runs", *(f"{m}_{part}" for m in metrics for part in ("mean", "std"))])
    for g in groups:
        spreads = (g.metrics[m] for m in metrics)
        numbers = (n for s in spreads for n in (s.mean, s.std))
        writer.writerow([*g.settings.values(), g.runs, *("" if math.isnan(n) else repr(n) for n in numbers)])
    return text.getvalue()


def _numbers(runs: Sequence[Mapping[str, object]], key: str) -> list[float]:
    return [float(v) for run in runs if isinstance(v := run.get(key), int | float)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
