"""Label-free scores against their definitions, pixel by pixel in float64, and against what they are made to reward."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from uda_seg.ops.label_free import ensemble_labels, information_maximization, neighbourhood_density, pixel_entropy


def softmaxes(pixels: int, classes: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(pixels)
    return (scale * torch.randn(pixels, classes, generator=generator, dtype=torch.float64)).softmax(1)


def score(p: torch.Tensor, reference: torch.Tensor) -> float:
    return information_maximization(p.mean(0), pixel_entropy(p).mean(), reference).item()


def test_information_maximization_is_its_definition():
    p, reference = softmaxes(40, 5), torch.tensor([0.5, 0.2, 0.2, 0.05, 0.05], dtype=torch.float64)
    entropies = [-sum(v * math.log(v) for v in pixel) for pixel in p.tolist()]
    mean = [sum(column) / 40 for column in p.T.tolist()]
    divergence = sum(m * math.log(m / r) for m, r in zip(mean, reference.tolist(), strict=True))
    assert score(p, reference) == pytest.approx(-divergence - sum(entropies) / 40, rel=1e-12)
    equal = torch.full((5,), 0.2, dtype=torch.float64)  # then it is the mutual information, less log K
    mutual = -sum(m * math.log(m) for m in mean) - sum(entropies) / 40
    assert score(p, equal) == pytest.approx(mutual - math.log(5), rel=1e-12)


def test_confidence_in_one_class_alone_is_not_rewarded():
    reference = torch.tensor([0.6, 0.4, 1e-9], dtype=torch.float64)
    sure = torch.eye(3, dtype=torch.float64)
    assert score(sure[[0, 0, 0, 1, 1]], reference) == pytest.approx(0, abs=1e-6)  # the best there is; 0 log 0 = 0
    assert score(sure[[0] * 5], reference) == pytest.approx(math.log(0.6))
    assert score(sure[[2] * 5], reference) < -20


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_neighbourhood_density_is_its_definition(rows):
    p = softmaxes(23, 4).numpy()
    total = 0.0
    for i in range(23):
        z = [q / math.sqrt(sum(v * v for v in q)) for q in p]
        weights = {j: math.exp(float(np.dot(z[i], z[j])) / 0.05) for j in range(23) if j != i}
        shares = [w / sum(weights.values()) for w in weights.values()]
        total -= sum(s * math.log(s) for s in shares)
    assert neighbourhood_density(torch.from_numpy(p), rows=rows).item() == pytest.approx(total / 23, rel=1e-10)


def test_neighbourhood_density_at_its_ends():
    """All alike: every other pixel is as near. Two far groups: those of the own group alone."""
    alike = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).expand(10, 3)
    assert neighbourhood_density(alike).item() == pytest.approx(math.log(9))
    groups = torch.eye(2, dtype=torch.float64)[[0] * 5 + [1] * 5]
    assert neighbourhood_density(groups).item() == pytest.approx(math.log(4), abs=1e-5)


def test_an_ensemble_averages_the_softmax_and_not_the_votes():
    sure, unsure = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.6, 0.4]])
    assert ensemble_labels([sure, unsure, unsure]).tolist() == [1]
