"""Kept results of benchmarks: brought together from several machines, and shown as the tables of docs/results.md."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from uda_seg.errors import UserError
from uda_seg.results.result import Result, TargetScores, write_result

ROOT = Path(__file__).resolve().parents[2]
MERGE = runpy.run_path(str(ROOT / "scripts" / "merge_results.py"))["merge"]
TABLES: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "results_tables.py"))


def keep(results: Path, row: str, seed: int, miou: float, setting: str = "streets") -> Path:
    scores = {name: TargetScores(value, {"road": value}, ["road"]) for name, value in (("a", miou), ("b", miou / 2))}
    path = results / "benchmark" / setting / row / f"seed{seed}.json"
    write_result(path, Result("x", row, setting, "small", seed, 4, 4, miou, scores, device="a CPU"))
    content = json.loads(path.read_text()) | {"benchmark": {"digest": "0", "numbers": 1}}
    path.write_text(json.dumps(content))
    return path


def test_results_of_another_machine_are_brought_in_and_none_is_overwritten(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    keep(theirs, "dacs", 0, 0.5)
    keep(theirs, "dacs", 1, 0.6)
    keep(ours, "dacs", 0, 0.5)
    assert MERGE(theirs, ours) == (1, 1)
    assert MERGE(theirs, ours) == (0, 2)
    mine = keep(ours, "dacs", 1, 0.7).read_bytes()
    keep(theirs, "mic", 0, 0.4)
    with pytest.raises(UserError, match=r"1 new results copied, but 1 are here with another content.*dacs/seed1.json"):
        MERGE(theirs, ours)
    assert (ours / "benchmark/streets/dacs/seed1.json").read_bytes() == mine
    assert (ours / "benchmark/streets/mic/seed0.json").is_file()
    with pytest.raises(UserError, match="holds no results"):
        MERGE(tmp_path / "nothing", ours)


def test_the_tables_have_every_row_with_its_seeds_and_paired_differences(tmp_path: Path) -> None:
    for seed, miou in enumerate((0.4, 0.5, 0.6)):
        keep(tmp_path, "dacs", seed, miou)
    keep(tmp_path, "another", 0, 0.2)
    keep(tmp_path, "oracle", 1, 0.9)
    for seed, miou in enumerate((0.3, 0.4)):
        keep(tmp_path, "source_only", seed, miou)
    text = TABLES["tables"](tmp_path)
    rows = [line for line in text.partition("**b**")[0].splitlines() if line.startswith("| ")]
    assert rows[:6] == [
        "| run | seeds | mIoU | minus source_only | of the oracle's gap |",
        "| source_only | 2 | 35.00 ± 7.07 |  |  |",
        "| dacs | 3 | 50.00 ± 10.00 | +10.0 [+10.0, +10.0] (2) | 20 % |",  # both seeds gain 10; of seed 1's gap of 50
        "| another | 1 | 20.00 | -10.0 | -17 % |",  # no seed in common with the oracle: of 90 - 30
        "| oracle | 1 | 90.00 | +50.0 | 100 % |",
        "| IoU in % | road |",
    ]
    said = " ".join(text.split())
    assert "Fewer than 6 seeds: source_only (2), dacs (3), another (1), oracle (1)." in said
    assert "None of these runs logged scores without labels" in said


def test_the_page_has_the_tables_of_the_committed_results() -> None:
    text = TABLES["PAGE"].read_text()
    assert TABLES["page"](text, TABLES["tables"](TABLES["RESULTS"])) == text, "run python scripts/results_tables.py"
