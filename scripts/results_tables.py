"""Write tables of the kept results of benchmarks and ablations: an overview, and a page of all details.

    python scripts/results_tables.py

The overview stands between two marks of docs/results.md; docs/results_tables.md is written whole. Both say which
results they are of, by which `tests/sweeps/test_kept_results.py` tells whether they are up to date.
"""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uda_seg.config.base_rows import base_rows
from uda_seg.config.naming import changes_results
from uda_seg.config.schema import key_of
from uda_seg.errors import UserError
from uda_seg.errors.ending import fail
from uda_seg.results.choosing import label_free
from uda_seg.results.differences import UNPAIRED, Difference, differences
from uda_seg.results.groups import Group, label_groups
from uda_seg.results.intervals import DRAWS
from uda_seg.results.reading import Run
from uda_seg.results.result import Result, read_result
from uda_seg.results.tables import CONTROLS, ORACLE, Table
from uda_seg.storage.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, DETAILS, RESULTS = ROOT / "docs" / "results.md", ROOT / "docs" / "results_tables.md", ROOT / "results"
BEGIN, END = "<!-- results: begin, by scripts/results_tables.py -->", "<!-- results: end -->"
NONE = "No results of a benchmark are in this checkout yet."
# Rows in the order of the pages; others follow by name, the oracle last.
FIRST = ("source_only", "source_only_strong", "adabn", "adabn_strong", "dacs", "daformer", "mic", "lcmsm", "bicl")
ENOUGH, FEW = 6, "†"  # seeds of a row that a claim is made of, and the mark of one with fewer
BASES = ("dacs", "mic")  # on which other methods build: others are compared with them too
ABOVE, BELOW = "▲", "▼"  # marks of a row whose difference to the reference has an interval without 0
DETAILS_HEAD = f"""# Tables of all kept results

Written by `scripts/results_tables.py` from the files in `results/`; [results](results.md) tells what they show.
mIoU in %, of the last iterate, mean ± standard deviation over seeds. Differences are paired, with 95 % intervals
({DRAWS} bootstrap draws of seeds and images), over the seeds that both rows have, whose number follows where it is not
the row's. Shares are those of the gap between `{CONTROLS[0]}` and the oracle that are closed. {FEW} marks rows of fewer
than {ENOUGH} seeds, which no claim is made of, {UNPAIRED} runs that are not paired, whose seeds are drawn separately.

Tables of scores without labels tell how well they choose among all validations: rank correlation with the true mIoU
over all of them; regret, the points lost against the best validation of a run, mean over runs; among runs, the points
lost by choosing one of them after its last step, oracles aside."""


@dataclass(frozen=True)
class Setting:
    """The kept rows of a sweep on one data set.

    Attributes:
        sweep, data: their names.
        shared: overrides of all rows that change results, besides `steps`.
        base: overrides of the row that the sweep's others are compared with, separated by blanks; "" for the controls.
        groups: the rows, each over its seeds.
        tables: their scores on each validation set.
    """

    sweep: str
    data: str
    shared: Sequence[str]
    base: str
    groups: Sequence[Group]
    tables: Sequence[Table]

    @property
    def title(self) -> str:
        """Write data and shared overrides as the command line has them."""
        return ", ".join(f"`{part}`" for part in (f"data={self.data}", *self.shared))

    @property
    def results(self) -> list[Result]:
        """The results of all rows and seeds."""
        return [run.result for group in self.groups for run in group.runs]

    @property
    def steps(self) -> str:
        """The steps of a run, or their range."""
        steps = [result.steps for result in self.results]
        return f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"


def settings(results: Path) -> list[Setting]:
    """Read the kept results, benchmarks first.

    Raises:
        UserError: a result that cannot be read, or seeds of a row that differ in more than the seed.
    """
    found: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for path in sorted(results.glob("*/*/*/seed*.json")):
        sweep, data, row = path.parts[-4:-1]
        found.setdefault((sweep, data), {}).setdefault(row, []).append(Run(read_result(path), path))
    order = sorted(found, key=lambda place: (not place[0].startswith("benchmark"), *place))
    return [_setting(*place, found[place]) for place in order]


def _setting(sweep: str, data: str, rows: Mapping[str, Sequence[Run]]) -> Setting:
    base = base_rows().get(sweep, "")
    groups = _groups(rows, base)
    _check_classes(groups)
    targets = dict.fromkeys(name for group in groups for run in group.runs for name in run.result.targets)
    seen = [
        _table(name, [g for g in groups if all(name in run.result.targets for run in g.runs)], base) for name in targets
    ]
    return Setting(sweep, data, [*_shared(rows), *_unnamed(groups, rows)], base, groups, seen)


def overview(found: Sequence[Setting]) -> str:
    """Tabulate the mIoU of every row, one table for each sweep and setting with a column for each target."""
    return _by_sweep(found, "###", _overview)


def _by_sweep(found: Sequence[Setting], heading: str, write: Callable[[Setting], str]) -> str:
    parts = [NONE] if not found else []
    for sweep in dict.fromkeys(setting.sweep for setting in found):
        parts.append(f"{heading} `sweep={sweep}`")
        parts += [write(setting) for setting in found if setting.sweep == sweep]
    return "\n\n".join(parts)


def _overview(setting: Setting) -> str:
    if key := _key_of_values(setting):
        return _overview_of_values(setting, key)
    reference = _reference(setting)
    cells = {group.label: [group.label, _seeds(group)] for group in setting.groups}
    marks: dict[str, dict[str, str]] = {}
    for table in setting.tables:
        found = differences(table, reference) if reference in table.groups else []
        marks[table.target] = {d.group: _mark(d) for d in found if d.interval.seeds >= ENOUGH}
        for group in setting.groups:
            score = str(group.miou(table.target)) if group in table.groups else ""
            cells[group.label].append(f"{score} {marks[table.target].get(group.label, '')}".strip())
    heads = ["run", "seeds", *(f"{table.target}{' (unseen)' if _unseen(table) else ''}" for table in setting.tables)]
    said = f"{setting.title}, {len(setting.results)} runs of {setting.steps} steps"
    if reference is not None and any(any(of.values()) for of in marks.values()):
        said += f"; {ABOVE} above and {BELOW} below `{reference.label}`"
    lines = [_line(heads), "|---|" + "---:|" * (len(heads) - 1), *map(_line, cells.values())]
    return "\n".join([_filled(f"{said}:"), "", *lines])


def _key_of_values(setting: Setting) -> str | None:
    """Return the key if every row is named by its method and one value of the same key, on one target."""
    named = [group.label.split(",")[1:] for group in setting.groups]
    keys = {key_of(override) for overrides in named for override in overrides}
    one_each = len(keys) == 1 and all(len(overrides) == 1 for overrides in named)
    return keys.pop() if one_each and len(setting.tables) == 1 else None


def _overview_of_values(setting: Setting, key: str) -> str:
    """Tabulate the mIoU of methods, a column for each value of the key, the highest of a whole row in bold."""
    [table] = setting.tables
    scores: dict[str, dict[str, Group]] = {}
    for group in table.groups:
        method, _, override = group.label.partition(",")
        scores.setdefault(method, {})[override] = group
    heads = sorted({override for own in scores.values() for override in own}, key=_value)
    lines = [_line(["run", *(f"`{override}`" for override in heads)]), "|---|" + "---:|" * len(heads)]
    for method, own in scores.items():
        shown = {override: str(group.miou(table.target)) for override, group in own.items()}
        best = max(shown.values(), key=lambda score: float(score.partition(" ")[0])) if len(own) == len(heads) else None
        cells = [f"**{shown[o]}**" if best and shown[o] == best else shown.get(o, "") for o in heads]
        lines.append(_line([method, *cells]))
    seeds = sorted({_seeds(group) for group in table.groups})
    said = f"{setting.title}, {len(setting.results)} runs of {setting.steps} steps, seeds of each: {', '.join(seeds)}"
    return "\n".join([_filled(f"{said}; the highest of each row in bold:"), "", *lines])


def _value(override: str) -> tuple[float, str]:
    """Sort overrides of one key by their numbers, those without last and by name."""
    try:
        return float(override.partition("=")[2]), ""
    except ValueError:
        return math.inf, override


def _reference(setting: Setting) -> Group | None:
    """Find the row that an overview compares with: the sweep's own, or the strongest control without target images.

    Of a sweep's several rows of its own, take the one of most seeds; where a control has several sources, none.
    """
    references = [group for table in setting.tables[:1] for group in table.references()]
    found = [group for group in references if group.first.method in CONTROLS[:2]]
    if setting.base:
        found = [group for group in references if group.first.method not in CONTROLS]
        return max(found, key=lambda group: len(group.runs), default=None)
    return found[-1] if len({group.first.method for group in found}) == len(found) > 0 else None


def _mark(found: Difference) -> str:
    return "" if not found.interval.clear else ABOVE if found.interval.mean > 0 else BELOW


def _seeds(group: Group) -> str:
    return f"{len(group.runs)} {FEW}" if len(group.runs) < ENOUGH else f"{len(group.runs)}"


def details(found: Sequence[Setting]) -> str:
    """Write differences, IoU of each class and scores without labels, for each sweep, setting and target."""
    return _by_sweep(found, "##", _details)


def _details(setting: Setting) -> str:
    said = f"{len(setting.results)} runs of {setting.steps} steps on {_devices(setting.groups)}."
    if setting.base and not any(table.references() for table in setting.tables):
        said += f" The row to compare with, `{setting.base}`, has no result yet."
    if reasons := _reasons(setting.tables):
        said += f" {UNPAIRED}: {'; '.join(reasons)}."
    shown = [f"**{table.target}**{_kind(table)}\n\n{_scores(table)}\n\n{_classes(table)}" for table in setting.tables]
    return "\n\n".join([f"### {setting.title}", _filled(said), *shown, _label_free(setting)])


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


def _unnamed(groups: Sequence[Group], rows: Iterable[str]) -> list[str]:
    """List the overrides of all runs that change results though no row is named by them: a sweep's own settings."""
    runs = [run.result.overrides for group in groups for run in group.runs]
    named = {key_of(part) for row in rows for part in row.split(",")[1:]} | {"steps"}
    own = [o for o in runs[0] if len(groups) > 1 and all(o in other for other in runs)]
    return [o for o in own if changes_results(key_of(o)) and key_of(o).removeprefix("method.") not in named]


def _check_alike(runs: Sequence[Run]) -> None:
    """Raise UserError if the runs of a row differ in more than their seed; older ones may lack settings."""
    first = runs[0]
    for run in runs[1:]:
        told = [{"steps": r.result.steps, "data": r.result.data} | r.result.settings for r in (first, run)]
        own = ("seed", "init")  # a start may be the seed's own
        keys = sorted(k for k in told[0].keys() & told[1].keys() if told[0][k] != told[1][k] and k not in own)
        if keys:
            raise UserError(f"{run.file} and {first.file} differ in {', '.join(keys[:3])}: one of them is out of date")


def _check_classes(groups: Sequence[Group]) -> None:
    """Raise UserError if rows are scored on other classes of a target: their means cannot be compared."""
    first: dict[str, tuple[Run, object]] = {}
    for run in (run for group in groups for run in group.runs):
        for target, scores in run.result.targets.items():
            told = (tuple(scores.per_class), tuple(scores.classes))
            other, classes = first.setdefault(target, (run, told))
            if classes != told:
                raise UserError(f"{run.file} and {other.file} are scored on other classes: move one to another data=")


def _filled(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _place(row: str) -> int:
    method = row.partition(",")[0]
    return FIRST.index(method) if method in FIRST else len(FIRST) + (method == ORACLE)


def _table(target: str, groups: Sequence[Group], base: str) -> Table:
    scores = groups[0].scores(target)[0]
    return Table("", target, tuple(scores.per_class), tuple(scores.classes), groups, base=base)


def _scores(table: Table) -> str:
    found = {group.label: {d.group: d for d in differences(table, group)} for group in _columns(table)}
    gaps = found.get(CONTROLS[0], {})
    gaps = gaps if any(d.gap is not None for d in gaps.values()) else {}
    heads = ["run", "seeds", "mIoU", *(f"minus {name}" for name in found), *(["of the oracle's gap"] if gaps else [])]
    lines = [_line(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for group in table.groups:
        own = [found[name].get(group.label) for name in found]
        cells = ["" if d is None else _gain(d, len(group.runs)) for d in own]
        share = gaps[group.label].gap if group.label in gaps else None
        cells += ["" if share is None else f"{100 * share:.0f} %"] if gaps else []
        lines.append(_line([group.label, _seeds(group), str(group.miou(table.target)), *cells]))
    return "\n".join(lines)


def _columns(table: Table) -> list[Group]:
    """List the rows that others are compared with in the details.

    Of a base method's rows these are its only one, or those whose options another method's row has as well.
    """
    options = {(group.first.method, group.label.partition(",")[2]) for group in table.groups}
    methods = Counter(said for _, said in options)  # how many have these options
    bases = ([group for group in table.groups if group.first.method == name] for name in BASES)
    more = [g for rows in bases for g in rows if len(rows) == 1 or methods[g.label.partition(",")[2]] > 1]
    return list({group.label: group for group in [*table.references(), *more]}.values())


def _kind(table: Table) -> str:
    """Tell of a part of the target's data set whether the unlabelled images of training hold it."""
    if not _part(table):
        return ""
    return ", not among the images that are adapted to" if _unseen(table) else ", among the images that are adapted to"


def _part(table: Table) -> list[str]:
    return table.groups[0].first.settings.get(f"data.validation.{table.target}.include") or []


def _unseen(table: Table) -> bool:
    left_out = table.groups[0].first.settings.get("data.target.exclude") or ()
    return bool(_part(table)) and set(_part(table)) <= set(left_out)


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
    shown = (d for table in found for base in _columns(table) for d in differences(table, base, draws=1))
    return sorted({d.unpaired for d in shown if d.unpaired})


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _label_free(setting: Setting) -> str:
    """Tabulate how well each score without labels chooses among all validations, one row for each score and target."""
    rated = {table.target: label_free(table) for table in setting.tables}
    if not {rating.score for ratings in rated.values() for rating in ratings} - {"last", "random"}:
        return f"Scores without labels of `data={setting.data}`: none was logged (`evaluator.label_free`)."
    lines = [
        f"Scores without labels of `data={setting.data}`:",
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
    """Return the line of both pages that says which results they are of, and which script wrote them."""
    digest, files = hashlib.sha256(Path(__file__).read_bytes()), sorted(results.glob("*/*/*/seed*.json"))
    for path in files:
        digest.update(path.relative_to(results).as_posix().encode() + path.read_bytes())
    return f"<!-- {len(files)} results, sha256 {digest.hexdigest()} -->"


def page(text: str, generated: str) -> str:
    """Put the overview between the page's marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} has no mark {BEGIN}"
    assert end, f"{PAGE} has no mark {END}"
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


def pages() -> dict[Path, str]:
    """Return the content of both pages."""
    found, line = settings(RESULTS), told(RESULTS)
    return {
        PAGE: page(PAGE.read_text(), f"{line}\n\n{overview(found)}"),
        DETAILS: f"{DETAILS_HEAD}\n\n{line}\n\n{details(found)}\n",
    }


if __name__ == "__main__":
    try:
        for path, text in pages().items():
            write_text(path, text)
    except UserError as error:
        fail(error)
