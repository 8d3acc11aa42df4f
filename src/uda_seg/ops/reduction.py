"""Reductions of batch-level quantities over ranks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Reduction = Callable[[Tensor], Tensor]


def same(value: Tensor) -> Tensor:
    """Return the value as it is: the reduction over a single rank."""
    return value
