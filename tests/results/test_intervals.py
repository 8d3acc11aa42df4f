"""Intervals of paired differences: against slow sums over resampled images, and methods of known quality."""

from __future__ import annotations

import numpy as np
import pytest

from results.invented import confusions, iou_of, world
from uda_seg.results.intervals import (
    _drawn,
    mean_interval,
    miou_of,
    paired_interval,
    seeds_interval,
    separate_interval,
    separate_seeds_interval,
)


def counts(quality: float, seed: int, images: int = 12, classes: int = 4) -> np.ndarray:
    labels = world(images, classes)
    return confusions(np.random.default_rng(seed), np.full(labels.shape, quality), labels)


def test_a_draw_is_the_miou_of_the_summed_confusions_of_the_drawn_images():
    found, subset = counts(0.6, 0), [0, 2, 3]
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, len(found), (5, len(found)))
    drawn[0] = 3  # one image over and over: classes are missing
    weights = np.stack([np.bincount(row, minlength=len(found)) for row in drawn]).astype(float)
    expected = [np.nanmean(iou_of(sum(found[i] for i in row))[subset]) for row in drawn]
    assert _drawn(found, weights, subset) == pytest.approx(expected)
    assert miou_of(found.sum(0), subset) == pytest.approx(np.nanmean(iou_of(found.sum(0))[subset]))


def test_the_mean_is_that_of_the_common_seeds_and_draws_are_repeatable():
    first = {seed: counts(0.7, seed) for seed in (0, 1, 5)}
    second = {seed: counts(0.6, 10 + seed) for seed in (0, 1, 2)}
    found = paired_interval(first, second, range(4), draws=200)
    expected = [np.nanmean(iou_of(first[s].sum(0))) - np.nanmean(iou_of(second[s].sum(0))) for s in (0, 1)]
    assert found.mean == pytest.approx(np.mean(expected))
    assert (found.seeds, found.images) == (2, 12)
    assert found.low < found.mean < found.high
    assert found == paired_interval(first, second, range(4), draws=200)
    same = paired_interval(first, first, range(4), draws=200)
    assert (same.mean, same.low, same.high) == (0, 0, 0)  # what both share cancels in every draw


def test_the_interval_has_the_width_of_the_known_spread_of_images():
    """Without noise of seeds: two classes, equally sized images, methods that differ by an independent share each."""
    rng, images = np.random.default_rng(0), 400
    right = np.stack([rng.integers(500, 900, images), rng.integers(500, 900, images)])
    methods = []
    for share in right:
        made = np.zeros((images, 1, 1), np.int64) + np.array([[0, 0], [0, 0]])
        made[:, 0, 0], made[:, 0, 1], made[:, 1, 1] = share, 1000 - share, 1000
        methods.append({0: made})
    found = paired_interval(*methods, [0], draws=4000)
    # IoU of class 0 is its share of right pixels, a plain mean over images: its standard error is known.
    deviation = np.std(right[0] - right[1], ddof=1) / 1000 / np.sqrt(images)
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.06)  # 4000 draws: 2 % standard error
    assert found.mean == pytest.approx((right[0] - right[1]).mean() / 1000)


@pytest.mark.slow
def test_intervals_cover_the_true_difference():
    """Of worlds and seeds drawn anew, with one true quality each, nearly 95 % of intervals hold the true difference."""
    rng, images, seeds, inside, trials = np.random.default_rng(0), 100, 10, 0, 300
    for _ in range(trials):
        quality = [0.7 + 0.02 * rng.standard_normal(seeds), 0.65 + 0.02 * rng.standard_normal(seeds)]
        easy = 0.1 * rng.standard_normal(images)
        sets = []
        for of_seed in quality:
            made = np.zeros((seeds, images, 2, 2), np.int64)
            right = np.round(1000 * np.clip(of_seed[:, None] + easy, 0, 1)).astype(np.int64)
            made[..., 0, 0], made[..., 0, 1], made[..., 1, 1] = right, 1000 - right, 1000
            sets.append(dict(enumerate(made)))
        found = paired_interval(*sets, [0], draws=500)
        inside += found.low <= 0.05 <= found.high
    assert 0.87 < inside / trials < 0.98  # 0.95, too narrow by sqrt(9 / 10): 0.937, and 3 standard errors of 300 trials


def test_seeds_alone():
    found = seeds_interval([0.1, 0.2, 0.15])
    assert found.mean == pytest.approx(0.15)
    assert 0.1 <= found.low < found.high < 0.2 + 1e-9
    alone = seeds_interval([0.1])
    assert (alone.low, alone.high, alone.images, alone.clear) == (None, None, 0, False)


def test_the_interval_of_a_mean_is_that_of_the_difference_from_what_is_wrong_everywhere():
    runs = {seed: counts(0.5 + 0.1 * seed, seed) for seed in range(3)}
    subset = [0, 1, 3]
    nothing = counts(0.5, 0)
    nothing[:, range(4), range(4)] = 0  # an mIoU of 0, whatever is drawn
    found, expected = mean_interval(runs, subset), paired_interval(runs, dict.fromkeys(runs, nothing), subset)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (found.seeds, found.images) == (3, 12)
    assert (
        mean_interval({0: runs[0]}, subset).low
        < miou_of(runs[0].sum(0), subset)
        < mean_interval({0: runs[0]}, subset).high
    )


def test_runs_that_are_no_pairs_have_the_interval_of_two_samples():
    """Of images without noise, the standard error of a difference of means: the root of the sum of the squared ones."""

    def certain(right: np.ndarray) -> dict[int, np.ndarray]:
        made = np.zeros((len(right), 5, 2, 2), np.int64)
        made[..., 0, 0], made[..., 0, 1], made[..., 1, 1] = right[:, None], 1000 - right[:, None], 1000
        return dict(enumerate(made))

    right = [np.random.default_rng(i).integers(500, 900, seeds) for i, seeds in enumerate((30, 60))]
    found = separate_interval(certain(right[0]), certain(right[1]), [0], draws=4000)
    shares = [side / 1000 for side in right]
    error = np.hypot(*(side.std() / np.sqrt(len(side)) for side in shares))  # of a bootstrap: without n - 1
    assert found.mean == pytest.approx(shares[0].mean() - shares[1].mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)  # 4000 draws: 2 % standard error
    assert (found.seeds, found.images) == (30, 5)
    alone = separate_seeds_interval(*shares, draws=4000)
    assert alone.mean == pytest.approx(found.mean)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert (alone.seeds, alone.images) == (30, 0)
    assert separate_seeds_interval([0.5], [0.4, 0.3]).low is None


def test_images_are_drawn_alike_for_runs_that_are_no_pairs():
    """A difficulty of single images that both methods share cancels, of one seed each altogether."""
    one = {0: counts(0.6, 0)}
    same = separate_interval(one, {7: one[0]}, range(4), draws=200)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    several = {seed: counts(0.6, seed) for seed in range(4)}
    assert separate_interval(several, several, range(4)).high > 0, "unlike pairs, these differ by their seeds"
