from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from trees import blocks, save, streets_tree

from uda_seg.data import statistics
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.labels import CAMVID, CITYSCAPES, CITYSCAPES_TO_CAMVID
from uda_seg.data.settings import RareClassSettings
from uda_seg.data.specs import SPECS
from uda_seg.data.statistics import ClassStatistics, class_statistics, min_crop_pixels, rare_class_order
from uda_seg.errors import UserError

NAMES = ("road", "car", "train")


def open_tree(root, classes=CITYSCAPES):
    return SegmentationDataset(SPECS["streets"], root, "train", classes, labeled=True)


def test_counts_every_pixel_of_every_class(tmp_path):
    found = class_statistics(open_tree(streets_tree(tmp_path, count=3)), tmp_path / "cache")
    labels = [blocks(i, (32, 48), [*range(19), 255]) for i in range(3)]
    assert found.pixels.tolist() == [[int((label == c).sum()) for c in range(19)] for label in labels]
    assert found.areas.tolist() == [32 * 48] * 3


def test_counts_after_the_mapping_of_the_classes(tmp_path):
    root = streets_tree(tmp_path, count=2)
    fine = class_statistics(open_tree(root), tmp_path / "cache").pixels
    coarse = class_statistics(open_tree(root, CAMVID), tmp_path / "cache").pixels
    for c in range(11):
        members = [a for a, b in CITYSCAPES_TO_CAMVID.items() if b == c]
        np.testing.assert_array_equal(coarse[:, c], fine[:, members].sum(1))


def test_counts_once_and_again_when_a_label_changes(tmp_path, monkeypatch):
    cache, data = tmp_path / "cache", open_tree(streets_tree(tmp_path))
    count, calls = statistics.count_classes, []
    monkeypatch.setattr(statistics, "count_classes", lambda d: calls.append(d) or count(d))
    first, again = class_statistics(data, cache), class_statistics(data, cache)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert len(calls) == 1
    save(data.label_path(0), np.zeros((32, 48), np.uint8))
    os.utime(data.label_path(0), ns=(0, 12345))
    assert class_statistics(data, cache).pixels[0].tolist() == [32 * 48] + [0] * 18
    assert len(calls) == 2
    assert {file.suffix for file in (cache / "statistics").iterdir()} == {".json"}


def test_finding_the_counts_looks_at_each_label_once(tmp_path, monkeypatch):
    data, looked = open_tree(streets_tree(tmp_path)), []
    stat = os.stat
    monkeypatch.setattr(statistics.os, "stat", lambda path, **more: looked.append(path) or stat(path, **more))
    statistics.statistics_file(data, tmp_path / "cache")
    assert len([path for path in looked if str(path).endswith(".png")]) == len(data)


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cache/statistics/.*make room or set UDA_SEG_CACHE"):
        class_statistics(open_tree(streets_tree(tmp_path, count=1)), tmp_path / "cache")


def table(*rows, area=1914 * 1052):
    return ClassStatistics(np.array(rows), np.full(len(rows), area))


def test_an_image_has_a_class_above_the_threshold_scaled_by_its_area():
    full = rare_class_order(table([9000, 3000, 0], [9000, 3001, 0]), RareClassSettings(), NAMES, 0, 0)
    assert [found.tolist() for found in full.images] == [[0, 1], [1], []]
    quarter = rare_class_order(table([9000, 750, 0], [9000, 751, 0], area=957 * 526), RareClassSettings(), NAMES, 0, 0)
    assert [found.tolist() for found in quarter.images] == [[0, 1], [1], []]
    fixed = rare_class_order(table([9, 4, 0], [9, 5, 0], area=10**9), RareClassSettings(min_pixels=4), NAMES, 0, 0)
    assert [found.tolist() for found in fixed.images] == [[0, 1], [1], []]


def test_a_class_that_no_image_has_enough_of_is_never_drawn_and_named(caplog):
    with caplog.at_level(logging.WARNING):
        order = rare_class_order(table([9000, 5000, 10]), RareClassSettings(temperature=0.5), NAMES, 0, 0)
    assert "never draws train" in caplog.text
    assert order.probabilities[2] == 0
    frequency = np.array([9000, 5000]) / 14010
    odds = np.exp((1 - frequency) / 0.5)
    np.testing.assert_allclose(order.probabilities[:2], odds / odds.sum())


def test_no_class_at_all_is_told():
    with pytest.raises(UserError, match=r"lower data.rare_class.min_pixels or set data.rare_class.enabled=false"):
        rare_class_order(table([1, 2, 3]), RareClassSettings(), NAMES, 0, 0)


def test_the_crop_threshold_scales_with_the_crop():
    assert min_crop_pixels(RareClassSettings(), (512, 512)) == 1500
    assert min_crop_pixels(RareClassSettings(), (128, 256)) == 1500 / 8
    assert min_crop_pixels(RareClassSettings(min_crop_pixels=7), (128, 256)) == 7
