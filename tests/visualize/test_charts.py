"""Charts: what they show is where it belongs, and any class name can be written."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from uda_seg.data.labels import CAMVID
from uda_seg.visualize.charts import Confidence, PixelFeatures, confidence_chart, feature_map, prototype_chart

ODD = dataclasses.replace(CAMVID, names=("$x_1$", "小道", "<b>&amp;", "a_b^c", "\\frac{", "é", *CAMVID.names[6:]))
K = len(ODD)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(picture.astype(int) - np.array(colour)).max(-1) <= 2).sum(0)  # pixels per column


def test_confidence_is_drawn_at_its_bin_in_the_colour_of_its_class():
    pixels = np.zeros((K, 20), np.int64)
    pixels[2, 18:] = 50  # high confidence of one class alone
    right = pixels // 2
    high = near(confidence_chart(Confidence(pixels, right), ODD, None, "title"), ODD.palette[2])
    low = near(confidence_chart(Confidence(pixels[:, ::-1], right[:, ::-1]), ODD, None, "title"), ODD.palette[2])
    assert high.sum() > 100
    assert np.flatnonzero(high).mean() > 1.5 * np.flatnonzero(low).mean()
    lined = confidence_chart(Confidence(pixels, right), ODD, 0.5, "title")
    assert near(lined, (224, 49, 49)).max() > 50  # the threshold
    assert not near(lined, ODD.palette[3]).any()  # a class that is never predicted has no chart


def test_prototypes_are_red_where_they_are_alike():
    same, opposite = np.eye(K), -np.eye(K)
    pictures = [prototype_chart(same, same, ODD, range(K), ""), prototype_chart(opposite, same, ODD, range(K), "")]
    red = [near(picture, (103, 0, 31)) for picture in pictures]  # the colour map's end at 1
    half = pictures[0].shape[1] // 3
    assert red[0][:half].sum() > 1000
    assert red[1][:half].sum() < red[0][:half].sum() / 3  # what is left is the colour bar
    assert prototype_chart(same, same, ODD, [3], "one class").ndim == 3


@pytest.mark.filterwarnings("error")
def test_features_of_both_domains_are_drawn_also_with_few_pixels():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1])

    def domain() -> PixelFeatures:
        present = np.isin(np.arange(K), labels)
        return PixelFeatures(rng.normal(size=(3, 5)).astype(np.float32), labels, rng.normal(size=(K, 5)), present)

    source, target = domain(), domain()
    state = np.random.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        first, again = (feature_map(source, target, ODD, "$title$") for _ in range(2))
    assert np.array_equal(first, again)
    assert np.array_equal(np.random.get_state()[1], state)
    assert near(first, ODD.palette[0]).sum() > 100
    assert near(first, ODD.palette[1]).sum() > 100
