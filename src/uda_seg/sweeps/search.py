"""Hyperparameter search: Optuna proposes trials, a Hydra launcher runs them, and the study is a file next to them."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from uda_seg.config.keys import kind_of
from uda_seg.config.replay import method_options
from uda_seg.config.schema import Config, key_of, parse
from uda_seg.errors import UserError
from uda_seg.errors.ending import fail
from uda_seg.evaluation.tables import ABSENT, Table
from uda_seg.options.constraints import is_loss_weight
from uda_seg.options.validate import options
from uda_seg.storage.files import write_text
from uda_seg.sweeps.study import Space, check_space, held, open_study, said
from uda_seg.sweeps.table import key_of_metric, label_free_score, refuse_unscored

log = logging.getLogger(__name__)

HOPELESS = 3  # a search ends after this many failures without a success

# Hardware and data locations, which may differ when a search is continued.
_NOT_SETTINGS = re.compile(
    r"^(resume|overwrite|trainer|logger|callbacks|sweep)$|^(hydra|trainer|logger|callbacks)[./]|\.(root|workers|cache)$"
)


def search(
    launcher: Launcher,
    config: DictConfig,
    arguments: Sequence[str],
    *,
    trials: int,
    at_once: int,
    objective: str,
    direction: str,
    factor: float,
    seed: int,
    params: Mapping[str, str] | None,
) -> list[float]:
    """Run trials until the study has the requested number, and return the values of the successful ones.

    Args:
        launcher: runs jobs, each given as its overrides.
        config: composed configuration, including Hydra's node.
        arguments: overrides of the command line; those with a range are searched.
        trials: total number of trials of the study, including failed ones.
        at_once: number of trials per batch of the launcher.
        objective: result of a job, a key of `metrics.json`.
        direction: direction of the objective: maximize or minimize.
        factor: default range, from 1 / factor to factor times the configured value.
        seed: seed of the sampler.
        params: ranges by key, as on the command line.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(config.hydra.sweep.dir)
    try:
        refuse_unscored(_job_config(config), objective)
        objective, scored = key_of_metric(objective), _label_free(_job_config(config), objective, direction)
        given = [*arguments, *scored]
        fixed, space = split([*(f"{key}={value}" for key, value in (params or {}).items()), *given])
        space = space or default_space(_job_config(config), factor)
        with held(folder):
            settings = [override for override in fixed if not _NOT_SETTINGS.search(key_of(override))]
            study = open_study(folder, settings, objective, direction, config.overwrite)
            check_space(study, space, folder)
            log.info("search in %s: %s", folder, ", ".join(f"{k} {said(d)}" for k, d in space.items()))
            _run_trials(study, launcher, space, fixed, folder, trials, at_once, seed)
    except UserError as error:
        fail(error)
    except OSError as error:
        fail(UserError(f"cannot write into {folder}: {error}; make room or choose another folder: hydra.sweep.dir=..."))
    return [trial.value for trial in study.trials if trial.value is not None]


# ---------------------------------------------------------------------- what is searched


def split(arguments: Sequence[str]) -> tuple[list[str], Space]:
    """Split overrides into fixed ones and the search space; of two for one key the later one counts.

    Raises:
        UserError: an interval that Optuna does not accept.
    """
    parsed = {key_of(o.input_line or ""): o for o in OverridesParser.create().parse_overrides(list(arguments))}
    fixed = [str(o.input_line) for o in parsed.values() if not o.is_sweep_override()]
    return fixed, {o.get_key_element(): distribution(o) for o in parsed.values() if o.is_sweep_override()}


def distribution(override: Override) -> BaseDistribution:
    """Convert Hydra's `interval(a, b)`, `tag(log, ...)`, `int(interval(...))` or listed values to a distribution.

    Raises:
        UserError: bounds in the wrong order, or a logarithmic range that is not positive.
    """
    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high, logarithmic = value.start, value.end, "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=logarithmic)
            assert low is not None
            assert high is not None
            return FloatDistribution(float(low), float(high), log=logarithmic)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error


def default_space(config: Config, factor: float) -> Space:
    """Build the default space: learning rate and non-zero loss weights, from 1 / factor to factor times the value.

    Raises:
        UserError: a factor without a range.
    """
    if factor <= 1:
        raise UserError(f"hydra.sweeper.factor={factor} leaves nothing to search: it must be greater than 1")
    values, given = {"optimizer.lr": config.optimizer.lr}, method_options(config)
    for name, annotation in options(config.method["_target_"], "method").items():
        if is_loss_weight(annotation) and given[name] > 0:
            values[f"method.{name}"] = given[name]
    return {key: FloatDistribution(value / factor, value * factor, log=True) for key, value in values.items()}


def _label_free(config: Config, objective: str, direction: str) -> list[str]:
    """Return the overrides by which trials compute a label-free objective that the configuration does not ask for.

    Raises:
        UserError: there is no such score, or `direction` is not its own.
    """
    score = label_free_score(objective)
    if score is None:
        return []
    if direction != "maximize":
        raise UserError(
            f"hydra.sweeper.direction={direction}: of {objective}, as of every label-free score, higher is better; "
            "leave it out"
        )
    asked = config.evaluator.label_free
    return [] if score in asked else [f"evaluator.label_free=[{','.join([*asked, score])}]"]


def _job_config(config: DictConfig) -> Config:
    job = config.copy()
    with open_dict(job):
        del job["hydra"]
    return parse(job, kind_of(job))


# ---------------------------------------------------------------------- the trials


def _run_trials(
    study: optuna.Study,
    launcher: Launcher,
    space: Space,
    fixed: Sequence[str],
    folder: Path,
    trials: int,
    at_once: int,
    seed: int,
) -> None:
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        if trial.params.keys() != space.keys():  # from a search over other settings
            study.tell(trial.number, state=TrialState.FAIL)
    running = study.get_trials(states=[TrialState.RUNNING])
    stopped = {trial.number for trial in running}
    failed = 0
    while True:
        batch = running[:at_once]
        running = running[at_once:]
        while len(batch) < at_once and len(study.trials) < trials:
            # Reseeded by the number of trials: a continued search must not repeat its first draws.
            study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
            study.ask(space)
            batch.append(study.trials[-1])
        if not batch:
            break
        jobs = [[*fixed, *overrides(trial, folder, trial.number in stopped)] for trial in batch]
        for trial, value in zip(batch, _values(launcher, jobs, batch[0].number), strict=True):
            failed += value is None
            study.tell(trial.number, value, state=None if value is not None else TrialState.FAIL)
        show(study, folder, final=False)
        if failed >= HOPELESS and not study.get_trials(states=[TrialState.COMPLETE]):
            log.error("the first %d trials failed: the search ends", failed)
            break
    show(study, folder, final=True)


def overrides(trial: FrozenTrial, folder: Path, resumed: bool) -> list[str]:
    """Build the overrides of a trial: its settings, and a folder by its number."""
    where = [f"hydra.sweep.dir='{folder}'", f"hydra.sweep.subdir={name_of(trial)}"]
    # An option that no file sets has to be added; a choice of a file cannot be.
    plain = {key.lstrip("+"): value for key, value in trial.params.items()}
    said = (f"{'++' if '.' in key else ''}{key}={value}" for key, value in plain.items())
    return [*said, *where, *(["resume=last"] if resumed else [])]


def name_of(trial: FrozenTrial) -> str:
    """Return the name of a trial's folder."""
    return f"trial{trial.number:03d}"


def _values(launcher: Launcher, jobs: list[list[str]], number: int) -> list[float | None]:
    """Return the results of the jobs; None for failed ones."""
    try:
        returned: Sequence[JobReturn | None] = launcher.launch(jobs, initial_job_idx=number)
    except Exception as error:  # from a launcher whose job died without a report
        log.error("%s", error)
        returned = [None] * len(jobs)
    done = [job.return_value if job is not None and job.status == JobStatus.COMPLETED else None for job in returned]
    return [float(value) if isinstance(value, int | float) and math.isfinite(value) else None for value in done]


# ---------------------------------------------------------------------- the table


def show(study: optuna.Study, folder: Path, final: bool) -> None:
    """Write `table.md` and `table.csv` of the trials, with the best one in the title; print the table at the end."""
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    settings = study.user_attrs["settings"]
    keys = list(dict.fromkeys(key for trial in finished for key in trial.params))
    header = ("trial", settings["objective"], "state", *(key.lstrip("+") for key in keys))
    rows = [
        (name_of(t), t.value, t.state.name.lower().replace("fail", "failed"), *(t.params.get(key) for key in keys))
        for t in finished
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(folder / "table.csv", text.getvalue())
    title = best_of(study, settings["objective"])
    table = Table(header, tuple(tuple(map(_cell, row)) for row in rows), title)
    write_text(folder / "table.md", table.markdown())
    if final:
        table.show()
        log.info("%s; table: %s", title, folder / "table.md")


def best_of(study: optuna.Study, objective: str) -> str:
    """Format a line with the best trial and its settings."""
    if not study.get_trials(states=[TrialState.COMPLETE]):
        return "no trial succeeded"
    best = study.best_trial
    chosen = " ".join(f"{key.lstrip('+')}={_cell(value)}" for key, value in best.params.items())
    by = "the target's labels" if label_free_score(objective) is None else "unlabelled target images"
    return f"best: {name_of(best)}, {objective} {_cell(best.value)} (chosen on {by}): {chosen}"


def _cell(value: object) -> str:
    return ABSENT if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
