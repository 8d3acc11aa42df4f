from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from trees import blocks, image_of, save

from uda_seg.data import statistics
from uda_seg.data.class_files import mend_back_slashes, official_pixels
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.labels import CAMVID, CITYSCAPES, CITYSCAPES_RAW
from uda_seg.data.specs import SPECS
from uda_seg.data.statistics import class_statistics, count_classes

CITIES = [("aachen", 0), ("aachen", 1), ("bochum", 0)]


@pytest.fixture
def cityscapes(tmp_path):
    for seed, (city, number) in enumerate(CITIES):
        label, stem = blocks(seed, (16, 24), [0, 7, 11, 26, 33]), f"train/{city}/{city}_{number:06d}"
        save(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", image_of(label))
        save(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", label)
    return tmp_path


def open_tree(root, classes=CITYSCAPES):
    return SegmentationDataset(SPECS["cityscapes"], root, "train", classes, labeled=True)


def entries(windows=False):
    """What DAFormer's converter would have counted, in the two forms it writes."""
    stats, by_class = [], {}
    for seed, (city, number) in enumerate(CITIES):
        path = f"data/cityscapes/gtFine/train/{city}/{city}_{number:06d}_gtFine_labelTrainIds.png"
        path = path.replace("/", "\\") if windows else path
        raw, counts = np.unique(blocks(seed, (16, 24), [0, 7, 11, 26, 33]), return_counts=True)
        own = {
            str(CITYSCAPES_RAW[r]): int(n) for r, n in zip(raw.tolist(), counts, strict=True) if CITYSCAPES_RAW[r] < 19
        }
        stats.append({**own, "file": path})
        for train, count in own.items():
            by_class.setdefault(train, []).append([path, count])
    return {
        "sample_class_stats.json": stats,
        "samples_with_class.json": by_class,
        "sample_class_stats_dict.json": {e["file"]: {k: v for k, v in e.items() if k != "file"} for e in stats},
    }


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", ["sample_class_stats.json", "samples_with_class.json", "sample_class_stats_dict.json"])
def test_official_files_take_the_place_of_counting(cityscapes, tmp_path, monkeypatch, name, windows):
    counted = count_classes(open_tree(cityscapes))
    (cityscapes / name).write_text(json.dumps(entries(windows)[name]))
    monkeypatch.setattr(statistics, "count_classes", lambda dataset: pytest.fail("counted"))
    read = class_statistics(open_tree(cityscapes), tmp_path / "cache")
    np.testing.assert_array_equal(read.pixels, counted.pixels)
    np.testing.assert_array_equal(read.areas, counted.areas)


def use(root, content, name="sample_class_stats.json"):
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda e: e[1:],
            r"lacks 1 of 3 images, the first is aachen/aachen_000000_leftImg8bit.png; classes are counted",
        ),
        (lambda e: [], r"lacks 3 of 3 images"),
        (lambda e: [{"file": one["file"]} for one in e], "has no pixel of any class; the classes are counted"),
        (lambda e: [{**one, "19": 4} for one in e], "names the class 19, of 19 classes; the classes are counted"),
        (lambda e: "[{", "(is no file of class statistics|cannot be read) .*move it away"),
        (lambda e: {"0": 3}, "is no file of class statistics"),
    ],
)
def test_files_that_do_not_serve_are_told_in_a_line_and_the_classes_counted(cityscapes, caplog, change, said):
    use(cityscapes, change(entries()["sample_class_stats.json"]))
    with caplog.at_level(logging.WARNING):
        assert official_pixels(open_tree(cityscapes)) is None
    assert len(caplog.messages) == 1
    assert pytest.importorskip("re").search(said, caplog.messages[0])


def test_names_that_do_not_exist_are_told_in_a_line(cityscapes, caplog):
    strange = [{"file": f"gtFine/train/ulm/ulm_{i}_gtFine_labelTrainIds.png", "0": 5} for i in range(4)]
    use(cityscapes, [*entries()["sample_class_stats.json"], *strange])
    with caplog.at_level(logging.WARNING):
        pixels = official_pixels(open_tree(cityscapes))
    np.testing.assert_array_equal(pixels, count_classes(open_tree(cityscapes)).pixels)
    assert len(caplog.messages) == 1
    assert "4 names belong to no image, the first is gtFine/train/ulm/ulm_0_gtFine" in caplog.messages[0]


def test_other_classes_are_counted(cityscapes):
    use(cityscapes, entries()["sample_class_stats.json"])
    assert official_pixels(open_tree(cityscapes, CAMVID)) is None


def test_back_slashes_can_be_mended_and_the_original_stays(tmp_path):
    for name, content in entries(windows=True).items():
        original = json.dumps(content)
        (tmp_path / name).write_text(original)
        kept = mend_back_slashes(tmp_path / name)
        assert kept.read_text() == original
        assert json.loads((tmp_path / name).read_text()) == entries()[name]


def test_kept_counts_that_cannot_be_read_are_made_anew(cityscapes, tmp_path, caplog):
    first = class_statistics(open_tree(cityscapes), tmp_path / "cache")
    (file,) = (tmp_path / "cache/statistics").iterdir()
    for broken in ("", "{", '{"pixels": []}'):
        file.write_text(broken)
        with caplog.at_level(logging.WARNING):
            again = class_statistics(open_tree(cityscapes), tmp_path / "cache")
        assert "cannot be read" in caplog.text
        np.testing.assert_array_equal(again.pixels, first.pixels)


def test_training_says_which_command_counts_beforehand(cityscapes, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(statistics, "MANY", 2)
    with caplog.at_level(logging.WARNING):
        class_statistics(open_tree(cityscapes), tmp_path / "cache", "python -m uda_seg.prepare data=a2b")
    assert "python -m uda_seg.prepare data=a2b does it once" in caplog.text
