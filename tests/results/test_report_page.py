"""Tables and page of many runs: what is compared with what, what is said, and how it looks."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from results.invented import NAMES, invented
from uda_seg.results.choosing import label_free
from uda_seg.results.confusions import image_scores
from uda_seg.results.differences import differences
from uda_seg.results.page import build_section, latex, markdown, render, score_cells, table_csv
from uda_seg.results.reading import Found, Run
from uda_seg.results.result import Result, Start
from uda_seg.results.tables import build_tables
from uda_seg.results.writing import build_sections

EVIL = "<script>alert('x')</script>"


def run(method: str, seed: int, quality: float, **changes) -> Run:
    return Run(invented(method, seed, quality, **changes), Path(f"{method}-{seed}.json"))


def runs(methods: dict[str, float], seeds: int = 3) -> list[Run]:
    return [run(method, seed, quality) for method, quality in methods.items() for seed in range(seeds)]


FIELD = {"source_only": 0.5, "dacs": 0.65, "oracle": 0.85}


def test_groups_are_averaged_over_seeds_and_compared_with_the_control():
    found = runs(FIELD)
    [table] = build_tables(found)
    assert [group.label for group in table.groups] == ["oracle", "dacs", "source_only"]
    values = {m: [r.result.miou for r in found if r.result.method == m] for m in FIELD}
    dacs = table.groups[1].miou("target")
    assert (dacs.mean, dacs.std) == pytest.approx((np.mean(values["dacs"]), np.std(values["dacs"], ddof=1)))
    rows = {row.group: row for row in differences(table, table.groups[2], draws=200)}
    gain = np.mean(values["dacs"]) - np.mean(values["source_only"])
    assert rows["dacs"].interval.mean == pytest.approx(gain)
    assert (rows["dacs"].interval.seeds, rows["dacs"].interval.images) == (3, 12)
    assert rows["dacs"].gap == pytest.approx(gain / (np.mean(values["oracle"]) - np.mean(values["source_only"])))
    assert rows["dacs"].interval.clear


def test_the_gap_is_that_to_the_oracle_of_the_same_learning_rate():
    def of(method, quality, rate):
        result = invented(method, 0, quality)
        return Run(replace(result, settings={**result.settings, "optimizer.lr": rate}), Path(f"{method}{rate}"))

    control, lower, higher = of("source_only", 0.3, 1e-3), of("oracle", 0.8, 1e-3), of("oracle", 0.9, 2e-3)
    [table] = build_tables([control, lower, higher])
    [reference] = table.references()
    assert table.oracle_of(reference).runs == [lower], "of several, the best one was chosen on labels"
    [table] = build_tables([control, higher])
    assert table.oracle_of(reference).runs == [higher], "the only one"
    [table] = build_tables([control, higher, of("oracle", 0.9, 3e-3)])
    assert table.oracle_of(reference) is None


def test_options_that_a_name_does_not_say_are_remarked():
    shared = ["optimizer.lr=0.002"]
    plain = run("dacs", 0, 0.6, overrides=["method=dacs", *shared])
    own = ["method=bicl", *shared, "++method.source_augment=True", "teacher.batch_norm=eval", "data.workers=0"]
    found = [plain, run("bicl", 0, 0.7, overrides=own)]
    [table] = build_tables(found)
    assert {row["label"]: row["remarks"] for row in build_section(table, []).rows} == {
        "bicl": "with source_augment=True teacher.batch_norm=eval",
        "dacs": "",
    }
    settings = {**plain.result.settings, "teacher.batch_norm": "eval"}  # by default, what the other was given
    [table] = build_tables([Run(replace(plain.result, settings=settings), plain.file), found[1]])
    assert [row["remarks"] for row in build_section(table, []).rows] == ["with source_augment=True", ""]
    [table] = build_tables([*found, run("bicl", 0, 0.65, overrides=[*own[:2], "++method.source_augment=False"])])
    remarks = {row["label"]: row["remarks"] for row in build_section(table, []).rows}
    assert [remark for label, remark in remarks.items() if "source_augment=" in label] == ["", ""], "the name says it"


def test_a_name_to_compare_with_that_no_run_has_is_told(caplog):
    found = Found([Run(invented(method, 0, 0.5), Path(method)) for method in ("source_only", "dacs", "mic")])
    build_sections(found, {}, ["dcas", "dacs", "source_only", "optimizer.lr=0.001"], draws=2)
    assert [record.getMessage() for record in caplog.records] == [
        "report.against: no run has the method, label or setting dcas; nothing is compared with it"
    ]


def test_the_gap_is_that_to_an_oracle_of_as_many_steps():
    short = runs(FIELD)
    longer = [run("oracle", seed, 0.95, step=1600, steps=1600) for seed in range(3)]
    [table] = build_tables([*short, *longer])
    found, alone = (
        {row.group: row.gap for row in differences(t, t.references()[0], draws=2)}
        for t in (table, *build_tables(short))
    )
    assert found["dacs"] == alone["dacs"]
    [table] = build_tables([*runs({"source_only": 0.5, "dacs": 0.65}), *longer])
    assert {row.gap for row in differences(table, table.references()[0], draws=2)} == {None}


def test_runs_from_a_checkpoint_are_no_row_with_those_from_the_beginning():
    fresh = [run("dacs", seed, 0.5) for seed in (0, 2)]
    more = [run("dacs", seed, 0.7, start=Start("builtin", init="last.ckpt", digest="a")) for seed in (0, 1, 2)]
    [table] = build_tables([*fresh, *more])
    assert sorted([r.result.seed for r in group.runs] for group in table.groups) == [[0, 1, 2], [0, 2]]


@pytest.mark.parametrize(
    ("changes", "unpaired", "unlike"),
    [
        ({"start": Start("builtin", digest="f" * 64)}, "other start weights", ""),
        ({"settings": {"data.world_seed": 7, "optimizer.lr": 1e-3}}, "other data", ""),
        ({"settings": {"data.world_seed": 0, "optimizer.lr": 1e-2}}, "", "learning rate"),
        ({"step": 300, "steps": 300}, "", "steps 300, not 400"),
        ({"settings": {"data.world_seed": 0, "evaluator.flip": True}}, "", "evaluator.flip True, not False"),
    ],
)
def test_what_is_not_equal_is_named(changes, unpaired, unlike):
    found = [run("source_only", s, 0.5) for s in range(2)] + [run("dacs", s, 0.6, **changes) for s in range(2)]
    [table] = build_tables(found)
    [row] = differences(table, table.groups[-1], draws=100)
    assert unpaired in row.unpaired if unpaired else not row.unpaired
    values = [[r.result.miou for r in found if r.result.method == name] for name in ("dacs", "source_only")]
    assert row.interval.mean == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert row.interval.low < row.interval.mean < row.interval.high
    [shown] = build_section(table, ["source_only"], 100).differences[0].rows
    assert shown["said"].startswith("over the seeds of each side on its own and 12 images") == bool(unpaired)
    assert unlike in " ".join(row.unlike) if unlike else not row.unlike


def test_other_seeds_are_not_paired():
    [table] = build_tables([run("source_only", 0, 0.5), run("dacs", 1, 0.6)])
    [row] = differences(table, table.groups[-1], draws=100)
    assert row.unpaired == "no seed in common"
    assert row.interval.low < row.interval.mean < row.interval.high
    [shown] = build_section(table, ["source_only"], 100).differences[0].rows
    assert shown["said"].endswith("on its own and 12 images; not paired: no seed in common")


def test_other_classes_and_targets_have_tables_of_their_own():
    other = tuple(f"{name}2" for name in NAMES)
    found = [run("dacs", 0, 0.6), run("dacs", 0, 0.6, names=other), run("dacs", 0, 0.6, data="camvid")]
    tables = build_tables(found)
    assert [table.classes for table in tables] == [NAMES, other, NAMES]
    assert all(len(table.groups) == 1 for table in tables)


def validated(method: str, seed: int, quality: float, *, world: int = 0, **domain) -> Run:
    result = invented(method, seed, quality)
    said = {f"data.validation.target.{key}": value for key, value in domain.items()}
    return Run(replace(result, settings={**result.settings, **said, "data.world_seed": world}), Path(method))


def test_other_validation_images_have_tables_of_their_own_and_names_that_tell_why():
    small, large = ([validated(m, s, 0.6, size=size) for m in FIELD for s in range(2)] for size in ([9, 12], [36, 48]))
    worlds = [validated("dacs", s, 0.6, dataset="streets", size=[9, 12], world=7) for s in range(2)]
    tables = build_tables([*small, *large, *worlds])
    assert [table.title for table in tables] == [
        "streets, size=[9, 12]: target, 5 classes",
        "streets, size=[36, 48]: target, 5 classes",
        "streets, size=[9, 12], dataset=streets, world_seed=7: target, 5 classes",
    ]
    assert [len(table.groups) for table in tables] == [3, 3, 1]
    sections = [build_section(table, ["source_only"], 10) for table in tables]
    images = {row["images"] for row in csv.DictReader(io.StringIO(table_csv(sections)))}
    assert images == {"size=[9, 12]", "size=[36, 48]", "size=[9, 12], dataset=streets, world_seed=7"}
    page = render("Runs", Found([*small, *large, *worlds]), sections)
    for place in re.findall(r'href="#([^"]+)"', page):
        assert page.count(f'id="{place}"') == 1
    assert page.count('href="#') == 3


def test_a_rendered_target_of_another_world_has_other_images_and_photographs_have_not():
    def of(dataset):
        return build_tables([validated("dacs", s, 0.6, dataset=dataset, world=s) for s in (0, 7)])

    assert [table.images for table in of("streets")] == ["world_seed=0", "world_seed=7"]
    assert [table.images for table in of("camvid")] == [""]


def test_a_run_that_another_sweep_keeps_as_well_counts_once():
    copy = run("dacs", 0, 0.6, overrides=["a=1", "sweep=ablate_x"], choices={"sweep": "ablate_x"})
    [table] = build_tables([run("dacs", 0, 0.6), copy])
    assert [len(group.runs) for group in table.groups] == [1]
    assert "1 run. Scores" in render("kept twice", Found([run("dacs", 0, 0.6), copy]), [])
    assert [table.sweep for table in build_tables([run("dacs", 0, 0.6), copy], {"ablate_x": "a=1"})] == ["", "ablate_x"]
    [table] = build_tables([run("dacs", 0, 0.6), run("dacs", 0, 0.7)])
    assert [len(group.runs) for group in table.groups] == [1, 1], "another run of the same seed"


def test_former_runs_have_intervals_over_seeds_alone():
    def former(method: str, seed: int, quality: float) -> Run:
        result = invented(method, seed, quality)
        targets = {"target": replace(result.targets["target"], images=None, confusion=None)}
        return Run(replace(result, targets=targets), Path("metrics.json"), former=True)

    found = [former(m, s, q) for m, q in FIELD.items() for s in range(3)]
    [section] = [build_section(table, ["source_only"], 100) for table in build_tables(found)]
    assert "over seeds alone: no counts per image" in section.differences[0].rows[0]["said"]
    page = render("former", Found(found), [section])
    assert "earlier version" in page
    one = build_section(build_tables(found[::3])[0], ["source_only"], 100)
    assert one.differences[0].rows[0]["interval"].low is None


def test_images_are_ranked_by_their_own_miou():
    found = runs({"source_only": 0.5, "dacs": 0.65}, 1)
    [table] = build_tables(found)
    names, values = image_scores(table)
    images = found[1].result.targets["target"].unpacked
    counts = images.counts[4]
    present = counts.sum(1) > 0
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert values["dacs"][4] == pytest.approx((np.diag(counts)[present] / union[present]).mean())
    assert names == images.names


def test_scores_without_labels_are_rated():
    result = invented("dacs", 0, 0.6)
    told = [0.30, 0.50, 0.45, 0.40]
    scores = [1.0, 2.0, 4.0, 3.0]
    validations = [
        replace(v, miou=m, targets={"target": {"miou": m, "label_free/snd": s}})
        for v, m, s in zip(result.validations, told, scores, strict=True)
    ]
    [table] = build_tables([Run(replace(result, validations=validations), Path("a"))])
    rows = {row.score: row for row in label_free(table)}
    assert rows["snd"].regret == pytest.approx(0.05)
    assert rows["last"].regret == pytest.approx(0.10)
    assert rows["random"].regret == pytest.approx(0.50 - np.mean(told))
    assert rows["snd"].spearman == pytest.approx(0.4)  # ranks 1 4 3 2 and 1 2 4 3: 1 - 6 * 6 / (4 * 15)
    assert rows["snd"].kendall == pytest.approx(1 / 3)  # four pairs in order, two not


def test_a_run_is_chosen_among_those_that_are_no_oracle():
    ends = {("dacs", 0): (0.40, 3.0), ("dacs", 1): (0.50, 1.0), ("mic", 0): (0.45, 2.0), ("oracle", 0): (0.90, 9.0)}
    found = []
    for (method, seed), (miou, score) in ends.items():
        result = invented(method, seed, 0.6)
        told = [(miou + 0.1, score + 7), (miou, score)]  # what came before is no choice any more
        validations = [
            replace(v, miou=m, targets={"target": {"miou": m, "label_free/snd": s}})
            for v, (m, s) in zip(result.validations, told, strict=False)
        ]
        found.append(Run(replace(result, validations=validations), Path("a")))
    rows = {row.score: row for row in label_free(build_tables(found)[0])}
    assert rows["snd"].among_runs == pytest.approx(0.50 - 0.40)
    assert rows["random"].among_runs == pytest.approx(0.50 - (0.40 + 0.50 + 0.45) / 3)
    assert math.isnan(rows["last"].among_runs)
    # Over all eight validations: the pairs in order less those that are not, ties aside (tau-b).
    miou = [0.5, 0.6, 0.55, 1.0, 0.4, 0.5, 0.45, 0.9]
    snd = [10, 8, 9, 16, 3, 1, 2, 9]
    signs = [np.sign(miou[i] - miou[j]) * np.sign(snd[i] - snd[j]) for i in range(8) for j in range(i)]
    tied = [sum(v[i] == v[j] for i in range(8) for j in range(i)) for v in (miou, snd)]
    assert rows["snd"].kendall == pytest.approx(sum(signs) / np.sqrt((28 - tied[0]) * (28 - tied[1])))
    assert math.isnan(label_free(build_tables(found[:1])[0])[0].among_runs)


def test_last_and_random_are_rated_without_scores_too():
    def of(result: Result, first: int) -> Result:
        kept = [replace(v, targets={"target": {"miou": v.miou}}) for v in result.validations[first:]]
        return replace(result, validations=kept)

    found = [replace(r, result=of(r.result, 0)) for r in runs({"dacs": 0.6}, 2)]
    assert [row.score for row in label_free(build_tables(found)[0])] == ["last", "random"]
    assert "logged no scores without labels" in page_of(Found(found))
    once = [replace(r, result=of(r.result, -1)) for r in found]
    assert label_free(build_tables(once)[0]) == []


def test_losses_are_drawn_of_runs_with_a_log():
    steps = [(step, 3.0 - step / 1000) for step in range(1, 1001)]
    found = [replace(r, log={"train/source/ce": steps, "train/lr": steps, "val/miou": steps}) for r in runs(FIELD, 1)]
    section = build_section(build_tables(found)[0], [], 100)
    [(name, chart)] = section.losses
    assert name == "source/ce"
    lines = re.findall(r'points="([^"]*)"', chart)
    assert [len(line.split()) for line in lines] == [100, 100, 100]
    assert not build_section(build_tables(runs(FIELD, 1))[0], [], 100).losses


def evil(result: Result) -> Result:
    names = (EVIL, *NAMES[1:])
    return replace(invented(result.method, result.seed, 0.6, names=names), method=EVIL, run=EVIL, device=EVIL)


def page_of(found: Found) -> str:
    sections = [build_section(table, ["source_only"], 100) for table in build_tables(found.runs)]
    return render("Runs", found, sections)


def test_names_are_escaped():
    found = runs(FIELD, 1) + [Run(evil(invented("dacs", s, 0.6)), Path("x")) for s in range(2)]
    page = page_of(Found(found, {EVIL: EVIL}, [EVIL]))
    assert EVIL not in page
    assert "&lt;script&gt;alert" in page
    assert page.count("<script>") == 1  # its own


def test_the_page_needs_nothing_from_elsewhere():
    page = page_of(Found(runs(FIELD), {"outputs/x": "failed"}, ["metrics.csv: 1 line"]))
    assert not re.search(r"""(src|href)=["'](?!data:|#)|@import|url\(|https?:""", page)
    assert "outputs/x" in page
    assert "metrics.csv: 1 line" in page


def test_tables_as_text():
    [table] = build_tables(runs(FIELD))
    section = build_section(table, ["source_only"], 100)
    cells = score_cells(section)
    assert cells.header == ("method", "seeds", "mIoU", "best*", "gain over source_only [95 %]")
    assert [row[:2] for row in cells.rows] == [("oracle", "3"), ("dacs", "3"), ("source_only", "3")]
    assert "chosen on target labels" in markdown(Found(table.groups[0].runs), [section])
    rows = list(csv.DictReader(io.StringIO(table_csv([section]))))
    mean = next(r for r in rows if (r["method"], r["quantity"]) == ("dacs", "miou"))
    assert float(mean["value"]) == table.groups[1].miou("target").mean
    gain = next(r for r in rows if (r["method"], r["quantity"]) == ("dacs", "minus source_only"))
    assert float(gain["low"]) < float(gain["value"]) < float(gain["high"])
    tex = latex([section])
    assert r"source\_only" in tex
    assert tex.count(r"\\") == 4
    alone = score_cells(build_section(build_tables(runs({"dacs": 0.6}, 1))[0], [], 100))
    assert "±" not in alone.rows[0][2]
    assert math.isnan(build_tables(runs({"dacs": 0.6}, 1))[0].groups[0].miou("target").std)


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    api = pytest.importorskip("playwright.sync_api")
    if executable is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser, tmp_path, width):
    found = runs({**FIELD, "a_method_with_quite_a_long_name model.head.width=256": 0.6})
    (tmp_path / "index.html").write_text(page_of(Found(found, {"outputs/" + "long" * 40: "failed"})))
    page, said = browser.new_page(viewport={"width": width, "height": 800}), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "index.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    head = page.locator("table.sortable").first.locator("thead th").nth(1)
    for order, descending in (("descending", True), ("ascending", False)):
        head.click()
        cells = page.locator("table.sortable").first.locator("tbody tr td:nth-child(2)").all_inner_texts()
        values = [float(cell.split()[0]) for cell in cells]
        assert head.get_attribute("aria-sort") == order
        assert values == sorted(values, reverse=descending)
    assert page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert not said
