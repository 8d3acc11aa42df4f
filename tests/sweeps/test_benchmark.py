"""Benchmarks: names and places of jobs, what counts as finished, and processes side by side."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from results.invented import invented
from uda_seg import train
from uda_seg.cli.command import CONF, compose
from uda_seg.config.schema import Config, resolved
from uda_seg.errors import Damaged, Interrupted
from uda_seg.results.result import write_result
from uda_seg.runs.build import build_data, build_module
from uda_seg.runs.record import write_json
from uda_seg.sweeps import benchmark, launcher
from uda_seg.sweeps.benchmark import (
    Job,
    begin,
    expected,
    is_finished,
    is_kept,
    keep,
    read_stored,
    row_of,
    table,
    without_scores,
)
from uda_seg.sweeps.launcher import said_of, write_kept
from uda_seg.sweeps.workers import Workers, choose, claimed, ended_with

Make = Callable[..., Job]


@pytest.fixture(scope="module")
def config() -> Config:
    return compose("method=source_only", "data=streets")


@pytest.fixture
def make(tmp_path: Path, config: Config) -> Make:
    """Make a job of a setting, row and seed in the test's folder."""

    def made(setting: str = "streets", row: str = "dacs", seed: int = 0, **changed: object) -> Job:
        own = replace(config, seed=seed, **changed)  # type: ignore[arg-type]
        place = tmp_path / "results" / "benchmark" / setting / row / f"seed{seed}.json"
        return Job((f"seed={seed}",), own, tmp_path / "runs" / setting / row / f"seed{seed}", place)

    return made


def finish(job: Job, miou: float = 0.5) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "result.json").write_text(json.dumps({"run": "x", "miou": miou, "seed": job.config.seed}))


def record(job: Job) -> None:
    """Write the record that a run begins with, of this package's version and this job's settings."""
    job.folder.mkdir(parents=True, exist_ok=True)
    content = {"overrides": [], "uda_seg": "0", "config": resolved(job.config)}
    (job.folder / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def end(job: Job) -> None:
    """Write what a whole run leaves."""
    record(job)
    finish(job)
    (job.folder / "checkpoints").mkdir(exist_ok=True)
    (job.folder / "checkpoints" / "last.ckpt").touch()
    write_json(job.folder / "metrics.json", {"step": job.config.steps, "seed": job.config.seed, "miou": 0.5})


def test_a_kept_result_counts_as_long_as_settings_and_numbers_are_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()
    assert not is_finished(job)
    finish(job)
    keep(job)
    assert read_stored(job.stored)["miou"] == 0.5
    assert is_finished(make())
    moved = replace(job.config.data, source=replace(job.config.data.source, root="/elsewhere"), workers=3)
    assert is_finished(make(data=moved)), "another machine has its data elsewhere"
    assert not is_finished(make(steps=job.config.steps + 1))
    monkeypatch.setattr(benchmark, "NUMBERS", benchmark.NUMBERS + 1)
    assert not is_finished(make()), "the code computes other numbers now"


def test_the_same_run_under_another_sweep_is_copied_not_trained_again(make: Make, tmp_path: Path) -> None:
    base = make(row="dacs")
    finish(base)
    keep(base)
    place = tmp_path / "results" / "ablate_statistics" / "streets" / "a,b=1" / "seed0.json"
    again = replace(base, stored=place, overrides=("a=/x/b.pt", "seed=0", "sweep=ablate_statistics"))
    other = replace(again, config=replace(base.config, steps=base.config.steps + 1))
    assert not is_finished(replace(other, folder=tmp_path / "runs" / "other"))
    assert is_finished(replace(again, folder=tmp_path / "runs" / "again"))
    mine, other = read_stored(again.stored), read_stored(base.stored)
    own = {"overrides": ["a=b.pt", "seed=0", "sweep=ablate_statistics"], "choices": {"sweep": "ablate_statistics"}}
    assert mine == other | own, "otherwise it would be a row of the benchmark, under the benchmark's name"


def test_a_result_of_other_photographs_is_never_taken(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    job = replace(make(), files="one")
    end(job)
    keep(job)
    assert is_finished(job)
    assert not is_kept(replace(job, files="two"))
    assert not is_finished(replace(job, files="two")), "the run in the folder may be of the first ones too"
    assert "is of other images or labels: it will be replaced" in caplog.text
    assert "overwrite=true" in Workers(1, 1).command(replace(job, files="two"))
    assert "overwrite=true" not in Workers(1, 1).command(job)


@pytest.mark.parametrize("other", ["version", "photographs"])
def test_a_run_in_a_folder_counts_for_what_it_was_begun_for(
    make: Make, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    def now() -> Job:
        return replace(make(), files="two" if other == "photographs" else "one")

    job = replace(make(), files="one")
    begin(job)
    end(job)
    if other == "version":
        monkeypatch.setattr(benchmark, "NUMBERS", benchmark.NUMBERS + 1)
    assert not is_finished(now())
    assert "overwrite=true" in Workers(1, 1).command(now())
    begin(now())
    begin(now())
    assert "overwrite=true" in Workers(1, 1).command(now()), "killed before the earlier run was replaced"
    if other == "photographs":
        assert "resume=last" in Workers(1, 1).command(job), "the earlier photographs are back"
    record(job)
    assert "resume=last" in Workers(1, 1).command(now()), "what is half done goes on"
    assert "resume=last" in Workers(1, 1).command(replace(now(), overrides=("overwrite=true",)))
    assert is_finished(now())


def test_a_run_that_comes_back_after_one_that_was_to_replace_it_counts_for_what_it_is(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(make())
    end(make())
    earlier = (make().folder / "run.yaml").stat()
    monkeypatch.setattr(benchmark, "NUMBERS", benchmark.NUMBERS + 1)
    begin(make())
    record(make())  # of the run that replaces it, which is killed before its first checkpoint
    begin(make())
    os.utime(make().folder / "run.yaml", ns=(earlier.st_atime_ns, earlier.st_mtime_ns))  # the next one gives it back
    assert not is_finished(make())
    assert "overwrite=true" in Workers(1, 1).command(make())
    begin(make())
    assert not is_finished(make())


def test_a_result_that_is_damaged_or_of_other_settings_is_not_kept(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    job = make()
    end(job)
    (job.folder / "result.json").write_text("{")
    assert not is_finished(job)
    assert str(job.folder / "result.json") in caplog.text
    record(make(steps=job.config.steps + 1))
    finish(job)
    with pytest.raises(Damaged, match="of other settings than this job's"):
        keep(job)
    other = make(steps=job.config.steps + 1)
    record(other)
    keep(other)
    assert len(table([other]).rows) == 1
    assert table([job]).rows == ()


def test_a_result_of_an_earlier_version_condemns_the_run_that_no_note_tells_of(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()
    end(job)
    keep(job)
    monkeypatch.setattr(benchmark, "NUMBERS", benchmark.NUMBERS + 1)
    assert not is_finished(make())
    assert "overwrite=true" in Workers(1, 1).command(make())


def test_runs_with_other_depth_maps_are_other_runs_where_depth_is_read(make: Make) -> None:
    corda, dacs = (compose(f"method={method}", "data=streets") for method in ("corda", "dacs"))
    for config, differ in ((corda, True), (dacs, False)):
        target = config.data.target
        assert target is not None
        data = [
            replace(config.data, target=replace(target, depth=depth)) for depth in (None, "maps/stereo", "maps/mono")
        ]
        jobs = [Job((), replace(config, data=own), Path("runs"), Path("kept")) for own in data]
        assert len({job.digest for job in jobs}) == (3 if differ else 1)


def test_a_job_that_another_benchmark_trains_or_has_trained_is_left_to_it(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "uda_seg")
    jobs = [make(row="dacs"), make(row="mic"), make(row="bad")]
    claim = claimed(jobs[0])
    assert claim is not None
    finish(jobs[2])
    keep(jobs[2])
    with claim:
        assert Scripted(1, 1, line=WRITE).run(jobs) == [jobs[0]]
    assert "streets/dacs/seed0 is left to another benchmark: " in caplog.text
    assert [is_kept(job) for job in jobs] == [False, True, True]
    assert Scripted(1, 1, line=WRITE).run(jobs[:1]) == []
    assert not list(jobs[0].folder.parent.glob(".*")), "claims are given back"


def test_equal_errors_are_told_once(make: Make) -> None:
    one, two, three = make(seed=0), make(seed=1), make(row="mic")
    said = said_of({one: "no root", two: "no root", three: "full"})
    assert said == "streets/dacs/seed0, streets/dacs/seed1: no root; streets/mic/seed0: full"


def test_a_file_that_is_no_result_is_trained_again_and_never_taken(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    job = make()
    job.stored.parent.mkdir(parents=True)
    job.stored.write_text('{"run": "x"')
    assert not is_finished(job)
    assert str(job.stored) in caplog.text
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text("[]")
    with pytest.raises(Damaged, match="holds no result of a run"):
        keep(job)


@pytest.mark.parametrize(
    ("overrides", "row"),
    [
        (["sweep=benchmark", "method=dacs", "data=camvid_all", "seed=1"], "dacs"),
        (["method=dacs", "model=hrda_small", "data.target.root=/photos", "steps=50"], "dacs,model=hrda_small,steps=50"),
        (["method=dacs", "trainer=gpu", "trainer.precision=32-true", "data.workers=0"], "dacs"),
        (["method=lcmsm", "method.text=none"], "lcmsm,text=none"),
        (["method=dacs", "++method.mask_weight=1"], "dacs,mask_weight=1"),
        (["method=dacs", "data.rare_class.enabled=False"], "dacs,data.rare_class.enabled=false"),
        (["method=dacs", "data.merge={a:[road]}", "data.target.custom.label_map={1:a}", "data.name=mine"], "dacs"),
        (["method=lcmsm", "method.text_file=/here/clip.npz"], "lcmsm,text_file=clip.npz"),
        (["method=dacs", "model.compile=true", "data.eval_classes=16"], "dacs,data.eval_classes=16"),
    ],
)
def test_a_row_is_named_by_its_method_and_by_what_changes_results(overrides: list[str], row: str) -> None:
    custom = any("custom" in override for override in overrides)
    assert row_of("lcmsm" if "method=lcmsm" in overrides else "dacs", overrides, (), custom) == row


def test_how_a_network_is_executed_makes_no_other_run(make: Make) -> None:
    job = make()
    model = {**job.config.model, "compile": True, "channels_last": True}
    assert make(model=model).digest == job.digest != make(steps=job.config.steps + 1).digest


@pytest.fixture
def planned(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Job]]:
    """Plan a sweep without training, and return its jobs by name."""

    def plan(*overrides: str) -> dict[str, Job]:
        found: list[Job] = []
        monkeypatch.setattr(Workers, "run", lambda workers, jobs: found.extend(jobs) or [])
        quick = ("hydra.launcher.processes=1", "hydra.launcher.threads=1", "hydra.launcher.report=false")
        finished = cli(train.main, "-m", *overrides, *quick, "hydra.launcher.results=kept")
        assert finished.code == 0, finished.err
        return {job.name: job for job in found}

    return plan


def test_every_job_has_a_folder_and_settings_of_its_own(planned: Callable[..., dict[str, Job]]) -> None:
    given = ("sweep=benchmark", "data=streets", "method=source_only", "model=daformer_small,hrda_small", "seed=0,1")
    jobs = planned(*given, "init='start/seed${seed}/last.ckpt'")
    assert len(jobs) == len({job.folder for job in jobs.values()}) == 4
    for name, job in jobs.items():
        assert f"{job.folder}".endswith(f"outputs/benchmark/{name}")
        assert job.config.init == f"start/seed{job.config.seed}/last.ckpt"


def test_every_row_of_an_ablation_is_another_run(planned: Callable[..., dict[str, Job]]) -> None:
    jobs = planned("sweep=ablate_corda", "seed=0")
    assert len(jobs) == len({job.digest for job in jobs.values()}) == 6


@pytest.mark.parametrize("sweep", sorted(path.stem for path in (CONF / "sweep").glob("ablate_*.yaml")))
def test_every_run_of_an_ablation_can_begin(planned: Callable[..., dict[str, Job]], sweep: str) -> None:
    jobs = planned(f"sweep={sweep}", "seed=0").values()
    assert jobs
    for job in jobs:
        build_module(job.config, build_data(job.config)).setup("fit")


@dataclass
class Scripted(Workers):
    """Workers whose processes run a line of Python instead of training."""

    line: str = ""

    def command(self, job: Job) -> list[str]:
        return [sys.executable, "-S", "-c", self.line, str(job.folder), job.folder.parent.name]


WRITE = (
    "import sys, os; folder, row = sys.argv[1:]; os.makedirs(folder, exist_ok=True); "
    "row != 'bad' or sys.exit('error: no such thing'); "
    "open(folder + '/result.json', 'w').write('{\"run\": \"x\", \"miou\": 0.25}')"
)


def test_a_failed_job_is_named_and_does_not_stop_the_others(make: Make) -> None:
    jobs = [make(row="dacs"), make(row="bad"), make(row="mic"), make(row="mic", seed=1)]
    workers = Scripted(2, 1, line=WRITE)
    assert workers.run(jobs) == []
    assert {job.stored.parent.name: error for job, error in workers.failed.items()} == {"bad": "no such thing (code 1)"}
    assert [job.stored.is_file() for job in jobs] == [True, False, True, True]
    shown = {row[0]: row[1] for row in table(jobs).rows}
    assert shown == {"dacs": "25.00 (1)", "mic": "25.00 ± 0.00 (2)"}


def test_a_stopped_run_is_continued_and_one_of_other_settings_is_not(make: Make) -> None:
    job = make()
    assert "resume=last" not in Workers(1, 1).command(job)
    begin(job)
    (job.folder / "checkpoints").mkdir(parents=True)
    (job.folder / "checkpoints" / "last.ckpt").touch()
    record(job)
    assert Workers(1, 1).command(job)[-3:] == ["resume=last", "hydra.mode=RUN", f"hydra.run.dir='{job.folder}'"]
    other = make(steps=job.config.steps + 1)
    scripted = Scripted(1, 1, line=WRITE)
    assert scripted.run([other]) == []
    assert "holds a run of other settings: move it away, or replace it with overwrite=true" in scripted.failed[other]
    assert "resume=last" in Workers(1, 1).command(job), "as before"
    replacing = replace(other, overrides=("overwrite=true",), config=replace(other.config, overwrite=True))
    assert Workers(1, 1).command(replacing).count("overwrite=true") == 1
    (job.folder / "checkpoints" / "last.ckpt").unlink()
    assert "overwrite=true" in Workers(1, 1).command(job), "killed before its first checkpoint"


def test_after_its_minutes_it_ends_its_processes_and_tells_what_is_left(make: Make) -> None:
    jobs = [make(seed=seed) for seed in range(3)]
    workers = Scripted(1, 1, minutes=0.001, line="import time; time.sleep(60)")
    assert workers.run(jobs) == jobs
    assert not workers.failed


def test_a_closed_terminal_ends_it_unless_that_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted), ended_with([]):
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with ended_with([]):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_ctrl_c_it_says_how_to_go_on() -> None:
    with pytest.raises(Interrupted) as caught, ended_with([]):
        raise Interrupted
    assert caught.value.line == "interrupted: runs are saved, the same command continues"


def test_the_report_is_of_all_kept_results_and_lies_with_the_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results, runs = tmp_path / "results" / "benchmark", tmp_path / "outputs" / "benchmark"
    caplog.set_level("INFO", "uda_seg")
    write_kept(results, runs, {})
    assert "no report:" in caplog.text
    for method, quality in (("source_only", 0.5), ("dacs", 0.7)):
        write_result(results / "streets" / method / "seed0.json", invented(method, 0, quality))
    (results / "streets" / "dacs" / "seed1.json").write_text('{\n"run": "x"')
    write_kept(results, runs, {"benchmark": "method=dacs"})
    page = (runs / "report" / "index.html").read_text()
    assert "Difference to source_only" in page
    assert "seed1.json" in page
    assert f"report: {runs / 'report' / 'index.html'}" in caplog.text
    assert [path.name for path in results.iterdir()] == ["streets"]


def test_time_is_expected_from_the_nearest_jobs_that_were_timed(make: Make) -> None:
    dacs, mic, night = make(row="dacs"), make(row="mic"), make("night", "mic")
    took = {make(row="dacs", seed=5): 10.0, make(row="dacs", seed=6): 30.0, make("night", "dacs"): 50.0}
    assert expected([dacs], {}) is None
    assert expected([dacs], took) == 20.0
    assert expected([mic], took) == 20.0
    assert expected([night], took) == 50.0
    assert expected([make("other")], took) == 30.0


def test_scores_that_kept_results_lack_are_told(make: Make, tmp_path: Path) -> None:
    asking = replace(make().config.evaluator, label_free=["infomax", "snd"])
    jobs = [make(seed=seed, evaluator=asking) for seed in (0, 1)]
    for job, scores in zip(jobs, ({"label_free/infomax": 0.5}, {}), strict=True):
        end(job)
        content = {"run": "x", "miou": 0.5, "validations": [{"targets": {"target": scores}}]}
        (job.folder / "result.json").write_text(json.dumps(content))
        keep(job)
    assert without_scores(jobs) == {"infomax": 1, "snd": 2}


@pytest.mark.parametrize(("threads", "at_once"), [("auto", 8), (2, 8), (16, 4), (128, 1)])
def test_a_gpu_is_shared_by_as_many_runs_as_fit_it_and_the_cores(
    make: Make, monkeypatch: pytest.MonkeyPatch, threads: object, at_once: int
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(launcher, "cores", lambda: 64)
    jobs = [make(seed=seed, trainer=replace(make().config.trainer, accelerator="gpu")) for seed in range(9)]
    assert launcher._division(jobs, "auto", threads)[0] == at_once


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["seed=0,abc"], r"seed=abc: give whole numbers from 0 to 2\*\*32 - 1"),
        (["seed=0,-1"], r"seed=-1: give whole numbers"),
        (["seed=0,0"], r"streets/dacs/seed0.json: give each value once"),
        (["seed=0", "model.compile=false,true"], "names do not tell values of model.compile apart; give one of them"),
        (["seed=0", "hydra.launcher.name=gpu/night"], "hydra.launcher.name=gpu/night: give the name of one folder"),
    ],
)
def test_jobs_that_cannot_be_kept_are_refused(cli: Callable[..., Any], overrides: list[str], error: str) -> None:
    given = ("-m", "sweep=benchmark", "data=streets", "method=dacs", "hydra.launcher.results=kept", *overrides)
    refused = cli(train.main, *given)
    assert refused.code == 1
    assert re.search(error, refused.err)


def test_the_division_of_cores_is_the_one_that_trains_most_images() -> None:
    asked: list[tuple[int, int]] = []

    def measure(processes: int, threads: int) -> float:
        asked.append((processes, threads))
        return {1: 1.0, 2: 1.7, 4: 1.5}[processes]

    assert choose(4, measure) == (2, 2)
    assert asked == [(1, 4), (2, 2), (4, 1)]
    assert choose(1, measure) == (1, 1)
