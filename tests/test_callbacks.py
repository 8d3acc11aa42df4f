"""Callbacks of Lightning's and others', chosen by the configuration, and the metrics that they monitor."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from command_line import configured, small_run
from uda_seg import evaluate, train
from uda_seg.config.naming import variant
from uda_seg.runs import build
from uda_seg.sweeps.table import finished as is_finished

SEEN = """
from pytorch_lightning import Callback

class Seen(Callback):
    found = {}

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found[trainer.global_step] = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer, pl_module):
        self.found["val"] = dict(trainer.callback_metrics)
"""
SHORT = ("method=dacs", "hydra.run.dir=run", "logger.log_every=2")


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """The module of a callback that keeps what it could monitor."""
    (tmp_path / "own_callbacks.py").write_text(SEEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_callbacks", None)


def test_a_callback_finds_what_the_csv_file_holds(cli, camvid, tmp_path, seen):
    words = ["evaluator.times=1", "evaluator.teacher=true", "callbacks.seen={_target_: own_callbacks.Seen}"]
    words += [f"{o}" for o in small_run(camvid, 4) if "log_every" not in o]
    assert cli(train.main, *SHORT, *words).code == 0
    found = sys.modules["own_callbacks"].Seen.found
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = {(int(r["step"]), r["name"]): float(r["value"]) for r in csv.DictReader(file)}
    wanted = {"val/miou", "val/target/miou", "val/target/pixel_accuracy", "val/target/teacher_miou"}
    wanted |= {"train/source/ce", "train/mix/ce", "train/lr", "train/gradient_norm"}
    assert wanted <= found["val"].keys()
    for (step, name), value in rows.items():
        logged = found["val" if name.startswith("val/") else step][name]
        assert float(logged) == pytest.approx(value, rel=1e-6)  # callbacks are given float32
        assert logged.device.type == "cpu"
    assert float(found[3]["train/source/ce"]) == float(found[2]["train/source/ce"])  # not read between two logged steps


def test_a_run_that_stops_early_ends_as_every_run(cli, camvid, tmp_path):
    words = ["callbacks=[early_stopping,lr_monitor]", "callbacks.early_stopping.patience=1", "evaluator.times=8"]
    # No score can be so much better than the one before.
    words += ["callbacks.early_stopping.min_delta=2.0", "callbacks.checkpoints=1", *small_run(camvid, 8)]
    finished = cli(train.main, *SHORT, *words)
    assert finished.code == 0, finished
    assert "stopped early after step 2 of 8 by callbacks.early_stopping\n" in finished.out + finished.err
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (scores["step"], scores["steps"], scores["stopped"]) == (2, 8, True)
    assert is_finished(tmp_path / "run", configured("method=dacs", "logger.log_every=2", *words))
    assert scores["miou"] is not None
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert cli(evaluate.main, f"checkpoint={tmp_path}/run/checkpoints/last.ckpt").code == 0
    words = [w for w in words if "early_stopping" not in w]
    finished = cli(train.main, *SHORT, *words, "resume=last")  # and goes on where nothing stops it
    assert finished.code == 0, finished
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (scores["step"], scores["stopped"]) == (8, False)


def test_choices_are_combined_and_change_no_weight(cli, camvid, tmp_path):
    words = [*small_run(camvid, 4), "evaluator.times=2"]
    assert cli(train.main, *SHORT, *words).code == 0
    many = ["callbacks=[model_checkpoint,lr_monitor,early_stopping]", "callbacks.panels=2", "hydra.run.dir=other"]
    many += ["callbacks.early_stopping.patience=9", "callbacks.model_checkpoint.save_top_k=2"]
    finished = cli(train.main, *SHORT, *words, *many)
    assert finished.code == 0, finished
    plain, other = (torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("run", "other"))
    assert plain["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in plain["state_dict"].items())
    assert "lr-AdamW" in (tmp_path / "other" / "metrics.csv").read_text()
    assert list((tmp_path / "other" / "panels").iterdir())
    [kept] = [*(tmp_path / "other" / "model_checkpoints").glob("*step=2*.ckpt")]
    assert cli(evaluate.main, f"checkpoint={kept}").code == 0
    assert (tmp_path / "other" / "evaluation").is_dir()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["callbacks=erly_stopping"], "did you mean early_stopping?"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patiense=1"], "callbacks.early_stopping.patience?"),
        (["callbacks=early_stopping", "callbacks.early_stoping.patience=1"], "callbacks.early_stopping.patience?"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=soon"], "of the wrong type: expected a whole"),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/mioo"], "did you mean val/miou?"),
        (["callbacks.mine={_target_: pytorch_lightning.Trainer}"], "is no Callback"),
        (["callbacks.mine={_target_: pytorch_lightning.callbacks.EarlyStoping}"], "did you mean"),
        (["callbacks.mine={_target_: pytorch_lightning.callbacks.EarlyStopping}"], "callbacks.mine.monitor is missing"),
        (["callbacks.mine={patience: 3}"], "callbacks.mine"),
        (["callbacks.progres=false"], "did you mean callbacks.progress?"),
        (
            ["callbacks=model_checkpoint", "callbacks.model_checkpoint.save_weights_only=true"],
            "save_weights_only=true",
        ),
        (["callbacks=early_stopping", "callbacks.early_stopping.mode=up"], "callbacks.early_stopping"),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=train/cee"], "callbacks: Early stopping"),
        (["callbacks=model_checkpoint", "callbacks.model_checkpoint.monitor=train/cee"], "callbacks: "),
        (["~callbacks.early_stopping"], "callbacks.early_stopping is no key"),
        (["callbacks.seen=[1]"], "callbacks.seen"),
    ],
)
def test_a_callback_that_cannot_be_is_one_line(cli, camvid, overrides, said):
    assert said in cli(train.main, *SHORT, *overrides, *small_run(camvid, 1)).error


def test_what_may_end_a_run_early_is_in_its_folders_name():
    assert variant(["callbacks=default", "callbacks.panels=0", "callbacks.progress=false"]) == ""
    first, other = (variant(["callbacks=early_stopping", f"callbacks.early_stopping.patience={n}"]) for n in (1, 2))
    assert "callbacks=early_stopping" in first
    assert first != other


def test_a_callback_is_left_out_by_null(camvid):
    config = configured("callbacks=early_stopping", "callbacks.early_stopping=null", *small_run(camvid, 1))
    assert build.own_callbacks(config, Path("run"), ()) == []


def test_callbacks_come_between_ours_and_the_one_that_stops(camvid, tmp_path):
    config = configured("method=source_only", "callbacks=lr_monitor", *small_run(camvid, 1))
    trainer = build.build_trainer(config, tmp_path, build.build_data(config))
    names = [type(c).__name__ for c in trainer.callbacks]
    assert names[-2:] == ["LearningRateMonitor", "Stop"]
    assert isinstance(trainer.callbacks[-2], pl.callbacks.LearningRateMonitor)
