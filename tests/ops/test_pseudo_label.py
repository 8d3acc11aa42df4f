"""Pseudo-labels against the softmax in double precision."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uda_seg.ops.pseudo_label import pseudo_label


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 4, 3, 5), elements=st.floats(-30, 30, width=32)),
    st.floats(0.01, 0.999),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_pseudo_label_is_the_softmax_read_off(array, threshold, dtype):
    logits = torch.from_numpy(array).to(dtype)
    probability = torch.softmax(logits.double(), 1)
    out = pseudo_label(logits, threshold)
    assert out.label.dtype == torch.uint8
    assert out.confidence.dtype == torch.float32
    assert out.confidence.numpy() == pytest.approx(probability.amax(1).numpy(), abs=1e-5)
    picked = probability.gather(1, out.label.long().unsqueeze(1))[:, 0]
    assert picked.numpy() == pytest.approx(probability.amax(1).numpy(), abs=1e-6)
    assert 0.0 <= out.quality.item() <= 1.0
    assert out.confidence.max() <= 1.0
    count = (out.confidence >= threshold).sum().item()
    assert out.quality.item() == pytest.approx(count / out.confidence.numel())


def test_quality_counts_all_pixels_of_the_batch():
    logits = torch.zeros(2, 2, 2, 2)
    logits[0, 1] = 10.0  # 4 of 8 pixels are sure of class 1
    out = pseudo_label(logits, 0.968)
    assert out.quality.item() == 0.5
    assert (out.label[0] == 1).all()
    assert not out.quality.requires_grad


def test_threshold_is_not_rounded_to_bfloat16():
    logits = torch.tensor([3.40625, 0.0]).view(1, 2, 1, 1)  # softmax 0.96789, which bfloat16 rounds to 0.96875
    assert pseudo_label(logits.bfloat16(), 0.968).quality.item() == 0.0
    assert torch.softmax(logits.bfloat16(), 1).max() >= 0.968


def test_a_confidence_at_the_threshold_counts():
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1)  # confidence exactly 1
    assert pseudo_label(logits, 1.0).quality.item() == 1.0
