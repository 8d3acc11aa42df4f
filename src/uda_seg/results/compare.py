"""Comparison of runs: groups over seeds, tables of those that may be compared, and their differences."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from uda_seg.config.naming import changes_results
from uda_seg.config.schema import key_of
from uda_seg.evaluation.tables import Spread
from uda_seg.results.intervals import (
    Interval,
    paired_interval,
    seeds_interval,
    separate_interval,
    separate_seeds_interval,
)
from uda_seg.results.packing import Counts, ImageConfusions
from uda_seg.results.reading import Run
from uda_seg.results.result import Result, TargetScores

CONTROLS = ("source_only", "source_only_strong", "adabn", "adabn_strong")
ORACLE = "oracle"
UNPAIRED = "‡"  # the mark of a difference between runs that are no pairs
# Settings of the data that do not decide what is learnt or scored, or that a method's recipe changes.
_NO_WORLD = re.compile(
    r"^data\.(name|reader|cache|workers|val_batch|rare_class|shards)|\.(root|depth\w*|workers|cache)$"
)
_WORLD = re.compile(r"^data\.")


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


@dataclass(frozen=True)
class Table:
    """Groups that are scored on the same target with the same classes, and may be compared.

    Attributes:
        data: name of the data.
        target: name of the validation set.
        classes: names of all classes.
        counted: names of the classes in the mean.
        groups: the best mIoU first.
        sweep: sweep that all runs are of, if it has a base row of its own; "" otherwise.
        base: overrides of that row, separated by blanks.
    """

    data: str
    target: str
    classes: tuple[str, ...]
    counted: tuple[str, ...]
    groups: Sequence[Group]
    sweep: str = ""
    base: str = ""

    @property
    def title(self) -> str:
        """Sweep, data, target and number of classes."""
        return f"{self.sweep + ', ' if self.sweep else ''}{self.data}: {self.target}, {len(self.counted)} classes"

    def references(self, against: Sequence[str] = ()) -> list[Group]:
        """List the groups that others are compared with: base rows, those given, and all controls.

        Args:
            against: methods, labels, or overrides separated by blanks, of which a group has to have all.
        """
        named = [group for said in (self.base, *against) if said for group in self.groups if _is_named(group, said)]
        return list({group.label: group for group in [*named, *self.controls]}.values())

    @property
    def controls(self) -> list[Group]:
        """The groups of methods that do not adapt, or adapt statistics alone."""
        return [group for group in self.groups if group.first.method in CONTROLS]

    def oracle_of(self, reference: Group) -> Group | None:
        """Find the group that was trained on the target's labels with a reference's network and steps."""
        told = (reference.first.model, reference.first.steps)
        found = (g for g in self.groups if g.first.method == ORACLE and (g.first.model, g.first.steps) == told)
        return next(found, None)


def _is_named(group: Group, said: str) -> bool:
    by_overrides = "=" in said and all(_has(group.first, override) for override in said.split())
    return said in (group.label, group.first.method) or by_overrides


def _has(result: Result, override: str) -> bool:
    """Tell whether a run has a setting, whether or not its command line gave it."""
    key, _, said = override.partition("=")
    if key not in result.settings:
        return override in result.overrides
    value = result.settings[key]
    try:
        return bool(float(said) == value)
    except ValueError:
        return said == _shown(value)


def _shown(value: Any) -> str:
    """Show a setting as the command line would give it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Difference:
    """A group against a reference on one target.

    Attributes:
        group, reference: labels.
        interval: the difference in mIoU, of pairs of runs if there are.
        unlike: what else differs between the two: steps, learning rate, images, network; the difference is then not
            one of methods alone.
        unpaired: why runs are no pairs, so that their seeds are drawn separately; "" if they are.
        gap: share of the gap between the reference and the oracle that is closed, over the seeds that all three have
            as far as there are any; None without an oracle.
    """

    group: str
    reference: str
    interval: Interval
    unlike: Sequence[str]
    unpaired: str
    gap: float | None = None


def settings_without_seed(result: Result) -> tuple[Any, ...]:
    """Return what tells groups apart: everything of a run but its seed and its place."""
    said = {key: value for key, value in result.settings.items() if key not in ("seed", "init")}
    said = {key: value for key, value in said.items() if not key.endswith((".root", ".workers", ".cache"))}
    begun = (result.start.init is not None, result.cost.source_images_before)  # the checkpoint itself is of the seed
    return (result.method, result.model, result.data, result.steps, result.step, begun, repr(sorted(said.items())))


def build_tables(runs: Sequence[Run], bases: Mapping[str, str] = MappingProxyType({})) -> list[Table]:
    """Sort runs into tables by data, target and class set, and into groups over seeds within them.

    A repeated seed within a group makes a group of its own, so that no run counts twice. The very same run, of which
    another sweep keeps a copy, is left out.

    Args:
        runs: the runs.
        bases: sweep -> overrides of its base row, separated by blanks. Each of these sweeps has tables of its own.
    """
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Run]]] = {}
    for run in runs:
        for target, scores in run.result.targets.items():
            sweep = run.result.choices.get("sweep", "")
            scored = (tuple(scores.per_class), tuple(scores.classes), _evaluation(run, target))
            place = (sweep if sweep in bases else "", run.result.data, target, *scored)
            _place(run, found.setdefault(place, {}))
    tables = []
    for (sweep, data, target, classes, counted, _), groups in found.items():
        labels = label_groups([sorted(members, key=lambda run: run.result.seed) for members in groups.values()])
        labels.sort(key=lambda group: -np.nan_to_num(group.miou(target).mean, nan=-1))
        tables.append(Table(data, target, classes, counted, labels, sweep, bases.get(sweep, "")))
    return tables


def _place(run: Run, groups: dict[tuple[Any, ...], list[Run]]) -> None:
    """Add a run to the first group of its settings that lacks its seed, unless one of them has the very same run."""
    key, again = settings_without_seed(run.result), 0
    while twin := next((r for r in groups.get((*key, again), ()) if r.result.seed == run.result.seed), None):
        if unnamed(twin.result) == unnamed(run.result):
            return
        again += 1
    groups.setdefault((*key, again), []).append(run)


def unnamed(result: Result) -> str:
    """Write a result without what a sweep calls it; as text, in which, unlike in a comparison, NaN is NaN."""
    return repr(replace(result, overrides=[], choices={}))


def _evaluation(run: Run, target: str) -> str:
    """Return the settings of the validation set, which have to be equal for scores to be compared."""
    start = f"data.validation.{target}."
    skip = (".root", ".cache", ".workers", ".depth")
    said = {k: v for k, v in run.result.settings.items() if k.startswith(start) and not k.endswith(skip)}
    images = run.result.targets[target].unpacked
    return repr((sorted(said.items()), None if images is None else images.names)) if not run.former else repr(said)


def label_groups(members: Sequence[Sequence[Run]]) -> list[Group]:
    """Name groups by the method and, where that is not enough, by network, overrides, steps and folder."""
    firsts = [runs[0].result for runs in members]
    names = [result.method for result in firsts]
    for more in (_models, _overrides, _steps, _folders):
        names = _told_apart(names, firsts, more)
    return [Group(name, runs) for name, runs in zip(_distinct(names), members, strict=True)]


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
    said = [
        {key_of(o): o.partition("=")[2] for o in result.overrides if changes_results(key_of(o))} for result in results
    ]
    every = dict.fromkeys(key for own in said for key in own)
    # As the settings have it where they do: True is true, and 1e-3 is 0.001.
    given = [
        {k: _shown(r.settings[k]) if k in r.settings else own[k] for k in every if k in r.settings or k in own}
        for r, own in zip(results, said, strict=True)
    ]
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


def differences(table: Table, reference: Group, draws: int = 2000) -> list[Difference]:
    """Compare every other group of a table with a reference."""
    return [
        _difference(table, group, reference, draws, _gap(table, group, reference))
        for group in table.groups
        if group is not reference
    ]


def _gap(table: Table, group: Group, reference: Group) -> float | None:
    """Return the share of the gap to the oracle that a group closes, paired by seeds as far as seeds are shared."""
    oracle = table.oracle_of(reference)
    if oracle is None:
        return None
    found = [
        {run.result.seed: run.result.targets[table.target].miou for run in g.runs} for g in (group, reference, oracle)
    ]
    pairs = found[0].keys() & found[1].keys()
    pairs = pairs & found[2].keys() or pairs
    mine, base, top = (float(np.mean([scores[s] for s in (pairs & scores.keys()) or scores])) for scores in found)
    return (mine - base) / (top - base) if top > base else None


def _difference(table: Table, group: Group, reference: Group, draws: int, gap: float | None) -> Difference:
    pairs = [(mine, other) for mine in group.runs for other in reference.runs if mine.result.seed == other.result.seed]
    unlike = unlike_settings(group.first, reference.first)
    found = (_unpaired(mine.result, other.result) for mine, other in pairs)
    unpaired = next(filter(None, found), "") if pairs else "no seed in common"
    if unpaired:
        interval = _separate_interval(table, group.runs, reference.runs, draws)
    else:
        interval = _paired_interval(table, pairs, draws)
    return Difference(group.label, reference.label, interval, unlike, unpaired, gap)


def _paired_interval(table: Table, pairs: Sequence[tuple[Run, Run]], draws: int) -> Interval:
    first, second = (_scores(table, side) for side in zip(*pairs, strict=True))
    if all(_same_images(first[seed].unpacked, second[seed].unpacked) for seed in first):
        return paired_interval(_counts(first), _counts(second), next(iter(first.values())).subset, draws)
    return seeds_interval([first[seed].miou - second[seed].miou for seed in first], draws)


def _separate_interval(table: Table, runs: Sequence[Run], others: Sequence[Run], draws: int) -> Interval:
    first, second = _scores(table, runs), _scores(table, others)
    one, *more = [scores.unpacked for side in (first, second) for scores in side.values()]
    if all(_same_images(one, other) for other in more):
        return separate_interval(_counts(first), _counts(second), next(iter(first.values())).subset, draws)
    mious = [[scores.miou for scores in side.values()] for side in (first, second)]
    return separate_seeds_interval(mious[0], mious[1], draws)


def _scores(table: Table, runs: Iterable[Run]) -> dict[int, TargetScores]:
    return {run.result.seed: run.result.targets[table.target] for run in runs}


def _counts(scores: Mapping[int, TargetScores]) -> dict[int, Counts]:
    return {seed: found.unpacked.counts for seed, found in scores.items() if found.unpacked is not None}


def _same_images(first: ImageConfusions | None, second: ImageConfusions | None) -> bool:
    """Tell whether names and labels are the same: the labelled pixels of each class in each image."""
    if first is None or second is None:
        return False
    return first.names == second.names and np.array_equal(first.counts.sum(2), second.counts.sum(2))


def _unpaired(first: Result, second: Result) -> str:
    """Say why runs of one seed have not begun alike; "" if they have, as far as is known."""
    if first.start.digest and second.start.digest:
        if first.start.digest != second.start.digest:
            return "other start weights"
    elif (first.start.pretrained, first.start.init, first.model) != (
        second.start.pretrained,
        second.start.init,
        second.model,
    ):
        return "other start weights"
    if changed := _changed_world(first, second):
        return f"other data ({', '.join(changed[:3])})"
    return ""


def _changed_world(first: Result, second: Result) -> list[str]:
    worlds = [
        {k: v for k, v in r.settings.items() if _WORLD.search(k) and not _NO_WORLD.search(k)} for r in (first, second)
    ]
    common = worlds[0].keys() & worlds[1].keys()
    return sorted(key for key in common if worlds[0][key] != worlds[1][key] and not key.endswith("_batch"))


def unlike_settings(first: Result, second: Result) -> list[str]:
    """List what differs between two runs besides the method: they are not compared as equals."""
    told = [
        ("network", first.model, second.model),
        ("steps", first.step, second.step),
        ("source images", first.cost.source_images, second.cost.source_images),
        ("earlier images", first.cost.source_images_before, second.cost.source_images_before),
        ("target labels", first.cost.labelled_target_images, second.cost.labelled_target_images),
        ("learning rate", first.settings.get("optimizer.lr"), second.settings.get("optimizer.lr")),
    ]
    return [f"{name} {mine}, not {other}" for name, mine, other in told if mine != other]
