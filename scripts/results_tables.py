"""Write the tables of docs/results.md from the kept results of benchmarks and ablations, between its two marks.

    python scripts/results_tables.py

The page says which results it is of, by which `tests/sweeps/test_kept_results.py` tells whether it is up to date.
"""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from uda_seg.config.base_rows import base_rows
from uda_seg.errors import UserError
from uda_seg.errors.ending import fail
from uda_seg.results.choosing import label_free
from uda_seg.results.compare import CONTROLS, ORACLE, UNPAIRED, Difference, Group, Table, differences, label_groups
from uda_seg.results.intervals import DRAWS
from uda_seg.results.reading import Run
from uda_seg.results.result import read_result
from uda_seg.storage.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"
BEGIN, END = "<!-- results: begin, by scripts/results_tables.py -->", "<!-- results: end -->"
NONE = "No results of a benchmark are in this checkout yet."
# Rows in the order of the page; others follow by name.
FIRST = ("source_only", "source_only_strong", "adabn", "adabn_strong", "dacs", "daformer", "mic", "lcmsm", "bicl")
ENOUGH, FEW = 6, "†"  # seeds of a row that a claim is made of, and the mark of one with fewer


def tables(results: Path) -> str:
    """Write the tables of every sweep and setting, one for each target, and of scores without labels.

    Raises:
        UserError: a result that cannot be read, or seeds of a row that differ in more than the seed.
    """
    found: dict[str, dict[str, dict[str, list[Run]]]] = {}
    for path in sorted(results.glob("*/*/*/seed*.json")):
        sweep, setting, row = path.parts[-4:-1]
        found.setdefault(sweep, {}).setdefault(setting, {}).setdefault(row, []).append(Run(read_result(path), path))
    parts = []
    for sweep in sorted(found, key=lambda name: (not name.startswith("benchmark"), name)):
        parts.append(f"#### `sweep={sweep}`")
        parts += [_setting(sweep, setting, rows) for setting, rows in found[sweep].items()]
    return "\n\n".join(parts) if parts else NONE


def _setting(sweep: str, setting: str, rows: Mapping[str, Sequence[Run]]) -> str:
    base = base_rows().get(sweep, "")
    groups = _groups(rows, base)
    results = [run.result for group in groups for run in group.runs]
    of = ", ".join(f"`{part}`" for part in (f"data={setting}", *_shared(rows)))
    intro = (
        f"{of}, {len(results)} runs of {_range([r.steps for r in results])} steps on "
        f"{_devices(groups)}: mIoU in %, last iterate, mean ± standard deviation over "
        f"seeds; paired differences with 95 % intervals ({DRAWS} bootstrap draws of seeds and images), over the seeds "
        "that both have, whose number follows where it is not the row's."
    )
    if {CONTROLS[0], ORACLE} <= {group.first.method for group in groups}:
        intro += f" The share is that of the gap between `{CONTROLS[0]}` and the oracle that is closed."
    if any(len(group.runs) < ENOUGH for group in groups):
        intro += f" {FEW} marks rows of fewer than {ENOUGH} seeds, which no claim is made of."
    targets = dict.fromkeys(name for result in results for name in result.targets)
    seen = [
        _table(name, [g for g in groups if all(name in run.result.targets for run in g.runs)], base) for name in targets
    ]
    if base and not any(table.references() for table in seen):
        intro += f" The row to compare with, `{base}`, has no result yet."
    if reasons := _reasons(seen):
        intro += f" {UNPAIRED} marks runs that are not paired, whose seeds are drawn separately: {'; '.join(reasons)}."
    shown = [f"**{table.target}**{_kind(table)}\n\n{_scores(table)}\n\n{_classes(table)}" for table in seen]
    return "\n\n".join([_filled(intro), *shown, _label_free(setting, seen)])


def _groups(rows: Mapping[str, Sequence[Run]], base: str) -> list[Group]:
    """Name rows, by what they differ in where they have a base row, and sort them: the base row and controls first."""
    order = sorted(rows, key=lambda row: (_place(row), row))
    members = [sorted(rows[row], key=lambda run: run.result.seed) for row in order]
    for runs in members:
        _check_alike(runs)
    if not base:
        names = [",".join(part for part in row.split(",") if part not in _shared(order)) for row in order]
        return [Group(name, runs) for name, runs in zip(names, members, strict=True)]
    table = Table("", "", (), (), label_groups(members), base=base)
    first = table.references()
    return [*first, *(group for group in table.groups if group not in first)]


def _devices(groups: Sequence[Group]) -> str:
    """Name the devices, of several each with its rows: two rows of one seed differ by theirs too."""
    found: dict[str, dict[str, None]] = {}
    for group in groups:
        for run in group.runs:
            found.setdefault(run.result.device, {})[group.label] = None
    return " and ".join(f"{d} ({', '.join(rows)})" if len(found) > 1 else d for d, rows in sorted(found.items()))


def _shared(rows: Iterable[str]) -> list[str]:
    """List the overrides in the names of all rows: they tell none from another."""
    parts = [row.split(",")[1:] for row in rows]
    return [part for part in parts[0] if len(parts) > 1 and all(part in own for own in parts)]


def _check_alike(runs: Sequence[Run]) -> None:
    """Raise UserError if the runs of a row differ in more than their seed; older ones may lack settings."""
    first = runs[0]
    for run in runs[1:]:
        told = [{"steps": r.result.steps, "data": r.result.data} | r.result.settings for r in (first, run)]
        keys = sorted(k for k in told[0].keys() & told[1].keys() if told[0][k] != told[1][k] and k != "seed")
        if keys:
            raise UserError(f"{run.file} and {first.file} differ in {', '.join(keys[:3])}: one of them is out of date")


def _filled(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _place(row: str) -> int:
    method = row.partition(",")[0]
    return FIRST.index(method) if method in FIRST else len(FIRST)


def _range(steps: Sequence[int]) -> str:
    return f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"


def _table(target: str, groups: Sequence[Group], base: str) -> Table:
    scores = groups[0].scores(target)[0]
    return Table("", target, tuple(scores.per_class), tuple(scores.classes), groups, base=base)


def _scores(table: Table) -> str:
    found = {group.label: {d.group: d for d in differences(table, group)} for group in table.references()}
    gaps = found.get(CONTROLS[0], {}) if table.oracle else {}
    heads = ["run", "seeds", "mIoU", *(f"minus {name}" for name in found), *(["of the oracle's gap"] if gaps else [])]
    lines = [_line(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for group in table.groups:
        own = [found[name].get(group.label) for name in found]
        seeds = f"{len(group.runs)}{f' {FEW}' if len(group.runs) < ENOUGH else ''}"
        cells = ["" if d is None else _gain(d, len(group.runs)) for d in own]
        share = gaps[group.label].gap if group.label in gaps else None
        cells += ["" if share is None else f"{100 * share:.0f} %"] if gaps else []
        lines.append(_line([group.label, seeds, str(group.miou(table.target)), *cells]))
    return "\n".join(lines)


def _kind(table: Table) -> str:
    """Tell of a part of the target's data set whether the unlabelled images of training hold it."""
    settings = table.groups[0].first.settings
    included = settings.get(f"data.validation.{table.target}.include")
    if not included:
        return ""
    left_out = set(included) <= set(settings.get("data.target.exclude") or ())
    return ", not among the images that are adapted to" if left_out else ", among the images that are adapted to"


def _classes(table: Table) -> str:
    """Tabulate IoU per class in %, mean over seeds."""
    names = [name for name in table.classes if name in table.counted]
    lines = [_line(["IoU in %", *names]), "|---|" + "---:|" * len(names)]
    for group in table.groups:
        found = group.per_class(table.target)
        lines.append(_line([group.label, *(_percent(found[name].mean) for name in names)]))
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def _gain(found: Difference, seeds: int) -> str:
    interval = found.interval
    ends = [_signed(end) for end in (interval.low, interval.high) if end is not None]
    parts = [_signed(interval.mean), f"[{', '.join(ends)}]" if ends else ""]
    parts += [UNPAIRED] if found.unpaired else [f"({interval.seeds})"] if interval.seeds != seeds else []
    return " ".join(part for part in parts if part)


def _reasons(found: Iterable[Table]) -> list[str]:
    """List why differences that the tables show are not paired."""
    shown = (d for table in found for base in table.references() for d in differences(table, base, draws=1))
    return sorted({d.unpaired for d in shown if d.unpaired})


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _label_free(setting: str, found: Sequence[Table]) -> str:
    """Tabulate how well each score without labels chooses among all validations, one row for each score and target."""
    rated = {table.target: label_free(table) for table in found}
    scored = {rating.score for ratings in rated.values() for rating in ratings} - {"last", "random"}
    intro = (
        f"Choosing among the validations of `data={setting}` without labels: rank correlation with the true mIoU over "
        "all of them; regret, the points lost against the best validation of a run, mean over runs; among runs, the "
        "points lost by choosing one of them after its last step, oracles aside."
        + ("" if scored else " None of these runs logged scores without labels (`evaluator.label_free`).")
    )
    lines = [
        _filled(intro),
        "",
        _line(["target", "score", "validations", "Spearman", "Kendall", "regret", "among runs"]),
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for target, ratings in rated.items():
        for r in ratings:
            ranks = ["" if math.isnan(v) else f"{v:.2f}" for v in (r.spearman, r.kendall)]
            among = "" if math.isnan(r.among_runs) else f"{100 * r.among_runs:.1f}"
            lines.append(_line([target, r.score, str(r.checkpoints), *ranks, f"{100 * r.regret:.1f}", among]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def told(results: Path) -> str:
    """Return the line of the page that says which results it is of."""
    digest, files = hashlib.sha256(), sorted(results.glob("*/*/*/seed*.json"))
    for path in files:
        digest.update(path.relative_to(results).as_posix().encode() + path.read_bytes())
    return f"<!-- {len(files)} results, sha256 {digest.hexdigest()} -->"


def page(text: str, generated: str) -> str:
    """Put the tables between the page's marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} has no mark {BEGIN}"
    assert end, f"{PAGE} has no mark {END}"
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


if __name__ == "__main__":
    try:
        write_text(PAGE, page(PAGE.read_text(), f"{told(RESULTS)}\n\n{tables(RESULTS)}"))
    except UserError as error:
        fail(error)
