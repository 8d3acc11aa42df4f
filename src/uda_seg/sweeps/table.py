"""A job of a multirun, and the summary: one table over all jobs."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from uda_seg.config.compose import is_multirun
from uda_seg.config.naming import is_named
from uda_seg.config.schema import Config
from uda_seg.errors import Damaged, UserError
from uda_seg.evaluation.tables import ABSENT, group_runs, runs_csv, runs_table
from uda_seg.launch.ranks import this_rank
from uda_seg.options.validate import leaves, nearest
from uda_seg.runs.folder import overrides_of, same_run
from uda_seg.runs.record import read_metrics
from uda_seg.storage.files import write_text
from uda_seg.sweeps.outcomes import Outcome

log = logging.getLogger(__name__)

METRICS = ("miou", "best", "pixel_accuracy")
# Numbers of `metrics.json` that are None where there is no validation set.
SCORES = ("miou", "pixel_accuracy", "per_class", "miou_over", "targets", "best", "teacher")
TRIALS = "study.log"  # in the folder of a search: see `search`


def job_of(work: Callable[[Config, Path], Any]) -> Callable[[Config, Path], Any]:
    """The same command as a sweep's job: it gives what the sweep is about, and does nothing twice.

    A multirun that is started again, or widened, takes a run that an earlier one finished as it is.
    """

    @functools.wraps(work)
    def job(config: Config, folder: Path) -> Any:
        if not is_multirun():
            return work(config, folder)
        if not config.overwrite and finished(folder, config):
            log.info("%s holds this very run, finished: its row is taken", folder)
            result = read_metrics(folder).get("miou")
        else:
            result = work(config, folder)
        wanted = objective()
        return result if wanted is None or this_rank() > 0 else score(folder, wanted)

    return job


def objective() -> str | None:
    """The number of `metrics.json` that a search is after; None where the sweep is no search."""
    found: str | None = HydraConfig.get().sweeper.get("objective")
    return found


def refuse_unscored(config: Config, key: str) -> None:
    """Raise UserError where a search is after a score (`objective`), and its runs have no validation set."""
    if not config.data.validation and key.partition(".")[0] in SCORES:
        raise UserError(
            f"hydra.sweeper.objective={key} is a score, but data.validation is empty, so that runs have none: give "
            "labelled images (data.validation.NAME), or another objective"
        )


def score(folder: Path, key: str) -> float:
    """A number of a run's `metrics.json` by its dotted key.

    Raises:
        UserError: there is no such number.
    """
    found = {name: value for name, value in leaves(read_metrics(folder)) if isinstance(value, int | float)}
    if key not in found:
        hint = nearest(key, found)
        raise UserError(f"hydra.sweeper.objective={key} is no number of {folder / 'metrics.json'}; {hint}")
    return float(found[key])


def write_table(outcomes: Sequence[Outcome]) -> None:
    """Write `table.md` and `table.csv` over the jobs of a multirun that succeeded; a search writes its own.

    Raises:
        UserError: what a job left cannot be read; the table is over the others.
    """
    done = [outcome for outcome in outcomes if outcome.error is None]
    if not done or (Path(done[0].sweep) / TRIALS).exists():
        return
    # Jobs on several data sets have sweep folders of their own.
    folder = Path(os.path.commonpath([outcome.sweep for outcome in done]))
    rows, unreadable = [], []
    for outcome in done:
        try:
            rows.append((Path(outcome.folder), row_of(Path(outcome.folder), folder)))
        except Damaged as error:
            unreadable.append(str(error))
    groups = group_runs(_told_apart(rows), METRICS)
    table = runs_table(groups, "mIoU in %, last iterate; best is chosen on the target's labels")
    failed = "".join(f"- {outcome.name} failed: {outcome.error}\n" for outcome in outcomes if outcome.error is not None)
    write_text(folder / "table.md", table.markdown() + (f"\n{failed}" if failed else ""))
    write_text(folder / "table.csv", runs_csv(groups))
    table.show()
    log.info("table: %s", folder / "table.md")
    if unreadable:
        raise UserError(f"the table lacks {len(unreadable)} of {len(done)} runs: {'; '.join(unreadable)}")


def _told_apart(rows: Sequence[tuple[Path, Mapping[str, object]]]) -> list[dict[str, object]]:
    """Runs' rows, each after its name with what was given for it and is not in a name that was cut short."""
    given = [dict(o.split("=", 1) for o in overrides_of(folder) if "=" in o) for folder, _ in rows]
    found = [
        key
        for key in dict.fromkeys(key for overrides in given for key in overrides)
        if is_named(key) and len({overrides.get(key) for overrides in given}) > 1
        if not all(f",{key}=" in str(row["run"]) for _, row in rows)
    ]
    return [
        {"run": row["run"], **{key: overrides.get(key, ABSENT) for key in found}, **row}
        for overrides, (_, row) in zip(given, rows, strict=True)
    ]


def finished(folder: Path, config: Config) -> bool:
    """Whether `folder` holds a run of this configuration, from the same files, that reached its last step."""
    if not os.path.lexists(folder / "metrics.json"):
        return False
    try:
        metrics = read_metrics(folder)
    except Damaged as error:
        log.warning("%s", error)
        return False
    return bool(metrics["step"] == config.steps) and same_run(folder, config)


def row_of(folder: Path, sweep: Path) -> dict[str, object]:
    """One run's row: its settings and its scores; the run is called as its folder in the sweep's."""
    metrics = read_metrics(folder)
    parts = Path(os.path.relpath(folder.resolve(), sweep.resolve())).parts
    return {
        "run": "/".join(part for part in parts if part != f"seed{metrics['seed']}"),
        "seed": metrics["seed"],
        "steps": metrics["step"],
        "source images": metrics.get("source_images"),
        "miou": metrics.get("miou"),
        "best": dict(leaves(metrics)).get("best.miou"),
        "pixel_accuracy": metrics.get("pixel_accuracy"),
    }
