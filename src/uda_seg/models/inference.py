"""Inference at test: whole images or sliding windows, at one or several scales, optionally with flips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.models.segmentor import Segmentor, resize

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inference:
    """Inference settings; the default is one forward over the whole image.

    Views of an image (scales, flips) are resized to the result's size and then averaged. DAFormer, HRDA and MIC average
    probabilities (`--aug-test`); averaging logits, which gives confident views more weight, is ours.

    Attributes:
        window: (h, w) of a sliding window; None processes every view as a whole.
        stride: (h, w) between windows.
        windows: windows per image in one forward.
        scales: scales of the views, relative to the image.
        flip: add a horizontally flipped view of every scale.
        average: "probabilities" or "logits" of the views.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] = (256, 256)
    windows: int = 8
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: Literal["probabilities", "logits"] = "probabilities"

    def __call__(self, network: Segmentor, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Compute logits of images; if probabilities are averaged, the softmax of the result is their mean.

        Args:
            network: segmentor in evaluation mode.
            image: [B, 3, H, W] RGB in [0, 1].
            size: (H', W') of the result; default: the image's.

        Returns:
            Float32 [B, C, H', W'].
        """
        height, width = size or image.shape[-2:]
        if self.views == 1:
            return resize(next(self._each(network, image))[0], (height, width))
        total: Tensor | None = None
        for logits, mirrored in self._each(network, image):
            scores = resize(logits, (height, width))
            scores = scores.softmax(1) if self.average == "probabilities" else scores
            scores = scores.flip(-1) if mirrored else scores
            total = scores if total is None else total.add_(scores)
        assert total is not None  # there is at least one scale
        total /= self.views
        # The clamp keeps the logarithm of a vanishing probability finite, so that it can be interpolated.
        return total.clamp_(min=torch.finfo(total.dtype).tiny).log_() if self.average == "probabilities" else total

    def label(self, network: Segmentor, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Predict classes uint8 [B, H', W'] of images [B, 3, H, W] at the size (H', W')."""
        if self.views == 1:
            return resized_argmax(next(self._each(network, image))[0], size)
        return resized_argmax(self(network, image, size), size)

    def single(self) -> Inference:
        """Keep the windows but drop scales and flips: for pseudo-labels, which `evaluator.scales` must not change."""
        return replace(self, scales=(1.0,), flip=False)

    @property
    def views(self) -> int:
        """Number of views of an image."""
        return len(self.scales) * (2 if self.flip else 1)

    def _each(self, network: Segmentor, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield the logits of every view at the view's size, and whether it is flipped."""
        height, width = image.shape[-2:]
        for scale in self.scales:
            view = resize(image, (max(1, round(scale * height)), max(1, round(scale * width))))
            for mirrored in (False, True) if self.flip else (False,):
                yield self._view(network, view.flip(-1) if mirrored else view), mirrored

    def _view(self, network: Segmentor, view: Tensor) -> Tensor:
        height, width = view.shape[-2:]
        below, beside = (max(0, network.smallest - side) for side in (height, width))
        if below or beside:  # replicate the border: reflection needs an image larger than the padding
            view = F.pad(view, (0, beside, 0, below), mode="replicate")
        if self.window is None:
            logits = network.predict(view)
        else:
            logits = slide_logits(network.predict, view, self.window, self.stride, self.windows)
        return logits[..., :height, :width]


def resized_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute `resize(logits, size).argmax(1)` class by class, without storing the resized logits.

    At the size of a Cityscapes label the logits of 19 classes take 160 MB, and on a CPU a plain argmax over them takes
    three times as long. Ties go to the first class.

    Args:
        logits: [B, C, H, W], C <= 256.
        size: (H', W').

    Returns:
        uint8 [B, H', W'].
    """
    best = resize(logits[:, :1], size).clone()
    label = torch.zeros_like(best, dtype=torch.uint8)
    for c in range(1, logits.shape[1]):
        plane = resize(logits[:, c : c + 1], size)
        label.masked_fill_(plane > best, c)
        torch.maximum(best, plane, out=best)
    return label[:, 0]


def whole_logits(predict: Predict, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Run one forward over the whole image.

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
    """Average logits of overlapping windows; the last window of a row or column is shifted back into the image.

    Args:
        predict: images [N, 3, h, w] -> logits [N, C, h, w].
        image: [B, 3, H, W].
        crop: (h, w) of a window; clipped to the image.
        stride: (h, w) between windows.
        windows: windows per image in one forward.
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
    """Compute the starts of windows of `crop` that cover `length`, `stride` apart; the last is shifted back inside."""
    steps = -(-(length - crop) // stride) + 1  # enough windows to cover the far border
    return [min(step * stride, length - crop) for step in range(steps)]


def _coverage(starts: list[int], crop: int, length: int) -> Tensor:
    count = torch.zeros(length)
    for start in starts:
        count[start : start + crop] += 1
    return count
