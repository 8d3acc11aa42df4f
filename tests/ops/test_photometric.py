"""The photometric error against scikit-image-like loops over windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uda_seg.ops.photometric import least_error, photometric_error, smoothness


def ssim_distance_loop(x, y):
    """One window of one channel after the other, [H, W] float64."""
    x, y = (np.pad(image, 1, mode="reflect") for image in (x, y))
    result = np.empty((x.shape[0] - 2, x.shape[1] - 2))
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            a, b = x[i : i + 3, j : j + 3], y[i : i + 3, j : j + 3]
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            top = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)
            bottom = (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)
            result[i, j] = min(max((1 - top / bottom) / 2, 0), 1)
    return result


def test_photometric_error():
    x, y = torch.rand(1, 3, 5, 7), torch.rand(1, 3, 5, 7)
    a, b = x[0].double().numpy(), y[0].double().numpy()
    structure = np.mean([ssim_distance_loop(a[c], b[c]) for c in range(3)], axis=0)
    expected = 0.85 * structure + 0.15 * np.abs(a - b).mean(0)
    np.testing.assert_allclose(photometric_error(x, y)[0, 0].numpy(), expected, atol=1e-5)
    assert photometric_error(x, x).abs().max() < 1e-5


def test_least_error_takes_the_best_view_and_masks_what_stands_still():
    warped = [torch.tensor([[[[3.0, 1.0, 5.0]]]]), torch.tensor([[[[2.0, 4.0, 6.0]]]])]
    still = [torch.tensor([[[[9.0, 0.5, 9.0]]]])]
    least, learns = least_error(warped, still)
    assert least.flatten().tolist() == [2.0, 0.5, 5.0]
    assert learns.flatten().tolist() == [True, False, True]
    assert least_error(warped)[0].flatten().tolist() == [2.0, 1.0, 5.0]


def test_smoothness_ignores_scale_and_forgives_edges_of_the_image():
    disparity, flat = torch.rand(1, 1, 4, 5) + 0.1, torch.zeros(1, 3, 4, 5)
    normal = (disparity / disparity.mean())[0, 0].numpy()
    expected = np.abs(np.diff(normal, axis=0)).mean() + np.abs(np.diff(normal, axis=1)).mean()
    assert smoothness(disparity, flat).item() == pytest.approx(expected, rel=1e-4)
    assert smoothness(7 * disparity, flat).item() == pytest.approx(expected, rel=1e-4)
    assert smoothness(disparity, torch.rand(1, 3, 4, 5)) < smoothness(disparity, flat)
