"""Depth measures against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from uda_seg.evaluation.depth import DepthEvaluator


def measures(d, t):
    ratio = np.maximum(d / t, t / d)
    return [
        np.mean(np.abs(d - t) / t), np.mean((d - t) ** 2 / t), math.sqrt(np.mean((d - t) ** 2)),
        math.sqrt(np.mean((np.log(d) - np.log(t)) ** 2)), *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
    ]  # fmt: skip


@pytest.mark.parametrize("median_scaling", [False, True])
def test_means_over_images_of_means_over_known_pixels(median_scaling):
    rng = np.random.default_rng(0)
    exact = rng.uniform(2, 100, (3, 1, 5, 7))  # some beyond 80 m
    exact[rng.random(exact.shape) < 0.3] = 0.0
    predicted = rng.uniform(2, 60, exact.shape)
    evaluator = DepthEvaluator(median_scaling)
    for part in (slice(0, 1), slice(1, 3)):
        evaluator.update(torch.from_numpy(predicted[part]), torch.from_numpy(exact[part]))
    expected = []
    for d, t in zip(predicted, exact, strict=True):
        known = (t > 0) & (t < 80)
        d, t = d[known], t[known]
        if median_scaling:  # torch's median is the lower of the two in the middle
            d = d * np.sort(t)[(len(t) - 1) // 2] / np.sort(d)[(len(d) - 1) // 2]
        expected.append(measures(np.clip(d, 1e-3, 80), t))
    np.testing.assert_allclose(list(evaluator.compute()), np.mean(expected, axis=0), rtol=1e-6)


def test_images_without_known_depth_do_not_count():
    evaluator = DepthEvaluator(False)
    evaluator.update(torch.full((2, 1, 2, 2), 5.0), torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 4.0)]))
    assert evaluator.compute().abs_rel == pytest.approx(0.25)
    empty = DepthEvaluator(False)
    empty.update(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert math.isnan(empty.compute().abs_rel)
