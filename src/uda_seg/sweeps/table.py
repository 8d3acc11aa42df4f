"""Jobs of a multirun, and the table of their results."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from uda_seg.config.compose import is_multirun
from uda_seg.config.naming import is_named
from uda_seg.config.schema import Config
from uda_seg.errors import Damaged, UserError
from uda_seg.evaluation.label_free import SCORES as LABEL_FREE_SCORES
from uda_seg.evaluation.label_free import Candidate, ensemble_agreement, read_predictions
from uda_seg.evaluation.tables import ABSENT, group_runs, runs_csv, runs_table
from uda_seg.launch.rendezvous import this_rank
from uda_seg.options.validate import leaves, nearest
from uda_seg.runs.contents import overrides_of, same_run
from uda_seg.runs.record import read_metrics
from uda_seg.storage.files import write_text
from uda_seg.sweeps.outcomes import Outcome

log = logging.getLogger(__name__)

METRICS = ("miou", "best", "pixel_accuracy")
# Keys of `metrics.json` that are None without a validation set.
SCORES = ("miou", "pixel_accuracy", "per_class", "miou_over", "targets", "best", "teacher")
CHOSEN, ENSEMBLE = "best_unsupervised", "ensv"
UNSUPERVISED = (CHOSEN, ENSEMBLE)  # shown where a run has them
FEWEST = 3  # runs of an ensemble: with two, each has half of it
LABEL_FREE = "label_free"  # the key of the label-free scores
TRIALS = "study.log"  # in the folder of a search, see `search`


def job_of(work: Callable[[Config, Path], Any]) -> Callable[[Config, Path], Any]:
    """Wrap a command as a sweep's job, which returns the objective and skips finished runs.

    A repeated or extended multirun reuses runs that an earlier one finished.
    """

    @functools.wraps(work)
    def job(config: Config, folder: Path) -> Any:
        if not is_multirun():
            return work(config, folder)
        if not config.overwrite and finished(folder, config):
            log.info("%s contains this run, already finished: its row is reused", folder)
            result = read_metrics(folder).get("miou")
        else:
            result = work(config, folder)
        wanted = objective()
        return result if wanted is None or this_rank() > 0 else score(folder, wanted)

    return job


def objective() -> str | None:
    """Return the objective of a search, a key of `metrics.json`; None if the sweep is not a search."""
    found: str | None = HydraConfig.get().sweeper.get("objective")
    return None if found is None else key_of_metric(found)


def key_of_metric(objective: str) -> str:
    """Return the dotted key in `metrics.json` of an objective, which may be written with slashes."""
    return objective.replace("/", ".")


def label_free_score(objective: str) -> str | None:
    """Return the label-free score that an objective names; None if it is another number.

    Raises:
        UserError: there is no such score.
    """
    group, _, name = key_of_metric(objective).partition(".")
    if group != LABEL_FREE:
        return None
    if name not in LABEL_FREE_SCORES:
        known = [f"{LABEL_FREE}/{score}" for score in LABEL_FREE_SCORES]
        raise UserError(f"hydra.sweeper.objective={objective} is no label-free score; {nearest(objective, known)}")
    return name


def refuse_unscored(config: Config, key: str) -> None:
    """Raise UserError if a search's objective is a score and its runs have no validation set."""
    if not config.data.validation and key.partition(".")[0] in SCORES:
        raise UserError(
            f"hydra.sweeper.objective={key} is a score, but data.validation is empty, so that runs have none: give "
            "labelled images (data.validation.NAME), or another objective"
        )


def score(folder: Path, key: str) -> float:
    """Read a number of a run's `metrics.json` by its dotted key.

    Raises:
        UserError: there is no such number.
    """
    found = {name: value for name, value in leaves(read_metrics(folder)) if isinstance(value, int | float)}
    if key not in found:
        hint = nearest(key, found)
        raise UserError(f"hydra.sweeper.objective={key} is no number of {folder / 'metrics.json'}; {hint}")
    return float(found[key])


def write_table(outcomes: Sequence[Outcome]) -> None:
    """Write `table.md` and `table.csv` of the successful jobs of a multirun; a search writes its own.

    Raises:
        UserError: a job's results cannot be read; the table contains the others.
    """
    done = [outcome for outcome in outcomes if outcome.error is None]
    if not done or (Path(done[0].sweep) / TRIALS).exists():
        return
    # Jobs on several data sets have separate sweep folders.
    folder = Path(os.path.commonpath([outcome.sweep for outcome in done]))
    rows: list[tuple[Path, dict[str, object]]] = []
    unreadable = []
    for outcome in done:
        try:
            rows.append((Path(outcome.folder), row_of(Path(outcome.folder), folder)))
        except Damaged as error:
            unreadable.append(str(error))
    add_agreement([folder for folder, _ in rows], [row for _, row in rows])
    metrics = [*METRICS, *(key for key in UNSUPERVISED if any(row.get(key) is not None for _, row in rows))]
    groups = group_runs(_told_apart(rows), [*METRICS, *UNSUPERVISED])
    groups = [replace(group, metrics={key: group.metrics[key] for key in metrics}) for group in groups]
    table = runs_table(groups, _title(metrics))
    failed = "".join(f"- {outcome.name} failed: {outcome.error}\n" for outcome in outcomes if outcome.error is not None)
    write_text(folder / "table.md", table.markdown() + (f"\n{failed}" if failed else ""))
    write_text(folder / "table.csv", runs_csv(groups))
    table.show()
    log.info("table: %s; on one page, with intervals: python -m uda_seg.report runs='%s'", folder / "table.md", folder)
    if unreadable:
        raise UserError(f"the table lacks {len(unreadable)} of {len(done)} runs: {'; '.join(unreadable)}")


def _title(metrics: Sequence[str]) -> str:
    title = "mIoU in %, last iterate; best is chosen on the target's labels"
    if CHOSEN in metrics:
        title += f", {CHOSEN} without"
    return f"{title}; {ENSEMBLE} is the mIoU with the labels of all runs' mean" if ENSEMBLE in metrics else title


def add_agreement(folders: Sequence[Path], rows: Sequence[dict[str, object]]) -> None:
    """Add to rows of runs that kept predictions their agreement with the ensemble of these runs (EnsV).

    Runs on other images or classes than most are not compared, with a warning, and neither are fewer than three.
    """
    found: dict[str, Candidate] = {}
    for place, folder in enumerate(folders):
        try:
            candidate = read_predictions(folder)
        except Damaged as error:
            log.warning("%s", error)
            continue
        if candidate is not None:
            found[str(place)] = candidate
    kinds = Counter((c.images, c.classes) for c in found.values())
    if not kinds:
        return
    [(kind, count)] = kinds.most_common(1)
    if count < len(found):
        log.warning(
            "%s: %d of %d runs are on other images or classes, and left out", ENSEMBLE, len(found) - count, len(found)
        )
    same = {place: c for place, c in found.items() if (c.images, c.classes) == kind}
    if len(same) < FEWEST:
        return
    for name, value in ensemble_agreement(same).items():
        rows[int(name)][ENSEMBLE] = value


def _told_apart(rows: Sequence[tuple[Path, Mapping[str, object]]]) -> list[dict[str, object]]:
    """Add to each row, after its name, the overrides that are missing from a truncated name."""
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
    """Return whether `folder` contains a finished run of this configuration with the same input files."""
    if not os.path.lexists(folder / "metrics.json"):
        return False
    try:
        metrics = read_metrics(folder)
    except Damaged as error:
        log.warning("%s", error)
        return False
    scored = metrics.get(LABEL_FREE) or {}
    if not all(score in scored for score in config.evaluator.label_free):
        return False
    ended = metrics["step"] == config.steps or metrics.get("stopped") is True
    return ended and same_run(folder, config)


def row_of(folder: Path, sweep: Path) -> dict[str, object]:
    """Build a run's row: settings and scores, named by its folder within the sweep's."""
    metrics = read_metrics(folder)
    parts = Path(os.path.relpath(folder.resolve(), sweep.resolve())).parts
    return {
        "run": "/".join(part for part in parts if part != f"seed{metrics['seed']}"),
        "seed": metrics["seed"],
        "steps": metrics["step"],
        "source images": metrics.get("source_images"),
        **({"target labels": labels} if (labels := metrics.get("labelled_target_images")) else {}),
        "miou": metrics.get("miou"),
        "best": dict(leaves(metrics)).get("best.miou"),
        CHOSEN: dict(leaves(metrics)).get(f"{CHOSEN}.miou"),
        "pixel_accuracy": metrics.get("pixel_accuracy"),
    }
