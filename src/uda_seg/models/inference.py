"""Logits of whole images and of sliding windows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uda_seg.models.segmentor import resize

Predict = Callable[[Tensor], Tensor]


def whole_logits(predict: Predict, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """One forward over the whole image.

    Args:
        predict: images [B, 3, H, W] -> logits [B, C, H, W].
        image: [B, 3, H, W].
        size: (H', W') of the result; default: the image's.

    Returns:
        Logits [B, C, H', W'].
    """
    return resize(predict(image), size or image.shape[-2:])


def slide_logits(
    predict: Predict,
    image: Tensor,
    crop: tuple[int, int],
    stride: tuple[int, int],
    windows: int = 8,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Mean logits of overlapping windows; the last window of a row or column is shifted back into the image.

    Args:
        predict: images [N, 3, h, w] -> logits [N, C, h, w].
        image: [B, 3, H, W].
        crop: (h, w) of a window; clipped to the image.
        stride: (h, w) from one window to the next.
        windows: how many windows of every image one forward takes.
        size: (H', W') of the result; default: the image's.

    Returns:
        Logits [B, C, H', W'].
    """
    batch, _, height, width = image.shape
    h, w = min(crop[0], height), min(crop[1], width)
    rows, columns = window_starts(height, h, stride[0]), window_starts(width, w, stride[1])
    corners = [(y, x) for y in rows for x in columns]
    total: Tensor | None = None
    for first in range(0, len(corners), windows):
        group = corners[first : first + windows]
        logits = predict(torch.cat([image[:, :, y : y + h, x : x + w] for y, x in group]))
        if total is None:
            total = logits.new_zeros(batch, logits.shape[1], height, width)
        for (y, x), window in zip(group, logits.view(len(group), batch, *logits.shape[1:]), strict=True):
            total[:, :, y : y + h, x : x + w] += window
    assert total is not None  # there is always at least one window
    count = torch.outer(_coverage(rows, h, height), _coverage(columns, w, width))
    return resize(total / count.to(total.device), size or (height, width))


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows of `crop` begin that cover `length`, `stride` apart; the last is shifted back inside."""
    steps = -(-(length - crop) // stride) + 1  # enough windows to reach the far border
    return [min(step * stride, length - crop) for step in range(steps)]


def _coverage(starts: list[int], crop: int, length: int) -> Tensor:
    count = torch.zeros(length)
    for start in starts:
        count[start : start + crop] += 1
    return count
