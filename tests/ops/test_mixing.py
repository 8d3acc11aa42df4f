"""Class mixing against the per-class loop, and what it promises for any labels."""

from __future__ import annotations

import collections

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import class_mix_loop, half_of
from uda_seg.ops.mixing import class_mask, class_mix, draw_classes

C = 19
LABELS = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    elements=st.sampled_from([0, 1, 2, 7, 18, 255]),
)


def chosen(keep: torch.Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in keep]


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 2**32 - 1))
def test_half_of_the_images_own_classes(array, seed):
    label = torch.from_numpy(array)
    picks = chosen(draw_classes(label, C, generator=torch.Generator().manual_seed(seed)))
    for image, pick in zip(label, picks, strict=True):
        own = [c for c in image.unique().tolist() if c < C]
        assert set(pick) <= set(own)
        assert len(pick) == half_of(own)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 2**32 - 1))
def test_quirk_takes_half_of_the_whole_batch_with_ignore(array, seed):
    label = torch.from_numpy(array)
    batch_labels = label.unique().tolist()
    for pick in chosen(draw_classes(label, C, per="batch", generator=torch.Generator().manual_seed(seed))):
        assert set(pick) <= set(batch_labels)
        assert len(pick) == half_of(batch_labels)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 2**32 - 1), st.sampled_from(["image", "batch"]))
def test_every_pixel_comes_from_exactly_one_side(array, seed, per):
    label = torch.from_numpy(array)
    g = torch.Generator().manual_seed(seed)
    keep = draw_classes(label, C, per=per, generator=g)
    mask = class_mask(label, keep)
    source = torch.rand(*label.shape, generator=g).unsqueeze(1)
    target = 2.0 + torch.rand(*label.shape, generator=g).unsqueeze(1)
    mixed = class_mix(source, target, mask)
    assert torch.equal(mixed < 2.0, mask)  # no third value, no blend, and the mask says which side
    assert torch.equal(mixed, class_mix_loop(source, target, label, chosen(keep)))

    pseudo = torch.full_like(label, 3).unsqueeze(1)
    mixed_label = class_mix(label.unsqueeze(1), pseudo, mask)
    assert set(mixed_label.unique().tolist()) <= {3, *label.unique().tolist()}
    assert mixed_label.dtype == torch.uint8


def test_every_pair_is_as_likely():
    label = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8).expand(6000, 1, 4)
    picks = chosen(draw_classes(label, C, generator=torch.Generator().manual_seed(0)))
    counts = collections.Counter(map(tuple, picks))
    assert len(counts) == 6
    assert all(count == pytest.approx(1000, abs=120) for count in counts.values())  # > 4 sigma


def test_images_draw_independently():
    label = torch.arange(12, dtype=torch.uint8).view(1, 3, 4).expand(2, 3, 4)
    differ = [
        not torch.equal(*draw_classes(label, C, per=per, generator=torch.Generator().manual_seed(seed)))
        for seed in range(10)
        for per in ("image", "batch")
    ]
    assert sum(differ) >= 18


def test_nothing_but_ignore_pastes_nothing():
    label = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    assert not class_mask(label, draw_classes(label, C)).any()
