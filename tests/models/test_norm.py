"""Batch norm: whose statistics are used, and whose are remembered."""

from __future__ import annotations

import torch
from torch import nn

from uda_seg.models.norm import batch_statistics, frozen_statistics


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
