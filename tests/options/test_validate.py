"""Plain values become dataclasses of options without being turned into something else on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from uda_seg.errors import UserError
from uda_seg.options.constraints import Count, Fraction, Interval
from uda_seg.options.validate import complaint, read


@dataclass
class Inner:
    share: Fraction = 0.5
    name: Literal["left", "right"] = "left"


@dataclass
class Outer:
    count: Count
    inner: Inner = field(default_factory=Inner)
    several: dict[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None
    pair: tuple[int, int] = (1, 2)
    anything: Any = None


def test_nested_values_fill_nested_dataclasses():
    found = read({"count": 3, "several": {"a": {"share": 1}}, "maybe": {"name": "right"}, "pair": [3, 4]}, Outer)
    assert found == Outer(3, several={"a": Inner(1.0)}, maybe=Inner(name="right"), pair=(3, 4))
    assert isinstance(found.several["a"].share, float)


def test_what_is_not_described_stays_as_it_is():
    node = {"_target_": "x.Y", "scheduling": {0: 8, 4: 2}, 7: [None, 1.5]}
    assert read({"count": 1, "anything": node}, Outer).anything == node


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"count": 0}, "x.count=0 must be at least 1"),
        ({"count": True}, "x.count=True is of the wrong type: expected a whole number"),
        ({"count": 1.0}, "x.count=1.0 is of the wrong type: expected a whole number"),
        ({"count": "1"}, "x.count=1 is of the wrong type: expected a whole number, not text"),
        ({}, "x.count=None is missing"),
        ({"count": 1, "cuont": 2}, "x.cuont is unknown; did you mean x.count?"),
        ({"count": 1, "inner": {"shares": 2}}, "x.inner.shares is unknown; did you mean x.inner.share?"),
        ({"count": 1, "inner": 5}, "x.inner=5 is of the wrong type: expected keys with their values"),
        ({"count": 1, "inner": {"name": "lefd"}}, "x.inner.name=lefd is none of left, right; did you mean left?"),
        ({"count": 1, "maybe": {"share": 2}}, "x.maybe.share=2 must lie between 0 and 1"),
        ({"count": 1, "several": {"a": {"share": "b"}}}, "x.several.a.share=b is of the wrong type: expected a number"),
        ({"count": 1, "pair": [1, 2, 3]}, "x.pair=[1, 2, 3] is wrong"),
    ],
)
def test_the_first_thing_wrong_is_named_with_its_place(tree, said):
    with pytest.raises(UserError) as caught:
        read(tree, Outer, "x.")
    assert str(caught.value).startswith(said)


def test_a_range_is_told_rather_than_that_it_is_not_null():
    assert complaint(0, Annotated[int, Interval(1)] | None) == "must be at least 1"


def test_keys_of_mappings_are_checked_as_what_they_are():
    assert complaint({0: 1}, dict[int, int]) is None
    assert complaint({"a": 1}, dict[int, int]) == "holds a, which is of the wrong type: expected a whole number"
