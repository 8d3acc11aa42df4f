"""A run from the command line to its folder: what is in it, how it goes on after a stop, and what cannot hurt it."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import pickle
import re
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from hydra.types import RunMode
from PIL import Image

from command_line import NETWORK, configured, forked, small_run, with_depth
from uda_seg import evaluate
from uda_seg import train as command
from uda_seg.callbacks.checkpoint import Checkpoints
from uda_seg.callbacks.csv_log import CSVLog
from uda_seg.config.compose import composed
from uda_seg.data.labels import CAMVID
from uda_seg.errors import UserError
from uda_seg.methods.source_only import SourceOnly
from uda_seg.models.segmentor import Segmentor
from uda_seg.runs import folder as run_folder
from uda_seg.runs.checkpoint import device_precision, say_changes
from uda_seg.runs.loggers import build_loggers
from uda_seg.runs.record import write_record
from uda_seg.sweeps.table import finished

METHODS = ("source_only", "dacs", "lcmsm", "bicl", "t2sda", "corda")


@pytest.fixture
def train(camvid, tmp_path):
    """`train(folder, *overrides)`: what the command does once the command line is read."""

    def train(folder: str, *overrides: str) -> float:
        return command.train(configured(*small_run(camvid), *overrides), tmp_path / folder)

    return train


def checkpoint(folder: Path, name: str = "last") -> dict:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def log_of(folder: Path) -> list[list[str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def assert_same(first, second) -> None:
    """Equal bit for bit, tensors within dicts and lists included."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def assert_same_training(first: dict, second: dict) -> None:
    """Weights, teacher and its number of updates, optimiser, step, best score and counted images."""
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_same(first[key], second[key])
    states = [dict(c["callbacks"]["Checkpoints"]) for c in (first, second)]
    for state in states:
        state.pop("wall_s")
    assert states[0] == states[1]


# ---------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_a_folder_that_can_be_read(cli, camvid, tmp_path):
    more = ("method=lcmsm", "callbacks.panels=2", "evaluator.teacher=true", "callbacks.progress=true")
    finished = cli(command.main, *small_run(camvid), *more, "hydra.run.dir=run")
    assert finished.code == 0, finished.err
    run = tmp_path / "run"
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints", "metrics.csv", "metrics.json", "panels", "result.json", "run.yaml",
        "train.log",
    ]  # fmt: skip
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    said = metrics(run)
    assert 0 <= said["miou"] <= 1
    assert said["per_class"].keys() == set(CAMVID.names)
    assert said["miou"] == pytest.approx(np.mean([v for v in said["per_class"].values() if v is not None]))
    assert said["classes"] == list(CAMVID.names)
    assert said["targets"] == {"target": said["miou"]}
    assert said["miou_over"] == {"11": said["miou"]}
    assert (said["step"], said["seed"], said["source_images"], said["source_images_before"]) == (4, 0, 8, 0)
    assert 0 <= said["teacher"] <= 1
    assert said["best"]["miou"] >= said["miou"]
    assert said["best"]["step"] in (2, 4)
    assert said["wall_s"] > 0
    record = yaml.safe_load((run / "run.yaml").read_text())
    assert record["config"]["data"]["crop"] == [32, 32]
    assert record["config"]["model"]["align_corners"] is False  # stated by no file
    assert "method=lcmsm" in record["overrides"]
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert record["git"]
    rows = log_of(run)
    assert rows[0] == ["step", "name", "value"]
    names = {row[1] for row in rows[1:]}
    assert {"train/source/ce", "train/mix/masked_ce", "train/lr", "val/miou", "val/target/teacher_miou"} <= names
    steps = [line for line in finished.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/4", "2/4", "3/4", "4/4"]
    assert "images/s" in steps[-1]


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        ("source_only", 1), ("oracle", 1), ("dacs", 3), ("mic", 4), ("lcmsm", 5), ("adabn", 1),
        ("t2sda", 3), ("corda", 4), ("bicl", 2),
    ],
)  # fmt: skip
def test_panels_show_what_a_method_makes(train, camvid, tmp_path, method, rows):
    more = {"corda": with_depth(camvid), "bicl": ["method.warmup=0"]}.get(method, [])
    train("run", f"method={method}", "callbacks.panels=1", "steps=1", *more)
    (panel,) = (tmp_path / "run" / "panels").glob("step_*.png")
    assert panel.name == "step_000001.png"
    height = np.asarray(Image.open(panel)).shape[0]
    assert height == 8 + rows * (22 + 256 + 8)


def test_a_folder_is_named_by_what_was_chosen(tmp_path, cli, camvid):
    assert cli(command.main, *small_run(camvid), "method=source_only", "seed=3", "steps=1").code == 0
    (run,) = tmp_path.glob("outputs/streets2camvid/source_only_daformer_small,*/seed3")
    assert metrics(run)["seed"] == 3


def test_a_dashboard_that_is_not_installed_is_said_in_a_line(camvid, tmp_path, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{name}", False)
    config = configured(*small_run(camvid), "method=source_only", "logger=tensorboard")
    with pytest.raises(UserError, match=r"logger=tensorboard needs tensorboard: pip install '\.\[tensorboard\]'"):
        build_loggers(config, tmp_path)


# ---------------------------------------------------------------------- presets


def test_debug_two_steps_runs_everything_once(camvid, tmp_path):
    given = [o for o in small_run(camvid) if not o.startswith(("steps=", "callbacks.panels="))]
    command.train(configured(*given, "method=dacs", "debug=two_steps"), tmp_path / "run")
    assert metrics(tmp_path / "run")["step"] == 2
    assert len(list((tmp_path / "run" / "panels").glob("step_*.png"))) == 2
    assert len([row for row in log_of(tmp_path / "run") if row[1] == "val/miou"]) == 1


def test_debug_overfit_repeats_the_first_batch_and_validates_as_always(train, tmp_path, monkeypatch):
    seen = []
    losses = SourceOnly.losses
    monkeypatch.setattr(
        SourceOnly, "losses", lambda self, batch: (seen.append(batch["source"]), losses(self, batch))[1]
    )
    train("run", "method=source_only", "debug=overfit", "steps=3")
    assert len(seen) == 3
    for batch in seen[1:]:
        assert torch.equal(batch.image, seen[0].image)
        assert torch.equal(batch.label, seen[0].label)
    assert sum(v is not None for v in metrics(tmp_path / "run")["per_class"].values()) == len(CAMVID)


def test_debug_profiler_says_where_the_time_goes(train, tmp_path):
    train("run", "method=source_only", "debug=profiler", "trainer.deterministic=true", "steps=1")
    (table,) = (tmp_path / "run" / "profile").glob("fit-*")
    assert "run_training_batch" in table.read_text()


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize("method", METHODS)
def test_stopping_and_going_on_changes_nothing(train, camvid, tmp_path, method):
    common = [f"method={method}", "steps=6", "data.rare_class.enabled=false"]
    common += {"bicl": ["method.rounds=2"], "corda": with_depth(camvid)}.get(method, [])
    train("whole", *common)
    train("parts", *common, "trainer.max_steps=3")
    assert metrics(tmp_path / "parts")["step"] == 3
    train("parts", *common, "resume=last")
    assert_same_training(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    first, second = (metrics(tmp_path / name) for name in ("whole", "parts"))
    assert {**first, "wall_s": 0} == {**second, "wall_s": 0}
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")


def killed_after_save(work: Callable[[], object], step: int) -> None:
    """Do `work`, but die as soon as the checkpoint of `step` is in its place."""
    save = Checkpoints.save_last

    def save_and_die(self: Checkpoints, trainer: pl.Trainer) -> None:
        save(self, trainer)
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save_last = save_and_die  # in a process of its own
    work()


@pytest.mark.parametrize("step", [1, 2, 4])  # after steps 2 and 4 comes a validation
def test_what_a_checkpoint_goes_on_from_is_in_the_log(train, tmp_path, step):
    overrides = ("method=source_only", "callbacks.checkpoints=4")
    train("whole", *overrides)
    process = forked(functools.partial(killed_after_save, functools.partial(train, "killed", *overrides), step))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint(tmp_path / "killed")["global_step"] == step
    rows = log_of(tmp_path / "killed")
    assert {row[0] for row in rows[1:]} == {str(n) for n in range(1, step + 1)}
    assert [row[0] for row in rows if row[1] == "val/miou"] == [str(n) for n in (2, 4) if n <= step]
    train("killed", *overrides, "resume=last")
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "killed")


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(train, tmp_path, caplog):
    common = ("method=dacs", "steps=4", "callbacks.checkpoints=4")
    train("whole", *common)
    train("run", *common, "trainer.max_steps=3")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    train("run", *common, "resume=last")
    assert "trying an earlier one" in caplog.text
    assert_same(checkpoint(tmp_path / "whole")["state_dict"], checkpoint(tmp_path / "run")["state_dict"])


def resumed(folder: Path, config) -> Path | None:
    """The checkpoint that a run with this configuration would go on from there."""
    with run_folder.run_folder(folder, config, config.steps) as place:
        return place.resume


def refused(said: str) -> pytest.RaisesExc[UserError]:
    return pytest.raises(UserError, match=re.escape(said))


def test_what_cannot_be_resumed(train, tmp_path):
    with refused("has no checkpoint to resume"):
        train("empty", "method=dacs", "resume=last")
    train("run", "method=dacs", "steps=1")
    with refused("already holds a run: continue it with resume=last"):
        train("run", "method=dacs")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    again = ("resume=last", "steps=2")
    with refused("is of the method SelfTraining, this run is SourceOnly"):
        train("run", "method=source_only", *again)
    with refused("was trained with method.mask_weight=0.0, this run has 1.0"):
        train("run", "method=dacs", "method.mask_weight=1.0", *again)
    with refused("is of another network"):
        train("run", "method=dacs", "model.head.width=8", *again)
    content = checkpoint(tmp_path / "run")
    content["uda_seg"]["classes"] = "cityscapes"
    torch.save(content, last)
    with refused("predicts the classes of cityscapes"):
        train("run", "method=dacs", *again)
    last.write_bytes(pickle.dumps({"state_dict": os.system}, protocol=2))
    with refused("pickled objects"):
        train("run", "method=dacs", f"resume={last}")
    for name in ("previous", "best"):
        (last.parent / f"{name}.ckpt").write_bytes(b"no checkpoint")
    with refused("has no checkpoint to resume, all are damaged"):
        train("run", "method=dacs", *again)


def test_a_resumed_run_says_what_it_does_otherwise(train, caplog, tmp_path):
    train("run", "method=dacs", "steps=1")
    train("run", "method=dacs", "steps=1", "resume=last", "callbacks.panels=1", "trainer.max_steps=9", "data.workers=0")
    assert not [r for r in caplog.records if r.getMessage().startswith("resumed")]
    train("run", "method=dacs", "steps=2", "resume=last", "optimizer.lr=0.5", "data.target_batch=3")
    [line] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("resumed with different settings")]
    assert line.endswith(": steps=2 (was 1), data.target_batch=3 (was 2), optimizer.lr=0.5 (was 0.001)")
    assert "resumed with 3 target images per step instead of 2: the samplers continue at this position" in caplog.text
    assert checkpoint(tmp_path / "run")["global_step"] == 2  # a finished run that is given more steps takes them
    rates = [group["base_lr"] for group in checkpoint(tmp_path / "run")["optimizer_states"][0]["param_groups"]]
    assert rates == [0.5, 0.5, 2.5]  # the head learns faster
    with refused("the checkpoint's optimiser has other groups of parameters: resume with the same optimizer.name"):
        train("run", "method=dacs", "steps=3", "resume=last", "optimizer.name=sgd", "data.target_batch=3")


def test_a_resumed_run_says_which_domains_are_new_or_gone(caplog, tmp_path):
    night = "+data.more_sources.night={dataset: streets, domain: night_rain, size: [128, 256]}"
    before, now = (composed(["method=dacs", *more]) for more in ([night], ["+data.validation.fog=${data.target}"]))
    write_record(tmp_path, before)
    say_changes(tmp_path / "checkpoints" / "last.ckpt", before)
    assert caplog.records == []
    say_changes(tmp_path / "checkpoints" / "last.ckpt", now)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.endswith("no longer the same run: with data.validation.fog, without data.more_sources.night")


def test_a_run_that_is_stopped_in_its_last_validation_is_saved(train, tmp_path, monkeypatch):
    """Of five steps every second one is followed by a validation; that after the last one is outside of training."""
    score = SourceOnly.validation_step

    def stopped(self, *given):
        if self.trainer.state.fn == "validate":
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, *given)

    monkeypatch.setattr(SourceOnly, "validation_step", stopped)
    with pytest.raises(SystemExit) as end:
        train("run", "method=source_only", "steps=5", "evaluator.times=3", "callbacks.checkpoints=1")
    assert end.value.code == 128 + signal.SIGTERM
    assert checkpoint(tmp_path / "run")["global_step"] == 5


def test_a_run_that_slurm_queued_again_goes_on_with_its_own_checkpoint(train, monkeypatch, tmp_path):
    train("first", "method=source_only", "steps=1")
    begin = f"resume={tmp_path}/first/checkpoints/last.ckpt"
    train("second", "method=source_only", "steps=2", begin)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    config = configured("method=source_only", begin)
    assert resumed(tmp_path / "second", config) == tmp_path / "second/checkpoints/last.ckpt"
    assert resumed(tmp_path / "third", config) == tmp_path / "first/checkpoints/last.ckpt"


@pytest.mark.parametrize("restarts", ["1", "0"])
def test_a_run_that_slurm_queued_again_replaces_the_one_before_all_the_same(restarts, train, monkeypatch, tmp_path):
    """The first time it ends before its first checkpoint, so that the run before it is restored."""

    def preempted(*given):
        raise SystemExit(1)

    train("run", "method=source_only", "steps=1")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceOnly, "training_step", preempted)
        with pytest.raises(SystemExit):
            train("run", "method=source_only", "steps=1", "overwrite=true", "seed=1")
    assert metrics(tmp_path / "run")["seed"] == 0, "restored"
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    train("run", "method=source_only", "steps=1", "overwrite=true", "seed=1")
    assert metrics(tmp_path / "run")["seed"] == 1
    assert not list((tmp_path / "run").glob(".replaced*"))


def test_what_was_killed_before_its_first_checkpoint_can_be_begun_again(train, tmp_path):
    left = tmp_path / "run" / "checkpoints"
    left.mkdir(parents=True)
    (left / ".fresh.ckpt.tmp").write_bytes(b"half of it")
    with refused("has no checkpoint to resume: start the run without resume=last"):
        train("run", "method=source_only", "steps=1", "resume=last")
    train("run", "method=source_only", "steps=1")
    assert metrics(tmp_path / "run")["step"] == 1
    assert not list(left.glob(".*"))


def test_a_finished_run_can_be_resumed_without_harm(train, tmp_path):
    train("run", "method=dacs", "steps=2")
    before, said = checkpoint(tmp_path / "run"), metrics(tmp_path / "run")
    train("run", "method=dacs", "steps=2", "resume=last")
    assert_same_training(before, checkpoint(tmp_path / "run"))
    assert {**metrics(tmp_path / "run"), "wall_s": 0} == {**said, "wall_s": 0}


def test_missing_class_text_is_told_before_any_data_is_touched(train, tmp_path, monkeypatch):
    monkeypatch.setattr(command.UDADataModule, "prepare_data", lambda self: pytest.fail("data came first"))
    with refused("nowhere.npz: no such file of class-text vectors"):
        train("run", "method=lcmsm", f"method.text_file={tmp_path}/nowhere.npz")


def test_overwrite_removes_everything_of_the_run_before(train, tmp_path):
    train("run", "method=dacs", "callbacks.panels=2", "steps=2")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train("run", "method=source_only", "steps=1", "overwrite=true")
    assert not (tmp_path / "run" / "panels").exists()
    assert {row[0] for row in log_of(tmp_path / "run")[1:]} <= {"0", "1"}
    assert (tmp_path / "run" / "notes.txt").exists()


def test_init_starts_from_weights_and_counts_their_images(train, tmp_path, caplog):
    train("before", "method=source_only")
    last = tmp_path / "before" / "checkpoints" / "last.ckpt"
    with caplog.at_level("INFO"):
        train("after", "method=lcmsm", f"init={last}", "optimizer.lr=1e-12", "optimizer.weight_decay=0")
    assert "fresh: heads.language" in caplog.text
    before, after = checkpoint(tmp_path / "before")["state_dict"], checkpoint(tmp_path / "after")["state_dict"]
    for name, tensor in before.items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.allclose(tensor, after[name], atol=1e-9), name
    with caplog.at_level("INFO"):
        start = f"init={tmp_path}/after/checkpoints/last.ckpt"
        train("again", "method=lcmsm", start, "optimizer.lr=1e-12", "seed=1", "steps=1")
    again = checkpoint(tmp_path / "again")["state_dict"]
    assert torch.allclose(after["projection.weight"], again["projection.weight"], atol=1e-9)
    assert caplog.text.count("fresh: ") == 1
    with caplog.at_level("INFO"):
        train("other", "method=lcmsm", "method.text=random", f"init={tmp_path}/after/checkpoints/last.ckpt", "steps=1")
    assert "fresh: projection\n" in caplog.text  # random vectors are wider
    assert metrics(tmp_path / "after")["source_images"] == 16
    assert metrics(tmp_path / "after")["source_images_before"] == 8
    train("third", "method=dacs", f"init={tmp_path}/after/checkpoints/last.ckpt")
    assert metrics(tmp_path / "third")["source_images"] == 24
    with refused("is of another network"):
        train("no", "method=dacs", f"init={last}", "model.head.width=8")


# ---------------------------------------------------------------------- what a checkpoint must not hold


def test_a_checkpoint_holds_values_and_the_student_and_teacher_alone(train, tmp_path):
    train("run", "method=lcmsm", "steps=1")
    content = checkpoint(tmp_path / "run")
    raw = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    assert b"_target_" not in raw
    prefixes = {name.split(".")[0] for name in content["state_dict"]}
    assert prefixes == {"segmentor", "teacher", "projection"}
    assert content["uda_seg"]["source_images"] == 2
    assert not content.get("hyper_parameters")


# ---------------------------------------------------------------------- what goes wrong on the way


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(train, tmp_path, monkeypatch):
    supervise = Segmentor.supervise

    def broken(self, *args, **kwargs):
        result = supervise(self, *args, **kwargs)
        self.steps_seen = getattr(self, "steps_seen", 0) + 1
        if self.steps_seen > 2:
            result.loss = result.loss * float("nan")
        return result

    monkeypatch.setattr(Segmentor, "supervise", broken)
    with refused("source/ce is not finite at step 2"):
        train("run", "method=source_only", "callbacks.checkpoints=4", "logger.log_every=100")
    content = checkpoint(tmp_path / "run")
    assert content["global_step"] == 2
    assert all(t.isfinite().all() for t in content["state_dict"].values())
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_full_disk_keeps_the_checkpoint_of_before(train, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(content, file, *args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with refused("No space left on device; the previous checkpoint is kept, free some space"):
        train("run", "method=source_only", "callbacks.checkpoints=4")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert checkpoint(tmp_path / "run")["global_step"] == 1


def test_a_file_that_the_system_cuts_off_is_no_checkpoint(train, tmp_path, monkeypatch):
    """The same by a limit of the system's on files, from the second checkpoint on."""
    save, (soft, hard) = Checkpoints.save_last, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self, trainer):
        if trainer.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        save(self, trainer)

    monkeypatch.setattr(Checkpoints, "save_last", limited)
    try:
        with refused("the previous checkpoint is kept, free some space"):
            train("run", "method=source_only", "callbacks.checkpoints=4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert checkpoint(tmp_path / "run")["global_step"] == 1


def test_a_log_that_cannot_grow_is_named():
    log = CSVLog(Path("/dev/full"))
    log.opened = True
    with refused("cannot write /dev/full: No space left on device; make room"):
        log.log_metrics({"loss": 1.0}, 1)


def test_an_unreadable_image_that_a_worker_meets_is_named(cli, tmp_path, camvid):
    for path in camvid.rglob("*.png"):
        copy = tmp_path / "damaged" / path.relative_to(camvid)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    bad = tmp_path / "damaged" / "train" / "005.png"
    bad.write_bytes(b"no picture")
    where = (f"data.source.root={tmp_path}/damaged", "data.workers=1", "hydra.run.dir=run")
    finished = cli(command.main, *small_run(camvid), "method=source_only", *where)
    assert f"{bad} cannot be read as an image" in finished.error


# ---------------------------------------------------------------------- sweeps


def test_a_sweep_leaves_a_table_and_outlives_a_failing_job(cli, camvid, tmp_path):
    choices = ["sweep=controls", "hydra.sweeper.params.method='source_only,adabn'", "seed=0", "steps=1"]
    finished = cli(command.main, *small_run(camvid), *choices)
    assert finished.code == 0, finished.err
    folder = tmp_path / "outputs" / "streets2camvid"
    table = (folder / "table.md").read_text()
    assert table.count("\n| ") == 4  # with the header and the line under it
    for name in ("source_only_daformer_small", "adabn_daformer_small"):
        assert name in table
    assert (folder / "table.csv").read_text().count("\n") == 3
    [last] = folder.glob("source_only_*/seed0/checkpoints/last.ckpt")
    before = last.stat().st_mtime_ns
    wider = ["-m", *small_run(camvid), "method=source_only", "seed=0,1", "steps=1"]
    assert cli(command.main, *wider).code == 0
    assert last.stat().st_mtime_ns == before, "a finished run was trained again"
    assert (folder / "table.csv").read_text().count("\n") == 2
    (last.parents[1] / "metrics.json").unlink()
    again = cli(command.main, *wider)
    assert "1 job(s) failed" in again.error
    assert "seed0" in again.error
    assert "already holds a run" in again.error
    assert (folder / "table.md").read_text().count("\n| ") == 3


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def sweep_of(camvid: Path, *choices: str) -> list[str]:
    """A multirun of runs of one step, whose source lies in `data.source.root`."""
    given = [o for o in small_run(camvid) if not o.startswith(("data.source.root=", "model=", "model.", "steps="))]
    return ["-m", *given, *NETWORK, "method=source_only", "steps=1", *choices]


def test_a_sweep_over_roots_has_a_folder_and_a_row_for_each(cli, camvid, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(camvid)
    for more in ((), ("overwrite=true",)):
        finished = cli(command.main, *sweep_of(camvid, "data.source.root=a,b", *more))
        assert finished.code == 0, finished.err
        found = rows(tmp_path / "outputs/streets2camvid/table.csv")
        assert [row["runs"] for row in found] == ["1", "1"]
        assert [row["data.source.root"] for row in found] == ["a", "b"]  # names of so many overrides are cut short
        assert len({row["run"] for row in found}) == 2
        assert len(list(tmp_path.glob("outputs/streets2camvid/*/seed0/metrics.json"))) == 2


def test_a_sweep_over_data_sets_has_one_table(cli, camvid, tmp_path):
    finished = cli(command.main, *sweep_of(camvid, f"data.source.root={camvid}", "data.name=one,two"))
    assert finished.code == 0, finished.err
    found = rows(tmp_path / "outputs/table.csv")
    assert [row["run"].partition("/")[0] for row in found] == ["one", "two"]


def test_jobs_that_share_a_folder_are_told_and_the_first_is_kept(cli, camvid, tmp_path):
    given = sweep_of(
        camvid, f"data.source.root={camvid}", "data.workers=0,1", "overwrite=true", "hydra.sweep.subdir=one"
    )
    finished = cli(command.main, *given)
    assert "1 job(s) failed: " in finished.error
    assert "is the folder of another job of this multirun too" in finished.error
    assert [row["runs"] for row in rows(tmp_path / "outputs/streets2camvid/table.csv")] == ["1"]
    text = (tmp_path / "outputs/streets2camvid/table.md").read_text()
    assert "failed: " in text.splitlines()[-1]


def test_a_failed_job_costs_neither_the_table_nor_the_list_of_failures(cli, camvid, tmp_path, monkeypatch):
    given = sweep_of(camvid, f"data.source.root={camvid}", "seed=0,1,2")
    score = command.collect

    def broken(config, *more):
        if config.seed == 1:
            raise RuntimeError("the second one")
        return score(config, *more) if config.seed == 0 else {"step": 1}

    monkeypatch.setattr(command, "collect", broken)
    finished = cli(command.main, *given)
    [line] = [line for line in finished.err.splitlines() if line.startswith("error: ")]
    assert "1 job(s) failed: " in line
    assert "the second one" in line
    assert "the table lacks 1 of 2 runs" in line
    assert [row["runs"] for row in rows(tmp_path / "outputs/streets2camvid/table.csv")] == ["1"]


def test_a_run_from_other_files_is_another_run(train, camvid, tmp_path):
    train("before", "method=source_only", "steps=1")
    init = f"init={tmp_path}/before/checkpoints/last.ckpt"
    train("run", "method=source_only", "steps=1", init)
    config = configured(*small_run(camvid), "method=source_only", "steps=1", init)
    assert finished(tmp_path / "run", config)
    assert finished(tmp_path / "run", replace(config, resume="last"))
    assert not finished(tmp_path / "run", replace(config, trainer=replace(config.trainer, precision="bf16-mixed")))
    assert not finished(tmp_path / "run", replace(config, init=None))
    train("before", "method=source_only", "steps=1", "seed=1", "overwrite=true")
    assert not finished(tmp_path / "run", config)


def test_a_sweep_that_goes_on_begins_what_was_not_begun(tmp_path, camvid, monkeypatch):
    config = configured(*small_run(camvid), "resume=last")
    with refused("has no checkpoint to resume"):
        resumed(tmp_path / "run", config)
    monkeypatch.setattr(run_folder.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(run_folder.HydraConfig, "get", lambda: SimpleNamespace(mode=RunMode.MULTIRUN))
    assert resumed(tmp_path / "run", config) is None
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    torch.save({"uda_seg": {"choices": {}, "overrides": [], "classes": "camvid"}, "state_dict": {}}, last)
    assert resumed(tmp_path / "run", config) == last


# ---------------------------------------------------------------------- a target that nobody labelled


@pytest.mark.parametrize("nothing", ["~data.validation.target", "data.validation={}", "data.validation=null"])
def test_a_target_without_labels_is_adapted_to_without_scores(cli, camvid, tmp_path, nothing):
    (tmp_path / "unlabelled").mkdir()
    (tmp_path / "unlabelled/train").symlink_to(camvid / "train")
    target = f"data.target.root={tmp_path / 'unlabelled'}"
    more = ("method=dacs", "steps=2", target, "hydra.run.dir=run")
    told = cli(command.main, *small_run(camvid), *more).error
    assert "no folder" in told
    assert "to train without scores: '~data.validation.target'" in told
    finished = cli(command.main, *small_run(camvid), *more, nothing)
    assert finished.code == 0, finished.err
    assert "there are no labels to validate on: metrics.json will have no scores" in finished.out
    said = metrics(tmp_path / "run")
    assert (said["miou"], said["best"], said["teacher"], said["step"]) == (None, None, None, 2)
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert not any(row[1].startswith("val/") for row in log_of(tmp_path / "run"))
    scored = cli(evaluate.main, f"checkpoint={tmp_path}/run/checkpoints/last.ckpt")
    assert "data.validation is empty: there are no labelled images to score on" in scored.error


def test_a_sweep_without_scores_has_a_table_with_dashes(cli, camvid, tmp_path):
    finished = cli(
        command.main, "-m", *small_run(camvid), "~data.validation.target", "method=source_only", "seed=0,1", "steps=1"
    )
    assert finished.code == 0, finished.err
    table = tmp_path / "outputs" / "streets2camvid" / "table.md"
    assert [cell.strip() for cell in table.read_text().splitlines()[-1].split("|")][-4:-1] == ["–"] * 3


def test_statistics_of_the_target_are_taken_without_a_validation_too(train, tmp_path):
    """AdaBN's checkpoint is the same network whether or not it was scored on the way."""
    more = ("method=adabn", "steps=2", "callbacks.checkpoints=1")
    train("scored", *more, "evaluator.times=1")
    assert math.isnan(train("unscored", *more, "data.validation=null"))
    assert_same(*(checkpoint(tmp_path / folder)["state_dict"] for folder in ("scored", "unscored")))


@pytest.mark.parametrize(
    ("there", "native", "accelerator", "expected"),
    [
        (False, False, "auto", "32-true"),  # whatever the CPU can do
        (True, True, "cpu", "32-true"),
        (True, True, "auto", "bf16-mixed"),
        (True, False, "auto", "32-true"),
    ],
)
def test_precision_by_itself_is_float32_on_every_cpu(there, native, accelerator, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert device_precision("auto", accelerator) == expected
    assert device_precision("bf16-mixed", accelerator) == "bf16-mixed"
