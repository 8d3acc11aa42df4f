"""Which statistics batch norm uses, and which passes may change them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """All batch-norm layers of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within the block, batch norm uses (and updates) the statistics of the batch; all else stays as it is."""
    norms = batch_norms(network)
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.training = mode


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Within the block, training passes leave the running statistics alone: for images unlike those at test."""
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
