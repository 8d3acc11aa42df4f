"""Intervals over seeds and images: of mIoU, and of its differences between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uda_seg.results.packing import Counts

Floats = NDArray[np.float64]
DRAWS = 2000
LEVEL = 0.95
SCHEME = (
    "Paired bootstrap, {draws} draws: each draw takes as many seeds as there are, with replacement, and, separately, "
    "as many images of the validation set as there are, with replacement. The same drawn seeds and images are used "
    "for both methods; the images' confusion matrices are summed, mIoU is computed for each drawn seed and method, "
    "and the difference averaged over the drawn seeds. The interval holds the middle 95 % of these differences. Runs "
    "that are not paired (other data or start weights, other seeds) have their seeds drawn for each method on its "
    "own. Images are drawn as if independent: for frames of one video the interval is too narrow. With few seeds it "
    "is too narrow as well, as resampled seeds differ less than new ones would: by about the factor sqrt((n - 1) / n)"
    " for n seeds."
)


@dataclass(frozen=True)
class Interval:
    """A mean, of differences or of scores, and its interval.

    Attributes:
        mean: of the differences in [-1, 1], or of the scores in [0, 1].
        low, high: bounds; None where nothing can be said: of one seed without counts per image.
        seeds, images: numbers that were drawn from, of seeds the smaller one of two methods that are no pairs; no
            images: the interval covers seeds alone.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    images: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def miou_of(confusion: NDArray[np.float64] | Counts, subset: Sequence[int]) -> Floats:
    """Compute mIoU over a subset of classes from [..., C, C] pixels; classes without a pixel are skipped."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    known = union[..., subset] > 0
    iou = np.where(known, hit[..., subset] / np.where(known, union[..., subset], 1), 0)
    return np.asarray(iou.sum(-1) / np.maximum(known.sum(-1), 1))


def paired_interval(
    first: Mapping[int, Counts],
    second: Mapping[int, Counts],
    subset: Sequence[int],
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Compute the difference in mIoU of two methods, first minus second, on the same images.

    Each of `draws` bootstrap samples draws seeds and, independently, images, both with replacement and alike for both
    methods (`SCHEME`); percentile interval.

    Args:
        first: seed -> int64 [N, C, C], confusion matrices of the images.
        second: the same of the other method; only common seeds count.
        subset: ids of the classes in the mean.
        draws: bootstrap samples.
        seed: of the draws; the same seed gives the same interval.
    """
    seeds = sorted(first.keys() & second.keys())
    images = len(first[seeds[0]])
    mean = np.mean([miou_of(first[s].sum(0), subset) - miou_of(second[s].sum(0), subset) for s in seeds])
    rng, weights = _resampled(images, draws, seed)
    differences = np.stack([_drawn(first[s], weights, subset) - _drawn(second[s], weights, subset) for s in seeds])
    return _interval(float(mean), differences, rng, images)


def separate_interval(
    first: Mapping[int, Counts],
    second: Mapping[int, Counts],
    subset: Sequence[int],
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Compute the difference in mIoU of two methods whose runs are no pairs, first minus second, on the same images.

    As `paired_interval`, but seeds are drawn for each method on its own, and all of them count.

    Args:
        first: seed -> int64 [N, C, C], confusion matrices of the images.
        second: the same of the other method, of any seeds.
        subset: ids of the classes in the mean.
        draws: bootstrap samples.
        seed: of the draws.
    """
    images = len(next(iter(first.values())))
    rng, weights = _resampled(images, draws, seed)
    means = [float(np.mean([miou_of(c.sum(0), subset) for c in side.values()])) for side in (first, second)]
    drawn = [np.stack([_drawn(c, weights, subset) for c in side.values()]) for side in (first, second)]
    return _separate(means[0] - means[1], drawn[0], drawn[1], rng, images)


def mean_interval(counts: Mapping[int, Counts], subset: Sequence[int], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Compute the mean mIoU of a method's runs on the same images, with the interval of `paired_interval`.

    Args:
        counts: seed -> int64 [N, C, C], confusion matrices of the images; of one seed the interval is over images.
        subset: ids of the classes in the mean.
        draws: bootstrap samples.
        seed: of the draws.
    """
    images = len(next(iter(counts.values())))
    rng, weights = _resampled(images, draws, seed)
    mean = np.mean([miou_of(found.sum(0), subset) for found in counts.values()])
    return _interval(float(mean), np.stack([_drawn(c, weights, subset) for c in counts.values()]), rng, images)


def _resampled(images: int, draws: int, seed: int) -> tuple[np.random.Generator, Floats]:
    """Draw images for each sample: how often each is in it, [draws, images]; and the generator to draw seeds with."""
    rng = np.random.default_rng(seed)
    return rng, rng.multinomial(images, np.full(images, 1 / images), draws).astype(np.float64)


def _interval(mean: float, drawn: Floats, rng: np.random.Generator, images: int) -> Interval:
    """Draw seeds for each column of values [seeds, draws], and take the percentiles of their means."""
    return _percentiles(mean, _means(drawn, rng), len(drawn), images)


def _separate(mean: float, first: Floats, second: Floats, rng: np.random.Generator, images: int) -> Interval:
    """Draw seeds of both, each on its own, and take the percentiles of the differences of their means."""
    sample = _means(first, rng) - _means(second, rng)
    return _percentiles(mean, sample, min(len(first), len(second)), images)


def _means(drawn: Floats, rng: np.random.Generator) -> Floats:
    """Draw seeds for each column of values [seeds, draws], and return their means [draws]."""
    seeds, draws = drawn.shape
    return np.asarray(np.take_along_axis(drawn.T, rng.integers(0, seeds, (draws, seeds)), 1).mean(1))


def _percentiles(mean: float, sample: Floats, seeds: int, images: int) -> Interval:
    low, high = np.quantile(sample, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), seeds, images)


def _drawn(counts: Counts, weights: Floats, subset: Sequence[int]) -> Floats:
    """Compute mIoU of each sample: counts [N, C, C] and weights [D, N] -> [D].

    IoU needs each image's hits and sizes of label and prediction only, so 3 C numbers instead of C * C.
    """
    chosen = list(subset)
    hit = weights @ np.diagonal(counts, axis1=1, axis2=2)[:, chosen].astype(np.float64)
    total = weights @ (counts.sum(1) + counts.sum(2))[:, chosen].astype(np.float64)
    union, known = total - hit, total > 0
    iou = np.where(known, hit / np.where(known, union, 1), 0)
    return np.asarray(iou.sum(1) / np.maximum(known.sum(1), 1))


def seeds_interval(differences: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Compute the interval over seeds alone, for runs without counts per image; none from one seed."""
    values = np.array(differences)
    if len(values) < 2:
        return Interval(float(values.mean()), None, None, len(values), 0)
    return _interval(float(values.mean()), _repeated(values, draws), np.random.default_rng(seed), 0)


def separate_seeds_interval(
    first: Sequence[float], second: Sequence[float], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Compute the difference of two methods' means, with its interval over seeds alone, each method's on its own.

    There is no interval from one seed of either.
    """
    values = np.array(first), np.array(second)
    mean, least = float(values[0].mean() - values[1].mean()), min(map(len, values))
    if least < 2:
        return Interval(mean, None, None, least, 0)
    repeated = [_repeated(side, draws) for side in values]
    return _separate(mean, repeated[0], repeated[1], np.random.default_rng(seed), 0)


def _repeated(values: Floats, draws: int) -> Floats:
    return np.repeat(values[:, None], draws, 1)
