"""Tables of the groups of runs that may be compared: the same data, scored on the same images and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from uda_seg.results.groups import Group, as_override, label_groups
from uda_seg.results.reading import Run
from uda_seg.results.result import Result

CONTROLS = ("source_only", "source_only_strong", "adabn", "adabn_strong")
ORACLE = "oracle"
RENDERED = "streets"  # the data set whose images follow from `data.world_seed`


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
        images: settings of the validation set that tell it from those of other tables of the same name; "" without any.
    """

    data: str
    target: str
    classes: tuple[str, ...]
    counted: tuple[str, ...]
    groups: Sequence[Group]
    sweep: str = ""
    base: str = ""
    images: str = ""

    @property
    def setting(self) -> str:
        """Sweep and data, and what else tells the validation images from those of other tables."""
        return ", ".join(filter(None, (self.sweep, self.data, self.images)))

    @property
    def title(self) -> str:
        """Sweep, data, target and number of classes."""
        return f"{self.setting}: {self.target}, {len(self.counted)} classes"

    def references(self, against: Sequence[str] = ()) -> list[Group]:
        """List the groups that others are compared with: base rows, those given, and all controls.

        Args:
            against: methods, labels, or overrides separated by blanks, of which a group has to have all.
        """
        named = [group for said in (self.base, *against) if said for group in self.named(said)]
        return list({group.label: group for group in [*named, *self.controls]}.values())

    def named(self, said: str) -> list[Group]:
        """List the groups of a method, a label, or overrides separated by blanks."""
        return [group for group in self.groups if _is_named(group, said)]

    @property
    def controls(self) -> list[Group]:
        """The groups of methods that do not adapt, or adapt statistics alone."""
        return [group for group in self.groups if group.first.method in CONTROLS]

    def oracle_of(self, reference: Group) -> Group | None:
        """Find the group that was trained on the target's labels with a reference's network, steps and learning rate.

        An oracle of another learning rate counts if it is the only one: of several, the best were chosen on labels.
        """
        told = (reference.first.model, reference.first.steps)
        found = [g for g in self.groups if g.first.method == ORACLE and (g.first.model, g.first.steps) == told]
        rate = reference.first.settings.get("optimizer.lr")
        alike = [group for group in found if group.first.settings.get("optimizer.lr") == rate]
        return alike[0] if alike else found[0] if len(found) == 1 else None


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
        return said == as_override(value)


def build_tables(runs: Sequence[Run], bases: Mapping[str, str] = MappingProxyType({})) -> list[Table]:
    """Sort runs into tables by data, target and class set, and into groups over seeds within them.

    A repeated seed within a group makes a group of its own, so that no run counts twice. The very same run, of which
    another sweep keeps a copy, is left out.

    Args:
        runs: the runs.
        bases: sweep -> overrides of its base row, separated by blanks. Each of these sweeps has tables of its own.
    """
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Run]]] = {}
    told: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for run in runs:
        for target, scores in run.result.targets.items():
            sweep = run.result.choices.get("sweep", "")
            evaluation = _evaluation(run.result, target)
            scored = (tuple(scores.per_class), tuple(scores.classes), repr(evaluation), _names(run, target))
            place = (sweep if sweep in bases else "", run.result.data, target, *scored)
            _place(run, found.setdefault(place, {}))
            told[place] = evaluation
    tables = []
    for place, groups in found.items():
        sweep, data, target, classes, counted, *_ = place
        labels = label_groups([sorted(members, key=lambda run: run.result.seed) for members in groups.values()])
        labels.sort(key=lambda group: -np.nan_to_num(group.miou(target).mean, nan=-1))
        images = _said_apart(told[place], [told[other] for other in told if other[:3] == place[:3]])
        tables.append(Table(data, target, classes, counted, labels, sweep, bases.get(sweep, ""), images))
    return tables


def _said_apart(own: Mapping[str, Any], all_of_them: Sequence[Mapping[str, Any]]) -> str:
    """Say the settings of a validation set that not all sets of its name have: `size=[360,480]`."""
    keys = dict.fromkeys(key for other in all_of_them for key in other)
    apart = [key for key in keys if len({repr(other.get(key)) for other in all_of_them}) > 1]
    return ", ".join(f"{key}={as_override(own[key])}" for key in apart if key in own)


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


def _evaluation(result: Result, target: str) -> dict[str, Any]:
    """Return the settings of the validation set, which have to be equal for scores to be compared."""
    start = f"data.validation.{target}."
    skip = (".root", ".cache", ".workers", ".depth")
    found = sorted((k, v) for k, v in result.settings.items() if k.startswith(start) and not k.endswith(skip))
    said = {key.removeprefix(start): value for key, value in found}
    if said.get("dataset") == RENDERED and said.get("root") is None:
        said["world_seed"] = result.settings.get("data.world_seed")
    return said


def _names(run: Run, target: str) -> tuple[str, ...] | None:
    """Return the names of the validation images, which are unknown of runs of earlier versions."""
    images = None if run.former else run.result.targets[target].unpacked
    return None if images is None else tuple(images.names)


def settings_without_seed(result: Result) -> tuple[Any, ...]:
    """Return what tells groups apart: everything of a run but its seed and its place."""
    said = {key: value for key, value in result.settings.items() if key not in ("seed", "init")}
    said = {key: value for key, value in said.items() if not key.endswith((".root", ".workers", ".cache"))}
    begun = (result.start.init is not None, result.cost.source_images_before)  # the checkpoint itself is of the seed
    return (result.method, result.model, result.data, result.steps, result.step, begun, repr(sorted(said.items())))
