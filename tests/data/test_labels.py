from __future__ import annotations

import numpy as np
import pytest

from uda_seg.data import labels
from uda_seg.data.labels import CAMVID, CITYSCAPES, IGNORE, lookup_table
from uda_seg.errors import UserError

RAW = {
    "cityscapes": "7 8 11 12 13 17 19 20 21 22 23 24 25 26 27 28 31 32 33",
    "synthia": "3 4 2 21 5 7 15 9 6 16 1 10 17 8 18 19 20 12 11",
}
CAMVID_NAMES = {
    "road": "road", "sidewalk": "pavement", "building": "building", "wall": "building", "fence": "fence",
    "pole": "pole", "traffic light": "sign symbol", "traffic sign": "sign symbol", "vegetation": "tree",
    "terrain": "tree", "sky": "sky", "person": "pedestrian",
    "rider": "bicyclist", "car": "car", "truck": "car", "bus": "car", "train": "car",
    "motorcycle": "bicyclist", "bicycle": "bicyclist",
}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "raw", "known"),
    [(labels.CITYSCAPES_RAW, "cityscapes", [*range(35), 255]), (labels.SYNTHIA_RAW, "synthia", [*range(23)])],
)
def test_raw_ids_map_to_train_ids_and_every_other_known_id_is_ignored(table, raw, known):
    ids = [int(i) for i in RAW[raw].split()]
    assert [table[i] for i in ids] == list(range(19))
    assert sorted(table) == known
    assert {table[i] for i in known if i not in ids} == {IGNORE}


def test_camvid_encoding_is_its_train_ids_and_eleven_is_unlabelled():
    assert {i: labels.CAMVID_RAW[i] for i in range(12)} == {**{i: i for i in range(11)}, 11: IGNORE}


def test_cityscapes_to_camvid_by_name():
    named = {CITYSCAPES.names[a]: CAMVID.names[b] for a, b in labels.CITYSCAPES_TO_CAMVID.items()}
    assert named == CAMVID_NAMES


def test_lookup_table_sends_unnamed_ids_to_ignore():
    table = lookup_table({0: 5, 255: 255})
    assert table.dtype == np.uint8
    assert table.shape == (256,)
    assert table[0] == 5
    assert set(table[1:].tolist()) == {255}


@pytest.mark.parametrize("classes", labels.CLASS_SETS.values(), ids=lambda c: c.name)
def test_a_class_set_is_whole(classes):
    assert len(classes.names) == len(set(classes.names)) == len(classes.palette) == len(classes.words)
    assert len(set(classes.palette)) == len(classes)
    everything = classes.subset(next(iter(classes.subsets)))
    assert everything == tuple(range(len(classes)))
    assert set(classes.things) <= set(everything)


def test_reported_subsets_leave_out_the_classes_that_synthia_lacks():
    def left_out(name):
        return [CITYSCAPES.names[c] for c in range(19) if c not in CITYSCAPES.subset(name)]

    assert left_out("16") == ["terrain", "truck", "train"]
    assert left_out("13") == ["wall", "fence", "pole", "terrain", "truck", "train"]


def test_prompt_words_differ_from_names_in_four_places():
    renamed = {n: w for n, w in zip(CITYSCAPES.names, CITYSCAPES.words, strict=True) if n != w}
    assert renamed == {"person": "pedestrian", "rider": "driver", "motorcycle": "motorbike", "bicycle": "bike"}


def test_unknown_names_are_told_with_the_valid_ones():
    with pytest.raises(UserError, match=r"17.*choose one of 19, 16, 13"):
        CITYSCAPES.subset("17")
    with pytest.raises(UserError, match=r"coco.*choose one of cityscapes, camvid"):
        labels.class_set("coco")
    with pytest.raises(UserError, match=r"camvid cannot be read as data\.classes=cityscapes"):
        labels.class_map(CAMVID, CITYSCAPES)
