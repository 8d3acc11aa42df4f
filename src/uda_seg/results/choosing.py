"""Rating of scores that need no labels: whether they choose the right validation of a run, and the right run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from uda_seg.results.result import Result
from uda_seg.results.tables import ORACLE, Table

LABEL_FREE = "label_free/"
Curve = list[tuple[float, Mapping[str, float]]]  # of a run: mIoU and scores of each validation


@dataclass(frozen=True)
class LabelFree:
    """Rating of a score that needs no labels, by the true mIoU of all validations of a table's runs.

    Attributes:
        score: its name; `last` takes the last validation of each run, `random` any.
        checkpoints: number of validations with the score.
        spearman, kendall: rank correlation with the true mIoU over all of them; NaN where there is none to compute.
        regret: mIoU of the best validation of a run minus that of the one with the highest score, mean over runs.
        among_runs: mIoU of the best run after its last step minus that of the run whose score is then the highest;
            oracles are no choice. Of `random`, minus the mean; NaN with fewer than two runs.
    """

    score: str
    checkpoints: int
    spearman: float
    kendall: float
    regret: float
    among_runs: float = math.nan


def label_free(table: Table) -> list[LabelFree]:
    """Rate every score without labels by the true mIoU, beside `last` and `random`.

    These two are there without such scores as well; nothing is where no run was validated twice.
    """
    every = [(_validated(r.result, table.target), r.result.method != ORACLE) for g in table.groups for r in g.runs]
    names = sorted({n for curve, _ in every for _, scores in curve for n in scores if n.startswith(LABEL_FREE)})
    if all(len(curve) < 2 for curve, _ in every):
        return []
    # Beside scores, over the same runs as the first of them.
    same = [e for e in every if e[0] and (not names or any(names[0] in scores for _, scores in e[0]))]
    truth = [np.array([miou for miou, _ in curve]) for curve, _ in same]
    last = float(np.mean([m.max() - m[-1] for m in truth]))
    any_one = float(np.mean([m.max() - m.mean() for m in truth]))
    ends = [m[-1] for m, (_, is_choice) in zip(truth, same, strict=True) if is_choice]
    any_run = float(max(ends) - np.mean(ends)) if len(ends) > 1 else math.nan
    total = sum(map(len, truth))
    return [
        *(_rated(name, every) for name in names),
        LabelFree("last", total, math.nan, math.nan, last),
        LabelFree("random", total, math.nan, math.nan, any_one, any_run),
    ]


def _validated(result: Result, target: str) -> Curve:
    entries = [
        {**_without_labels(v.targets.get("target", {})), **v.targets[target]}  # that is where they are logged
        for v in result.validations
        if "miou" in v.targets.get(target, {})
    ]
    return [(scores["miou"], scores) for scores in entries if not math.isnan(scores["miou"])]


def _without_labels(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name.startswith(LABEL_FREE)}


def _rated(name: str, curves: Sequence[tuple[Curve, bool]]) -> LabelFree:
    every = [([(m, s[name]) for m, s in c if not math.isnan(s.get(name, math.nan))], choice) for c, choice in curves]
    having = [pairs for pairs, _ in every if pairs]
    pairs = [pair for own in having for pair in own]
    truth, score = np.array(pairs).reshape(-1, 2).T
    varied = len(pairs) > 2 and len(set(truth)) > 1 and len(set(score)) > 1
    rho = float(stats.spearmanr(truth, score).statistic) if varied else math.nan
    tau = float(stats.kendalltau(truth, score).statistic) if varied else math.nan
    ends = [own[-1] for own, is_choice in every if own and is_choice]
    among = _lost(ends) if len(ends) > 1 else math.nan
    return LabelFree(name.removeprefix(LABEL_FREE), len(pairs), rho, tau, float(np.mean([*map(_lost, having)])), among)


def _lost(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the best mIoU of (mIoU, score) minus that with the highest score."""
    return max(miou for miou, _ in pairs) - max(pairs, key=lambda pair: pair[1])[0]
