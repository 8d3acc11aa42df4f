"""Conversion of images from storage (uint8) to training (float32 in [0, 1]), and upload to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(image: Tensor) -> Tensor:
    """Convert uint8 values 0..255 (any shape) to float32 in [0, 1]."""
    return image.float().div_(255.0)


def upload(values: Tensor, device: torch.device | str | None) -> Tensor:
    """Copy a small host tensor to the device without synchronising with it."""
    target = torch.device(device or "cpu")
    if target.type != "cuda":
        return values.to(target)
    # Only pinned memory is certain to be copied asynchronously; pageable memory may synchronise with the stream.
    return values.pin_memory().to(target, non_blocking=True)
