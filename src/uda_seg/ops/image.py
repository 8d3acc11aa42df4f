"""Images between storage (uint8), the step (float32 in [0, 1]) and the device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(image: Tensor) -> Tensor:
    """Turn stored uint8 values 0..255 (any shape) into float32 in [0, 1]."""
    return image.float().div_(255.0)


def upload(values: Tensor, device: torch.device | str | None) -> Tensor:
    """Copy a small host tensor to the device without making the host wait for the device's queue."""
    target = torch.device(device or "cpu")
    if target.type != "cuda":
        return values.to(target)
    # Only pinned memory is copied asynchronously for certain; pageable memory may wait for the stream.
    return values.pin_memory().to(target, non_blocking=True)
