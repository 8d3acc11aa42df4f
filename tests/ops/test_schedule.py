"""The learning rate's factor at known values, and its shape."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uda_seg.ops.schedule import warmup_poly


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (50, 1.958e-6),
        (100, 3.950e-6),
        (150, 5.938e-6),
        (200, 7.920e-6),
        (750, 2.940e-5),
        (1500, 5.771e-5),
        (20001, 3e-5),
    ],
)
def test_schedule_at_the_values_users_log(iteration, rate):
    factor = warmup_poly(iteration - 1, 40_000, 1500)  # logs count from 1
    assert 6e-5 * factor == pytest.approx(rate, rel=3e-4)


@given(st.integers(1, 1000), st.integers(0, 200), st.floats(0.5, 2.0))
def test_schedule_rises_then_falls_to_zero(steps, warmup, power):
    factors = [warmup_poly(t, steps, warmup, power) for t in range(steps + 2)]
    assert all(0.0 <= f <= 1.0 for f in factors)
    assert factors[steps] == factors[steps + 1] == 0.0
    falling = factors[warmup:]
    assert all(a >= b for a, b in itertools.pairwise(falling))


def test_no_warm_up_starts_at_one():
    assert warmup_poly(0, 100, 0) == 1.0
    assert warmup_poly(0, 100, 10) == pytest.approx(1e-6)
    assert warmup_poly(50, 100, 0, power=0.9) == pytest.approx(0.5**0.9)
