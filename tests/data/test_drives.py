"""Domains cut by the names of their images, and splits joined: CamVid's drives."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from uda_seg.data.dataset_files import DatasetFiles
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.labels import CAMVID
from uda_seg.data.specs import SPECS
from uda_seg.errors import UserError

FRAMES = {"train": ("a_1", "a_2", "b_1", "b_2"), "val": ("b_1", "b_9")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, (split, name) in enumerate((split, name) for split, names in FRAMES.items() for name in names):
        for folder, value in ((split, 100), (f"{split}annot", number)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), np.full((4, 6), value, np.uint8))
    return tmp_path


def files(root: Path, split: str = "train+val", **choice: list[str] | int) -> DatasetFiles:
    return DatasetFiles(SPECS["camvid"], root, split, labeled=True, **choice)  # type: ignore[arg-type]


def test_joined_splits_have_each_image_with_its_own_label(root: Path) -> None:
    data = SegmentationDataset(SPECS["camvid"], root, "train+val", CAMVID, labeled=True)
    assert data.names == [
        "train/a_1.png",
        "train/a_2.png",
        "train/b_1.png",
        "train/b_2.png",
        "val/b_1.png",
        "val/b_9.png",
    ]
    # Every label was written with the number of its image: that of val/b_1 is not that of train/b_1.
    assert [int(data.read_label(index)[0, 0]) for index in range(6)] == [0, 1, 2, 3, 4, 5]


def test_patterns_choose_images_by_name_before_they_are_counted(root: Path) -> None:
    assert files(root, include=["b_*"]).names == ["train/b_1.png", "train/b_2.png", "val/b_1.png", "val/b_9.png"]
    assert files(root, exclude=["b_*"]).names == ["train/a_1.png", "train/a_2.png"]
    assert files(root, "val", include=["b_*"], exclude=["*_1.png"]).names == ["b_9.png"]
    assert files(root, include=["b_*"], count=2).names == ["train/b_1.png", "train/b_2.png"]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"include": ["c_*"]}, r"data.source.include: no image of the 6 in .* is called c_\*; the first is train/a_1"),
        ({"exclude": ["a_1"]}, "data.source.exclude: no image of the 6 in .* is called a_1"),
        ({"exclude": ["a_*", "b_*"]}, r"data.source: exclude=\['a_\*', 'b_\*'\] leave none of the 6 images"),
        ({"split": "train+night"}, r"data.source.split=train\+night: CamVid .* has train, val and test only"),
        ({"split": "val+val"}, r"data.source.split=val\+val joins a split to itself"),
    ],
)
def test_what_chooses_nothing_is_refused_in_one_line(root: Path, choice: dict[str, list[str]], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        files(root, **choice)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
