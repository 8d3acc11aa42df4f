"""Scores of a network with their uncertainty, from the results beside its checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from uda_seg.errors import UserError
from uda_seg.evaluation.tables import Spread
from uda_seg.results.intervals import Interval, mean_interval, seeds_interval
from uda_seg.results.packing import Counts
from uda_seg.results.reading import RECORD, find_results
from uda_seg.results.result import RESULT, Result, read_result
from uda_seg.results.tables import settings_without_seed

Kind = Literal["student", "teacher", "best", "unsupervised"]


@dataclass(frozen=True)
class Score:
    """The mIoU of a network on one validation set, in [0, 1].

    Attributes:
        target: name of the set, or of all of them.
        own: of the network itself.
        images: its interval over the images; None where they were not counted one by one.
        runs: mean and standard deviation of the runs, its own among them; None for one run.
        interval: the interval of that mean, over seeds, and over images if they were counted.
    """

    target: str
    own: float
    images: Interval | None = None
    runs: Spread | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Numbers:
    """Scores of a network, as far as they are known.

    Attributes:
        runs: results of runs with the same settings and different seeds, the network's own first; may be empty.
        step: of the network.
        teacher: the network is the teacher.
        name: of the checkpoint, which tells how its step was chosen: `best`, `best_unsupervised`, or another.
    """

    runs: Sequence[Result]
    step: int
    teacher: bool
    name: str = "last"

    @property
    def kind(self) -> Kind | None:
        """Return which scores of a run are the network's; None if none are."""
        if not self.runs:
            return None
        own = self.runs[0]
        at_best = own.best is not None and own.best.step == self.step and not self.teacher
        if self.step == own.step and not (at_best and self.name == "best"):
            return "teacher" if self.teacher else "student"
        if self.name == "best_unsupervised" and not self.teacher:
            return "unsupervised" if any(v.step == self.step for v in own.validations) else None
        return "best" if at_best else None

    def scores(self) -> list[Score]:
        """Return the network's scores: by validation set if it is of the last step, else the mean over them."""
        kind = self.kind
        if kind is None:
            return []
        if kind == "unsupervised":  # every run has a step of its own
            found = [next(v.miou for v in self.runs[0].validations if v.step == self.step)]
            return _known([_score(_all_targets(self.runs[0]), found)])
        if kind == "best":
            found = [math.nan if run.best is None else run.best.miou for run in self.runs]
            return _known([_score(_all_targets(self.runs[0]), found)])
        return _known([self._on(target, kind) for target in self.runs[0].targets])

    def _on(self, target: str, kind: Kind) -> Score:
        members = [run.targets[target] for run in self.runs]
        if kind == "teacher":
            return _score(target, [math.nan if m.teacher_miou is None else m.teacher_miou for m in members])
        images = {run.seed: m.unpacked for run, m in zip(self.runs, members, strict=True)}
        counts = {seed: found.counts for seed, found in images.items() if found is not None}
        same = len({found.names for found in images.values() if found is not None}) == 1
        return _score(target, [m.miou for m in members], counts if same else {}, members[0].subset)


def _all_targets(run: Result) -> str:
    return ", ".join(run.targets)


def _known(scores: Sequence[Score]) -> list[Score]:
    return [score for score in scores if not math.isnan(score.own)]


def _score(
    target: str, values: Sequence[float], counts: Mapping[int, Counts] | None = None, subset: Sequence[int] = ()
) -> Score:
    """Summarise the mIoU of runs, the network's own first; `counts`, per image, in the same order of the seeds."""
    complete = counts is not None and len(counts) == len(values)
    images = mean_interval(dict([next(iter(counts.items()))]), subset) if complete and counts else None
    if len(values) == 1 or any(map(math.isnan, values)):
        return Score(target, values[0], images)
    interval = mean_interval(counts, subset) if complete and counts else seeds_interval(values)
    return Score(target, values[0], images, Spread.of(values), interval)


def mean_of(scores: Sequence[Score]) -> float:
    """Return the network's mean mIoU over the validation sets."""
    return float(np.mean([score.own for score in scores]))


def numbers_of(checkpoint: Path, step: int, others: Sequence[str], teacher: bool) -> Numbers:
    """Collect the result of a checkpoint's run, where it has one, and those of other runs.

    Args:
        checkpoint: of the network.
        step: of the network.
        others: folders of runs, folders with such folders, or files of results; the own run among them counts once.
        teacher: the network is the teacher.

    Raises:
        UserError: a result cannot be read, or one of the other runs is unfinished, has other settings or a seed that
            another one has.
    """
    own = checkpoint.resolve().parent.parent
    found = _own(own)
    if others and not found:
        raise UserError(f"export.runs: the checkpoint's own run, {own}, has no {RESULT}: leave export.runs out")
    for place, result in _results(others) if others else []:
        if own in (place.resolve(), place.resolve().parent):
            continue
        if settings_without_seed(result) != settings_without_seed(found[0]):
            raise UserError(f"export.runs: {place} has not the settings and steps of {own}: leave it out")
        if result.seed in [each.seed for each in found]:
            raise UserError(f"export.runs: {place} has the seed of another run, {result.seed}: leave it out")
        found.append(result)
    return Numbers(found, step, teacher, checkpoint.stem)


def _own(folder: Path) -> list[Result]:
    """Return the result of a run's folder, as a list of one; empty where there is none."""
    if os.path.lexists(folder / RESULT):
        return [read_result(folder / RESULT)]
    if all(os.path.lexists(folder / name) for name in (RECORD, "metrics.json")):  # of an earlier version
        return [result for place, result in _results([folder]) if place == folder]
    return []


def _results(places: Sequence[str | Path]) -> list[tuple[Path, Result]]:
    """Return results and their places, the folder of a run or the file.

    Raises:
        UserError: one is missing or damaged.
    """
    found = find_results(*places)
    for folder, why in found.unfinished.items():
        raise UserError(f"export.runs: {folder} is {why}: leave it out")
    for problem in found.problems:
        raise UserError(problem)
    return [(run.folder or run.file, run.result) for run in found.runs]
