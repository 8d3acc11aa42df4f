"""Prototypes against one mask per class."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uda_seg.ops.prototypes import class_sums, crowding, nearest


def random_labels(g, *shape, classes=5):
    label = torch.randint(0, classes + 1, shape, generator=g)
    return torch.where(label == classes, 255, label).to(torch.uint8)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.integers(0, 100))
def test_means_are_masked_averages(batch, width, side, seed):
    g = torch.Generator().manual_seed(seed)
    features, label = torch.randn(batch, width, side, 4, generator=g), random_labels(g, batch, side, 4)
    sums = class_sums(features, label, 5)
    for b in range(batch):
        for c in range(5):
            pixels = features[b, :, label[b] == c]
            assert sums.count[b, c] == pixels.shape[1]
            assert sums.present[b, c] == (pixels.shape[1] > 0)
            expected = pixels.mean(1) if pixels.shape[1] else torch.zeros(width)
            torch.testing.assert_close(sums.mean[b, c], expected)


def test_gradients_flow_to_the_pixels_of_the_class_alone():
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 4, generator=g).requires_grad_()
    label = random_labels(g, 2, 4, 4)
    sums = class_sums(features, label, 5)
    sums.mean[1, 2].sum().backward()
    expected = torch.zeros(2, 3, 4, 4)
    expected[1] = (label[1] == 2).float() / max(1, int((label[1] == 2).sum()))
    torch.testing.assert_close(features.grad, expected)


def test_sums_are_float32_whatever_the_features():
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    sums = class_sums(torch.full((1, 1, 64, 64), 0.1, dtype=torch.bfloat16), label, 2)
    assert sums.total.dtype == torch.float32
    assert sums.count[0].tolist() == [4096.0, 0.0]


def test_nearest_samples_at_pixel_centres():
    label = np.random.default_rng(0).integers(0, 19, (1, 12, 20), dtype=np.uint8)
    for size in ((3, 5), (6, 10), (24, 40), (5, 7)):
        expected = cv2.resize(label[0], size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        np.testing.assert_array_equal(nearest(torch.from_numpy(label), size)[0].numpy(), expected)


def test_crowding_is_the_mean_over_pairs_of_present_classes():
    unit = torch.nn.functional.normalize(torch.randn(4, 3), dim=1)
    present = torch.tensor([True, False, True, True])
    expected = (unit[0] @ unit[2] + unit[0] @ unit[3] + unit[2] @ unit[3]) / 3
    torch.testing.assert_close(crowding(unit, present), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(crowding(unit, present), expected)
    assert torch.isnan(crowding(unit, torch.tensor([True, False, False, False])))
