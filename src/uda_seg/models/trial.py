"""Dry run on the meta device: reports what a network would refuse in its first step or validation beforehand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from uda_seg.errors.known import user_error
from uda_seg.models.compilation import as_written
from uda_seg.models.segmentor import Segmentor

log = logging.getLogger(__name__)

Work = Callable[[Segmentor, Tensor], object]


def trained(network: Segmentor, image: Tensor) -> object:
    """Run a training step's forward of the main head: encode and decode all views of the images."""
    return [network.decode(features) for features in network.views(image)]


class _Trial(nn.Module):
    def __init__(self, network: Segmentor, work: Work) -> None:
        super().__init__()
        self.network, self.work = network, work

    def forward(self, image: Tensor) -> None:
        self.work(self.network, image)


def try_out(network: Segmentor, work: Work, images: int, size: Sequence[int]) -> None:
    """Run `work` on the meta device, which has shapes but no values; weights, statistics and generators stay unchanged.

    Args:
        network: segmentor in the mode to test.
        work: `trained`, or `Segmentor.predict`.
        images: batch size.
        size: height and width of the images.

    Raises:
        UserError: the network refuses these images; the line comes from `uda_seg.errors`. Other failures, such as an
            operation without meta support, are left to the run itself.
    """
    trial = _Trial(network, work)
    tensors = {**dict(trial.named_parameters()), **dict(trial.named_buffers())}
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), as_written(network):
            functional_call(trial, state, (torch.empty(images, 3, *size, device="meta"),))
    except Exception as error:
        if (line := user_error(error)) is not None:
            raise line from error
        log.debug("not tried out: %s", error)
