"""Whether float32 products and convolutions on a GPU may round their factors to TF32's ten bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

# Of torch's switches, which all threads share. The older ones (`allow_tf32`) refuse to be read while these are moved.
SWITCHES: dict[str, Any] = {
    "products": torch.backends.cuda.matmul,
    "convolutions": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
}


def arithmetic() -> dict[str, str]:
    """How a GPU calculates in float32 as things are: `tf32` or `ieee`, by kind of operation."""
    found = {kind: str(switch.fp32_precision) for kind, switch in SWITCHES.items()}
    return {kind: "ieee" if precision == "none" else precision for kind, precision in found.items()}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within the block, TF32 is allowed in both or in neither, whatever torch's defaults are."""
    before = [switch.fp32_precision for switch in SWITCHES.values()]
    try:
        for switch in SWITCHES.values():
            switch.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        for switch, precision in zip(SWITCHES.values(), before, strict=True):
            switch.fp32_precision = precision


def stepped(step: Callable[[], None], allowed: bool) -> Callable[[], None]:
    """The step of a loop, taken with or without TF32; what comes before and after it is not touched."""

    @wraps(step)
    def call() -> None:
        with tf32(allowed):
            step()

    return call
