"""Tables say what the scores say."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics

import pytest
import torch
from rich.console import Console

from uda_seg.data.labels import CITYSCAPES
from uda_seg.evaluation.evaluator import SegmentationEvaluator
from uda_seg.evaluation.tables import Table, class_table, group_runs, percent, runs_csv, runs_table

RUNS = [
    {"method": "dacs", "data": "streets", "seed": 0, "miou": 0.50, "best": 0.6},
    {"method": "lcmsm", "data": "streets", "seed": 0, "miou": 0.55, "best": None},
    {"method": "dacs", "data": "streets", "seed": 1, "miou": 0.53},
    {"method": "dacs", "data": "streets", "seed": 2, "miou": 0.54, "best": 0.8},
]


def cells(markdown: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("|")]


def test_markdown_lines_up_and_escapes():
    text = Table(("a", "long header"), (("x|y", "1"), ("z", "22")), "Title").markdown()
    lines = text.splitlines()
    assert lines[0] == "**Title**"
    assert len({len(line) for line in lines[2:]}) == 1
    assert lines[3].endswith("-: |")
    assert r"x\|y" in text
    assert text.endswith("|\n")


def test_class_table_shows_every_class_and_the_means():
    evaluator = SegmentationEvaluator(3, ("road", "car", "sky"), (0, 1))
    evaluator.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 1]]]))
    scores = evaluator.compute()
    table = class_table({"student": scores, "teacher": scores}, "streets")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["road"] == ("50.00", "50.00")
    assert rows["car"] == ("66.67", "66.67")
    assert rows["(sky)"] == ("–", "–")
    assert rows["mIoU (2)"] == ("58.33", "58.33")
    assert rows["pixel accuracy"] == ("75.00", "75.00")
    assert cells(table.markdown())[0] == ["class", "student", "teacher"]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table.rich())
    assert "66.67" in console.export_text()


def test_class_table_shows_the_other_class_subsets():
    def table(subset):
        evaluator = SegmentationEvaluator(19, CITYSCAPES.names, CITYSCAPES.subset(subset), CITYSCAPES.subsets)
        label = torch.arange(19)
        evaluator.update(torch.where(label == 9, 8, label), label)  # terrain is taken for vegetation
        return {row[0]: row[1:] for row in class_table({"a": evaluator.compute()}).rows}

    means = {"mIoU (19)": 17.5 / 19, "mIoU (16)": 15.5 / 16, "mIoU (13)": 12.5 / 13}
    rows = table("16")
    assert [name for name in rows if "mIoU" in name] == ["mIoU (16)", "mIoU (19)", "mIoU (13)", "mIoU (19) * 19/16"]
    assert {name: rows[name] for name in means} == {name: (f"{100 * value:.2f}",) for name, value in means.items()}
    assert rows["mIoU (19) * 19/16"] == (f"{100 * 17.5 / 16:.2f}",)
    assert [name for name in table("19") if "mIoU" in name] == list(means)


def test_runs_are_averaged_over_seeds():
    dacs, lcmsm = group_runs(RUNS, ["miou", "best"])
    assert (dacs.settings, dacs.runs) == ({"method": "dacs", "data": "streets"}, 3)
    assert dacs.metrics["miou"].mean == pytest.approx((0.50 + 0.53 + 0.54) / 3)
    assert dacs.metrics["miou"].std == pytest.approx(statistics.stdev([0.50, 0.53, 0.54]))
    assert dacs.metrics["best"].mean == pytest.approx(0.7)
    assert math.isnan(lcmsm.metrics["miou"].std)
    table = cells(runs_table([dacs, lcmsm]).markdown())
    assert table[0] == ["method", "data", "runs", "miou", "best"]
    assert table[2] == ["dacs", "streets", "3", "52.33 ± 2.08", "70.00 ± 14.14"]
    assert table[3] == ["lcmsm", "streets", "1", "55.00", "–"]


def test_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(runs_csv(group_runs(RUNS, ["miou", "best"])))))
    assert [row["method"] for row in rows] == ["dacs", "lcmsm"]
    assert float(rows[0]["miou_std"]) == pytest.approx(statistics.stdev([0.50, 0.53, 0.54]))
    assert rows[1]["miou_std"] == rows[1]["best_mean"] == ""


def test_a_diverged_run_shows():
    runs = [{"method": "dacs", "seed": s, "miou": v} for s, v in enumerate([0.5, math.nan])]
    assert str(group_runs(runs, ["miou"])[0].metrics["miou"]) == "–"


def test_no_runs_is_an_empty_table():
    assert cells(runs_table([]).markdown())[0] == ["runs"]
    assert runs_csv([]) == "runs\n"


def test_percent():
    assert percent(0.12345) == "12.35"
    assert percent(math.nan) == "–"


@pytest.mark.parametrize("terminal", [True, False])
def test_no_figure_is_cut_where_there_is_little_room(terminal, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(Console, "is_terminal", terminal)
    long = "each pixel's median of all the scenes that were learnt from"
    Table(("depth", "abs-rel", "delta"), (("network", "0.204", "0.708"), (long, "0.430", "0.483"))).show()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert all(figure in "".join(lines) for figure in ("0.204", "0.708", "0.430", "0.483"))
    assert (max(map(len, lines)) <= 60) == terminal
    assert any(long in line for line in lines) != terminal
