"""Groups of runs over seeds, and the names that tell them apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uda_seg.config.naming import changes_results
from uda_seg.config.schema import key_of
from uda_seg.evaluation.tables import Spread
from uda_seg.results.packing import Counts
from uda_seg.results.reading import Run
from uda_seg.results.result import Result, TargetScores


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        label: what tells it from the others: the method, and the network or overrides where they differ.
        runs: one per seed, in their order.
    """

    label: str
    runs: Sequence[Run]

    @property
    def first(self) -> Result:
        """The result of the first seed."""
        return self.runs[0].result

    def scores(self, target: str) -> list[TargetScores]:
        """Scores of the seeds on a target."""
        return [run.result.targets[target] for run in self.runs]

    def miou(self, target: str) -> Spread:
        """Mean and standard deviation of mIoU over seeds after the last step."""
        return Spread.of([scores.miou for scores in self.scores(target)])

    @property
    def best(self) -> Spread:
        """Mean and standard deviation of the best validations, chosen on target labels; NaN if one is missing."""
        return Spread.of([run.result.best.miou if run.result.best else math.nan for run in self.runs])

    def per_class(self, target: str) -> dict[str, Spread]:
        """Mean and standard deviation of each class's IoU over the seeds in which it occurs."""
        found = self.scores(target)
        values = {n: [s.per_class[n] for s in found if not math.isnan(s.per_class[n])] for n in found[0].per_class}
        return {name: Spread.of(known) for name, known in values.items()}

    def confusion(self, target: str) -> Counts | None:
        """Confusion matrix summed over seeds; None if a run has none."""
        found = [scores.confusion for scores in self.scores(target)]
        return None if any(c is None for c in found) else np.sum([np.array(c) for c in found if c], axis=0)

    def images(self, target: str) -> dict[int, Counts]:
        """Return counts per image by seed, of the runs that have them."""
        found = {run.result.seed: run.result.targets[target].unpacked for run in self.runs}
        return {seed: images.counts for seed, images in found.items() if images is not None}


def label_groups(members: Sequence[Sequence[Run]]) -> list[Group]:
    """Name groups by the method and, where that is not enough, by network, overrides, steps and folder."""
    firsts = [runs[0].result for runs in members]
    names = [result.method for result in firsts]
    for more in (_models, _overrides, _steps, _folders):
        names = _told_apart(names, firsts, more)
    return [Group(name, runs) for name, runs in zip(_distinct(names), members, strict=True)]


def unsaid_options(group: Group, groups: Sequence[Group]) -> list[str]:
    """List the overrides of a row that its name does not say and not all rows have, as `source_augment=true`."""
    said = {word.partition("=")[0] for word in group.label.split()}
    own = _values(group.first, _said(group.first))
    others = [_values(other.first, own) for other in groups]
    named = {key.removeprefix("method."): (key, value) for key, value in own.items()}
    return [
        f"{name}={value}"
        for name, (key, value) in named.items()
        if name not in said and any(other.get(key) != value for other in others)
    ]


def _said(result: Result) -> dict[str, str]:
    return {key_of(o): o.partition("=")[2] for o in result.overrides if changes_results(key_of(o))}


def _values(result: Result, keys: Iterable[str]) -> dict[str, str]:
    """Return the values of the keys that a run has, as its settings have them: True is true, and 1e-3 is 0.001."""
    own = _said(result)
    known = [key for key in keys if key in result.settings or key in own]
    return {k: as_override(result.settings[k]) if k in result.settings else own[k] for k in known}


def _told_apart(
    names: Sequence[str], results: Sequence[Result], more: Callable[[Sequence[Result]], list[str]]
) -> list[str]:
    """Add to each repeated name what tells its results apart, if it does."""
    found = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        places = [i for i, other in enumerate(names) if other == name]
        added = more([results[i] for i in places])
        for i, text in zip(places, added if len({*added}) > 1 else [], strict=False):
            found[i] = f"{name} {text}".strip()
    return found


def _distinct(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _models(results: Sequence[Result]) -> list[str]:
    return [result.model for result in results]


def _overrides(results: Sequence[Result]) -> list[str]:
    """Say the overrides that not all results have: `text=none mask_weight=0` for options of the method.

    A result that was not given one of them has a value of it all the same.
    """
    every = dict.fromkeys(key for result in results for key in _said(result))
    given = [_values(result, every) for result in results]
    keys = [k for k in dict.fromkeys(k for own in given for k in own) if len({own.get(k) for own in given}) > 1]
    short = {key: _short_paths({own[key] for own in given if key in own}) for key in keys}
    shown = [{k: short[k].get(own[k], own[k]) for k in keys if k in own} for own in given]
    return [" ".join(f"{key.removeprefix('method.')}={value}" for key, value in own.items()) for own in shown]


def _short_paths(values: Collection[str]) -> dict[str, str]:
    """Shorten paths to the parts that not all of them have, a single one to its last part."""
    parts = {value: Path(value).parts for value in values if "/" in value}
    common = set.intersection(*map(set, parts.values())) if parts else set()
    return {value: "/".join(part for part in own if part not in common) or own[-1] for value, own in parts.items()}


def _steps(results: Sequence[Result]) -> list[str]:
    return [f"{result.step} steps" for result in results]


def _folders(results: Sequence[Result]) -> list[str]:
    return [result.run.rpartition("/")[0] for result in results]


def as_override(value: Any) -> str:
    """Show a setting as the command line would give it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
