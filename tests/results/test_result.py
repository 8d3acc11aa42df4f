"""The file of a run's result: exact counts, what is refused, and what is found below a folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.invented import confusions, invented, world
from uda_seg.errors import Damaged, UserError
from uda_seg.results.packing import ImageConfusions, PackedImages, pack, unpack
from uda_seg.results.reading import find_results
from uda_seg.results.result import RESULT, read_result, write_result

COUNTS = hnp.arrays(np.int64, st.tuples(st.integers(1, 5), *[st.shared(st.integers(1, 4))] * 2),
                    elements=st.one_of(st.just(0), st.integers(0, 300), st.integers(0, 2**32 - 1)))  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.text())
def test_counts_are_packed_exactly(counts, name):
    images = ImageConfusions(tuple(f"{name}{i}" for i in range(len(counts))), counts)
    packed = pack(images)
    found = unpack(PackedImages(**json.loads(json.dumps(vars(packed)))))
    assert found.names == images.names
    assert found.counts.dtype == np.int64
    np.testing.assert_array_equal(found.counts, counts)


def test_counts_of_a_validation_set_take_kilobytes():
    labels = world(200, 19)
    packed = pack(
        ImageConfusions(tuple(map(str, range(200))), confusions(np.random.default_rng(0), labels * 0 + 0.9, labels))
    )
    assert len(packed.counts) < 64_000  # 200 x 361 numbers, most of them drawn anew in every image: the worst case


def test_a_result_is_read_as_it_was_written(tmp_path):
    result = invented("dacs", 1, 0.7, miou=math.nan)
    write_result(tmp_path / "a.json", result)
    again = read_result(tmp_path / "a.json")
    assert math.isnan(again.miou)
    assert replace(again, miou=0.0) == replace(result, miou=0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, "newer version"),
        ({"seed": "zero"}, "damaged at seed"),
        ({"targets": {"t": {"miou": 0.5, "per_class": {"road": 0.5}, "classes": ["sky"]}}}, "damaged at targets.t"),
        ({"schema": None}, "no result of a run"),
    ],
)
def test_what_is_no_result_is_refused_in_a_line(tmp_path, change, said):
    path = tmp_path / "a.json"
    write_result(path, invented("dacs", 0, 0.7))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said) as error:
        read_result(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_counts_of_images_that_do_not_sum_to_the_whole_are_refused(tmp_path):
    path = tmp_path / "a.json"
    write_result(path, invented("dacs", 0, 0.7))
    content = json.loads(path.read_text())
    content["targets"]["target"]["confusion"][0][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match="do not sum"):
        read_result(path)


def run_folder(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("overrides: []\nuda_seg: 0.2.0\nconfig: {}\n")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_runs_and_files_are_found_and_the_rest_is_named(tmp_path):
    done = run_folder(tmp_path / "a" / "done", metrics__csv="step,name,value\n1,loss,2.0\n1,los")
    write_result(done / RESULT, invented("dacs", 0, 0.7))
    write_result(done / "replaced_run" / RESULT, invented("dacs", 9, 0.7))  # not a run of its own
    write_result(tmp_path / "alone" / "lcmsm-0.json", invented("lcmsm", 0, 0.7))
    (tmp_path / "alone" / "scores.json").write_text('{"target": {"miou": 0.5}}')
    stopped = run_folder(tmp_path / "stopped", metrics__csv="step,name,value\n1,loss,2.0\nnonsense\n7,loss,1.0\n")
    failed = run_folder(tmp_path / "failed", error__log="Traceback\n  frames\nValueError: out of <b>paper</b>\n")
    broken = run_folder(tmp_path / "broken", result__json='{\n"run": "x", ')
    found = find_results(tmp_path)
    assert [run.result.method for run in found.runs] == ["dacs", "lcmsm"]
    assert [run.folder for run in found.runs] == [done, None]
    assert found.runs[0].log == {"loss": [(1, 2.0)]}  # the line that a kill has cut off is no defect
    assert found.unfinished == {
        str(failed): "failed before its first logged step: ValueError: out of <b>paper</b>",
        str(stopped): "not finished: stopped or still going, after step 7",
    }
    assert len(found.problems) == 2
    assert str(broken / RESULT) in found.problems[0]
    assert found.problems[1].startswith(f"{stopped / 'metrics.csv'}: 1 line(s)")
    assert len(find_results(tmp_path / "alone", str(tmp_path / "al*" / "*.json"), done).runs) == 2


def test_a_run_and_a_copy_of_its_result_are_one(tmp_path):
    result = invented("dacs", 0, 0.7)
    for place in ("a.json", "z/copy.json"):  # before and behind the run
        write_result(tmp_path / place, replace(result, miou=float("nan")))
    folder = run_folder(tmp_path / "run")
    write_result(folder / RESULT, replace(result, miou=float("nan")))
    write_result(tmp_path / "other.json", replace(result, seed=1))
    assert [(run.result.seed, run.folder) for run in find_results(tmp_path).runs] == [(0, folder), (1, None)]


def test_nothing_there_is_told_in_a_line(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        find_results(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no run and no result\.json"):
        find_results(tmp_path / "empty")
