"""Class scores and weights against loops."""

from __future__ import annotations

import pytest
import torch

from uda_seg.ops.reweight import class_weights, confidence_by_class, overlap_by_class, share_by_class

K = 4


def example():
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, K + 1, (2, 3, 5), generator=g)
    return 2 * torch.randn(2, K, 3, 5, generator=g), torch.where(label == K, 255, label).to(torch.uint8)


def test_weights_of_the_sheet():
    score = torch.tensor([0.9, 0.5, 0.75])
    assert class_weights(score, 0.5).tolist() == pytest.approx([(0.1 / 0.5) ** 0.5, 1.0, (0.25 / 0.5) ** 0.5])
    assert class_weights(score, 0.0).tolist() == [1.0, 1.0, 1.0]
    assert class_weights(torch.ones(3), 0.5).tolist() == [1.0, 1.0, 1.0]  # nothing lacks: nothing to weigh


def test_confidence():
    logits, _ = example()
    total, count = confidence_by_class(logits, K)
    expected = [[] for _ in range(K)]
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        probability = logits[b, :, y, x].softmax(0).tolist()
        expected[probability.index(max(probability))].append(max(probability))
    assert total.tolist() == pytest.approx([sum(v) for v in expected], rel=1e-5)
    assert count.tolist() == [len(v) for v in expected]


def test_overlap_and_share():
    logits, label = example()
    both, either = overlap_by_class(logits, label, K)
    count, total = share_by_class(label, K)
    predicted = logits.argmax(1)
    for c in range(K):
        said, true = (predicted == c) & (label != 255), label == c
        assert both[c] == (said & true).sum()
        assert either[c] == (said | true).sum()
        assert count[c] == true.sum()
    assert total.tolist() == [float((label != 255).sum())] * K
