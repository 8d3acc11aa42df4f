"""Runs on several sources, and on a few labels of the target."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from command_line import configured, small_run, with_depth
from uda_seg import train as command
from uda_seg.cli import command as running
from uda_seg.config.schema import CONF, parse
from uda_seg.data.settings import DataSettings
from uda_seg.data.streets.styles import STYLES
from uda_seg.errors import UserError


def more(camvid: Path) -> list[str]:
    """A second source, smaller than the first."""
    return [
        "data.more_sources.second.dataset=camvid", f"data.more_sources.second.root={camvid}",
        "data.more_sources.second.count=2", "data.more_sources.second.share=0.5",
        "data.more_sources.second.size=[32,48]",
    ]  # fmt: skip


def weights(folder: Path) -> dict:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_a_run_on_two_sources_and_few_labels_goes_on_as_if_it_had_not_stopped(camvid, tmp_path):
    given = [*small_run(camvid), *more(camvid), "method=dacs", "data.target.labelled=2", "data.source_batch=3"]
    command.train(configured(*given), tmp_path / "whole")
    command.train(configured(*given, "trainer.max_steps=2"), tmp_path / "half")
    names = (tmp_path / "half/labelled_target.txt").read_text()
    assert names == (tmp_path / "whole/labelled_target.txt").read_text()
    assert len(names.split()) == 2
    command.train(configured(*given, "resume=last"), tmp_path / "half")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "half")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "half/metrics.json").read_text())["labelled_target_images"] == 2
    with pytest.raises(UserError, match=r"the run has trained on the labels of 2 images, and .*labelled=3 asks for 3"):
        command.train(configured(*given, "data.target.labelled=3", "steps=5", "resume=last"), tmp_path / "half")


def test_source_only_few_labels_and_oracle_come_out_in_one_table(cli, camvid, tmp_path):
    given = [*small_run(camvid, steps=1), "method=source_only,oracle", "data.target.labelled=null,2"]
    done = cli(command.main, "-m", *given)
    assert done.code == 0, done.err
    [table] = tmp_path.rglob("table.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["run"].partition("_daformer")[0], row["target labels"]) for row in rows}
    assert found == {("source_only", "–"), ("source_only", "2"), ("oracle", "2"), ("oracle", "8")}


@pytest.fixture
def composed(cli, monkeypatch):
    """`composed(*words)`: the data settings that the command is given."""

    def compose(*words: str) -> DataSettings:
        seen: list[DataSettings] = []
        monkeypatch.setattr(running, "_job", lambda *_: lambda raw: seen.append(parse(raw).data) or 0.0)
        done = cli(command.main, *words)
        assert done.code == 0, done.err
        return seen[0]

    return compose


def test_further_domains_are_changed_added_and_removed_by_name(composed):
    two = "data=streets_two_sources"
    night = composed(two, "data.more_sources.night.share=3", "data.more_sources.night.keep_ratio=false").more_sources
    assert (night["night"].share, night["night"].keep_ratio) == (3, False)
    assert composed(two, "~data.more_sources.night").more_sources == {}
    assert composed(two, "data.more_sources.night=null").more_sources == {}
    rain = "{dataset: streets, domain: night_rain, size: [128,256], count: 1}"
    added = composed("data=streets", f"+data.more_sources.rain={rain}", "+data.more_targets.rain.domain=night_rain")
    assert added.sources["data.more_sources.rain"].count == 1
    assert list(added.targets) == ["data.target", "data.more_targets.rain"]
    assert composed("data=streets", "data.target.labelled=0.0625").target.labelled == 0.0625


def test_the_built_in_example_has_looks_that_there_are():
    data = configured("data=streets_two_sources").data
    assert {domain.domain for domain in (*data.sources.values(), *data.targets.values())} <= set(STYLES)
    assert list(data.sources) == ["data.source", "data.more_sources.night"]


def test_a_list_of_sources_is_told_how_to_name_them(cli):
    done = cli(command.main, "data=streets", "data.source=[{dataset: gta}]")
    assert "data.source is one domain, not a list: name the others, +data.more_sources.NAME=" in done.error


@pytest.mark.parametrize("labelled", ["0", "1.5", "true", "-1", "[1]"])
def test_no_number_of_labelled_images_is_told(labelled):
    with pytest.raises(UserError, match=r"data.target.labelled=.* is no number of images: give 1 or more, a share"):
        configured("data=streets", f"data.target.labelled={labelled}")


def test_a_further_source_smaller_than_the_crop_is_told():
    with pytest.raises(UserError, match=r"data.crop=\[128, 128\] is larger than data.more_sources.night.size"):
        configured("data=streets_two_sources", "data.more_sources.night.size=[64,128]")


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_every_method_trains_on_two_sources_and_few_labels(method, camvid, tmp_path):
    """The source's batch looks as always, so that methods need not know of it."""
    given = [*small_run(camvid, steps=2), *more(camvid), *with_depth(camvid), f"method={method}"]
    given += [f"data.more_sources.second.depth={camvid}/depth", "data.more_sources.second.depth_encoding=centimetres"]
    score = command.train(configured(*given, "data.target.labelled=2", "data.source_batch=3"), tmp_path / "run")
    assert 0 <= score <= 1
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (found["step"], found["labelled_target_images"]) == (2, 2)
