"""Kept results of benchmarks: brought together from several machines, and shown as tables on two pages."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from results.invented import invented
from uda_seg.config.base_rows import base_rows
from uda_seg.config.schema import CONF
from uda_seg.errors import UserError
from uda_seg.results.reading import find_results
from uda_seg.results.result import Result, TargetScores, read_result, write_result
from uda_seg.results.writing import build_sections

ROOT = Path(__file__).resolve().parents[2]
MERGE = runpy.run_path(str(ROOT / "scripts" / "merge_results.py"))["merge"]
TABLES: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "results_tables.py"))


def details(results: Path) -> str:
    text: str = TABLES["details"](TABLES["settings"](results))
    return text


def overview(results: Path) -> str:
    text: str = TABLES["overview"](TABLES["settings"](results))
    return text


def keep(results: Path, row: str, seed: int, miou: float, setting: str = "streets") -> Path:
    scores = {name: TargetScores(value, {"road": value}, ["road"]) for name, value in (("a", miou), ("b", miou / 2))}
    path = results / "benchmark" / setting / row / f"seed{seed}.json"
    write_result(path, Result("x", row.partition(",")[0], setting, "small", seed, 4, 4, miou, scores, device="a CPU"))
    content = json.loads(path.read_text()) | {"benchmark": {"digest": "0", "numbers": 1}}
    path.write_text(json.dumps(content))
    return path


ROWS = {  # of an ablation: a text, and its gain over the text `none`
    ("none", "0.3"): 0.0,
    ("file", "0.3"): 0.02,
    ("file", "0"): -0.05,
}


def keep_ablation(results: Path, seeds: int) -> None:
    """Keep runs of an ablation as `sweep=ablate_lcmsm` does, which see the same images."""
    for (text, weight), gain in ROWS.items():
        for seed in range(seeds if text == "none" else 6):
            overrides = [f"seed={seed}", "data=streets", "method=lcmsm", f"method.text={text}"]
            overrides += [f"method.mask_ratio={weight}", "sweep=ablate_lcmsm", "trainer=gpu"]
            if (text, weight) == ("file", "0.3"):  # a copy of the benchmark's row, whose command line did not say it
                overrides = [f"seed={seed}", "data=streets", "method=lcmsm", "sweep=ablate_lcmsm"]
            device = "a GPU" if text == "none" else "a CPU"
            choices = {"sweep": "ablate_lcmsm"}
            result = invented("lcmsm", seed, 0.6 + gain, overrides=overrides, choices=choices, device=device)
            settings = {**result.settings, "method.text": text, "method.mask_ratio": float(weight)}
            write_result(place_of(results, text, weight, seed), replace(result, settings=settings))


def place_of(results: Path, text: str, weight: str, seed: int) -> Path:
    row = f"lcmsm,mask_ratio={weight},text={text}"
    return results / "ablate_lcmsm" / "streets" / row / f"seed{seed}.json"


def test_results_of_another_machine_are_brought_in_and_none_is_overwritten(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    keep(theirs, "dacs", 0, 0.5)
    keep(theirs, "dacs", 1, 0.6)
    keep(ours, "dacs", 0, 0.5)
    assert MERGE(theirs, ours) == (1, 1)
    assert MERGE(theirs, ours) == (0, 2)
    mine = keep(ours, "dacs", 1, 0.7).read_bytes()
    keep(theirs, "mic", 0, 0.4)
    said = r"1 new results copied, but 1 are here with another content.*theirs/.*/seed1.json, here .*ours/.*/seed1.json"
    with pytest.raises(UserError, match=said):
        MERGE(theirs, ours)
    assert (ours / "benchmark/streets/dacs/seed1.json").read_bytes() == mine
    assert (ours / "benchmark/streets/mic/seed0.json").is_file()
    for folder in (tmp_path / "nothing", tmp_path, theirs / "benchmark"):
        with pytest.raises(UserError, match="holds no results"):
            MERGE(folder, ours)


def test_the_tables_have_every_row_with_its_seeds_and_paired_differences(tmp_path: Path) -> None:
    for seed, miou in enumerate((0.4, 0.5, 0.6)):
        keep(tmp_path, "dacs", seed, miou)
    keep(tmp_path, "another", 0, 0.2)
    keep(tmp_path, "oracle", 1, 0.9)
    for seed, miou in enumerate((0.3, 0.4)):
        keep(tmp_path, "source_only", seed, miou)
    text = details(tmp_path)
    rows = [line for line in text.partition("**b**")[0].splitlines() if line.startswith("| ")]
    assert rows[:6] == [
        "| run | seeds | mIoU | minus source_only | minus dacs | of the oracle's gap |",
        "| source_only | 2 † | 35.00 ± 7.07 |  | -10.0 [-10.0, -10.0] |  |",
        "| dacs | 3 † | 50.00 ± 10.00 | +10.0 [+10.0, +10.0] (2) |  | 20 % |",  # both gain 10; of seed 1's gap of 50
        "| another | 1 † | 20.00 | -10.0 | -20.0 | -17 % |",  # no seed in common with the oracle: of 90 - 30
        "| oracle | 1 † | 90.00 | +50.0 | +40.0 | 100 % |",
        "| IoU in % | road |",
    ]
    assert "Scores without labels of `data=streets`: none was logged" in text


def test_rows_are_compared_with_the_base_of_the_same_options(tmp_path: Path) -> None:
    for row, miou in (("source_only", 0.2), ("dacs", 0.4), ("dacs,lr=2", 0.5), ("dacs,lr=3", 0.6), ("lcmsm,lr=2", 0.7)):
        keep(tmp_path, row, 0, miou)
    heads = [line for line in details(tmp_path).splitlines() if line.startswith("| run")]
    assert heads[0].count("minus") == 3
    assert "minus source_only | minus dacs | minus dacs,lr=2 |" in heads[0], "no other method has lr=3"


def test_an_ablation_is_compared_with_its_own_base_row(tmp_path: Path) -> None:
    keep_ablation(tmp_path, seeds=5)
    text = details(tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["| run", "seeds", "mIoU", "minus lcmsm text=none mask_ratio=0.3 |"]
    assert [row[:2] for row in rows[1:4]] == [
        ["| lcmsm text=none mask_ratio=0.3", "5 †"],
        ["| lcmsm text=file mask_ratio=0", "6"],
        ["| lcmsm text=file mask_ratio=0.3", "6"],
    ]
    scores = {
        (text, weight): [read_result(place_of(tmp_path, text, weight, seed)).miou for seed in range(5)]
        for text, weight in ROWS
    }
    for row, of in ((rows[2], ("file", "0")), (rows[3], ("file", "0.3"))):
        gain = 100 * np.mean(np.subtract(scores[of], scores["none", "0.3"]))
        assert row[3].startswith(f"{gain:+.1f} [")
        assert row[3].endswith("] (5) |")  # the seeds that both have
    said = " ".join(text.split())
    assert "on a CPU (lcmsm text=file mask_ratio=0, lcmsm text=file mask_ratio=0.3) and a GPU (lcmsm text=none" in said
    [section] = build_sections(find_results(tmp_path), base_rows(), draws=100)
    assert section.table.title == "ablate_lcmsm, streets: target, 5 classes"
    assert [d.reference for d in section.differences] == ["lcmsm text=none mask_ratio=0.3"]


def test_the_overview_marks_what_six_seeds_tell_from_the_row_to_compare_with(tmp_path: Path) -> None:
    keep_ablation(tmp_path, seeds=6)
    rows = [
        [cell.strip() for cell in line.split("|")][1:-1] for line in overview(tmp_path).splitlines() if "| lcm" in line
    ]
    assert [(name, seeds, score[-1]) for name, seeds, score in rows] == [
        ("lcmsm text=none mask_ratio=0.3", "6", rows[0][2][-1]),
        ("lcmsm text=file mask_ratio=0", "6", "▼"),
        ("lcmsm text=file mask_ratio=0.3", "6", "▲"),
    ]
    assert "▲" not in rows[0][2]
    place_of(tmp_path, "none", "0.3", 5).unlink()
    text = overview(tmp_path)
    assert "| lcmsm text=none mask_ratio=0.3 | 5 † |" in text
    assert "▲" not in text
    assert "▼" not in text


def test_a_sweep_over_one_key_has_a_column_for_each_value_and_says_what_all_of_its_runs_share(tmp_path: Path) -> None:
    scores = {("dacs", "10"): 0.3, ("dacs", "2"): 0.5, ("mic", "2"): 0.4, ("mic", "10"): 0.45, ("oracle", "2"): 0.9}
    for (method, value), miou in scores.items():
        given = [f"method={method}", "data.world_seed=7", f"optimizer.lr={value}", "trainer=gpu", "data.workers=0"]
        result = invented(method, 0, miou, overrides=["seed=0", *given, "steps=400"])
        write_result(tmp_path / "learning_rate" / "streets" / f"{method},optimizer.lr={value}" / "seed0.json", result)
    said, _, head, _, *rows = overview(tmp_path).splitlines()[2:]
    assert said.startswith("`data=streets`, `data.world_seed=7`, 5 runs of 400 steps, seeds of each: 1 †;")
    assert head == "| run | `optimizer.lr=2` | `optimizer.lr=10` |"
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    shown = [[c.strip("*") == c for c in row[1:]] for row in cells]
    assert [row[0] for row in cells] == ["dacs", "mic", "oracle"]
    assert shown == [[False, True], [True, False], [True, True]], "of one value alone, none is the highest"


def test_rows_are_named_by_what_their_settings_are_however_the_command_line_spelt_it(tmp_path: Path) -> None:
    for text, spelt in (("none", "method.text=none"), ("file", "++method.text='file'")):
        for augment in (True, False):
            overrides = ["method=lcmsm", spelt, *([f"++method.mask_augment={augment}"] if augment else [])]
            result = invented("lcmsm", 0, 0.6, overrides=overrides, choices={"sweep": "ablate_lcmsm"})
            settings = {**result.settings, "method.text": text, "method.mask_augment": augment}
            place = tmp_path / "ablate_lcmsm" / "streets" / f"{text}{augment}" / "seed0.json"
            write_result(place, replace(result, settings=settings))
    text = details(tmp_path)
    for row in ("text=none mask_augment=true", "text=file mask_augment=false"):
        assert f"| lcmsm {row} |" in text


def test_an_ablation_without_its_base_row_says_so_and_a_row_of_several_settings_is_refused(tmp_path: Path) -> None:
    keep_ablation(tmp_path, seeds=0)
    said = " ".join(details(tmp_path).split())
    assert "The row to compare with, `method.text=none method.mask_ratio=0.3`, has no result yet." in said
    place = place_of(tmp_path, "file", "0", 3)
    other = read_result(place)
    write_result(place, replace(other, settings={**other.settings, "optimizer.lr": 1.0}))
    with pytest.raises(UserError, match=r"seed3.json and .*seed0.json differ in optimizer.lr: one of them is out of"):
        details(tmp_path)


def test_rows_that_are_scored_on_other_classes_are_refused(tmp_path: Path) -> None:
    keep(tmp_path, "dacs", 0, 0.5)
    place = keep(tmp_path, "mic", 0, 0.4)
    scores = {"a": TargetScores(0.4, {"road": 0.4, "sky": 0.4}, ["road", "sky"])}
    write_result(place, replace(read_result(place), targets=scores))
    with pytest.raises(UserError, match=r"mic/seed0.json and .*dacs/seed0.json are scored on other classes"):
        overview(tmp_path)


def test_seeds_with_starts_of_their_own_are_one_row(tmp_path: Path) -> None:
    for seed in (0, 1):
        result = invented("dacs", seed, 0.5)
        own = replace(result, settings={**result.settings, "init": f"seed{seed}/last.ckpt"})
        write_result(tmp_path / "benchmark" / "streets" / "dacs" / f"seed{seed}.json", own)
    assert "| dacs | 2 † |" in overview(tmp_path)


def params_of(sweep: str) -> Mapping[str, Any]:
    content = yaml.safe_load((CONF / "sweep" / f"{sweep}.yaml").read_text())
    params: Mapping[str, Any] = content["hydra"]["sweeper"]["params"]
    return params


def test_every_base_row_is_one_that_its_sweep_trains() -> None:
    compared_with_controls = {"ablate_dg", "ablate_source"}
    assert {path.stem for path in (CONF / "sweep").glob("ablate_*.yaml")} == {*base_rows()} | compared_with_controls
    for sweep, base in base_rows().items():
        for key, value in (override.split("=") for override in base.split()):
            assert value in str(params_of(sweep)[key]).split(","), f"{sweep}: {key}={value}"


def test_a_sweep_of_the_user_need_not_have_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep").mkdir()
    for name, content in (("empty", ""), ("bare", "steps: 3"), ("own", "hydra: {launcher: {base: steps=3}}")):
        (tmp_path / "sweep" / f"{name}.yaml").write_text(content)
    monkeypatch.setattr("uda_seg.config.base_rows.CONF", tmp_path)
    assert base_rows() == {"own": "steps=3"}


def test_kept_results_are_of_the_sweep_whose_folder_they_lie_in() -> None:
    for path in TABLES["RESULTS"].glob("*/*/*/seed*.json"):
        assert read_result(path).choices.get("sweep", path.parts[-4]) == path.parts[-4], path


def test_the_page_is_of_the_committed_results(tmp_path: Path) -> None:
    line = TABLES["told"](TABLES["RESULTS"])
    for page in (TABLES["PAGE"], TABLES["DETAILS"]):
        assert line in page.read_text(), "run python scripts/results_tables.py"
    place = keep(tmp_path, "dacs", 0, 0.5)
    before = TABLES["told"](tmp_path)
    place.write_bytes(place.read_bytes() + b" ")
    assert TABLES["told"](tmp_path) != before


def test_intervals_in_the_text_are_in_the_tables() -> None:
    def intervals(text: str) -> set[tuple[float, ...]]:
        number = r"([+-]?\d+\.\d)"
        found = re.findall(rf"{number}\s+\[{number},\s+{number}\]", text)
        return {tuple(map(float, numbers)) for numbers in found}

    tables = intervals(TABLES["DETAILS"].read_text())
    either = tables | {(-mean, -high, -low) for mean, low, high in tables}
    said = intervals(TABLES["page"](TABLES["PAGE"].read_text(), ""))
    assert said
    assert sorted(said - either) == []


def claimed(setting: str) -> dict[str, list[Result]]:
    """Return the committed rows of the benchmark in a setting that have enough seeds and the common learning rate."""
    place = TABLES["RESULTS"] / "benchmark" / setting
    kept = {folder.name: [read_result(path) for path in folder.glob("seed*.json")] for folder in place.iterdir()}
    enough = {name: results for name, results in kept.items() if len(results) >= TABLES["ENOUGH"]}
    return {name: results for name, results in enough.items() if "optimizer.lr=" not in name}


def told(columns: slice) -> dict[str, list[str]]:
    """Return scores of the first page's table of methods, by the rows of the benchmark, where it has some."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `") and " ± " in line]
    cells = [[cell.strip(" `") for cell in line.split("|")] for line in lines]
    scores = {re.sub(r" (method\.)?", ",", row[1]): row[columns] for row in cells}
    return {name: row for name, row in scores.items() if " ± " in row[0]}


def shown(scores: Sequence[float]) -> str:
    return f"{100 * np.mean(scores):.1f} ± {100 * np.std(scores, ddof=1):.1f}"


def test_the_first_page_has_the_committed_scores_on_photographs() -> None:
    photographs = {}
    for name, results in claimed("camvid_without_0006R0").items():
        scores = [{drive: found.miou for drive, found in r.targets.items()} for r in results]
        adapted = [(own["drive_0001TP"] + own["drive_0016E5"]) / 2 for own in scores]
        photographs[name] = [shown(adapted), shown([own["drive_0006R0"] for own in scores])]
    assert told(slice(5, 7)) == photographs


def test_the_first_page_has_the_committed_scores_on_the_built_in_world() -> None:
    rows = claimed("streets").items()
    assert told(slice(4, 5)) == {name: [shown([r.targets["target"].miou for r in results])] for name, results in rows}


@pytest.mark.slow
def test_the_pages_have_the_tables_of_the_committed_results() -> None:
    pages = TABLES["pages"]()
    assert {page: page.read_text() for page in pages} == pages, "run python scripts/results_tables.py"
