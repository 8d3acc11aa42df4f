"""The distance to a foundation model's features, beside a loop over cells."""

from __future__ import annotations

import pytest
import torch

from methods.reference_steps import feature_loop
from uda_seg.ops.distillation import distillation


@pytest.mark.parametrize("scale", [0.1, 5.0])  # the quadratic and the linear part of smooth-L1
def test_distance_of_cells(scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    student, reference = (scale * torch.randn(2, 4, 2, 3, generator=g) for _ in range(2))
    assert distillation(student, reference).item() == pytest.approx(float(feature_loop(student, reference)), rel=1e-5)


def test_equal_features_are_no_distance_and_have_a_finite_gradient() -> None:
    student = torch.randn(1, 4, 2, 2, requires_grad=True)
    value = distillation(student, student.detach())
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_half_precision_is_compared_in_full() -> None:
    student, reference = torch.randn(1, 4, 2, 2).bfloat16(), torch.randn(1, 4, 2, 2)
    assert distillation(student, reference).dtype == torch.float32
