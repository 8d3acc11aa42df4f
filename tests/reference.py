"""Slow, obvious re-statements of what the package computes: oracles of the tests, baselines of the bench.

Nothing here is batched, fused or clever: loops over samples, classes and pixels, and Python floats.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

IGNORE = 255


def half_of(classes: Sequence[int]) -> int:
    return (len(classes) + len(classes) % 2) // 2


def class_mix_loop(source: Tensor, target: Tensor, label: Tensor, chosen: Sequence[Sequence[int]]) -> Tensor:
    """Paste class by class, image by image; images [B, C, H, W], label [B, H, W], chosen ids per image."""
    mixed = target.clone()
    for b, classes in enumerate(chosen):
        for c in classes:
            mask = (label[b] == c).unsqueeze(0).to(source.dtype)
            mixed[b] = mask * source[b] + (1 - mask) * mixed[b]
    return mixed


def ema_loop(teacher: nn.Module, student: nn.Module, step: int, alpha: float) -> None:
    """Move the teacher tensor by tensor."""
    decay = min(1 - 1 / (step + 1), alpha)
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.data = decay * mine.data + (1 - decay) * theirs.data


def cross_entropy_loop(logits: Tensor, label: Tensor, weight: Tensor) -> float:
    batch, _, height, width = logits.shape
    total = 0.0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                c = int(label[b, y, x])
                if c != IGNORE:
                    scores = [float(v) for v in logits[b, :, y, x]]
                    log_sum = math.log(sum(math.exp(v) for v in scores))
                    total += float(weight[b, y, x]) * (log_sum - scores[c])
    return total / (batch * height * width)


def feature_distance_loop(
    student: Tensor,
    reference: Tensor,
    label: Tensor,
    things: Sequence[int],
    min_ratio: float,
    num_classes: int,
) -> float:
    batch, _, h, w = student.shape
    kh, kw = label.shape[1] // h, label.shape[2] // w
    distances = []
    for b in range(batch):
        for i in range(h):
            for j in range(w):
                cell = label[b, i * kh : (i + 1) * kh, j * kw : (j + 1) * kw].flatten().tolist()
                cell = [c if c < num_classes else num_classes for c in cell]
                ratios = [cell.count(c) / len(cell) for c in range(num_classes + 1)]
                winner = ratios.index(max(ratios))
                if ratios[winner] >= min_ratio and winner in things:
                    gap = (student[b, :, i, j] - reference[b, :, i, j]).tolist()
                    distances.append(math.sqrt(sum(d * d for d in gap)))
    return sum(distances) / len(distances) if distances else 0.0


def block_mask(draws: NDArray[np.float32], size: tuple[int, int], ratio: float) -> NDArray[np.bool_]:
    """One image's mask [H, W] from its grid of uniform draws: each pixel asks the block it lies in."""
    rows, columns = draws.shape
    mask = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            mask[y, x] = draws[y * rows // size[0], x * columns // size[1]] > ratio
    return mask


def jitter_pixel(rgb: Sequence[float], order: Sequence[str], factors: dict[str, float]) -> tuple[float, ...]:
    """ColorJiggle for one pixel through the standard library's HSV; hue in turns."""

    def clamp(value: float) -> float:
        return min(1.0, max(0.0, value))

    pixel = tuple(rgb)
    for name in order:
        factor = factors[name]
        if name == "brightness":
            pixel = tuple(clamp(v + factor) for v in pixel)
        elif name == "contrast":
            pixel = tuple(clamp(v * factor) for v in pixel)
        else:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            if name == "saturation":
                saturation = clamp(saturation * factor)
            else:
                hue = (hue + factor) % 1.0
            pixel = colorsys.hsv_to_rgb(hue, saturation, value)
    return pixel


def blur(image: NDArray[np.float64], sigma: float, taps: int) -> NDArray[np.float64]:
    """Gaussian blur of one plane [H, W] by the definition: reflected borders, normalised kernel."""
    radius = taps // 2
    weights = np.array([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)])
    weights /= weights.sum()
    padded = np.pad(image, radius, mode="reflect")
    rows = sum(w * padded[i : i + image.shape[0]] for i, w in enumerate(weights))
    return np.asarray(sum(w * rows[:, i : i + image.shape[1]] for i, w in enumerate(weights)))


def confusion_loop(prediction: NDArray[np.int64], label: NDArray[np.int64], num_classes: int) -> list[list[int]]:
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t != IGNORE:
            matrix[t][p] += 1
    return matrix


def iou_sets(prediction: NDArray[np.int64], label: NDArray[np.int64], c: int) -> float:
    """IoU of one class by sets of pixel positions; nan where it occurs in neither."""
    counted = label != IGNORE
    said = set(np.flatnonzero((prediction == c) & counted).tolist())
    true = set(np.flatnonzero((label == c) & counted).tolist())
    return len(said & true) / len(said | true) if said | true else math.nan
