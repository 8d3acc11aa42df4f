"""Combinations of an ablation."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import yaml

from uda_seg.cli.command import CONF
from uda_seg.errors import UserError
from uda_seg.sweeps.combinations import one_at_a_time

SWEEPS = {path.stem: yaml.safe_load(path.read_text())["hydra"] for path in (CONF / "sweep").glob("ablate_*.yaml")}


def product(**values: str) -> list[list[str]]:
    """All combinations, as Hydra's sweeper makes them."""
    listed = [[f"{key.replace('__', '.')}={value}" for value in those.split(",")] for key, those in values.items()]
    return [list(job) for job in itertools.product(*listed)]


def test_one_setting_at_a_time_and_the_base_row_stay() -> None:
    jobs = product(seed="0,1", method__a="1,0", method__b="true,false", method__c="x,y,z")
    left = one_at_a_time(jobs, "method.a=1.0 method.b=true method.c=x", "method.a=0 method.b=false method.c=x")
    rows = (
        "method.a=1 method.b=true method.c=x",
        "method.a=0 method.b=true method.c=x",
        "method.a=1 method.b=false method.c=x",
        "method.a=1 method.b=true method.c=y",
        "method.a=1 method.b=true method.c=z",
        "method.a=0 method.b=false method.c=x",
    )
    assert Counter(" ".join(job[1:]) for job in left) == dict.fromkeys(rows, 2)
    assert left == [job for job in jobs if job in left], "their order stays, by which seeds come last"
    assert one_at_a_time(jobs, None, "method.a=0") == jobs


def test_values_are_compared_as_hydra_reads_them() -> None:
    jobs = [["t='none'", "b=0"], ["t=x", "b=0"], ["t=x", "b=1"]]
    assert one_at_a_time(jobs, "t=none b=0", None) == jobs[:2]
    jobs = [["t=1", "b=0"], ["t=true", "b=1"], ["t=1", "b=1"]]
    assert one_at_a_time(jobs, "t=true b=0", None) == jobs[:2], "1 is not true"


def test_a_row_that_is_asked_for_by_its_overrides_is_trained() -> None:
    far = product(seed="0,1", method__a="0", method__b="false")
    assert one_at_a_time(far, "method.a=1 method.b=true", None) == far


@pytest.mark.parametrize(
    ("around", "said"),
    [
        ("a=5 b=5", "every combination differs from a=5 b=5 in more than one setting"),
        ("nothing", "hydra.launcher.around=nothing is not made of overrides"),
        ("a=1,2", "is not made of overrides of one value each"),
        ("a=1 bb=1", "no job has a bb"),
    ],
)
def test_what_leaves_nothing_or_is_no_row_is_refused(around: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        one_at_a_time(product(a="1,2", b="1,2"), around, None)


@pytest.mark.parametrize(("sweep", "rows"), [("ablate_corda", 6), ("ablate_self_training", 4), ("ablate_t2sda", 4)])
def test_ablations_have_every_value_and_their_own_base(sweep: str, rows: int) -> None:
    launcher, params = SWEEPS[sweep]["launcher"], SWEEPS[sweep]["sweeper"]["params"]
    jobs = product(**{key: str(values) for key, values in params.items()})
    left = one_at_a_time(jobs, launcher["around"], launcher["base"])
    assert len(left) == rows * len(params["seed"].split(",")) * len(str(params["data"]).split(","))
    assert {o for job in left for o in job} == {o for job in jobs for o in job}
    for row in (launcher["around"], launcher["base"]):
        assert any({*row.split()} <= {*job} for job in left), row


def test_every_ablation_around_a_row_is_tested_above() -> None:
    around = {name for name, hydra in SWEEPS.items() if hydra["launcher"].get("around")}
    assert around == {"ablate_corda", "ablate_self_training", "ablate_t2sda"}
