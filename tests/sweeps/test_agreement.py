"""The column of a sweep's table that compares runs with their ensemble."""

from __future__ import annotations

import json

import numpy as np
import torch

from uda_seg.evaluation.label_free import PIXELS, Predicted, write_predictions
from uda_seg.sweeps.outcomes import Outcome
from uda_seg.sweeps.table import write_table


def kept(folder, seed, wrong=0, image=7):
    """A run with predictions that differ from the labels of all others at its first pixels."""
    predicted = Predicted.empty(1, 3)
    predicted.sample[0] = torch.eye(3)[torch.arange(PIXELS) % 3]
    predicted.sample[0, :wrong] = predicted.sample[0, :wrong].roll(1, dims=1)
    predicted.checksum[0] = image
    write_predictions(folder, predicted, ("a", "b", "c"), 4)
    scores = {"miou": 0.5, "best": {"miou": 0.6}, "best_unsupervised": {"miou": 0.55}, "pixel_accuracy": 0.7}
    (folder / "metrics.json").write_text(json.dumps({"step": 4, "seed": seed, **scores}))


def table(tmp_path, names, **settings):
    outcomes = []
    for seed, name in enumerate(names):
        folder = tmp_path / name / f"seed{seed}"
        folder.mkdir(parents=True)
        kept(folder, seed, **settings.get(name, {}))
        outcomes.append(Outcome(str(folder), str(tmp_path), 0.5, None))
    write_table(outcomes)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    return (tmp_path / "table.md").read_text(), [
        dict(zip(lines[0].split(","), x.split(","), strict=True)) for x in lines[1:]
    ]


def test_runs_of_a_sweep_are_compared_with_their_ensemble(tmp_path, caplog):
    text, rows = table(tmp_path, ["p", "q", "r", "other"], r={"wrong": 96}, other={"image": 8})
    found = {row["run"]: row["ensv_mean"] for row in rows}
    assert float(found["p"]) == float(found["q"]) == 1.0
    right = (PIXELS - 96) / (PIXELS + 96)  # of each class alike, but for the last, which has a pixel less
    assert np.isclose(float(found["r"]), right, atol=2e-3)
    assert found["other"] == ""
    assert "1 of 4 runs are on other images or classes" in caplog.text
    assert "best_unsupervised without; ensv is the mIoU with the labels of all runs' mean" in text


def test_two_runs_are_no_ensemble(tmp_path):
    text, rows = table(tmp_path, ["p", "q"])
    assert "ensv" not in text
    assert "ensv_mean" not in rows[0]
    assert rows[0]["best_unsupervised_mean"] == "0.55"
