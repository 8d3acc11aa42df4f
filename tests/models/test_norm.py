"""Batch norm: whose statistics are used, and whose are remembered."""

from __future__ import annotations

import torch
from torch import nn

from uda_seg.models.norm import batch_statistics, estimate_statistics, frozen_statistics


def test_batch_statistics_only_within_the_block():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5)).eval()
    x = torch.randn(8, 2, 4, 4) * 3 + 5
    with batch_statistics(network):
        inside = network(x)
    torch.testing.assert_close(inside.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    assert not network[0].training
    assert not network[1].training


def test_frozen_statistics_are_used_for_training_but_not_remembered():
    network = nn.Sequential(nn.BatchNorm2d(2))
    x = torch.randn(8, 2, 4, 4) * 3 + 5
    with frozen_statistics(network):
        inside = network(x)
    torch.testing.assert_close(inside.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    assert torch.equal(network[0].running_mean, torch.zeros(2))
    assert torch.equal(network[0].running_var, torch.ones(2))
    network(x)
    assert network[0].momentum == 0.1
    assert (network[0].running_mean > 0.3).all()


def test_estimated_statistics_are_the_plain_average_and_other_layers_keep_theirs():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)).eval()
    network[1].running_mean.fill_(7.0)
    batches = [torch.randn(4, 2, 3, 3) * scale + scale for scale in (1.0, 2.0, 4.0)]
    passed = estimate_statistics(network, network[0], batches)
    assert passed == [network[0]]
    assert network[0].momentum == 0.1
    assert not network[0].training
    torch.testing.assert_close(network[0].running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    wanted = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0)
    torch.testing.assert_close(network[0].running_var, wanted)
    assert torch.equal(network[1].running_mean, torch.full((2,), 7.0))
