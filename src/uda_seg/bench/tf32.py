"""TF32 settings: whether float32 products and convolutions on a GPU may round their factors to ten bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

# PyTorch's global switches. The older ones (`allow_tf32`) raise on reading once these have been set.
SWITCHES: dict[str, Any] = {
    "products": torch.backends.cuda.matmul,
    "convolutions": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
}


def arithmetic() -> dict[str, str]:
    """Return the current float32 arithmetic on a GPU, `tf32` or `ieee`, by kind of operation."""
    found = {kind: str(switch.fp32_precision) for kind, switch in SWITCHES.items()}
    return {kind: "ieee" if precision == "none" else precision for kind, precision in found.items()}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in both kinds of operations within the block, whatever PyTorch's defaults are."""
    before = [switch.fp32_precision for switch in SWITCHES.values()]
    try:
        for switch in SWITCHES.values():
            switch.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        for switch, precision in zip(SWITCHES.values(), before, strict=True):
            switch.fp32_precision = precision


def stepped(step: Callable[[], None], allowed: bool) -> Callable[[], None]:
    """Wrap the step of a loop to run with or without TF32."""

    @wraps(step)
    def call() -> None:
        with tf32(allowed):
            step()

    return call
