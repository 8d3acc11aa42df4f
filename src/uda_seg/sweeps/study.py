"""The study of a search: a journal of Optuna's beside its trials, locked, continued, replaced or refused."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from uda_seg.errors import Damaged, UserError
from uda_seg.runs.folder import alone_in
from uda_seg.storage.aside import Aside
from uda_seg.storage.files import first_line, open_file, spare_name
from uda_seg.sweeps.table import TRIALS

log = logging.getLogger(__name__)

Space = dict[str, BaseDistribution]
REPLACED = "replaced_search"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock `folder` within the block, because another search would take this one's trials for interrupted ones.

    A search that was to be replaced is restored unless the new one has a successful trial.
    """
    with alone_in(folder, "a search", "choose another folder with hydra.sweep.dir=..."):
        _settle(folder)
        try:
            yield
        finally:
            _settle(folder)


def _settle(folder: Path) -> None:
    aside, file = Aside(folder, REPLACED), folder / TRIALS
    if aside.state == "aside" and file.exists() and _has_succeeded(file):
        aside.drop()
    if aside.state == "done":
        aside.drop()
    elif aside.state:
        aside.bring_back([file] if file.exists() else [])


def _has_succeeded(file: Path) -> bool:
    """Return whether a study has a successful trial."""
    try:
        storage = JournalStorage(JournalFileBackend(str(file)))
        trials = (trial for study in storage.get_all_studies() for trial in storage.get_all_trials(study._study_id))
        return any(trial.state == TrialState.COMPLETE for trial in trials)
    except Exception:  # a damaged line can raise anything in Optuna
        return False


def _is_study(file: Path) -> bool:
    """Return whether a file is an Optuna journal."""
    try:
        with file.open("rb") as opened:
            return "op_code" in json.loads(opened.readline() or b"{}")
    except (OSError, ValueError, TypeError):
        return False


def open_study(folder: Path, fixed: list[str], objective: str, direction: str, overwrite: bool) -> optuna.Study:
    """Create or continue the study in `folder`.

    Raises:
        UserError: the study has other settings, or `direction` is invalid.
    """
    if direction not in ("maximize", "minimize"):
        raise UserError(f"hydra.sweeper.direction={direction}: choose maximize or minimize")
    file = folder / TRIALS
    if overwrite and file.exists():
        if _is_study(file):
            Aside(folder, REPLACED).put([file])
        else:
            kept = spare_name(file, "damaged")
            os.rename(file, kept)
            log.warning("%s is not a readable study: it is kept as %s", file, kept.name)
    study = _stored_study(file, StudyDirection[direction.upper()])
    wanted = {"fixed": sorted(fixed), "objective": objective, "direction": direction}
    known = study.user_attrs.get("settings", wanted)
    if not isinstance(known, dict) or known.keys() != wanted.keys():
        raise Damaged(f"{file} is damaged: start again with overwrite=true")
    if known != wanted:
        was, now = (f"{s['direction']} {s['objective']} {' '.join(s['fixed'])}" for s in (known, wanted))
        raise UserError(
            f"{folder} holds another search ({was}) than this one ({now}): choose another folder with "
            "hydra.sweep.dir=..., or start again with overwrite=true"
        )
    study.set_user_attr("settings", wanted)
    return study


def _stored_study(file: Path, towards: StudyDirection) -> optuna.Study:
    """Load the study in a file, or create it; raises Damaged if it cannot be read."""
    try:
        if os.path.lexists(file):
            _drop_torn_end(file)
        storage = JournalStorage(JournalFileBackend(str(file)))
        study = optuna.create_study(storage=storage, study_name="search", direction=towards, load_if_exists=True)
        _ = study.trials
        return study
    except Exception as error:  # a damaged line can raise anything in Optuna
        raise Damaged(
            f"{file} cannot be read ({type(error).__name__}: {first_line(error)}): move it away, the runs beside it "
            "stay, or start again with overwrite=true"
        ) from error


def _drop_torn_end(file: Path) -> None:
    """Remove a truncated last line left by a kill, because Optuna would append to it."""
    with open_file(file) as study:  # refuses a pipe, on which Optuna would block
        content = study.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        log.warning("%s ends with a truncated line, which is removed", file)
        os.truncate(file, end)


def check_space(study: optuna.Study, space: Space, folder: Path) -> None:
    """Check that the study's trials fit the search space: ranges may change, lists of choices may not.

    Raises:
        UserError: a setting has another list of choices, or was a range before.
    """
    for trial in study.trials:
        for key, before in trial.distributions.items():
            now = space.get(key, before)
            listed = CategoricalDistribution in (type(before), type(now))
            if type(before) is not type(now) or (listed and before != now):
                raise UserError(
                    f"{folder} holds a search of {key} {said(before)}, which cannot go on {said(now)}: give it as it "
                    "was, choose another folder with hydra.sweep.dir=..., or start again with overwrite=true"
                )


def said(found: BaseDistribution) -> str:
    """Describe a distribution in words that follow a setting's name."""
    if isinstance(found, CategoricalDistribution):
        return f"in {{{', '.join(map(str, found.choices))}}}"
    assert isinstance(found, FloatDistribution | IntDistribution)
    return f"from {found.low:g} to {found.high:g}"
