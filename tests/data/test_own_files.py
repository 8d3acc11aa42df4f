"""Custom data sets are told apart by their files, wherever they lie."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from uda_seg.data.own_files import digest_of_own_files
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.errors import UserError

MAP = {0: "road", 1: "sidewalk"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "labels") if split == "val" else ("images",):
            (tmp_path / "a" / folder / split).mkdir(parents=True)
            pixels = rng.integers(0, 2 if folder == "labels" else 255, (8, 8), np.uint8)
            cv2.imwrite(str(tmp_path / "a" / folder / split / "x.png"), pixels)
    return tmp_path / "a"


def settings(root: Path, **custom: Any) -> DataSettings:
    said = {"label_map": MAP} | custom
    target = DomainSettings(dataset="custom", root=str(root), split="train", custom=said)
    val = DomainSettings(dataset="custom", root=str(root), split="val", custom=said)
    return DataSettings(source=DomainSettings(dataset="streets"), target=target, validation={"target": val})


def test_it_is_the_same_elsewhere_and_another_with_other_files(root: Path) -> None:
    first = digest_of_own_files(settings(root))
    moved = shutil.copytree(root, root.parent / "b")
    assert digest_of_own_files(settings(moved)) == first
    assert digest_of_own_files(DataSettings(source=DomainSettings(dataset="streets"))) == ""
    found = {first}
    for change in (
        lambda: shutil.copy(moved / "images/train/x.png", moved / "images/train/y.png"),
        lambda: cv2.imwrite(str(moved / "images/val/x.png"), np.zeros((8, 8), np.uint8)),
        lambda: written(moved / "labels/val/x.png", np.eye(8, dtype=np.uint8)),
        lambda: written(moved / "labels/val/x.png", 1 - np.eye(8, dtype=np.uint8)),
    ):
        change()
        now = digest_of_own_files(settings(moved))
        assert now not in found
        found.add(now)


@pytest.mark.parametrize("way", ["oracle", "labelled"])
def test_labels_of_the_target_count_where_they_are_trained_on(root: Path, way: str) -> None:
    def now() -> str:
        said = settings(root)
        assert said.target is not None
        labelled = said if way == "oracle" else replace(said, target=replace(said.target, labelled=1))
        return digest_of_own_files(labelled, seed=3, target_labels=way == "oracle")

    (root / "labels/train").mkdir()
    written(root / "labels/train/x.png", np.eye(8, dtype=np.uint8))
    first, without = now(), digest_of_own_files(settings(root))
    written(root / "labels/train/x.png", 1 - np.eye(8, dtype=np.uint8))
    assert now() != first
    assert digest_of_own_files(settings(root)) == without, "no other method reads them"


def written(file: Path, label: NDArray[np.uint8]) -> None:
    """Write a label without compression, so that all have the same size."""
    file.write_bytes(cv2.imencode(".bmp", label)[1].tobytes())


@pytest.mark.parametrize("file", ["images/train/x.png", "images/val/x.png", "labels/val/x.png"])
def test_a_damaged_file_is_named_before_any_run(root: Path, file: str) -> None:
    for content in ((root / file).read_bytes()[:-9], b"no image", b""):
        (root / file).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(root / file))) as caught:
            digest_of_own_files(settings(root))
        assert "\n" not in str(caught.value)


def test_data_that_cannot_be_read_is_told_before_any_run(root: Path) -> None:
    for wrong, line in (
        (settings(root / "none"), r"no folder .*none/images/train.*set data.target.root"),
        (settings(root, label_map={0: "road", 1: "rode"}), r"data.target.custom.label_map: 1: rode is no class"),
        (settings(root, label_map={0: "road"}), r"1"),
        (settings(root, labels="annotations/{split}"), r"annotations"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            digest_of_own_files(wrong)
        assert "\n" not in str(caught.value)
