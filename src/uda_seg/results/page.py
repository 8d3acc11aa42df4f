"""Report of many runs: one self-contained HTML page, and its tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uda_seg.evaluation.tables import Spread
from uda_seg.evaluation.tables import Table as Cells
from uda_seg.results import charts
from uda_seg.results.choosing import label_free
from uda_seg.results.confusions import confusion_pairs, image_scores
from uda_seg.results.differences import UNPAIRED, Difference, differences, unlike_settings
from uda_seg.results.groups import Group, unsaid_options
from uda_seg.results.intervals import DRAWS, SCHEME, Interval
from uda_seg.results.reading import Found
from uda_seg.results.tables import CONTROLS, ORACLE, Table, unnamed

COLOURS = 10  # of the page's style; further methods repeat them
COLUMNS = (  # of the CSV
    *("sweep", "data", "target", "images", "method", "quantity"),
    *("value", "std", "low", "high", "seeds", "unpaired"),
)
SHOWN = 5  # best and worst images each
POINTS = 100  # of a line of losses
_LOSS = re.compile(r"train/(?!lr$|gradient_norm$)")


@dataclass(frozen=True)
class Against:
    """Differences of all groups to one reference, with what the page needs to draw them."""

    reference: str
    rows: Sequence[Mapping[str, Any]]
    low: float
    high: float
    gaps: bool


@dataclass
class Section:
    """What the page shows of one table."""

    table: Table
    colours: Mapping[str, int]
    rows: Sequence[Mapping[str, Any]]
    differences: Sequence[Against]
    against: str
    pictures: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    picture_note: str = ""

    @property
    def teacher(self) -> bool:
        """Whether any teacher was scored."""
        return any(not math.isnan(row["teacher"].mean) for row in self.rows)

    @property
    def best(self) -> bool:
        """Tell whether a best validation is known; only runs with one target have one."""
        return any(not math.isnan(row["best"].mean) for row in self.rows)

    @property
    def curves(self) -> Any:
        """Validated mIoU over steps."""
        target = self.table.target
        lines = {
            group.label: [
                [(v.step, 100 * v.targets.get(target, {}).get("miou", math.nan)) for v in run.result.validations]
                for run in group.runs
            ]
            for group in self.table.groups
        }
        return charts.curves(lines, self.colours, "mIoU in %")

    @property
    def losses(self) -> list[tuple[str, Any]]:
        """Losses over steps, of runs with a folder, by name."""
        names = {n for g in self.table.groups for run in g.runs for n in run.log if _LOSS.match(n)}
        found = []
        for name in sorted(names):
            short = name.removeprefix("train/")
            lines = {g.label: [_thinned(run.log.get(name, [])) for run in g.runs] for g in self.table.groups}
            found.append((short, charts.curves(lines, self.colours, short)))
        return [(name, chart) for name, chart in found if chart]

    @property
    def classes(self) -> dict[str, list[tuple[str, Spread]]]:
        """Class -> the groups' IoU, of classes that occur."""
        found = {group.label: group.per_class(self.table.target) for group in self.table.groups}
        bars = {name: [(label, scores[name]) for label, scores in found.items()] for name in self.table.classes}
        return {name: rows for name, rows in bars.items() if any(not math.isnan(s.mean) for _, s in rows)}

    @property
    def confusions(self) -> tuple[list[str], list[tuple[str, str, list[float]]]]:
        """Groups, and their confusions of known pairs and of those that change most against the reference."""
        reference = next((g for g in self.table.groups if g.label == self.against), None)
        return ([], []) if reference is None else confusion_pairs(self.table, reference)

    @property
    def image_columns(self) -> list[str]:
        """Groups with counts per image."""
        return list(image_scores(self.table)[1])

    @property
    def images(self) -> list[tuple[str, list[float]]]:
        """The best and the worst images by their mean over methods, with the groups' mIoU."""
        names, found = image_scores(self.table)
        if not found:
            return []
        values = np.stack(list(found.values()), 1)
        order = np.argsort(-values.mean(1), kind="stable")
        chosen = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], *order[-SHOWN:]]
        return [(names[i], values[i].tolist()) for i in chosen]

    @property
    def label_free(self) -> list[Any]:
        """Ratings of the scores without labels."""
        return label_free(self.table)


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average neighbours so that at most `POINTS` are drawn, each at the last of its steps."""
    size = math.ceil(len(points) / POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(part[-1][0], float(np.mean([value for _, value in part]))) for part in parts]


def build_section(table: Table, against: Sequence[str], draws: int = DRAWS) -> Section:
    """Compute what the page shows of a table.

    Args:
        table: groups of runs.
        against: what to compare with besides the table's own base rows, see `Table.references`; the first one that is
            there is also that of the confusions. With none of them, every group is compared with the last one.
        draws: bootstrap samples.
    """
    references = table.references(against)
    if not references and len(table.groups) > 1:
        references = [table.groups[-1]]
    found = [_against(table, group, draws) for group in references if len(table.groups) > 1]
    base = references[0] if references else None
    return Section(
        table,
        {group.label: i % COLOURS for i, group in enumerate(table.groups)},
        [_row(table, group, base) for group in table.groups],
        found,
        base.label if base is not None else "",
    )


def _against(table: Table, reference: Group, draws: int) -> Against:
    rows = differences(table, reference, draws)
    ends = [x for r in rows for x in (r.interval.low, r.interval.mean, r.interval.high) if x is not None]
    low, high = math.floor(100 * min([0.0, *ends])) / 100, math.ceil(100 * max([0.01, *ends])) / 100
    told = [{**vars(row), "said": _said(row)} for row in rows]
    return Against(reference.label, told, low, high, any(row.gap is not None for row in rows))


def _said(row: Difference) -> str:
    """Tell how two groups were compared, and what speaks against it."""
    parts = [_drawn(row)]
    if row.unpaired:
        parts.append(f"not paired: {row.unpaired}")
    if row.unlike:
        parts.append(f"not like for like: {', '.join(row.unlike)}")
    return "; ".join(parts)


def _drawn(row: Difference) -> str:
    if row.unpaired and row.interval.low is not None:
        images = f" and {row.interval.images} images" if row.interval.images else ": no counts per image"
        return f"over the seeds of each side on its own{images}"
    if row.interval.images:
        return (
            f"over seeds and {row.interval.images} images" if row.interval.seeds > 1 else "over images alone: one seed"
        )
    return "over seeds alone: no counts per image" if row.interval.seeds > 1 else "one seed, no counts per image"


def _row(table: Table, group: Group, base: Group | None) -> dict[str, Any]:
    scores, results = group.scores(table.target), [run.result for run in group.runs]
    costs = [result.cost for result in results]
    peaks = [cost.peak_memory for cost in costs if cost.peak_memory]
    minutes = [cost.wall_s / 60 for cost in costs if not math.isnan(cost.wall_s)]
    teachers = [s.teacher_miou for s in scores if s.teacher_miou is not None]
    return {
        "label": group.label,
        "role": "oracle" if group.first.method == ORACLE else "control" if group.first.method in CONTROLS else "",
        "miou": group.miou(table.target),
        "best": group.best if len(group.first.targets) == 1 else Spread(math.nan, math.nan),
        "teacher": Spread.of(teachers) if len(teachers) == len(scores) else Spread(math.nan, math.nan),
        "accuracy": Spread.of([s.pixel_accuracy for s in scores]),
        "step": min(result.step for result in results),
        "steps": group.first.steps,
        "seeds": [result.seed for result in results],
        "remarks": _remarks(table, group, base),
        "cost": costs[0],
        "minutes": f"{np.mean(minutes):.1f}" if minutes else "–",
        "memory": f"{max(peaks) / 2**30:.2f} GiB ({costs[0].memory_of})" if peaks else "–",
        "lr": group.first.settings.get("optimizer.lr", "–"),
        "device": group.first.device,
    }


def _remarks(table: Table, group: Group, base: Group | None) -> str:
    first = group.first
    said = [f"with {' '.join(options)}"] if (options := unsaid_options(group, table.groups)) else []
    said += [] if base is None or base is group else unlike_settings(first, base.first)
    if not first.finished:
        said.append(f"stopped after step {first.step} of {first.steps}")
    if any(run.former for run in group.runs):
        said.append("of an earlier version: no counts per image")
    return "; ".join(said)


def contents(sections: Sequence[Section]) -> dict[str, list[tuple[int, str]]]:
    """Return what the page lists first: setting -> place and target of each of its sections, by the setting's name."""
    found: dict[str, list[tuple[int, str]]] = {}
    for i, section in enumerate(sections):
        found.setdefault(section.table.setting, []).append((i, section.table.target))
    return dict(sorted(found.items()))


def render(title: str, found: Found, sections: Sequence[Section], draws: int = DRAWS) -> str:
    """Render the page's HTML, without anything from elsewhere; every name is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.globals["forest"] = charts.forest
    template = environment.from_string((Path(__file__).parent / "report.html.j2").read_text())
    return template.render(
        title=title,
        runs=len({unnamed(run.result) for run in found.runs}),
        unfinished=found.unfinished,
        problems=found.problems,
        sections=sections,
        contents=contents(sections),
        scheme=SCHEME.format(draws=draws),
    )


# ---------------------------------------------------------------------- tables as text


def score_cells(section: Section) -> Cells:
    """Tabulate scores and differences as text, in %."""
    header = ("method", "seeds", "mIoU", "best*", *(f"gain over {d.reference} [95 %]" for d in section.differences))
    gains = [{row["group"]: _gain(row["interval"], row["unpaired"]) for row in d.rows} for d in section.differences]
    rows = [
        (r["label"], str(len(r["seeds"])), str(r["miou"]), str(r["best"]), *(g.get(r["label"], "") for g in gains))
        for r in section.rows
    ]
    unpaired = any(row["unpaired"] for d in section.differences for row in d.rows)
    note = f"; {UNPAIRED}not paired" if unpaired else ""
    return Cells(header, tuple(rows), f"{section.table.title}: mIoU in %, last step; *chosen on target labels{note}")


def class_cells(section: Section) -> Cells:
    """Tabulate IoU per class, in %, mean ± standard deviation over seeds."""
    groups = section.table.groups
    found = {group.label: group.per_class(section.table.target) for group in groups}
    rows = [(name, *(str(found[g.label][name]) for g in groups)) for name in section.table.classes]
    return Cells(("class", *found), tuple(rows), f"{section.table.title}: IoU in %")


def _gain(interval: Interval, unpaired: str) -> str:
    bounds = ""
    if interval.low is not None and interval.high is not None:
        bounds = f" [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"
    return f"{100 * interval.mean:+.2f}{bounds}{f' {UNPAIRED}' if unpaired else ''}"


def markdown(found: Found, sections: Sequence[Section], draws: int = DRAWS) -> str:
    """Format the tables as Markdown, with what is not in them."""
    parts = [f"{score_cells(s).markdown()}\n{class_cells(s).markdown()}" for s in sections]
    left = [f"- {place}: {why}" for place, why in found.unfinished.items()] + [f"- {line}" for line in found.problems]
    parts += ["Not in the tables:\n\n" + "\n".join(left) + "\n"] if left else []
    return "\n".join([*parts, SCHEME.format(draws=draws), ""])


def table_csv(sections: Sequence[Section]) -> str:
    """Format all numbers as CSV, one per line: unrounded, in [0, 1]; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)

    def write(place: Sequence[str], quantity: str, *values: float | None, seeds: int, unpaired: str = "") -> None:
        shown = ["" if v is None or math.isnan(v) else repr(float(v)) for v in values]
        writer.writerow([*place, quantity, *shown, *[""] * (4 - len(shown)), seeds, unpaired])

    for section in sections:
        table = section.table
        place = (table.sweep, table.data, table.target, table.images)
        for row, group in zip(section.rows, section.table.groups, strict=True):
            for name in ("miou", "best", "teacher", "accuracy"):
                write((*place, row["label"]), name, row[name].mean, row[name].std, seeds=len(row["seeds"]))
            for name, spread in group.per_class(section.table.target).items():
                write((*place, row["label"]), f"iou/{name}", spread.mean, spread.std, seeds=len(row["seeds"]))
        for found in section.differences:
            for row in found.rows:
                interval = row["interval"]
                numbers = (interval.mean, None, interval.low, interval.high)
                quantity, unpaired = f"minus {found.reference}", row["unpaired"]
                write((*place, row["group"]), quantity, *numbers, seeds=interval.seeds, unpaired=unpaired)
    return text.getvalue()


def latex(sections: Sequence[Section]) -> str:
    """Format the scores as LaTeX tables for booktabs: classes as columns, mean over seeds, the best in bold."""
    return "\n".join(_latex(section) for section in sections)


def _latex(section: Section) -> str:
    table = section.table
    names = [name for name in table.classes if name in table.counted]
    found = [(g, g.per_class(table.target)) for g in table.groups]
    contest = [scores for g, scores in found if g.first.method != ORACLE] or [scores for _, scores in found]
    tops = {n: max((s[n].mean for s in contest if not math.isnan(s[n].mean)), default=math.nan) for n in names}
    lines = [
        f"% {table.title}; IoU and mIoU in %, last step, mean over seeds (mIoU: +- standard deviation)".replace(
            "\n", " "
        )
    ]
    lines += [f"\\begin{{tabular}}{{l{'r' * len(names)}r}}", "\\toprule"]
    lines.append(" & ".join(["method", *(f"\\rotatebox{{90}}{{{_tex(n)}}}" for n in names), "mIoU"]) + " \\\\")
    lines.append("\\midrule")
    for group, scores in found:
        cells = [_tex_score(scores[n].mean, tops[n]) for n in names]
        spread = group.miou(table.target)
        std = "" if math.isnan(spread.std) else f" $\\pm$ {100 * spread.std:.1f}"
        lines.append(" & ".join([_tex(group.label), *cells, f"{_tex_score(spread.mean, math.nan)}{std}"]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _tex_score(value: float, top: float) -> str:
    if math.isnan(value):
        return "--"
    return f"\\textbf{{{100 * value:.1f}}}" if value == top else f"{100 * value:.1f}"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\&%$#_{}~^]", lambda m: special.get(m[0], f"\\{m[0]}"), text)
