"""The demo: three trainings of one start, and what it shows of them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import pytest

from command_line import NETWORK, CommandLine
from data.trees import streets_tree
from uda_seg import demo, train
from uda_seg.demo import Run, per_class, summary
from uda_seg.evaluation.tables import ABSENT

RUNS = (Run("before", "source only"), Run("control", "source only, continued"), Run("after", "adapted"))


@pytest.fixture
def trainings(monkeypatch, capfd, tmp_path):
    """Calls the demo, its trainings in this process; gives their command lines. None has to render anything."""
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    root = streets_tree(tmp_path / "streets", count=5)
    domain = (f"root={root}", "size=[32,48]", "count=5")
    small = [
        *(f"++data.{name}.{key}" for name in ("source", "target", "validation.target") for key in domain),
        *(NETWORK[1:]), "pretrained=null", "data.crop=[32,32]", "data.source_batch=2", "data.target_batch=2",
        "data.rare_class.enabled=false", "statistics_batches=1", "trainer=cpu", "steps=2", "logger.log_every=1",
        "callbacks.progress=false",
    ]  # fmt: skip
    calls: list[list[str]] = []

    def call(*overrides: str) -> tuple[int, str, list[list[str]]]:
        nested, outer = (CommandLine(monkeypatch, capfd, tmp_path) for _ in range(2))
        said = []

        def run(command, check):
            said.append(capfd.readouterr().out)
            calls.append(command[3:])
            return SimpleNamespace(returncode=nested(train.main, *command[3:]).code)

        monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run))
        finished = outer(demo.main, *small, *overrides)
        return finished.code, "".join(said) + finished.out, calls

    return call


def test_what_adaptation_gains_is_told_from_what_longer_training_gains(trainings, tmp_path):
    """The control and the adapted network: from the same weights, of as many steps at the same learning rates."""
    code, said, (before, control, after) = trainings()
    assert code == 0
    start = "init=outputs/demo/before/checkpoints/last.ckpt"
    assert (before[0], control[0], after[0]) == ("method=source_only", "method=source_only", "method=lcmsm")
    assert start not in before
    assert start in control
    differ = ("method=", "hydra.run.dir=")
    assert [o for o in control if not o.startswith(differ)] == [o for o in after if not o.startswith(differ)]
    folder = tmp_path / "outputs/demo"
    found = {run.name: json.loads((folder / run.name / "metrics.json").read_text()) for run in RUNS}
    for key in ("steps", "step", "lr", "source_images", "source_images_before"):
        assert found["control"][key] == found["after"][key], key
    assert found["control"]["source_images_before"] == found["before"]["source_images"] == 2 * 2
    logged = {name: (folder / name / "metrics.csv").read_text().splitlines() for name in found}
    rates = {name: [line for line in lines if ",train/lr," in line] for name, lines in logged.items()}
    assert rates["control"] == rates["after"]
    assert len(rates["after"]) == 2
    height, width, _ = cv2.imread(str(folder / "before_after.png")).shape
    assert height > 4 * 256
    assert width > 5 * 384
    table = (folder / "before_after.md").read_text()
    gain = 100 * (found["after"]["miou"] - found["control"]["miou"])
    assert f"{gain:+.1f}" in table.splitlines()[-1]
    assert f"gain    {gain:+5.1f}" in said


def test_the_gain_is_over_the_control(monkeypatch):
    scores = {"before": (0.1, 0.2), "control": (0.3, 0.4), "after": (0.35, 0.6)}

    def metrics(run):
        road, sky = scores[run.name]
        return {"miou": (road + sky) / 2, "per_class": {"road": road, "sky": sky, "train": None}}

    monkeypatch.setattr(Run, "metrics", property(metrics))
    table = per_class(*RUNS)
    assert table.header == ("class", "before", "control", "after", "gain over control")
    assert table.rows == (
        ("road", "10.00", "30.00", "35.00", "+5.0"),
        ("sky", "20.00", "40.00", "60.00", "+20.0"),
        ("train", ABSENT, ABSENT, ABSENT, ABSENT),
        ("**mIoU**", "15.00", "35.00", "47.50", "+12.5"),
    )
    assert summary(*RUNS).splitlines() == [
        "mIoU on the target",
        "before   15.0 %  source only",
        "control  35.0 %  source only, continued",
        "after    47.5 %  adapted",
        "gain    +12.5    by adaptation: over the control, trained as long",
    ]


def test_a_training_that_fails_ends_the_demo(trainings):
    code, said, calls = trainings("method.nosuch=1")
    assert code == 1
    assert len(calls) == 1
    assert "per class:" not in said


@pytest.mark.parametrize("override", ["~data.validation.target", "data.validation={}", "data.validation.target=null"])
def test_a_demo_without_scores_is_refused_before_it_trains(trainings, override):
    code, _, calls = trainings(override)
    assert (code, calls) == (1, [])
