"""Test that what a call would ignore is refused, and what looks alike is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uda_seg import train
from uda_seg.cli.arguments import given_path, read_arguments
from uda_seg.cli.command import check
from uda_seg.cli.idle import refuse_places, refuse_training_options, refuse_two_ends
from uda_seg.errors import UserError


def places(*words: str) -> None:
    said = read_arguments(words)
    refuse_places(said)
    refuse_two_ends(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "hydra.run.dir=x", "seed=0,1"], "with -m say hydra.sweep.dir=FOLDER"),
        (["hydra.sweep.dir=x"], "hydra.sweep.dir= is of several runs: add -m"),
        (["hydra.sweep.subdir=x"], "or say hydra.run.dir=FOLDER"),
        (["-m", "hydra.job.chdir=true"], "hydra.job.chdir=true: relative folders"),
        (["resume=last", "overwrite=true"], "resume=last continues a run and overwrite=true replaces it"),
    ],
)
def test_a_folder_that_would_not_be_used_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        places(*words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["hydra.run.dir=x", "resume=last"],
        ["-m", "hydra.sweep.dir=x", "overwrite=true", "resume=last"],
        ["sweep=benchmark", "hydra.sweep.dir=x"],
        ["hydra.mode=RUN", "hydra.sweep.dir=x", "hydra.run.dir=y", "overwrite=true", "resume=last"],  # a job of a sweep
        ["hydra.job.chdir=false", "resume=null", "overwrite=true"],
    ],
)
def test_a_folder_that_is_used_is_not(words: list[str]) -> None:
    places(*words)


def test_windows_need_an_evaluator_that_slides() -> None:
    with pytest.raises(
        UserError, match=r"evaluator.window= has no effect with evaluator.inference=whole: add evaluator"
    ):
        check(["evaluator.window=[64,64]"])
    with pytest.raises(UserError, match=r"data.shards.cache_gb= has no effect with data.reader=files"):
        check(["data.shards.cache_gb=3"])
    check(["evaluator.window=[64,64]", "evaluator=slide"])
    check(["evaluator.window=[64,64]", "evaluator=whole,slide"])
    check(["evaluator.window=[64,64]", "evaluator.inference=slide"])
    check(["evaluator.window=[64,64]"], typed={"evaluator.flip"})  # of a checkpoint


def test_what_a_dashboard_takes_needs_one() -> None:
    with pytest.raises(UserError, match=r"logger.project= has no effect with logger.kind=csv: add logger=wandb"):
        check(["logger.project=mine"])
    with pytest.raises(UserError, match=r"logger.offline= has no effect with logger.kind=tensorboard"):
        check(["logger=tensorboard", "logger.offline=true"])
    with pytest.raises(UserError, match=r"logger.pictures= has no effect .* logger=wandb or logger=tensorboard"):
        check(["logger.pictures=2"])
    check(["logger.pictures=2", "logger=tensorboard"])
    check(["logger.tags=[a]", "logger=wandb", "logger.mode=offline", "logger.log_every=5"])
    check(["logger.group=a", "logger.kind=wandb"])
    check(["logger.log_every=5"])


def test_a_trained_network_has_options_of_its_own() -> None:
    refuse_training_options(
        ["data=streets", "evaluator.flip=true", "trainer=cpu", "callbacks.progress=false", "pretrained=x", "seed_=1"]
    )
    refuse_training_options(["optimizer.lr=${oc.env:RATE}"])  # that a checkpoint asks for is given again
    with pytest.raises(UserError, match=r"optimizer\.lr= has no effect on a trained network"):
        refuse_training_options(["++optimizer.lr=1"])


def test_a_misspelt_path_is_told_from_a_missing_one() -> None:
    with pytest.raises(UserError, match="checkpont is no option; did you mean checkpoint"):
        given_path(["checkpont=x", "input=y"], "checkpoint", "usage")
    with pytest.raises(UserError, match="checkpoint= is missing: usage"):
        given_path(["input=y"], "checkpoint", "usage")


def test_a_refused_value_leaves_no_folder(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert "steps=abc is of the wrong type" in cli(train.main, "steps=abc").error
    assert "trainer.precision=32 is none of auto, 32-true, bf16-mixed" in cli(train.main, "trainer.precision=32").error
    null = cli(train.main, "data.target=null", "method=source_only").error
    assert "is taken from data.target.domain, but data.target is null: give data.validation.target.domain=" in null
    assert not (tmp_path / "outputs").exists()
