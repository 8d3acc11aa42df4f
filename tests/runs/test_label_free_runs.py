"""Label-free scores of a run: what they are computed on, what they choose, and what they leave as it is."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch

from command_line import configured, small_run
from ranks import on_ranks
from uda_seg import train as command
from uda_seg.callbacks.label_free import LabelFree
from uda_seg.errors import UserError
from uda_seg.evaluation.label_free import SCORES, read_predictions
from uda_seg.runs import build

ALL = f"evaluator.label_free=[{','.join(SCORES)}]"


@pytest.fixture
def train(camvid, tmp_path):
    def train(folder: str, *overrides: str) -> None:
        command.train(configured(*small_run(camvid), "method=dacs", *overrides), tmp_path / folder)

    return train


def weights(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def logged(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "label_free" in row["name"]]
    return {(int(row["step"]), row["name"].rpartition("/")[2]): float(row["value"]) for row in rows}


def test_scores_choose_a_checkpoint_and_change_no_weight(train, tmp_path):
    """Neither weights nor random numbers of the training; and a run that is resumed goes on with its choice."""
    train("plain", "evaluator.times=2")
    run, parts = tmp_path / "run", tmp_path / "parts"
    scored = (ALL, "evaluator.choose_by=snd", "evaluator.times=2")
    train("run", *scored)
    train("parts", *scored, "trainer.max_steps=2")
    train("parts", *scored, "resume=last")
    plain, last = weights(tmp_path / "plain")["state_dict"], weights(run)["state_dict"]
    assert all(torch.equal(tensor, last[name]) for name, tensor in plain.items())
    values = logged(run)
    assert values.keys() == {(step, name) for step in (2, 4) for name in SCORES}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["label_free"] == {name: values[4, name] for name in SCORES}
    best = max((2, 4), key=lambda step: values[step, "snd"])
    chosen = metrics["best_unsupervised"]
    assert (chosen["step"], chosen["value"], chosen["by"]) == (best, values[best, "snd"], "snd")
    assert chosen["chosen_on"] == "unlabelled target images"
    assert weights(run, "best_unsupervised")["global_step"] == best
    other = json.loads((parts / "metrics.json").read_text())
    assert {**other, "wall_s": 0} == {**metrics, "wall_s": 0}
    assert logged(parts) == values
    kept = read_predictions(run)
    assert kept is not None
    assert kept.step == 4
    assert len(kept.images) == 8  # all training images of the tree, not its five for validation


def test_without_any_labelled_target_image_a_checkpoint_is_chosen(camvid, tmp_path):
    few = ("evaluator.label_free=[infomax]", "evaluator.label_free_images=2", "evaluator.times=2")
    config = configured(*small_run(camvid), "method=source_only", *few)  # which reads no target image otherwise
    config.data.validation = {}
    command.train(config, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["miou"] is None
    assert metrics["label_free"] == {"infomax": logged(tmp_path)[4, "infomax"]}
    assert metrics["best_unsupervised"]["miou"] is None
    assert sorted(step for step, _ in logged(tmp_path)) == [2, 4]
    assert (tmp_path / "checkpoints" / "best_unsupervised.ckpt").exists()
    assert read_predictions(tmp_path).probability.shape[0] == 2


def test_the_reference_are_the_shares_of_the_source(camvid):
    data = build.build_data(configured(*small_run(camvid), ALL, "method=dacs"))
    data.setup("fit")
    readers = data._streams["source"].readers
    labels = np.concatenate([readers[0][i].label.ravel() for i in range(len(readers[0]))])
    counts = np.bincount(labels[labels != 255], minlength=11)
    assert data.source_shares == pytest.approx(counts / counts.sum(), abs=0.02)  # on disk, and resized here


def test_settings_that_cannot_be(train, camvid):
    with pytest.raises(UserError, match=r"choose_by=snd is not computed: add it, evaluator.label_free=\[infomax,snd\]"):
        train("x", "evaluator.label_free=[infomax]", "evaluator.choose_by=snd")
    with pytest.raises(UserError, match="is none of infomax, snd"):
        train("x", "evaluator.label_free=[snt]")
    config = configured(*small_run(camvid), "method=source_only", ALL)
    config.data.target = None
    with pytest.raises(UserError, match=r"label_free needs unlabelled target images, but data=.* no data.target"):
        build.build_data(config)


def scores(config, folder):
    torch.manual_seed(0)
    module = build.build_module(config, data := build.build_data(config))
    data.setup("fit")
    trainer = build.new_trainer(config, folder, 4, [], [LabelFree(SCORES, folder, 1)])
    trainer.validate(module, datamodule=data, verbose=False)
    return module.label_free


@pytest.mark.slow
def test_scores_are_equal_on_any_number_of_ranks(camvid, tmp_path):
    """Five images: on two ranks one has fewer than the other."""
    found = []
    for world in (1, 2):
        config = configured(
            *small_run(camvid), "method=mic", ALL, "evaluator.label_free_images=5", f"trainer.devices={world}",
            "trainer.strategy=ddp", "running_statistics=all",
        )  # fmt: skip
        found += on_ranks(world, scores, config, tmp_path)
    assert all(found[0] == other for other in found[1:])
    assert all(math.isfinite(value) for value in found[0].values())
