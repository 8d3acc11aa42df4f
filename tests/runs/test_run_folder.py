"""A run's folder: nothing is deleted that is not a run's, and no run before the one that replaces it is there."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from test_train import checkpoint, killed_after_save, log_of, metrics, refused, resumed

from command_line import configured, forked, small_run
from uda_seg import train as command
from uda_seg.callbacks.checkpoint import Checkpoints
from uda_seg.errors.known import user_error
from uda_seg.methods.source_only import SourceOnly
from uda_seg.runs.contents import checkpoints_in, in_the_way, own_files, recorded
from uda_seg.runs.folder import REPLACED
from uda_seg.storage.files import part_of
from uda_seg.storage.lock import NAME

RUN = ("method=source_only", "steps=2", "callbacks.checkpoints=2")


@pytest.fixture
def train(camvid, tmp_path):
    """`train(folder, *overrides)`: what the command does once the command line is read."""

    def train(folder: str, *overrides: str) -> float:
        return command.train(configured(*small_run(camvid), *RUN, *overrides), tmp_path / folder)

    return train


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------- nothing is deleted unasked


FOREIGN = {
    "evaluation/notes.md": b"of the project",
    "evaluation/streets/scores.json": b'{"mine": 1}',
    "panels/figure.png": b"of the project",
    "checkpoints/backbone.pth": b"of the project",
    "wandb/settings": b"of the project",
    "profile/page.html": b"of the project",
    "thesis.tex": b"of the project",
}


def test_a_project_folder_keeps_what_it_has(train, tmp_path):
    """As with hydra.run.dir=. in it."""
    run = tmp_path / "run"
    for name, content in FOREIGN.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    train("run")
    with refused("already holds a run"):
        train("run")
    train("run", "overwrite=true")
    assert metrics(run)["step"] == 2
    assert FOREIGN.items() <= contents(run).items()


@pytest.mark.parametrize("name", ["metrics.csv", "run.yaml", "metrics.json", "checkpoints/last.ckpt", "depth.md"])
def test_a_file_of_another_program_is_not_written_over(train, tmp_path, name):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"of another program")
    for overrides in ((), ("overwrite=true",)):
        with refused(f"{file} is in the way, and is not known to be from a run of uda_seg: move it away"):
            train("run", *overrides)
    if name == "checkpoints/last.ckpt":
        with refused("has no checkpoint to resume") as told:
            train("run", "resume=last")
        assert str(told.value).endswith("move them away to begin a run here")
    assert contents(tmp_path / "run") == {name: b"of another program"}


def test_a_run_whose_checkpoints_were_moved_is_a_run(train, tmp_path):
    train("run", "callbacks.panels=2")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "kept")
    before = contents(tmp_path / "run")
    with refused("already holds a run, without its checkpoints: restore them to continue it with resume=last"):
        train("run")
    with refused("has no checkpoint to resume: bring its checkpoints back, or replace the run with overwrite=true"):
        train("run", "resume=last")
    assert contents(tmp_path / "run") == before
    train("run", "steps=1", "overwrite=true")
    assert not (tmp_path / "run" / "panels").exists()
    assert metrics(tmp_path / "run")["step"] == 1


def test_records_of_all_versions_are_known(train, tmp_path):
    old = {"overrides": [], "versions": {"python": "3.11"}, "uda_seg": "0.1", "git": "unknown", "config": {"steps": 1}}
    for content in (old, {**old, "overrides": ["a=1"]}):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        assert recorded(tmp_path)
    for text in ("", "a: 1\n", "overrides: []\nconfig: {}\n", "\0"):
        (tmp_path / "run.yaml").write_text(text)
        assert not recorded(tmp_path)
        assert in_the_way(tmp_path) == tmp_path / "run.yaml"


def test_evaluations_are_a_runs_by_what_is_in_them(tmp_path):
    (tmp_path / "run.yaml").write_text("overrides: []\nuda_seg: '1'\nconfig: {}\n")
    scores = {"target": {"miou": 0.5, "per_class": {}, "miou_over": {}}}
    record = {"checkpoint": "a", "network": "student", "submission": "acdc"}
    own = {
        "evaluation/a/scores.json": json.dumps(scores),
        "evaluation/a/scores.md": "",
        "evaluation/a/confusion_target.png": "",
        "evaluation/a/submission/val/submission.json": json.dumps(record),
        "evaluation/a/submission/val/b/c.png": "",
        "evaluation/a/submission/val.zip": "",
        "evaluation/d/depth_metrics.json": json.dumps({"camera": {"abs_rel": 1.0}}),
        "evaluation/d/depth.png": "",
        "wandb/id.txt": "0123456789abcdef",
        "wandb/offline-run-20260101_000000-0123456789abcdef": "",
        "run.yaml": (tmp_path / "run.yaml").read_text(),
    }
    others = {
        "evaluation/a/notes.md": "",
        "evaluation/b/scores.json": "[]",
        "evaluation/b/confusion_target.png": "",
        "evaluation/c/submission/val/submission.json": "{}",
        "evaluation/c/submission/val/c.png": "",
        "wandb/offline-run-20260101_000000-abcdef": "",
    }
    for name, text in (own | others).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "wandb/latest-run").symlink_to("offline-run-20260101_000000-0123456789abcdef")
    assert {str(p.relative_to(tmp_path)) for p in own_files(tmp_path)} == {*own, "wandb/latest-run"}


# ---------------------------------------------------------------------- one run in the place of another


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["init=nowhere.ckpt"], "nowhere.ckpt"),
        (["data.source.root=/nowhere"], "/nowhere"),
        (["data.crop=[64,64]"], "data.crop"),
        (["pretrained=/nowhere.pth", "model.encoder.weights=/nowhere.pth"], "/nowhere.pth"),
    ],
)
def test_a_run_that_cannot_begin_replaces_none(train, tmp_path, overrides, said):
    train("run")
    before = contents(tmp_path / "run")
    with pytest.raises(Exception, match=said) as told:
        train("run", "overwrite=true", *overrides)
    assert user_error(told.value) is not None
    assert contents(tmp_path / "run") == before


def test_a_run_that_fails_before_its_first_checkpoint_gives_the_place_back(train, tmp_path, monkeypatch, caplog):
    train("run", "callbacks.panels=2")
    before = contents(tmp_path / "run")
    monkeypatch.setattr(Checkpoints, "save_last", lambda *_: (_ for _ in ()).throw(OSError("no disk")))
    with pytest.raises(OSError, match="no disk"):
        train("run", "seed=1", "callbacks.panels=1", "evaluator.times=1", "overwrite=true")
    assert contents(tmp_path / "run") == before
    assert "the run that was to be replaced has been restored" in caplog.text


def killed_in(work, name: str, calls: int) -> None:
    """Do `work`, but die at the call of `os.<name>` of this number."""
    real, count = getattr(os, name), 0

    def call(*args, **kwargs):
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, name, call)  # in a process of its own
    work()


KILLS = [("rename", 1), ("rename", 3), ("rename", 5), ("replace", 2), ("replace", 3), ("replace", 4)]


@pytest.mark.parametrize(("name", "calls"), KILLS)
def test_a_kill_while_a_run_is_replaced_loses_neither(train, tmp_path, name, calls):
    train("run")
    before = checkpoint(tmp_path / "run")["state_dict"]
    again = functools.partial(train, "run", "seed=1", "overwrite=true")
    process = forked(functools.partial(killed_in, again, name, calls))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    train("run", "resume=last")
    after = checkpoint(tmp_path / "run")["state_dict"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
    assert metrics(tmp_path / "run")["seed"] == 0
    assert not (tmp_path / "run" / REPLACED).exists()


def test_the_run_before_goes_with_the_first_checkpoint(train, tmp_path):
    train("run")
    again = functools.partial(train, "run", "seed=1", "overwrite=true")
    process = forked(functools.partial(killed_after_save, again, 1))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "run" / REPLACED).exists()
    train("run", "seed=1", "resume=last")
    assert checkpoint(tmp_path / "run")["uda_seg"]["seed"] == 1
    assert not (tmp_path / "run" / REPLACED).exists()
    seen = []
    save = Checkpoints.save_last

    def looked(self, trainer):
        seen.append((tmp_path / "run" / REPLACED).exists())
        save(self, trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save_last", looked)
        train("run", "overwrite=true")
    assert seen == [True, False]


def test_what_was_killed_before_its_first_checkpoint_begins_again_if_it_is_the_same_run(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_last", lambda *_: (_ for _ in ()).throw(OSError("no disk")))
        with pytest.raises(OSError, match="no disk"):
            train("run", "evaluator.times=1")
    assert recorded(tmp_path / "run")
    assert not checkpoints_in(tmp_path / "run")
    with refused("already holds a run, without its checkpoints"):
        train("run", "evaluator.times=1", "seed=1")
    with refused("has no checkpoint to resume: start the run without resume=last"):
        train("run", "evaluator.times=1", "resume=last")
    train("run", "evaluator.times=1", "callbacks.progress=false")
    train("whole", "evaluator.times=1")
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


# ---------------------------------------------------------------------- no advice in a circle


def test_the_only_good_checkpoint_is_taken_whichever_it_is(train, tmp_path, caplog):
    """Also `best.ckpt`, where a run was killed between the first validation and the first `last.ckpt`."""
    train("run")
    folder = tmp_path / "run" / "checkpoints"
    for name in ("last", "previous"):
        (folder / f"{name}.ckpt").unlink(missing_ok=True)
    (folder / "last.ckpt").write_bytes(b"PK damaged")
    config = configured(*small_run(tmp_path), *RUN, "resume=last")
    assert resumed(tmp_path / "run", config) == folder / "best.ckpt"
    (folder / "best.ckpt").write_bytes(b"PK damaged")
    with refused("has no checkpoint to resume, all are damaged") as told:
        train("run", "resume=last")
    assert "replace the run with overwrite=true" in str(told.value)
    assert "without resume" not in str(told.value)
    train("run", "overwrite=true")
    assert metrics(tmp_path / "run")["step"] == 2


def test_a_checkpoint_of_elsewhere_does_not_take_the_place_of_a_run(train, tmp_path):
    train("first")
    train("second")
    begin = f"resume={tmp_path}/first/checkpoints/last.ckpt"
    before = contents(tmp_path / "second")
    with refused("second already holds a run: continue it with resume=last or replace it with overwrite=true"):
        train("second", begin)
    assert contents(tmp_path / "second") == before
    train("second", begin, "overwrite=true", "steps=3")
    assert metrics(tmp_path / "second")["step"] == 3
    assert metrics(tmp_path / "first")["step"] == 2


def test_a_run_of_the_same_settings_is_found_under_another_name(train, tmp_path):
    train("outputs/streets/source_only_small,trainer=cpu/seed0")
    place = tmp_path / "outputs/streets/source_only_small,trainer=cpu/seed0"
    with refused(f"a run of these settings is in {place}: continue it with hydra.run.dir='{place}'"):
        train("outputs/streets/source_only_small/seed0", "trainer.devices=2", "trainer.strategy=auto", "resume=last")


# ---------------------------------------------------------------------- one process in a folder


@pytest.mark.parametrize("overrides", [(), ("resume=last",), ("overwrite=true",)])
def test_a_second_run_beside_a_living_one_is_refused(train, tmp_path, monkeypatch, overrides):
    train("run")
    begin = SourceOnly.on_train_start

    def wait(self):
        begin(self)
        (tmp_path / "begun").touch()
        signal.pause()

    with monkeypatch.context() as patch:
        patch.setattr(SourceOnly, "on_train_start", wait)
        process = forked(functools.partial(train, "run", "steps=3", "resume=last"))
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
    before = contents(tmp_path / "run")
    try:
        with refused(f"{tmp_path / 'run'} is in use by a run on ") as told:
            train("run", *overrides)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert f", process {process.pid}, since " in str(told.value)
    assert str(told.value).endswith("wait for its end, or choose another folder with hydra.run.dir=...")
    assert contents(tmp_path / "run") == before
    train("run", "steps=3", "resume=last")
    assert metrics(tmp_path / "run")["step"] == 3
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_whose_folder_is_taken_ends(train, tmp_path, monkeypatch):
    monkeypatch.setattr("uda_seg.storage.lock.BEAT_S", 0.001)
    begin = SourceOnly.on_train_start

    def taken(self):
        begin(self)
        (tmp_path / "run" / NAME).write_text("{}")
        time.sleep(0.2)

    monkeypatch.setattr(SourceOnly, "on_train_start", taken)
    with refused("was taken over by another process"):
        train("run")
    assert not checkpoints_in(tmp_path / "run")


# ---------------------------------------------------------------------- what a kill leaves


def test_temporary_files_of_dead_processes_go_and_no_others(train, tmp_path):
    run = tmp_path / "run"
    train("run")
    dead = 2**22 - 1
    left = [
        "checkpoints/.fresh.ckpt.tmp",
        f"panels/.step_000001.png.{dead}.tmp",  # as earlier versions wrote them
        f".metrics.json.{dead}.tmp",
        str(part_of(run / "panels/step_000002.png").relative_to(run)).replace(f".{os.getpid()}.", f".{dead}."),
        str(part_of(run / "run.yaml").relative_to(run)).replace(f".{os.getpid()}.", f".{dead}."),
        str(part_of(run / "evaluation/a/scores.md").relative_to(run)).replace(f".{os.getpid()}.", f".{dead}."),
    ]
    kept = [
        "panels/.figure.png.tmp",
        ".notes.tmp",
        str(part_of(run / "evaluation/a/scores.json").relative_to(run)),  # of this process
        "evaluation/a/.scores.json.00000000.7.tmp",  # of a process elsewhere, a moment ago
        "evaluation/a/.notes.tmp",
        "evaluation/a/.notes.7.tmp",
    ]
    old = ["evaluation/a/.scores.md.00000000.7.tmp"]  # of a process elsewhere, long ago
    for name in (*left, *kept, *old):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"half of it")
    for name in (*old, "evaluation/a/.notes.tmp", "evaluation/a/.notes.7.tmp", "panels/.figure.png.tmp"):
        os.utime(run / name, (0, 0))
    train("run", "resume=last")
    assert {str(p.relative_to(run)) for p in run.rglob(".*")} == set(kept)


def test_a_kill_while_a_picture_is_written_leaves_nothing_for_ever(train, tmp_path):
    work = functools.partial(train, "run", "callbacks.panels=2", "callbacks.checkpoints=1")
    process = forked(functools.partial(killed_while_written, work, "step_000002.png"))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "run" / "panels").glob(".step_000002.png.*.tmp"))
    train("run", "callbacks.panels=1", "resume=last")
    assert [p.name for p in (tmp_path / "run" / "panels").iterdir() if p.name.startswith(".")] == []


def killed_while_written(work, name: str) -> None:
    real = os.replace

    def replace(source, target):
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    os.replace = replace  # in a process of its own
    work()
