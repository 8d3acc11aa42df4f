"""Control over which statistics batch norm uses and which forwards update them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """List all batch-norm layers of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Make batch norm use (and update) batch statistics within the block; other layers keep their mode."""
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
    """Freeze running statistics during training forwards within the block: for images unlike those at test."""
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, predict: Callable[[Tensor], object], images: Iterable[Tensor]
) -> list[_BatchNorm]:
    """Replace running statistics by their average over batches of images (AdaBN, Li et al. 2018).

    Args:
        network: owner of the batch-norm layers.
        predict: forward to run; layers outside of it keep their statistics.
        images: batches [B, 3, H, W] in [0, 1].

    Returns:
        The updated layers.
    """
    norms = [norm for norm in batch_norms(network) if norm.track_running_stats]
    before = [(norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    with batch_statistics(network):
        for batch in images:
            predict(batch)
    passed = [norm for norm in norms if norm.num_batches_tracked is not None and norm.num_batches_tracked > 0]
    for norm, (momentum, buffers) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if norm not in passed:
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
    return passed
