"""Whatever is written behind a command is accepted, or refused in one line that names it; what is accepted trains."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from command_line import Everything, composed_once, composition, small_run, with_depth
from override_cases import keys, near, words
from uda_seg import train
from uda_seg.cli import command
from uda_seg.cli.arguments import parsed, read_arguments
from uda_seg.config import compose as composing
from uda_seg.config.schema import Config, groups, parse
from uda_seg.errors import UserError
from uda_seg.errors.known import user_error

CHOICES = (
    ("method=lcmsm",),
    ("method=corda", "model=deeplabv2_r101"),
    ("method=t2sda", "model=hrda_small"),
    ("method=bicl", "model=segformer_mitb5"),
    ("method=mic", "data=custom"),
    ("method=dacs", "data=gta2cs", "model=timm"),
)
SECONDS = 20  # of a processor, for one command line: far more than any takes


def accepted(choices: tuple[str, ...], given_words: list[str]) -> Config | None:
    """What a command makes of words, as `command.run` goes about it; None where several runs would follow."""
    said = read_arguments([*choices, *given_words])
    command.refuse_two_weights(said.overrides)
    checked = command.check(said.overrides, Everything, said.folder, said.multirun)
    overrides = parsed(checked)
    if any(o.is_sweep_override() or o.key_or_group.startswith("hydra") for o in overrides):
        return None
    chosen = tuple(str(o.input_line) for o in overrides if o.key_or_group in groups() and not o.is_delete())
    # Composing takes half a second and is the same for all overrides of keys, which come on top of it by Hydra's hand.
    try:
        tree = composition(chosen).copy()
        OmegaConf.set_struct(tree, True)
        ConfigLoaderImpl._apply_overrides_to_config([o for o in overrides if str(o.input_line) not in chosen], tree)
    except HydraException as error:
        raise composing.as_user_error(error) from error
    return parse(tree, Everything)


def names(line: str, given_words: list[str]) -> bool:
    """Whether a line names one of the keys, the flag or the word that it is about."""
    said = [word.lstrip("+~").partition("=")[0].partition("@")[0].split(".") for word in given_words]
    parts = {part for key in said for part in (key[-1], *(".".join(key[:end]) for end in range(1, len(key) + 1)))}
    return any(part in line for part in parts if part)


def tried(cases: int) -> Counter[str]:
    """Try so many command lines; returns how many were accepted and refused."""
    counts: Counter[str] = Counter()

    @settings(
        max_examples=cases, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        choices = data.draw(st.sampled_from(CHOICES))
        given_words = data.draw(words(keys(choices)))
        counts["command lines"] += 1
        counts["overrides"] += len(given_words)
        begun = time.process_time()
        try:
            accepted(choices, given_words)
        except UserError as error:
            line = str(error)
            counts["refused"] += 1
        else:
            line = ""
            counts["accepted"] += 1
        assert not line or names(line, given_words), (given_words, line)
        assert "\n" not in line, line
        assert len(line.encode()) < 1000, line
        assert time.process_time() - begun < SECONDS, given_words

    one()
    return counts


@pytest.fixture(autouse=True)
def composed_as_before(monkeypatch):
    """A choice of files is composed once."""
    monkeypatch.setattr(command, "_compose", composed_once)


def summed(counts: Counter[str]) -> str:
    """The counts as they are told at the end of the tests; a traceback fails the test."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) + ", 0 tracebacks"


def test_every_override_is_accepted_or_refused_in_a_line(record_property):
    record_property("fuzz", summed(tried(100)))


@pytest.mark.slow
def test_thousands_of_overrides_are_accepted_or_refused_in_a_line(record_property):
    record_property("fuzz", summed(tried(4000)))


# ---------------------------------------------------------------------- what is accepted trains

METHODS = ("source_only", "dacs", "mic", "lcmsm", "t2sda", "bicl", "corda")
# Not a matter of one short training on files: other commands', what a machine has, and what only costs time or memory.
ELSEWHERE = (
    *("bench.", "convert.", "depth.", "export", "input", "official", "out", "pack.", "predict.", "streets.", "fix"),
    *("checkpoint", "submission", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.sync_batchnorm", "unpack", "logger.kind", "resume", "model.compile", "data.shards.", "hydra"),
)


def trials(camvid: Path) -> list[tuple[str, str]]:
    """(method, override) of every key that a short training reads, with values near its limits."""
    found = []
    files = [o for o in small_run(camvid) if o.startswith(("data=", "model=", "trainer="))]
    for method in METHODS:
        known = keys((f"method={method}", *files))
        mine = known if method == METHODS[0] else {k: hint for k, hint in known.items() if k.startswith("method.")}
        for key, hint in mine.items():
            if not key.startswith(ELSEWHERE):
                found += [(method, f"{key}={value}") for value in dict.fromkeys(near(hint)) if small(value)]
    return found


def small(value: str) -> bool:
    """Whether a value is of no size that a test has not got the time and memory for."""
    return not any(part.lstrip("-").isdigit() and int(part) > 64 for part in value.strip("[]").split(","))


def trained(camvid: Path, folder: Path, method: str, override: str) -> bool:
    """Train one step and score it; False where that was refused in a line."""
    more = with_depth(camvid) if method == "corda" else []
    given_words = [*small_run(camvid, steps=1), *more, f"method={method}", override]
    try:
        config = accepted((), given_words)
        if config is not None:
            config.trainer.max_steps = 1
            train.train(config, folder)
    except Exception as error:
        if (line := user_error(error)) is None:
            raise AssertionError(f"method={method} {override}") from error
        assert "\n" not in str(line)
        return False
    return True


def trained_sample(camvid: Path, folder: Path, count: int) -> Counter[str]:
    """Train with a seeded sample of single overrides that the schema accepts or nearly does."""
    counts: Counter[str] = Counter()
    chosen = random.Random(0).sample(trials(camvid), count)
    for number, (method, override) in enumerate(chosen):
        torch.manual_seed(0)
        counts["overrides tried in training"] += 1
        counts["trained" if trained(camvid, folder / str(number), method, override) else "refused"] += 1
    return counts


def test_what_is_accepted_trains(camvid, tmp_path, record_property):
    record_property("fuzz", summed(trained_sample(camvid, tmp_path, 8)))


@pytest.mark.slow
def test_all_that_is_accepted_trains(camvid, tmp_path, record_property):
    record_property("fuzz", summed(trained_sample(camvid, tmp_path, 300)))
