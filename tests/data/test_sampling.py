from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uda_seg.data.sampling import Draw, RareClassOrder, ShuffledOrder, generator, positions, rare_class_probabilities

small = st.integers(1, 5)


@given(length=st.integers(1, 40), seed=st.integers(0, 2**32), number=st.integers(0, 1000))
def test_every_pass_covers_each_image_once(length, seed, number):
    order = ShuffledOrder(length, seed, domain=1)
    assert sorted(order.pick(number * length + p).image for p in range(length)) == list(range(length))


@given(batch=small, world_size=small, steps=small)
def test_ranks_share_the_stream_without_a_gap_or_an_overlap(batch, world_size, steps):
    read = [p for step in range(steps) for rank in range(world_size) for p in positions(step, batch, rank, world_size)]
    assert sorted(read) == list(range(steps * batch * world_size))


@given(batch=small, world_size=small, step=small)
def test_positions_follow_the_formula(batch, world_size, step):
    for rank in range(world_size):
        assert list(positions(step, batch, rank, world_size)) == [
            (step * batch + b) * world_size + rank for b in range(batch)
        ]


def test_passes_seeds_and_domains_have_orders_of_their_own():
    def images(seed, domain, number):
        order = ShuffledOrder(50, seed, domain)
        return tuple(order.pick(50 * number + p).image for p in range(50))

    orders = {images(seed, domain, number) for seed in (0, 1) for domain in (0, 1) for number in (0, 1)}
    assert len(orders) == 8
    assert images(0, 0, 0) == images(0, 0, 0)


def test_uses_of_a_seed_do_not_share_numbers():
    first = {generator(*key).random() for key in [(0, 0, draw, n) for draw in Draw for n in (0, 1)]}
    assert len(first) == 2 * len(Draw)


@given(pixels=st.lists(st.integers(0, 10**9), min_size=1, max_size=19).filter(any), temperature=st.floats(0.005, 2.0))
def test_rare_class_probabilities_are_the_softmax_over_the_classes_that_occur(pixels, temperature):
    logits = {c: (1 - n / sum(pixels)) / temperature for c, n in enumerate(pixels) if n}
    top = max(logits.values())
    total = sum(math.exp(v - top) for v in logits.values())
    expected = [math.exp(logits[c] - top) / total if c in logits else 0.0 for c in range(len(pixels))]
    np.testing.assert_allclose(rare_class_probabilities(np.array(pixels), temperature), expected, atol=1e-12)


def test_rare_class_draws_have_the_stated_frequencies():
    images = [np.array([4, 5]), np.array([], np.int64), np.array([1, 2, 3])]
    order = RareClassOrder(np.array([0.25, 0.0, 0.75]), images, seed=3, domain=0)
    picks = [order.pick(p) for p in range(4000)]
    drawn = np.bincount([p.rare for p in picks], minlength=3) / len(picks)
    files = np.bincount([p.image for p in picks], minlength=6) / len(picks)
    assert drawn == pytest.approx([0.25, 0.0, 0.75], abs=0.03)  # 4 standard deviations
    assert files == pytest.approx([0, 0.25, 0.25, 0.25, 0.125, 0.125], abs=0.03)
    assert all(p.image in images[p.rare] for p in picks)
    assert picks[17] == order.pick(17)


def test_memory_grows_with_the_images_not_with_their_pairs():
    """GTA's 24 966 images beside Cityscapes' 2975: 74 million pairs would take 600 MB."""
    tracemalloc.start()
    source, target = ShuffledOrder(24966, 0, 0), ShuffledOrder(2975, 0, 1)
    for position in range(100):
        source.pick(position)
        target.pick(position)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * (24966 + 2975)
