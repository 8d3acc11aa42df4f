"""What W&B and TensorBoard are shown, read back from the files that they leave."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.wandb_files import offline_runs
from callbacks.wandb_server import WandbServer
from command_line import configured, small_run
from uda_seg import train as command
from uda_seg.callbacks.alarms import Alarms, one_class
from uda_seg.callbacks.dashboards import Ending, Picture, Table, dashboards
from uda_seg.callbacks.tensorboard_log import TensorBoardLog, sheet
from uda_seg.callbacks.validation_board import confusions, shown_size, spread
from uda_seg.callbacks.wandb_log import WandbLog, summary_of
from uda_seg.config.schema import Origin
from uda_seg.data.labels import CAMVID
from uda_seg.errors import UserError
from uda_seg.evaluation.evaluator import Scores, SegmentationEvaluator
from uda_seg.methods.non_finite import NotFinite
from uda_seg.methods.source_only import SourceOnly
from uda_seg.methods.step import Loss
from uda_seg.runs.loggers import about, build_loggers, wandb_mode

ROOT = Path(__file__).parents[2]
STEP = "trainer/global_step"
SHOWN = ("evaluator.times=2", "evaluator.teacher=true", "callbacks.panels=1", "logger.pictures=2")


@pytest.fixture(autouse=True)
def artifacts_wait_in_a_folder_of_their_own(monkeypatch, tmp_path):
    """Files of tables and checkpoints: W&B collects them in the user's home."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))


def overrides(camvid, *more: str) -> list[str]:
    """A run of four steps that is validated twice and shows its last one; later values win."""
    return [*(o for o in small_run(camvid) if not o.startswith("callbacks.panels=")), *SHOWN, *more]


# ---------------------------------------------------------------------- W&B


def test_an_offline_run_of_wandb_holds_all_that_the_dashboard_shows(cli, camvid, tmp_path):
    words = ("method=dacs", "logger=wandb", "logger.offline=true", "logger.tags=[a]", "logger.artifacts=best")
    done = cli(command.main, *overrides(camvid, *words), "hydra.run.dir=run")
    assert done.code == 0, done
    [found] = offline_runs(tmp_path / "run")
    record, scores = (
        yaml.safe_load((tmp_path / "run/run.yaml").read_text()),
        json.loads((tmp_path / "run/metrics.json").read_text()),
    )
    run = found.run
    assert (run.project, run.run_group, run.job_type) == ("uda_seg", "streets2camvid", "dacs")
    assert (list(run.tags), run.display_name.endswith("/run"), found.exit_code) == (["streets2camvid", "a"], True, 0)
    for key in ("git", "versions", "overrides"):
        assert found.config[key] == record[key]
    assert found.config["optimizer"]["lr"] == record["config"]["optimizer"]["lr"]

    # Curves: every value of the CSV file, at its step.
    lines = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()[1:]]
    logged = [(row.get(STEP), name, value) for row in found.history for name, value in row.items()]
    assert lines
    assert all((int(step), name, float(value)) in logged for step, name, value in lines)
    assert {m.step_metric for name, m in found.metrics.items() if name != STEP} == {STEP}
    best = max(row["val/miou"] for row in found.rows("val/miou"))
    assert found.summary["val/miou"] == {"max": best, "last": scores["miou"]}
    [result] = found.rows("result/miou")  # once, for sweeps, which take the best of all values
    assert (result["result/miou"], result["result/best"]) == (scores["miou"], best)
    sweep = yaml.safe_load((ROOT / "sweeps" / "wandb.yaml").read_text())
    assert found.summary[sweep["metric"]["name"]] == scores["miou"]
    losses = [row["train/mix/ce"] for row in found.rows("train/mix/ce")]
    assert found.summary["train/mix/ce"] == {"min": min(losses), "last": losses[-1]}
    assert isinstance(found.summary["train/lr"], float)
    known = {name: value for name, value in scores["per_class"].items() if value is not None}
    last = found.rows(f"val/target/iou/{next(iter(known))}")[-1]
    assert {name: last[f"val/target/iou/{name}"] for name in known} == known

    check_pictures(found, "val/target/images", 2, {"prediction", "label", "teacher"}, (48, 32))
    check_pictures(found, "panels/images", 3, {"prediction", "label", "pseudo-label"}, (32, 32))
    check_tables(found, scores)
    check_view({name for row in found.history for name in row}, found.summary)
    [artifact] = [a for a in found.artifacts if a.type == "model"]
    assert {*artifact.aliases} == {"best", "latest", f"step-{scores['best']['step']}"}
    [file] = artifact.manifest.contents
    assert (file.path, file.size) == ("best.ckpt", (tmp_path / "run/checkpoints/best.ckpt").stat().st_size)
    assert json.loads(artifact.metadata)["chosen on"] == "target labels"


def check_pictures(found, name, count, masks, size):
    """Pictures and their masks are files; a mask's values are classes, whose names W&B has."""
    files = found.file.parent / "files"
    row = found.rows(name)[-1][name]
    assert row["count"] == count == len(row["filenames"]) == len(row["captions"])
    assert {key for entry in row["all_masks"] for key in entry} == masks
    for picture, entry in zip(row["filenames"], row["all_masks"], strict=True):
        assert Image.open(files / picture).size == size
        for mask in entry.values():
            ids = np.asarray(Image.open(files / mask["path"]))
            assert ids.shape == size[::-1]
            assert {*np.unique(ids).tolist()} <= {*range(len(CAMVID)), 255}
    names = {**{str(i): name for i, name in enumerate(CAMVID.names)}, "255": "none"}
    assert all(v["value"] == names for k, v in named(found, name) if k.startswith(name))


def named(found, name):
    """The class labels that W&B keeps in its own part of the configuration."""
    return [
        (entry["key"].removesuffix("_wandb_delimeter_" + entry["key"].rpartition("_")[2]), entry)
        for entry in found.config["_wandb"]["mask/class_labels"].values()
    ]


def check_tables(found, scores):
    [first, last] = found.rows("val/target/table")
    assert (first[STEP], last[STEP]) == (2, 4)
    table = found.table(last, "val/target/table")
    assert table["columns"] == ["image", "mistakes", "number", "mIoU", "wrong", *CAMVID.names]
    assert [row[2] for row in table["data"]] == [0, 4]  # of five images, the first and the last
    for row in table["data"]:
        assert row[3] == pytest.approx(np.mean([value for value in row[5:] if value is not None]))
        assert 0 <= row[4] <= 1
    [*_, last] = found.rows("val/target/per_class_table")
    bars = dict(found.table(last, "val/target/per_class_table")["data"])
    assert bars == scores["per_class"]
    [*_, last] = found.rows("val/target/confusions")
    rows = found.table(last, "val/target/confusions")["data"]
    labelled = sum(row[3] for row in rows) / (1 - scores["pixel_accuracy"])
    assert labelled == pytest.approx(round(labelled), abs=1e-3)
    assert 0.8 * 5 * 32 * 48 < labelled < 5 * 32 * 48  # some pixels have no label


def check_view(logged: set[str], summary):
    """Every panel of the view shows something that the run has logged."""
    build = runpy.run_path(str(ROOT / "scripts" / "wandb_workspace.py"))["workspace"]
    view = build("team", "uda_seg", ["target"])
    panels = [panel for section in view.sections for panel in section.panels]
    names = [name for panel in panels for key in ("y", "media_keys") for name in getattr(panel, key, ())]
    names += [panel.table_name for panel in panels if hasattr(panel, "table_name")]
    names += [panel.query["summaryTable"]["tableKey"] for panel in panels if hasattr(panel, "query")]
    assert len(names) > 10
    assert {*names} <= logged
    for panel in panels:
        wanted = getattr(panel, "metric_regex", None)
        if wanted and not re.search("label_free|diagnostic", wanted):  # which this run has none of
            assert any(re.fullmatch(wanted, name) for name in logged), wanted
    for name in (metric.name for panel in panels for metric in getattr(panel, "metrics", ())):
        curve, kind = name.rsplit(".", 1)
        assert kind in summary[curve]
    assert view._to_model().model_dump_json().count(f'"x_axis":"{STEP}"') > 5  # what is sent to W&B


def test_a_run_at_wandb_ends_with_that_in_its_folder(camvid, tmp_path, monkeypatch):
    """Resumed it goes on there, begun anew it is another; and one that failed does not look finished, and alerts."""
    common = ("method=source_only", "logger=wandb", "logger.offline=true", "callbacks.panels=0", "logger.pictures=0")

    def run(folder: str, *more: str) -> list[tuple[str, int, int]]:
        command.train(configured(*overrides(camvid, *common, *more)), tmp_path / folder)
        return [(run.run.run_id, run.exit_code, len(run.alerts)) for run in offline_runs(tmp_path / folder)]

    [(first, *_)] = run("run", "steps=1")
    assert run("run", "steps=2", "resume=last") == [(first, 0, 0), (first, 0, 0)]
    [(second, *ended)] = run("run", "steps=1", "overwrite=true")
    assert (second != first, ended) == (True, [0, 0])
    bad = lambda self, batch: [Loss("bad", sum(p.sum() for p in self.parameters()) * math.nan)]  # noqa: E731
    monkeypatch.setattr(SourceOnly, "losses", bad)
    with pytest.raises(NotFinite, match="bad is not finite"):
        run("failed")
    assert wandb.run is None
    [failed] = offline_runs(tmp_path / "failed")
    [alert] = failed.alerts
    assert (failed.exit_code, alert.title, alert.level) == (1, "not finite", "ERROR")
    assert "bad is not finite at step 0" in alert.text


@pytest.mark.parametrize(
    ("given", "environment", "mode"),
    [
        ([], None, "online"),
        ([], "offline", "offline"),
        ([], "disabled", None),
        (["logger.offline=true"], None, "offline"),
        (["logger.mode=online"], "offline", "online"),
        (["logger.mode=disabled"], None, None),
    ],
)
def test_where_wandb_writes(given, environment, mode, monkeypatch, camvid, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    config = configured(*small_run(camvid), "method=source_only", "logger=wandb", *given)
    assert wandb_mode(config) == mode
    assert len(build_loggers(config, tmp_path)) == (1 if mode is None else 2)


def test_settings_that_contradict_each_other_are_refused(camvid):
    config = configured(*small_run(camvid), "method=source_only", "logger.offline=true", "logger.mode=online")
    with pytest.raises(UserError, match=r"logger.offline=true and logger.mode=online contradict each other"):
        wandb_mode(config)


def test_an_experiment_and_a_sweep_are_groups(camvid, tmp_path):
    config = configured(*small_run(camvid), "method=dacs", "logger=wandb")
    for chosen, group in (
        ({"experiment": "dacs_gta2cs", "sweep": "optuna"}, "dacs_gta2cs"),
        ({"sweep": "controls"}, "streets2camvid/controls"),
    ):
        config.origin = Origin({"method": "t2sda_dacs", **chosen}, [])
        said = about(config, tmp_path)
        assert (said["group"], said["job_type"]) == (group, "t2sda_dacs")
    config.logger.group = "mine"
    assert about(config, tmp_path)["group"] == "mine"


class Refusing:
    """A run of W&B that keeps what it is told until W&B is gone."""

    def __init__(self, answers: int) -> None:
        self.answers, self.told = answers, []

    def define_metric(self, *_, **__) -> None:
        pass

    def log(self, values) -> None:
        if len(self.told) == self.answers:
            raise wandb.errors.Error("the service has\nended")
        self.told.append(values)

    def alert(self, **given) -> None:
        self.log(given)

    def finish(self, exit_code) -> None:
        self.told.append(exit_code)


@pytest.mark.parametrize("login", [False, True])
def test_without_login_or_network_the_run_is_written_to_its_folder(login, tmp_path, monkeypatch, caplog):
    asked = []

    def init(mode, **given):
        asked.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("No network.\nTry again.")
        return Refusing(9)

    monkeypatch.setattr(wandb, "login", lambda *, prompt, verify: login and not prompt)
    monkeypatch.setattr(wandb, "init", init)
    logger = WandbLog(tmp_path, "online", project="p")
    logger.log_metrics({"val/miou": 0.5}, 3)
    assert asked == (["online", "offline"] if login else ["offline"]), "W&B would ask for a login"
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "\n" not in line
    why = "No network. Try again." if login else "there is no login"
    for words in (why, str(tmp_path / "wandb"), "wandb sync", "wandb login", "logger.mode=offline"):
        assert words in line
    assert logger.experiment.told == [{"val/miou": 0.5, STEP: 3}]


def test_a_run_outlives_wandb(tmp_path, monkeypatch, caplog):
    run = Refusing(1)
    monkeypatch.setattr(wandb, "init", lambda **given: run)
    logger = WandbLog(tmp_path, "offline")
    for step in range(1, 6):
        logger.log_metrics({"train/lr": 0.1}, step)
    first, last = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "W&B: Error: the service has ended; the run goes on" in first
    assert "3 times in a row; the run goes on without it" in last
    run.answers = 2  # it comes back, which is not noticed before the end
    logger.alert("title", "text", 6)
    logger.close(Ending(failed=False))
    assert run.told == [{"train/lr": 0.1, STEP: 1}, 0]  # it is ended all the same: the next one is another


def test_a_failure_loses_one_thing_alone(tmp_path, monkeypatch, caplog):
    run = Refusing(1)
    monkeypatch.setattr(wandb, "init", lambda **given: run)
    logger = WandbLog(tmp_path, "offline")
    for step in range(1, 9):
        run.answers = len(run.told) + (step % 3 > 0)  # every third one fails
        logger.log_metrics({"train/lr": 0.1}, step)
    assert [values[STEP] for values in run.told] == [1, 2, 4, 5, 7, 8]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2


def test_a_checkpoint_that_is_not_there_is_said(tmp_path, caplog):
    board = WandbLog(tmp_path, "offline", "best")
    board._experiment = SimpleNamespace(finish=lambda exit_code: None, id="x")
    board.close(Ending(False, {}, {"last": (tmp_path / "last.ckpt", 1)}))
    assert "logger.artifacts=best: the run has no such checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("name", "summary"),
    [
        ("val/miou", "max,last"),
        ("val/day/teacher_miou", "max,last"),
        ("val/day/iou/traffic light", "max,last"),
        ("train/mix/ce", "min,last"),
        ("train/lr", None),
        ("diagnostic/confident", None),
    ],
)
def test_what_is_kept_of_a_curve(name, summary):
    assert summary_of(name) == summary


# ---------------------------------------------------------------------- TensorBoard


def test_tensorboard_has_the_same_panels(camvid, tmp_path):
    words = overrides(camvid, "method=source_only", "logger=tensorboard", "callbacks.panels=1")
    command.train(configured(*words), tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0, "tensors": 0, "scalars": 0}).Reload()
    tags = board.Tags()
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    last = board.Scalars("val/miou")[-1]
    assert (last.step, last.value) == (4, pytest.approx(scores["miou"]))
    assert [event.step for event in board.Images("val/target/images")] == [2, 4]
    for name in ("val/target/confusion", "val/target/per_class", "panels/step", "panels/images"):
        image = board.Images(name)[-1]
        assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)
    table = board.Tensors("val/target/table/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert table.splitlines()[0].startswith("| number | mIoU | wrong | sky |")
    assert len(table.splitlines()) == 2 + 2
    assert {"hparams/miou", "hparams/best"} <= {*tags["scalars"]}
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_a_picture_on_tensorboard_has_its_masks_beside_it():
    image = np.full((32, 64, 3), 200, np.uint8)
    assert sheet([Picture(image)]) is image
    label = np.full((32, 64), 3, np.uint8)
    drawn = sheet([Picture(image, "road", {"label": label}, CAMVID)] * 2)
    found = {tuple(pixel) for pixel in drawn.reshape(-1, 3)}
    assert {(200, 200, 200), CAMVID.palette[3]} <= found


def test_a_cell_keeps_its_table_whole(tmp_path):
    board = TensorBoardLog(tmp_path, {})
    board.show_table("t", Table(["a|b", "score"], [["x|y\nz", math.nan]]), 1)
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    text = events.Tensors("t/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["| a\\|b | score |", "| --- | --- |", "| x\\|y z |  |"]


# ---------------------------------------------------------------------- what goes wrong


def scored(confusion) -> Scores:
    """The scores of a validation with this confusion matrix of three classes."""
    evaluator = SegmentationEvaluator(3, ("sky", "road", "car"), range(3))
    for label, row in enumerate(confusion):
        for predicted, pixels in enumerate(row):
            evaluator.update(torch.full((1, 1, pixels), predicted), torch.full((1, 1, pixels), label))
    return evaluator.compute()


ALIVE = scored([[50, 0, 0], [0, 40, 0], [0, 0, 10]])
COLLAPSED = scored([[0, 500, 0], [0, 400, 0], [0, 100, 0]])


def test_a_network_that_predicts_one_class_has_collapsed():
    assert [*one_class("day", ALIVE)] == []
    assert [*one_class("day", COLLAPSED)] == [("day", "100.0 % of the pixels of day are predicted as road")]
    assert [*one_class("day", scored([[5, 5, 0], [0, 990, 0], [0, 0, 0]]))] == []  # there is little else


def test_a_collapse_is_told_once_until_it_has_recovered(caplog, monkeypatch):
    told = []
    board = SimpleNamespace(alert=lambda *given: told.append(given))
    monkeypatch.setattr("uda_seg.callbacks.alarms.dashboards", lambda trainer: [board])
    monkeypatch.setattr("uda_seg.callbacks.alarms.UDAModule", SimpleNamespace)
    checkpoints = SimpleNamespace(best_miou=0.6)
    alarms, trainer = Alarms(checkpoints), SimpleNamespace(is_global_zero=True, global_step=7)

    def validated(miou: float, scores) -> int:
        alarms.on_validation_end(trainer, SimpleNamespace(miou=miou, scores={"day": scores}))
        return len(told)

    assert [validated(0.5, ALIVE), validated(0.29, ALIVE), validated(0.29, ALIVE)] == [0, 1, 1]
    assert [validated(0.5, ALIVE), validated(0.5, COLLAPSED), validated(0.2, COLLAPSED)] == [1, 2, 3]
    assert told[0] == ("collapse", "step 7: mIoU 29.0 % after 60.0 %, the best before", 7)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING][1].endswith("predicted as road")
    checkpoints.best_miou = 0.09  # nothing had been learnt
    assert [validated(0.5, ALIVE), validated(0.01, ALIVE)] == [3, 3]


# ---------------------------------------------------------------------- small things


def test_images_are_spread_over_a_data_set():
    assert spread(range(5), 2) == {0, 4}
    assert spread(range(5), 9) == {0, 1, 2, 3, 4}
    assert spread(range(5), 0) == set()
    assert spread(range(0, 10, 2), 3) == {0, 4, 8}  # the images of one of two ranks


def test_large_images_are_shown_smaller():
    assert shown_size(1024, 2048) == (1024, 512)
    assert shown_size(32, 48) == (48, 32)


def test_confusions_are_rows_without_what_is_right():
    classes = SimpleNamespace(names=("sky", "road", "car"))
    found = [*confusions(np.array([[6, 2, 0], [0, 5, 0], [1, 0, 0]]), classes)]
    assert found == [["sky", "road", 0.25, 2], ["car", "sky", 1.0, 1]]


def test_other_ranks_have_no_dashboard(tmp_path):
    trainer = SimpleNamespace(is_global_zero=True, loggers=[TensorBoardLog(tmp_path, {})])
    assert len(dashboards(trainer)) == 1
    trainer.is_global_zero = False
    assert dashboards(trainer) == []


# ---------------------------------------------------------------------- W&B's own programs, and a server that goes away


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server in W&B's place, and a login there."""
    server = WandbServer()
    for name, value in (("API_KEY", "local-" + 40 * "a"), ("BASE_URL", server.url), ("FINISH_TIMEOUT", "5")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield server
    server.stop()
    wandb.teardown()  # its service knows the server


@pytest.mark.slow
def test_wandb_sync_sends_an_offline_run_with_its_continuation(camvid, tmp_path, server):
    words = overrides(camvid, "method=source_only", "logger=wandb", "logger.offline=true", "logger.tags=[a]")
    command.train(configured(*words, "steps=2"), tmp_path / "run")
    command.train(configured(*words, "steps=4", "resume=last"), tmp_path / "run")
    offline_runs(tmp_path / "run")
    folders = [str(path) for path in sorted((tmp_path / "run/wandb").glob("offline-run-*"))]
    assert len(folders) == 2
    sync = [str(Path(sys.executable).with_name("wandb")), "sync", *folders]
    done = subprocess.run(sync, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = server.run()
    assert (said["project"], said["groupName"], said["jobType"]) == ("uda_seg", "streets2camvid", "SourceOnly")
    assert said["tags"] == ["streets2camvid", "a"]
    assert json.loads(said["config"])["git"]["value"]
    losses = [row[STEP] for row in server.history() if "train/source/ce" in row]
    assert losses == [1, 2, 3, 4]
    assert any("mask/val/target/images" in name for name in server.uploads)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [None, 3, 0])
def test_a_run_does_not_need_the_network_to_the_end(camvid, tmp_path, server, monkeypatch, gone):
    """The server goes away in step three, or was never there."""
    losses = SourceOnly.losses

    def until(self, batch):
        if self.trainer.global_step == gone:
            server.stop()
        return losses(self, batch)

    if gone == 0:
        server.stop()
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    monkeypatch.setattr(SourceOnly, "losses", until)
    words = overrides(camvid, "method=source_only", "logger=wandb")
    began = time.monotonic()
    command.train(configured(*words), tmp_path / "run")
    assert time.monotonic() - began < 120
    assert json.loads((tmp_path / "run/metrics.json").read_text())["step"] == 4
    assert wandb.run is None
    names = [path.name for path in (tmp_path / "run/wandb").iterdir()]
    assert any(name.startswith("offline-run-" if gone == 0 else "run-") for name in names)
    if gone is None:
        assert [row[STEP] for row in server.history() if "val/miou" in row] == [2, 4]
