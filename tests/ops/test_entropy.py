"""Entropies against the definition, pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch

from uda_seg.ops.entropy import entropy


def pixels(logits):
    for b in range(logits.shape[0]):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                values = [math.exp(v) for v in logits[b, :, y, x].tolist()]
                yield [v / sum(values) for v in values]


def test_shannon():
    logits = 3 * torch.randn(2, 4, 3, 3)
    expected = [-sum(p * math.log(p) for p in probability) for probability in pixels(logits)]
    assert entropy(logits).item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_double_softmax_as_released():
    logits = 3 * torch.randn(2, 4, 3, 3)
    expected = []
    for probability in pixels(logits):
        again = [math.exp(p) for p in probability]
        expected.append(-sum(p * math.log(a / sum(again)) for p, a in zip(probability, again, strict=True)))
    assert entropy(logits, "double_softmax").item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_range_for_19_classes():
    sure = torch.zeros(1, 19, 1, 1)
    sure[0, 0] = 50.0
    assert entropy(sure, "double_softmax").item() == pytest.approx(2.03, abs=0.005)
    assert entropy(torch.zeros(1, 19, 1, 1), "double_softmax").item() == pytest.approx(2.94, abs=0.005)
    assert entropy(sure).item() == pytest.approx(0.0, abs=1e-6)
    sure.requires_grad_()
    entropy(sure).backward()
    assert torch.isfinite(sure.grad).all()
