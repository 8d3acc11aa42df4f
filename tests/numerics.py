"""When two computations of one thing are equal, on every CPU.

A sum of floating-point numbers depends on their order, and the order on the CPU: on the width of its vectors, the
kernels that oneDNN and MKL choose for it, the number of threads, the size of the batch. Each order is off by at most
n eps sum|terms|, and typically by eps sqrt(n) times a typical term. So an element is uncertain by a share of the
*terms* it is the sum of. Where they cancel, as in a gradient, in a feature's mean, in the logits of an untrained
network, that may be any multiple of the element itself: a relative tolerance, element by element, then says what one
machine happened to give. The largest element of a tensor is a measure of the terms, and no machine changes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from uda_seg.methods.non_finite import NonFinite

# How many eps a network of some layers may be off by. Sums of 10^4 terms lose 10^2, a few layers after one another,
# each of which passes on what the one before lost, the rest. A term left out or a wrong factor is 10^3 times as much.
GROWTH = 1000

# After some training steps in `in_float64`: rounding may have grown by 10^6, and is still 10^4 times smaller than what
# float32 leaves after one.
LEFT = 1e-9


def assert_same_sums(ours: Tensor, expected: Tensor, what: str = "", share: float | None = None) -> None:
    """Equal up to the order of sums: no element differs by more than a share of the largest element's size.

    Args:
        ours: of any type; integers have to be equal.
        expected: the same shape.
        what: is compared, for the message.
        share: of the largest; by default GROWTH eps of the coarser type.
    """
    ours, expected = ours.detach(), expected.detach()
    scale = 0.0
    if expected.is_floating_point() and expected.numel():
        if share is None:
            share = GROWTH * max(torch.finfo(tensor.dtype).eps for tensor in (ours, expected))
        scale = share * expected.abs().max().item()
    torch.testing.assert_close(
        ours, expected, rtol=0, atol=scale, check_dtype=False, msg=lambda said: f"{what}: {said}"
    )


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Within the block networks are made in float64, and `.float()` gives it too: rounding is 10^-9 of what it was.

    For comparisons of whole trainings, in which rounding would be amplified: by Adam, which divides a gradient by its
    size, so that one that is zero but for rounding (a bias before batch norm) moves its weight by the learning rate; by
    steps that follow one another; and by thresholds, where it makes a pixel count or not.
    """
    found = NonFinite.found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(NonFinite, "found", lambda self: found(self).to(torch.float32))  # as fused optimisers want it
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
