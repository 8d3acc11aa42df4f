"""A forward of shapes alone: what a network would refuse in its first step, or its first validation, is told before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from uda_seg.errors import user_error
from uda_seg.models.compilation import as_written
from uda_seg.models.segmentor import Segmentor

log = logging.getLogger(__name__)

Work = Callable[[Segmentor, Tensor], object]


def trained(network: Segmentor, image: Tensor) -> object:
    """What a training step asks of the main head: all views of the images, encoded and decoded."""
    return [network.decode(features) for features in network.views(image)]


class _Trial(nn.Module):
    def __init__(self, network: Segmentor, work: Work) -> None:
        super().__init__()
        self.network, self.work = network, work

    def forward(self, image: Tensor) -> None:
        self.work(self.network, image)


def try_out(network: Segmentor, work: Work, images: int, size: Sequence[int]) -> None:
    """Do `work` on the meta device, which has shapes and no values; weights, statistics and draws stay as they are.

    Args:
        network: in the mode that is asked about.
        work: `trained`, or `Segmentor.predict`.
        images: that go through the network at once.
        size: their height and width.

    Raises:
        UserError: it refuses them, in the line that `uda_seg.errors` has for it. What fails for another reason, such as
            an operation that has no shapes alone, is left to the run itself.
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
