"""Geometric transforms on the CPU: resize, crop, flip, pad (the only module that uses albumentations).

Only albumentations' functional layer is used, not its random transforms: crops are drawn here, from the caller's
generator, so that a sample is a pure function of (seed, position) in every process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uda_seg.data.batch import Array, Sample
from uda_seg.data.counting import count_ids
from uda_seg.data.labels import IGNORE

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # the import would check for updates online
import albumentations.augmentations.crops.functional as crops
import albumentations.augmentations.geometric.functional as geometric

# PIL's filters are antialiased: they weight all covered pixels, while OpenCV's bilinear uses four.
PIL_FILTERS = {"pil_bilinear": Image.Resampling.BILINEAR, "pil_bicubic": Image.Resampling.BICUBIC}
Pixel = TypeVar("Pixel", np.uint8, np.float32)


@dataclass(frozen=True)
class CropRule:
    """Rule for training crops.

    Args:
        size: (H, W) of a crop; smaller images are padded at the right and bottom.
        max_ratio: Draw again while one class has this share or more of the labelled pixels; 1.0: never.
        flip: Flip horizontally with probability 0.5.
        tries: Maximum number of crops drawn under `max_ratio`; the last is kept unconditionally.
    """

    size: tuple[int, int]
    max_ratio: float = 1.0
    flip: bool = True
    tries: int = 10


@dataclass(frozen=True)
class RareClass:
    """Class required in a crop: more than `min_pixels` of `train_id`, with at most `tries` further draws."""

    train_id: int
    min_pixels: float
    tries: int = 10


def fit_inside(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Compute (H, W) of an image of `size` after a resize that keeps its aspect ratio and fits inside `box` (H, W).

    GTA's 1052 x 1914 in 720 x 1280 becomes 704 x 1280, as in DAFormer.
    """
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


@dataclass(frozen=True)
class Resize:
    """Resize of a sample: images by a smooth filter, labels and masks by nearest neighbour.

    Args:
        box: (H, W).
        keep_ratio: Keep the aspect ratio and fit inside the box; false stretches to the whole box.
        depth: Interpolation of inverse depth: nearest, or bilinear, which blends invalid pixels with their neighbours.
        filter: Interpolation of images: bilinear (OpenCV's), or one of `PIL_FILTERS`.
    """

    box: tuple[int, int]
    keep_ratio: bool = True
    depth: str = "nearest"
    filter: str = "bilinear"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the new (H, W) of an image of `height` x `width`."""
        return fit_inside((height, width), self.box) if self.keep_ratio else self.box

    def image(self, image: Array) -> Array:
        """Resize an image uint8 [H, W, 3]."""
        height, width = self.size(*image.shape[:2])
        if self.filter in PIL_FILTERS:
            return np.asarray(Image.fromarray(image).resize((width, height), PIL_FILTERS[self.filter]))
        resized: Array = geometric.resize(image, (height, width), cv2.INTER_LINEAR)
        return resized

    def plane(self, plane: NDArray[Pixel]) -> NDArray[Pixel]:
        """Resize a plane [H, W] by nearest neighbour.

        The exact variant samples at pixel centres, like bilinear and PIL; INTER_NEAREST is half a pixel off.
        """
        resized: NDArray[Pixel] = geometric.resize(plane, self.size(*plane.shape[:2]), cv2.INTER_NEAREST_EXACT)
        return resized

    def inverse_depth(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resize inverse depth [H, W]."""
        if self.depth == "nearest":
            return self.plane(z)
        resized: NDArray[np.float32] = geometric.resize(z, self.size(*z.shape[:2]), cv2.INTER_LINEAR)
        return resized

    def __call__(self, sample: Sample) -> Sample:
        """Resize the sample."""
        resized = sample.map(self.image, self.plane)
        return resized if sample.depth is None else replace(resized, depth=self.inverse_depth(sample.depth))


def pad(sample: Sample, size: tuple[int, int]) -> Sample:
    """Pad the sample to at least `size` (H, W) at the right and bottom: image 0, label 255, valid 0, depth 1."""
    height, width = sample.image.shape[:2]
    bottom, right = max(0, size[0] - height), max(0, size[1] - width)
    if not bottom and not right:
        return sample

    def border(array: NDArray[Pixel], value: int) -> NDArray[Pixel]:
        padded: NDArray[Pixel] = geometric.pad_with_params(array, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value)
        return padded

    valid = np.ones((height, width), np.uint8) if sample.valid is None else sample.valid
    label = None if sample.label is None else border(sample.label, IGNORE)
    depth = None if sample.depth is None else border(sample.depth, 1)  # 1 = invalid
    return Sample(border(sample.image, 0), label, border(valid, 0), depth)


def crop(sample: Sample, top: int, left: int, size: tuple[int, int]) -> Sample:
    """Crop a window of `size` (H, W) at (top, left), as views."""

    def cut(array: NDArray[Pixel]) -> NDArray[Pixel]:
        window: NDArray[Pixel] = crops.crop(array, left, top, left + size[1], top + size[0])
        return window

    return replace(sample.map(cut, cut), window=(top, left, 0))


def flip(sample: Sample) -> Sample:
    """Flip the sample horizontally."""
    top, left, mirrored = sample.window
    return replace(sample.map(geometric.hflip, geometric.hflip), window=(top, left, 1 - mirrored))


def is_dominated(label: Array, max_ratio: float) -> bool:
    """Return whether one class has `max_ratio` or more of the labelled pixels of [H, W], or none is labelled."""
    counts = count_ids(label)[:IGNORE]
    return bool(counts.max() >= max_ratio * counts.sum())


def random_crop(sample: Sample, rule: CropRule, rng: np.random.Generator) -> Sample:
    """Crop at a uniformly drawn position; redraw a few times if a class dominates, and keep the last."""
    height, width = sample.image.shape[:2]
    for _ in range(rule.tries):
        top = int(rng.integers(height - rule.size[0] + 1))
        left = int(rng.integers(width - rule.size[1] + 1))
        window = crop(sample, top, left, rule.size)
        if rule.max_ratio >= 1 or window.label is None or not is_dominated(window.label, rule.max_ratio):
            break
    return window


def training_crop(sample: Sample, rule: CropRule, rng: np.random.Generator, rare: RareClass | None = None) -> Sample:
    """Pad, crop and flip one decoded sample; with `rare`, redraw until the crop contains the rare class.

    Args:
        sample: The decoded and resized sample, which is not modified.
        rule: Size of the crop, rule on dominating classes, flip.
        rng: Generator of all draws.
        rare: Class required in the crop (needs a label); after `rare.tries` further draws the last crop is kept.

    Returns:
        A sample of exactly `rule.size`.
    """
    sample = pad(sample, rule.size)
    for _ in range(1 + (rare.tries if rare else 0)):
        window = random_crop(sample, rule, rng)
        if rare is None or window.label is None:
            break
        if np.count_nonzero(window.label == rare.train_id) > rare.min_pixels:
            break
    return flip(window) if rule.flip and rng.random() < 0.5 else window
