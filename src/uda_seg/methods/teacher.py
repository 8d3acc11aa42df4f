"""Mean teacher: a frozen, averaged copy of the student (Tarvainen and Valpola 2017)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from uda_seg.models.norm import batch_statistics
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.trunk import frozen_tensors, shared_copy
from uda_seg.ops.ema import ema_decay, ema_update

Result = TypeVar("Result")
Places = list[tuple[dict[str, Any], str]]


class Teacher(nn.Module):
    """Exponential moving average of a student Segmentor, alpha_t = min(1 - 1/(t+1), alpha).

    Args:
        student: the network to copy, with every head attached so far; the copy needs no gradient, and shares what is
            frozen.
        alpha: upper bound of the decay.
        batch_norm: `eval` also averages the buffers and predicts with them; `train` predicts with batch statistics, and
            its buffers are those of the images that it labels (as in the released DACS, DAFormer and MIC).
        unreached: heads that no prediction in training runs, whose buffers are averaged in either case.

    The number of updates is part of the state dict, so a resumed run continues from it.
    """

    update_count: Tensor

    def __init__(
        self, student: Segmentor, alpha: float, batch_norm: str = "eval", unreached: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.network = shared_copy(student)
        self.alpha = alpha
        self.batch_norm = batch_norm
        self.unreached = tuple(unreached)
        # The decay is computed on the host from this counter; the buffer is synchronised when the state is saved.
        self.updates = 0
        # In a tuple, so that the student is not a submodule of its teacher.
        self._followed: tuple[Segmentor, Places, Places] | None = None
        self.register_buffer("update_count", torch.zeros((), dtype=torch.int64))
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Ignore the mode and stay in eval mode: the teacher uses neither dropout nor drop-path."""
        return super().train(False)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.update_count.fill_(self.updates)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.updates = int(self.update_count)

    @torch.no_grad()
    def update(self, student: Segmentor) -> None:
        """Update the average with `student`; the first update copies it."""
        if self._followed is None or self._followed[0] is not student:
            heads = self.unreached if self.batch_norm == "train" else None
            self._followed = (student, _places(self.network, heads), _places(student, heads))
        mine, theirs = ([tensors[name] for tensors, name in places] for places in self._followed[1:])
        ema_update(mine, theirs, ema_decay(self.updates, self.alpha))
        self.updates += 1

    def __getstate__(self) -> dict[str, Any]:
        """Leave out references to the student's tensors, because a copy follows another student."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"_followed": None}

    def predict(self, image: Tensor, head: str | None = None, **context: Tensor | None) -> Tensor:
        """Compute logits [B, K, H, W] of images [B, 3, H, W] in [0, 1] without gradient (usable in autograd)."""
        return self.apply_network(lambda network: network.predict(image, head=head, **context))

    @torch.no_grad()
    def apply_network(self, function: Callable[[Segmentor], Result]) -> Result:
        """Apply a function to the teacher's network, with its batch-norm mode and without gradient."""
        if self.batch_norm == "eval":
            return function(self.network)
        with batch_statistics(self.network):
            return function(self.network)


def _places(network: Segmentor, heads: Collection[str] | None) -> Places:
    """Locate a network's floating-point parameters, and the buffers of some heads or of all, as (module's dict, name).

    What is frozen needs no average.

    Walking through a large network takes the host as long as the forward of a small one, so the result is cached: as
    places, not tensors, because moving a network to another device replaces its buffers.
    """
    every: list[nn.Module] = [network]
    owners = {"_parameters": every, "_buffers": every if heads is None else [network.head(name) for name in heads]}
    frozen = {id(tensor) for tensor in frozen_tensors(network.encoder, persistent=False).values()}
    found: dict[int, tuple[dict[str, Any], str]] = {}
    for kind, found_in in owners.items():
        for module in itertools.chain.from_iterable(owner.modules() for owner in found_in):
            tensors: dict[str, Any] = getattr(module, kind)
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point() and id(tensor) not in frozen:
                    found.setdefault(id(tensor), (tensors, name))
    return list(found.values())
