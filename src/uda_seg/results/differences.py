"""Differences between the groups of a table, paired by seeds and images where they are pairs, with intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uda_seg.results.groups import Group
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
from uda_seg.results.tables import Table

UNPAIRED = "‡"  # the mark of a difference between runs that are no pairs
# Settings of the data that do not decide what is learnt or scored, or that a method's recipe changes.
_NO_WORLD = re.compile(
    r"^data\.(name|reader|cache|workers|val_batch|rare_class|shards)|\.(root|depth\w*|workers|cache)$"
)
_WORLD = re.compile(r"^data\.")
_SCORING = ("evaluator.inference", "evaluator.scales", "evaluator.flip")


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
        *((k, first.settings[k], second.settings[k]) for k in _SCORING if k in first.settings and k in second.settings),
    ]
    return [f"{name} {mine}, not {other}" for name, mine, other in told if mine != other]
