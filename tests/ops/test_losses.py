"""Losses against loops over pixels and cells."""

from __future__ import annotations

import pytest
import torch

from reference import cross_entropy_loop, feature_distance_loop
from uda_seg.ops.losses import cross_entropy, feature_distance

THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)


def labels(*shape: int, classes: int = 5, seed: int = 0) -> torch.Tensor:
    label = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    label[..., ::3] = 255
    return label


def test_cross_entropy_is_the_weighted_mean_over_all_pixels():
    logits, label, weight = torch.randn(2, 5, 6, 7), labels(2, 6, 7), torch.rand(2, 6, 7)
    expected = cross_entropy_loop(logits, label, weight)
    assert cross_entropy(logits, label, weight).item() == pytest.approx(expected, rel=1e-5)
    unweighted = cross_entropy_loop(logits, label, torch.ones(2, 6, 7))
    assert cross_entropy(logits, label).item() == pytest.approx(unweighted, rel=1e-5)


def test_scalar_quality_scales_the_loss():
    logits, label = torch.randn(2, 5, 6, 7), labels(2, 6, 7)
    scaled = cross_entropy(logits, label, torch.tensor(0.25))
    assert scaled.item() == pytest.approx(0.25 * cross_entropy(logits, label).item(), rel=1e-6)


def test_ignored_pixels_have_no_gradient_and_stay_in_the_denominator():
    logits, label = torch.randn(1, 5, 4, 6, requires_grad=True), labels(1, 4, 6)
    cross_entropy(logits, label).backward()
    ignored = (label == 255).unsqueeze(1).expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).all()
    nothing = cross_entropy(logits, torch.full_like(label, 255))
    assert nothing.item() == 0.0


def test_cross_entropy_is_float32_under_autocast():
    logits, label = torch.randn(1, 5, 4, 6), labels(1, 4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(logits, label)
    assert loss.dtype == torch.float32
    assert loss.item() == cross_entropy(logits, label).item()
    assert cross_entropy(logits.bfloat16(), label).dtype == torch.float32


@pytest.mark.parametrize("min_ratio", [0.3, 0.75, 1.0])
def test_feature_distance_over_thing_cells(min_ratio):
    g = torch.Generator().manual_seed(0)
    student, reference = torch.randn(2, 8, 4, 5, generator=g), torch.randn(2, 8, 4, 5, generator=g)
    coarse = torch.randint(0, 20, (2, 4, 5), generator=g, dtype=torch.uint8)
    coarse[coarse == 19] = 255
    label = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = torch.rand(label.shape, generator=g) < torch.rand(2, 4, 5, generator=g).repeat_interleave(
        8, 1
    ).repeat_interleave(8, 2) * (0.0 if min_ratio == 1.0 else 0.6)
    label[noise] = 6
    expected = feature_distance_loop(student, reference, label, THINGS, min_ratio, 19)
    assert expected > 0
    assert feature_distance(student, reference, label, THINGS, min_ratio, 19).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_feature_distance_where_sizes_do_not_divide():
    student, reference, label = (
        torch.randn(1, 4, 3, 3),
        torch.randn(1, 4, 3, 3),
        labels(1, 11, 10, classes=19),
    )
    label[:] = 13
    label[:, :3] = 255
    expected = feature_distance_loop(student, reference, label, THINGS, 0.75, 19)
    assert feature_distance(student, reference, label, THINGS, 0.75, 19).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stuff", [0, 10, 255])
def test_feature_distance_is_zero_without_things(stuff):
    student = torch.randn(1, 4, 2, 2, requires_grad=True)
    label = torch.full((1, 16, 16), stuff, dtype=torch.uint8)
    value = feature_distance(student, torch.randn(1, 4, 2, 2), label, THINGS, 0.75, 19)
    value.backward()
    assert value.item() == 0.0
    assert (student.grad == 0).all()


def test_feature_distance_has_a_finite_gradient_where_nothing_moved():
    student = torch.ones(1, 4, 2, 2, requires_grad=True)
    label = torch.full((1, 16, 16), 13, dtype=torch.uint8)
    feature_distance(student, torch.ones(1, 4, 2, 2), label, THINGS, 0.75, 19).backward()
    assert torch.isfinite(student.grad).all()
