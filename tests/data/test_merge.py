"""`data.merge`: Cityscapes' classes read as custom ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from uda_seg.data.custom import CustomData, classes_of, contents, label_table, merge_table
from uda_seg.data.labels import CITYSCAPES, class_map
from uda_seg.data.parts import validation_parts
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.errors import UserError

BY_CLASS = {
    **dict.fromkeys(("road", "sidewalk", "terrain"), "ground"),
    **dict.fromkeys(("building", "wall", "fence", "pole", "traffic light", "traffic sign"), "built"),
    "vegetation": "plant",
    "sky": "ignore",
    **dict.fromkeys(("person", "rider"), "people"),
    **dict.fromkeys(("car", "truck", "bus", "train", "motorcycle", "bicycle"), "vehicle"),
}
TURNED = {into: [own for own, other in BY_CLASS.items() if other == into] for into in dict.fromkeys(BY_CLASS.values())}


def settings(merge: Any, class_set: Any = None) -> DataSettings:
    return DataSettings(classes="custom", eval_classes="all", merge=merge, class_set=class_set)


@pytest.mark.parametrize("said", [BY_CLASS, TURNED])
def test_every_class_becomes_the_one_that_the_map_says(said: Any) -> None:
    classes = classes_of(settings(said))
    assert classes.names == ("ground", "built", "plant", "people", "vehicle")
    found = class_map(CITYSCAPES, classes)
    for train, name in enumerate(CITYSCAPES.names):
        assert found[train] == (255 if name == "sky" else classes.names.index(BY_CLASS[name]))
    assert found[255] == 255
    assert classes.words == ("road", "building", "vegetation", "pedestrian", "car"), "prompts that text=file knows"
    assert [classes.names[c] for c in classes.things] == ["people", "vehicle"]
    # What a checkpoint keeps describes the same classes.
    kept = contents(settings(said))["data.class_set"]
    assert classes_of(settings(said, kept)) == replace(classes, subsets={"all": (0, 1, 2, 3, 4)})


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (5, "data.merge=5 is no map"),
        ({"rode": "ground"}, "data.merge: rode is none of the classes road, sidewalk"),
        (BY_CLASS | {"more": ["road"]}, "data.merge: road is given twice, as ground and as more"),
        ({"road": "ground"}, "data.merge does not say what becomes of sidewalk, building"),
        (TURNED | {"nothing": []}, "data.merge: no class of cityscapes becomes nothing"),
        ({"plant": "vegetation"}, r"plant is none of the classes .* \(write plant: \[vegetation\] if"),
        ({"Ignore": ["road"]}, "data.merge: road becomes Ignore: write ignore, in small letters"),
        ({True: ["road"]}, "data.merge: road becomes True: yes, no, on, off, true and false are names in quotes only"),
    ],
)
def test_a_map_that_cannot_be_is_refused_in_one_line(said: Any, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        classes_of(settings(said))
    assert "\n" not in str(caught.value)


def test_a_number_is_no_class_where_it_could_be_two() -> None:
    classes = classes_of(settings(dict(enumerate(TURNED.values(), 1))))
    assert classes.names == ("1", "2", "3", "4", "5", "6")
    with pytest.raises(UserError, match=r"k: 10: 1 is the name of one class and the train id of another: write '1'"):
        label_table(CustomData(label_map={10: 1, 20: 2}), classes, "k")
    assert label_table(CustomData(label_map={10: "1", 20: 0}), classes, "k") == {10: 0, 20: 0}


def test_a_map_and_a_class_set_have_to_fit() -> None:
    names = ("ground", "built", "plant", "people", "vehicle", "water")
    with pytest.raises(UserError, match="no class of cityscapes becomes water, so nothing can teach it"):
        merge_table(BY_CLASS, names)
    with pytest.raises(UserError, match="vegetation becomes plant, which is none of the classes ground, built"):
        merge_table(BY_CLASS, ("ground", "built", "people", "vehicle"))
    with pytest.raises(UserError, match=r"data\.merge is given, but data.classes=cityscapes"):
        classes_of(DataSettings(merge=BY_CLASS))
    with pytest.raises(UserError, match=r"say in data\.merge which class each of cityscapes becomes"):
        class_map(CITYSCAPES, classes_of(settings(None, {"names": ["a", "b"]})))


def test_a_custom_validation_set_without_labels_is_left_out() -> None:
    with_labels = DomainSettings(dataset="custom", custom={"images": "a"})
    without = DomainSettings(dataset="custom", custom={"images": "a", "labels": None})
    data = DataSettings(validation={"one": with_labels, "two": without, "three": DomainSettings()})
    assert list(validation_parts(data)) == ["one", "three"]
