"""Depth losses against loops over pixels."""

from __future__ import annotations

import pytest
import torch

from uda_seg.ops.depth import agreement, berhu, discrepancy_weight, inverse_depth


def maps(seed=0, batch=3, invalid=0.3):
    g = torch.Generator().manual_seed(seed)
    z = 1.5 + 100 * torch.rand(batch, 1, 4, 5, generator=g)
    z[torch.rand(z.shape, generator=g) < invalid] = 1.0
    source, target = (z + 30 * torch.randn(z.shape, generator=g) for _ in range(2))
    return source, target, z


def berhu_loop(prediction, z):
    pairs = [(p, t) for p, t in zip(prediction.flatten().tolist(), z.flatten().tolist(), strict=True) if t != 1.0]
    errors = [abs(p - t) for p, t in pairs]
    c = 0.2 * max(errors)
    return sum(e if e <= c else (e * e + c * c) / (2 * c) for e in errors) / len(errors)


def test_berhu_is_the_mean_over_valid_pixels_of_the_whole_batch():
    prediction, _, z = maps()
    assert berhu(prediction, z).item() == pytest.approx(berhu_loop(prediction, z), rel=1e-5)
    changed = torch.where(z == 1.0, torch.full_like(prediction, 1e6), prediction)
    assert berhu(changed, z).item() == berhu(prediction, z).item()


def test_berhu_of_nothing_and_of_no_error_is_zero_with_a_finite_gradient():
    for z in (torch.ones(2, 1, 3, 3), torch.full((2, 1, 3, 3), 7.0)):
        prediction = torch.full((2, 1, 3, 3), 7.0, requires_grad=True)
        loss = berhu(prediction, z)
        loss.backward()
        assert loss.item() == 0.0
        assert (prediction.grad == 0).all()


def test_berhu_of_two_ranks_averages_to_that_of_one():
    prediction, _, z = maps(batch=4)
    z[:2, :, 1:] = 1.0  # the ranks see different numbers of valid pixels
    error = torch.where(z == 1.0, 0.0, (prediction - z).abs()).max()
    count = (z != 1.0).sum() / 2
    parts = [
        berhu(p, t, lambda _: error, lambda _: count) for p, t in zip(prediction.split(2), z.split(2), strict=True)
    ]
    assert sum(parts).item() / 2 == pytest.approx(berhu(prediction, z).item(), rel=1e-5)


@pytest.mark.parametrize("share", ["own", "batch_mean"])
def test_discrepancy_weight(share):
    source, target, z = maps()
    w = torch.empty(3, 4, 5)
    for b in range(3):
        for y in range(4):
            for x in range(5):
                delta, depth = abs(float(source[b, 0, y, x] - target[b, 0, y, x])), float(z[b, 0, y, x])
                w[b, y, x] = 1.0 if depth == 1.0 else min(max(1 - delta / depth, 0) + 1e-3, 1.0)
    expected = w / w.mean()
    if share == "batch_mean":
        expected = torch.stack([(w[0] + w[1] + w[2]) / 3] * 3) / w.mean()
    agreed = agreement(source, target, z)
    torch.testing.assert_close(agreed, w)
    torch.testing.assert_close(discrepancy_weight(agreed, share), expected)


def test_the_released_broadcast_is_the_batch_mean():
    """The released code multiplies [B, H, W] by [B, 1, H, W]: here as it is written there, [B, B, H, W]."""
    source, target, z = maps()
    w = torch.relu(1 - (source - target).abs() / z) + 1e-3
    w = (w + (z == 1.0)).clamp(0, 1)
    omega, loss = torch.rand(3, 4, 5), torch.rand(3, 4, 5)
    released = (omega * w / w.mean() * loss).mean()
    ours = (omega * discrepancy_weight(agreement(source, target, z), "batch_mean") * loss).mean()
    torch.testing.assert_close(ours, released)


def test_inverse_depth_of_known_distances():
    metres = torch.tensor([5.0, 10.0, 50.0, 655.35, 1e6, torch.inf, torch.nan, 0.0, -3.0], dtype=torch.float64)
    z = inverse_depth(metres)
    assert z[:3].tolist() == pytest.approx([130.81, 65.47, 13.1], abs=0.01)
    assert z[3:].tolist() == [1.0] * 6
    assert inverse_depth(metres[3:4].float()).item() == 1.0
