"""Selection of static pseudo-labels against sorting."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uda_seg.ops.confident import LEVELS, NATS, certainty, histogram, select, top_share


def test_certainty_orders_as_the_probability_and_resolves_it_near_one():
    logits = torch.randn(1, 5, 40, 40, dtype=torch.float64) * torch.linspace(0.1, 6, 40).double().view(1, 1, 40, 1)
    found = certainty(logits)
    probability, label = logits.softmax(1).max(1)
    assert torch.equal(found.label.long(), label)
    nats = -torch.log1p(-probability)
    expected = (nats * LEVELS / NATS).clamp(0, LEVELS - 1)
    assert (found.level - expected).abs().max() <= 1.5
    assert certainty(torch.tensor([0.0, 1000.0]).view(1, 2, 1, 1)).level.item() == LEVELS - 1


def test_histogram_counts_pixels():
    label = torch.tensor([[0, 1, 1, 255]], dtype=torch.uint8)
    level = torch.tensor([[3, 7, 7, 7]], dtype=torch.int16)
    counts = histogram(label, level, 2)
    assert counts.shape == (2, LEVELS)
    assert counts.sum() == 3
    assert (counts[0, 3], counts[1, 7]) == (1, 2)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_top_share_keeps_the_most_confident(values, share):
    counts = torch.bincount(torch.tensor(values), minlength=LEVELS)
    level = int(top_share(counts, share))
    kept = [v for v in values if v >= level]
    assert len(kept) >= share * len(values)
    without_ties = [v for v in values if v > level]
    assert len(without_ties) < share * len(values)


def test_nothing_is_kept_of_a_class_that_is_never_predicted_or_at_share_zero():
    assert top_share(torch.zeros(3, LEVELS, dtype=torch.int64), 0.1).tolist() == [LEVELS] * 3
    assert int(top_share(torch.ones(LEVELS, dtype=torch.int64), 0.0)) == LEVELS


def test_select_is_the_union_of_both_tests():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (2, 5, 6)).astype(np.uint8)
    label[0, 0] = 255
    level = rng.integers(0, 100, (2, 5, 6)).astype(np.int16)
    classes, images = np.array([50, 90, LEVELS, 10]), np.array([80, LEVELS])
    kept = select(*(torch.from_numpy(x) for x in (label, level, classes, images)))
    for (b, y, x), c in np.ndenumerate(label):
        sure = c != 255 and (level[b, y, x] >= classes[c] or level[b, y, x] >= images[b])
        assert kept[b, y, x].item() == (c if sure else 255)
