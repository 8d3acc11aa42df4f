"""Write the tables of docs/results.md from the kept results of the benchmarks, between its two marks.

    python scripts/results_tables.py

`tests/sweeps/test_kept_results.py` compares the page with what this writes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from uda_seg.results.compare import CONTROLS, Group, Table, differences, label_free
from uda_seg.results.intervals import DRAWS, Interval
from uda_seg.results.reading import Run
from uda_seg.results.result import read_result
from uda_seg.storage.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"
BEGIN, END = "<!-- results: begin, by scripts/results_tables.py -->", "<!-- results: end -->"
NONE = "No results of a benchmark are in this checkout yet."
# Rows in the order of the page; others follow by name.
FIRST = ("source_only", "source_only_strong", "adabn", "adabn_strong", "dacs", "daformer", "mic", "lcmsm", "bicl")
ENOUGH = 6  # seeds of a row that a claim is made of


def tables(results: Path) -> str:
    """Write the tables of every benchmark and setting, one for each target, and of scores without labels."""
    found: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for path in sorted(results.glob("*/*/*/seed*.json")):
        benchmark, setting, row = path.parts[-4:-1]
        found.setdefault((benchmark, setting), {}).setdefault(row, []).append(Run(read_result(path), path))
    parts = [_setting(benchmark, setting, rows) for (benchmark, setting), rows in found.items()]
    return "\n\n".join(parts) if parts else NONE


def _setting(benchmark: str, setting: str, rows: Mapping[str, Sequence[Run]]) -> str:
    order = sorted(rows, key=lambda row: (_place(row), row))
    groups = [Group(row, sorted(rows[row], key=lambda run: run.result.seed)) for row in order]
    results = [run.result for group in groups for run in group.runs]
    few = [f"{g.label} ({len(g.runs)})" for g in groups if len(g.runs) < ENOUGH]
    intro = (
        f"`sweep={benchmark}`, `data={setting}`, {len(results)} runs of {_range([r.steps for r in results])} steps on "
        f"{' and '.join(sorted({r.device for r in results}))}: mIoU in %, last iterate, mean ± standard deviation over "
        f"seeds; paired differences with 95 % intervals ({DRAWS} bootstrap draws of seeds and images); the share of "
        "the gap between `source_only` and the oracle that is closed. Differences and shares are over the seeds that "
        "both have, whose number follows where it is not the row's. "
        f"Fewer than {ENOUGH} seeds: {', '.join(few) or 'none'}."
    )
    targets = dict.fromkeys(name for result in results for name in result.targets)
    seen = [_table(name, [g for g in groups if all(name in run.result.targets for run in g.runs)]) for name in targets]
    shown = [f"**{table.target}**{_kind(table)}\n\n{_scores(table)}\n\n{_classes(table)}" for table in seen]
    return "\n\n".join([_filled(intro), *shown, _label_free(setting, seen)])


def _filled(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _place(row: str) -> int:
    method = row.partition(",")[0]
    return FIRST.index(method) if method in FIRST else len(FIRST)


def _range(steps: Sequence[int]) -> str:
    return f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"


def _table(target: str, groups: Sequence[Group]) -> Table:
    scores = groups[0].scores(target)[0]
    return Table("", target, tuple(scores.per_class), tuple(scores.classes), groups)


def _scores(table: Table) -> str:
    references = [group for group in table.groups if group.label in CONTROLS]
    found = {group.label: {d.group: d for d in differences(table, group)} for group in references}
    heads = ["run", "seeds", "mIoU", *(f"minus {name}" for name in found), "of the oracle's gap"]
    lines = [_line(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for group in table.groups:
        own = [found[name].get(group.label) for name in found]
        base = found.get(CONTROLS[0], {}).get(group.label)
        share = "" if base is None or base.gap is None else f"{100 * base.gap:.0f} %"
        cells = ["" if d is None or d.interval is None else _gain(d.interval, len(group.runs)) for d in own]
        lines.append(_line([group.label, str(len(group.runs)), str(group.miou(table.target)), *cells, share]))
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


def _gain(interval: Interval, seeds: int) -> str:
    ends = [_signed(end) for end in (interval.low, interval.high) if end is not None]
    parts = [_signed(interval.mean), f"[{', '.join(ends)}]" if ends else "", f"({interval.seeds})"]
    return " ".join(part for part in parts[: 2 if interval.seeds == seeds else 3] if part)


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _label_free(setting: str, found: Sequence[Table]) -> str:
    """Tabulate how well each score without labels chooses among all validations, one row for each score and target."""
    rated = {table.target: label_free(table) for table in found}
    scored = {rating.score for ratings in rated.values() for rating in ratings} - {"last", "random"}
    intro = (
        f"Choosing among the validations of `data={setting}` without labels: rank correlation with the true mIoU over "
        "all of them, and regret, the points lost against the best validation of a run, mean over runs."
        + ("" if scored else " None of these runs logged scores without labels (`evaluator.label_free`).")
    )
    lines = [
        _filled(intro),
        "",
        _line(["target", "score", "validations", "Spearman", "Kendall", "regret"]),
        "|---|---|---:|---:|---:|---:|",
    ]
    for target, ratings in rated.items():
        for r in ratings:
            ranks = ["" if math.isnan(v) else f"{v:.2f}" for v in (r.spearman, r.kendall)]
            lines.append(_line([target, r.score, str(r.checkpoints), *ranks, f"{100 * r.regret:.1f}"]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(text: str, generated: str) -> str:
    """Put the tables between the page's marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} has no mark {BEGIN}"
    assert end, f"{PAGE} has no mark {END}"
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(), tables(RESULTS)))
