"""Votes of queries as logits: the sum by hand, and gradients where every mask is far away."""

from __future__ import annotations

import math

import torch

from uda_seg.ops.queries import log_mixture


def test_votes_are_summed_pixel_by_pixel_and_query_by_query() -> None:
    g = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(2, 5, 4, generator=g), 4 * torch.randn(2, 5, 3, 2, generator=g)
    logits = log_mixture(classes, masks)
    assert logits.shape == (2, 3, 3, 2)
    for b in range(2):
        for k in range(3):
            for y in range(3):
                for x in range(2):
                    votes = 0.0
                    for q in range(5):
                        exponentials = [math.exp(float(c)) for c in classes[b, q]]
                        inside = 1 / (1 + math.exp(-float(masks[b, q, y, x])))
                        votes += exponentials[k] / sum(exponentials) * inside
                    assert math.isclose(float(logits[b, k, y, x]), math.log(votes), rel_tol=1e-5, abs_tol=1e-5)


def test_pixels_far_from_every_mask_still_have_a_gradient() -> None:
    masks = torch.full((1, 3, 1, 2), -300.0, requires_grad=True)
    classes = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]], requires_grad=True)
    logits = log_mixture(classes, masks)
    assert logits.isfinite().all()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([[[0, 1]]]))
    loss.backward()
    assert loss < 1.0
    assert masks.grad is not None
    assert masks.grad[0, 0, 0, 0] < 0 < masks.grad[0, 1, 0, 0]  # the query of the class comes nearer, the other leaves


def test_no_object_abstains() -> None:
    sure, masks = torch.tensor([[[5.0, 0.0, -50.0], [0.0, 5.0, -50.0]]]), torch.zeros(1, 2, 1, 1)
    abstaining = sure + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 100.0]])
    even, one = log_mixture(sure, masks).softmax(1), log_mixture(abstaining, masks).softmax(1)
    assert torch.allclose(even[0, :, 0, 0], torch.tensor([0.5, 0.5]))
    assert one[0, 0, 0, 0] > 0.99


def test_precision_does_not_depend_on_autocast() -> None:
    classes, masks = torch.randn(1, 9, 5), torch.randn(1, 9, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = log_mixture(classes, masks)
    assert torch.equal(mixed, log_mixture(classes, masks))
