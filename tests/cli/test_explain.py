"""`--help` on options: values, defaults, ranges and sources, under the class that defines them."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from uda_seg import train
from uda_seg.cli.explain import WIDTH, explain, parts
from uda_seg.config.compose import composed
from uda_seg.methods.options.t2sda import T2SDAOptions


def option(page: str, name: str) -> tuple[str, str]:
    """The line of an option and the text below it."""
    found = re.search(rf"(?m)^  {name} = (.*)\n((?:      .*\n?)*)", page)
    assert found, f"{name} is not explained"
    return " ".join(found[1].split()), " ".join(found[2].split())


def test_a_methods_options_are_explained_its_own_first(cli):
    finished = cli(train.main, "method=t2sda", "method.temperature=0.3", "--help")
    assert (finished.code, finished.err) == (0, "")
    assert finished.out.startswith("method=t2sda: uda_seg.methods.t2sda.T2SDA\n\nT2SDAOptions: ")
    assert option(finished.out, "queries") == (
        "64 whole number, between 1 and 65536",
        "Pixels drawn per class and image (ours), so 128 at the usual two images.",
    )
    assert option(finished.out, "temperature")[0].startswith("0.3 (default 0.2) number")
    assert option(finished.out, "feature_distance")[0].startswith("0.005 (default 0.0)")  # of the method's file
    assert finished.out.index("T2SDAOptions: ") < finished.out.index("SelfTrainingOptions: ")
    assert all(finished.out.count(f"\n  {field.name} = ") == 1 for field in fields(T2SDAOptions))
    assert max(map(len, finished.out.splitlines())) <= WIDTH


def test_another_part_is_explained_with_what_the_data_sets(cli):
    finished = cli(train.main, "--help", "optimizer", "data=streets")
    assert finished.out.startswith("optimizer\n\nOptimizerSettings: ")
    assert option(finished.out, "lr")[0].startswith("0.001 (default 6e-05) number")
    assert " data.source, " in finished.out  # what else can be explained


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=t2sad", "--help"), "error: method=t2sad: there is no such method; did you mean t2sda?"),
        (("method=t2sda", "method.quries=3", "--help"), "did you mean method.queries?"),
        (("--help", "optimiser"), "error: --help optimiser: there is no such part; did you mean optimizer?"),
        (
            ("--help", "quirks"),
            "error: --help quirks: quirks is chosen among files, which --help alone lists: quirks=NAME",
        ),
        (("--help", "depth.lr"), "error: --help depth.lr: depth.lr is read by uda_seg.depth, not by uda_seg.train"),
        (("--help", "optimizer.lrr"), "error: --help optimizer.lrr: there is no such part"),
    ],
)
def test_what_there_is_not_is_answered_in_a_line(cli, words, said):
    finished = cli(train.main, *words)
    assert finished.code == 1
    assert said in finished.error
    assert finished.err.count("\n") == 1


def test_every_part_and_option_can_be_explained():
    config = composed(["method=source_only", "data=streets2dg"])
    for part in parts(config):
        assert explain(config, part).startswith(part)
    page = explain(config, "data.target")  # which is null: its options with their defaults
    assert option(page, "split")[0] == "train text"
    assert option(explain(config, "optimizer.lr"), "lr")[0].startswith("0.001 (default 6e-05)")
    widths = option(explain(config, "model.encoder"), "widths")
    assert "list of 4: whole number, between 2 and 8192" in widths[0]
    assert widths[1]  # from the class's `Args:`
