"""Reading of a run's `metrics.csv`."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from uda_seg.errors import Damaged
from uda_seg.results.result import Validation
from uda_seg.storage.files import read_bytes

HEADER = "step,name,value"
UNLABELLED = "target"  # has scores without labels, whatever the validation sets are called
Series = dict[str, list[tuple[int, float]]]


def read_log(path: Path) -> tuple[Series, list[str]]:
    """Read the values of a log, name -> (step, value) in the order of the steps.

    A line that cannot be read is left out; the last one may be cut off by a kill.

    Returns:
        The values (none if there is no log), and a line of text if others had to be left out.
    """
    if not os.path.lexists(path):
        return {}, []
    try:
        lines = read_bytes(path, "its values are left out", 2**31).decode(errors="replace").splitlines()
    except Damaged as error:
        return {}, [str(error)]
    values: dict[tuple[str, int], float] = {}
    wrong = []
    for number, line in enumerate(lines, 1):
        if (found := _value(line)) is not None:
            values[found[:2]] = found[2]
        elif line.strip() and not (number == 1 and line == HEADER) and number < len(lines):
            wrong.append(number)
    series: Series = {}
    for (name, step), value in sorted(values.items(), key=lambda item: item[0][1]):
        series.setdefault(name, []).append((step, value))
    if not wrong:
        return series, []
    return series, [f"{path}: {len(wrong)} line(s) cannot be read and are left out, the first is line {wrong[0]}"]


def _value(line: str) -> tuple[str, int, float] | None:
    try:
        step, name, value = next(csv.reader([line]), [])
        return name, int(step), float(value)
    except (csv.Error, ValueError):
        return None


def validations_of(series: Mapping[str, Sequence[tuple[int, float]]], targets: Iterable[str]) -> list[Validation]:
    """Collect what was logged as `val/miou` and `val/<target>/<name>` into one entry per validation.

    Scores without labels are of the unlabelled target, as `val/target/label_free/<score>`.
    """
    miou = dict(series.get("val/miou", ()))
    scores: dict[int, dict[str, dict[str, float]]] = {step: {} for step in miou}
    for target in dict.fromkeys((*targets, UNLABELLED)):
        start = f"val/{target}/"
        for name, values in series.items():
            for step, value in values if name.startswith(start) else ():
                scores.setdefault(step, {}).setdefault(target, {})[name.removeprefix(start)] = value
    return [Validation(step, miou.get(step, float("nan")), scores[step]) for step in sorted(scores)]
