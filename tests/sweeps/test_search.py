"""Sweeps that choose settings by themselves: Optuna's trials, how they end, and how a search goes on."""

from __future__ import annotations

import csv
import os
import pickle
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import optuna
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from pytorch_lightning.utilities import rank_zero_only
from test_train import metrics

import slurm_tools
from command_line import configured, small_run
from hydra_plugins.uda_seg_search import Search
from uda_seg import train as command
from uda_seg.callbacks.checkpoint import Checkpoints
from uda_seg.cli.command import _job, check
from uda_seg.config.compose import composed
from uda_seg.config.naming import variant
from uda_seg.config.schema import CONF
from uda_seg.config.settings import Config
from uda_seg.errors import UserError
from uda_seg.launch.ranks import on_all_ranks
from uda_seg.methods.source_only import SourceOnly
from uda_seg.storage.slurm import requeue_signal, slurm_job
from uda_seg.sweeps.outcomes import SILENT, Jobs
from uda_seg.sweeps.search import default_space, overrides, split
from uda_seg.sweeps.study import held, open_study
from uda_seg.sweeps.table import TRIALS, job_of


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_ranges_are_written_as_hydra_writes_them():
    given = ["steps=3", "a=tag(log,interval(1e-4,1e-2))", "b=0.1,0.3", "c=int(interval(1,5))", "++d=x,y", "b=0.2,0.4"]
    fixed, space = split(given)
    assert fixed == ["steps=3"]
    assert space == {
        "a": FloatDistribution(1e-4, 1e-2, log=True),
        "b": CategoricalDistribution(["0.2", "0.4"]),
        "c": IntDistribution(1, 5),
        "++d": CategoricalDistribution(["x", "y"]),
    }
    with pytest.raises(UserError, match=re.escape("a=interval(2,1)")):
        split(["a=interval(2,1)"])


def test_an_option_that_no_file_sets_is_added_once(tmp_path):
    trial = optuna.trial.create_trial(
        params={"++method.centre_text": "true", "model": "vit"},
        distributions={name: CategoricalDistribution(["true", "vit"]) for name in ("++method.centre_text", "model")},
        value=0.0,
    )
    assert overrides(trial, tmp_path, resumed=False)[:2] == ["++method.centre_text=true", "model=vit"]


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("source_only", set()), ("dacs", set()), ("mic", {"mask_weight", "feature_distance"}),
        ("lcmsm", {"mask_weight", "feature_distance"}),
        ("bicl", {"target_weight", "forward_weight", "backward_weight"}), ("corda", {"source_depth", "mixed_depth"}),
        ("t2sda", {"pull_weight", "feature_distance"}),
        ("t2sda_dacs", {"pull_weight"}),
    ],
)  # fmt: skip
def test_without_ranges_the_learning_rate_and_the_weights_that_are_on_are_searched(method, weights):
    config = configured(*small_run(Path("data")), f"method={method}")
    space = default_space(config, 2.0)
    assert space.keys() == {"optimizer.lr", *(f"method.{name}" for name in weights)}
    for key, found in space.items():
        value = config.optimizer.lr if key == "optimizer.lr" else config.method[key.removeprefix("method.")]
        assert found == FloatDistribution(value / 2, value * 2, log=True)
    with pytest.raises(UserError, match="leaves nothing to search"):
        default_space(config, 1.0)


@pytest.fixture
def search(cli, camvid, tmp_path):
    """`search(*overrides)`: a search over tiny runs, with its end; its folder is `found`, or with "" its own."""

    def search(*overrides: str, folder: str = "found"):
        given = ("-m", "sweep=optuna", "method=source_only", "steps=1", *overrides)
        given += (f"hydra.sweep.dir={folder}",) if folder else ()
        return cli(command.main, *small_run(camvid), *given)

    return search


def test_a_search_names_its_best_trial_and_is_widened(search, tmp_path):
    finished = search("hydra.sweeper.trials=2", folder="")
    assert finished.code == 0, finished.err
    [found] = tmp_path.glob("outputs/*/search/source_only_*")
    rows = rows_of(found)
    assert [row["trial"] for row in rows] == ["trial000", "trial001"]
    rates = [float(row["optimizer.lr"]) for row in rows]
    assert len(set(rates)) == 2
    configured_rate = configured(*small_run(tmp_path)).optimizer.lr
    assert all(configured_rate / 3 <= rate <= configured_rate * 3 for rate in rates)
    for row, rate in zip(rows, rates, strict=True):
        assert float(row["miou"]) == metrics(found / row["trial"])["miou"]
        assert metrics(found / row["trial"])["lr"] == rate
    best = max(rows, key=lambda row: float(row["miou"]))
    assert f"**best: {best['trial']}, miou" in (found / "table.md").read_text()
    assert f"best: {best['trial']}, miou" in finished.err + finished.out
    before = {path: path.stat().st_mtime_ns for path in found.glob("trial*/metrics.json")}
    assert search("hydra.sweeper.trials=3", "trainer.precision=32-true", folder="").code == 0
    assert len(rows_of(found)) == 3
    assert rows_of(found)[:2] == rows
    assert rows_of(found)[2]["optimizer.lr"] not in {row["optimizer.lr"] for row in rows}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with pytest.raises(UserError, match="holds another search"):
        open_study(found, ["steps=2"], "miou", "maximize", False)
    with pytest.raises(UserError, match=r"hydra\.sweeper\.direction=upwards: choose maximize or minimize"):
        open_study(found, [], "miou", "upwards", False)


def test_a_trial_that_fails_is_told_as_failed_and_one_that_was_stopped_goes_on(search, tmp_path, monkeypatch):
    """The second fails, the third is stopped after its first step; then the same command again."""
    losses, steps = SourceOnly.losses, []

    def sometimes(self, batch):
        steps.append((self.plan.optimizer.lr, self.trainer.global_step))
        if len({rate for rate, _ in steps}) == 2:
            raise UserError("the data of this trial are gone")
        return losses(self, batch)

    def stopped(self, trainer):
        save(self, trainer)
        if len({rate for rate, _ in steps}) == 3 and trainer.global_step == 1:
            raise SystemExit(143)

    save = Checkpoints.save_last
    monkeypatch.setattr(SourceOnly, "losses", sometimes)
    monkeypatch.setattr(Checkpoints, "save_last", stopped)
    given = ("hydra.sweeper.trials=3", "steps=2", "callbacks.checkpoints=2", "hydra.sweeper.objective=pixel_accuracy")
    first = search(*given)
    assert first.code != 0
    states = [trial.state for trial in study_in(tmp_path / "found").trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]
    done = len(steps)
    second = search(*given)
    assert second.code == 0, second.err
    assert [step for _, step in steps[done:]] == [1], "it goes on after the step that was saved"
    trials = study_in(tmp_path / "found").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    for number in (0, 2):
        assert trials[number].value == metrics(tmp_path / "found" / f"trial00{number}")["pixel_accuracy"]
    assert [row["state"] for row in rows_of(tmp_path / "found")] == ["complete", "failed", "complete"]
    assert rows_of(tmp_path / "found")[1]["pixel_accuracy"] == ""


def test_a_search_is_replaced_by_one_that_succeeds_alone(tmp_path):
    space = {"optimizer.lr": FloatDistribution(0.0, 1.0)}
    study = open_study(tmp_path, [], "miou", "maximize", False)
    study.tell(study.ask(space), 0.5)
    before = (tmp_path / TRIALS).read_bytes()
    for value in (None, 0.1):
        with held(tmp_path):
            anew = open_study(tmp_path, [], "miou", "maximize", True)
            assert not anew.trials
            anew.tell(anew.ask(space), value, state=TrialState.FAIL if value is None else None)
        assert ((tmp_path / TRIALS).read_bytes() == before) == (value is None)
    assert [trial.value for trial in open_study(tmp_path, [], "miou", "maximize", False).trials] == [0.1]
    assert [path.name for path in tmp_path.iterdir()] == [TRIALS]


def test_two_searches_in_one_folder(tmp_path):
    with (
        held(tmp_path),
        pytest.raises(UserError, match=r"is in use by a search on .*hydra\.sweep\.dir="),
        held(tmp_path),
    ):
        pass


def test_a_file_that_is_no_search_is_kept(tmp_path):
    (tmp_path / TRIALS).write_text("of the project")
    open_study(tmp_path, [], "miou", "maximize", True)
    assert (tmp_path / f"{TRIALS}.damaged").read_text() == "of the project"


def test_a_search_cannot_go_on_with_another_list_of_choices(search, tmp_path):
    few, more = "optimizer.lr=0.01,0.02", "optimizer.lr=0.01,0.02,0.03"
    assert search(few, "hydra.sweeper.trials=1").code == 0
    for given in (more, "optimizer.lr=interval(0.01,0.02)"):
        said = search(given, "hydra.sweeper.trials=2").error
        assert "found holds a search of optimizer.lr in {0.01, 0.02}, which cannot go on" in said
    study_in(tmp_path / "found").ask({"seed": IntDistribution(0, 9)})  # a trial of another search that was killed
    assert search(few, "hydra.sweeper.trials=3").code == 0
    assert [row["state"] for row in rows_of(tmp_path / "found")] == ["complete", "failed", "complete"]


def test_a_search_for_a_score_that_runs_will_not_have_is_refused(search):
    said = search("~data.validation.target", "hydra.sweeper.trials=2").error
    assert "hydra.sweeper.objective=miou is a score, but data.validation is empty" in said


def test_a_search_without_labels_says_so(search, tmp_path):
    few = ("hydra.sweeper.trials=1", "evaluator.label_free_images=1")
    finished = search(*few, "hydra.sweeper.objective=label_free/infomax", "~data.validation.target")
    assert finished.code == 0, finished.err
    [row] = rows_of(tmp_path / "found")
    assert float(row["label_free.infomax"]) == metrics(tmp_path / "found" / "trial000")["label_free"]["infomax"]
    assert "(chosen on unlabelled target images)" in (tmp_path / "found" / "table.md").read_text()
    said = search("hydra.sweeper.objective=label_free/snt", folder="other").error
    assert "no label-free score; did you mean label_free/snd?" in said
    said = search("hydra.sweeper.objective=label_free/snd", "hydra.sweeper.direction=minimize", folder="other").error
    assert "higher is better" in said


def test_a_search_that_cannot_succeed_is_given_up(search, tmp_path, monkeypatch):
    def fails(self, batch):
        raise UserError("no luck")

    monkeypatch.setattr(SourceOnly, "losses", fails)
    finished = search("hydra.sweeper.trials=9")
    assert "3 job(s) failed: found/trial000: no luck" in finished.error
    assert len(study_in(tmp_path / "found").trials) == 3
    assert "no trial succeeded" in (tmp_path / "found" / "table.md").read_text()


def test_jobs_on_a_cluster_are_started_as_ranks():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["sweep=slurm", "trainer.devices=4"], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.tasks_per_node, launcher.gpus_per_node, launcher.nodes) == (4, 4, 1)
    assert (config.trainer.strategy, config.trainer.devices) == ("ddp", 4)


def test_what_is_not_installed_is_named(capfd, monkeypatch):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "submitit_slurm.yaml")
    with pytest.raises(UserError, match=r"sweep=slurm needs submitit: pip install '\.\[sweep\]' in the checkout"):
        check(["sweep=slurm"])
    monkeypatch.delitem(sys.modules, "uda_seg.sweeps.search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit):
        Search().sweep([])
    assert capfd.readouterr().err == "error: sweep=optuna needs optuna: pip install '.[sweep]' in the checkout\n"


def test_outcomes_of_jobs_in_other_processes_come_back(tmp_path, monkeypatch):
    """As a launcher that is not Hydra's own sends the command and its `Jobs`."""
    monkeypatch.chdir(tmp_path)
    jobs = Jobs()
    assert pickle.loads(cloudpickle.dumps(_job(Config, job_of(on_all_ranks(command.train)), jobs))).__name__ == "job"
    copy = pickle.loads(pickle.dumps(jobs))

    def note(number: int, rank: int, **said) -> None:
        node = SimpleNamespace(sweep=SimpleNamespace(dir="sweep"), job=SimpleNamespace(num=number))
        monkeypatch.setattr(HydraConfig, "get", lambda: node)
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        copy.note(tmp_path / "sweep" / str(number), **said)

    for number in range(3):
        for rank in range(2):
            note(number, rank, error=SILENT)
    note(0, 1, result=0.25)
    note(0, 0, result=0.5)
    note(1, 1, error="no disk")
    found = jobs.outcomes()
    assert [(o.name, o.result, o.error) for o in found] == [
        ("sweep/0", 0.5, None), ("sweep/1", None, "no disk"), ("sweep/2", None, SILENT),
    ]  # fmt: skip
    assert {o.sweep for o in found} == {str(tmp_path / "sweep")}
    jobs.forget()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_jobs_of_slurm_are_queued_again_and_the_summary_has_them(cli, camvid, tmp_path, monkeypatch):
    """Two ranks each; the first job fails for want of depth, the second is stopped by its time limit once."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (tools / name).write_text(f"#!{sys.executable}\n{Path(slurm_tools.__file__).read_text()}")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("UDA_SEG_TEST_SIGNAL", f"1={tmp_path}/out/source_only/checkpoints/*.ckpt")
    given = (
        "-m",
        "sweep=slurm",
        "trainer.accelerator=cpu",
        "hydra.launcher.gpus_per_node=null",
        "hydra.sweep.dir=out",
        "trainer.timeout=120",
    )
    subdir = "hydra.sweep.subdir=${hydra:runtime.choices.method}"
    run = [o for o in small_run(camvid, 30) if o != "trainer=cpu"]
    finished = cli(command.main, *run, *given, subdir, "method=corda,source_only", "callbacks.checkpoints=30")
    assert "1 job(s) failed: out/corda: " in finished.error
    assert "depth" in finished.error
    assert (tools / "asked").read_text() == "4100_1\n"
    assert (tools / "4100_1.log").read_text().count(" global batch: ") == 2, "one rank speaks, in each of two lives"
    assert metrics(tmp_path / "out" / "source_only")["step"] == 30
    assert metrics(tmp_path / "out" / "source_only")["source_images"] == 30 * 2 * 2
    assert (tmp_path / "out" / "table.md").read_text().count("\n| ") == 3
    assert not list(tmp_path.glob(".jobs-*"))


def test_the_signal_and_the_name_of_a_job_of_slurm(monkeypatch):
    for name in ("SUBMITIT_EXECUTOR", "SUBMITIT_PREEMPT_SIGNAL", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert (requeue_signal(), slurm_job()) == (signal.SIGUSR1, "12")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert (requeue_signal(), slurm_job()) == (signal.SIGUSR2, "10_2")


# ---------------------------------------------------------------------- Weights & Biases


def drawn(parameters: dict, last: bool) -> dict[str, object]:
    """A value of each parameter: the first or the last that a sweep of W&B can take."""
    values = {}
    for name, parameter in parameters.items():
        if "value" in parameter:
            values[name] = parameter["value"]
        elif "values" in parameter:
            values[name] = parameter["values"][-1 if last else 0]
        else:
            values[name] = parameter["max" if last else "min"]
    return values


def expanded(command: list[str], values: dict[str, object]) -> list[str]:
    """As `wandb agent` fills in a command: a word that is a macro becomes that macro's words."""
    macros = {
        "env": ["/usr/bin/env"],
        "args": [f"--{name}={value}" for name, value in values.items()],
        "args_no_hyphens": [f"{name}={value}" for name, value in values.items()],
    }
    return [word for part in command for word in (macros[part[2:-1]] if part.startswith("${") else [part])]


@pytest.mark.parametrize("last", [False, True])
def test_what_a_sweep_of_wandb_calls_is_a_run(last):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args  # takes a second, which not all tests pay

    sweep = yaml.safe_load((CONF.parent / "sweeps" / "wandb.yaml").read_text())
    values = drawn(sweep["parameters"], last)
    called = expanded(sweep["command"], values)
    assert called[:4] == ["/usr/bin/env", "python", "-m", sweep["program"]]
    assert called[3] == command.__name__
    arguments = {"args": {name: {"value": value} for name, value in values.items()}}
    assert called[4:] == create_sweep_command_args(arguments)["args_no_hyphens"]
    config = composed(check(called[4:]))
    assert config.method["_target_"].endswith("LCMSM")
    assert config.logger.kind == "wandb"
    for name in ("optimizer.lr", "method.mask_weight", "teacher.alpha"):
        found = config
        for part in name.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        assert found == values[name]
    assert variant(called[4:])  # trials have folders of their own
