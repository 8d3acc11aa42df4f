"""What labels hold against what was declared, before anything is learnt or scored."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from trees import blocks, image_of, save, save_palette, streets_tree, synthia_tree

from uda_seg.data import declared
from uda_seg.data.custom import classes_of
from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.declared import check_labels, first_look
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.prepare.check import check_domain
from uda_seg.data.settings import DataSettings, DomainSettings, RareClassSettings
from uda_seg.data.specs import SPECS
from uda_seg.errors import UserError

SIZE = (16, 24)
MASKS = [blocks(i, SIZE, [0, 255], 4) for i in range(4)]


def own_settings(root, names=("background", "object"), **custom):
    domain = DomainSettings("custom", str(root), custom=custom)
    return DataSettings(
        "own", "custom", {"names": list(names)}, "all", crop=[8, 8], source=domain, target=domain,
        validation={"own": domain},
    )  # fmt: skip


def own(root, names=("background", "object"), **custom):
    data = own_settings(root, names, **custom)
    return open_domain(data.source, data, classes_of(data), "data.source", labeled=True)


def tree(root, labels):
    for i, label in enumerate(labels):
        save(root / f"images/train/{i}.png", image_of(np.zeros(SIZE, np.uint8), i))
        save(root / f"labels/train/{i}.png", label)
    return root


def official(name, root, classes=CITYSCAPES):
    return SegmentationDataset(SPECS[name], root, "train", classes, labeled=True)


def gta(root, *labels):
    for i, label in enumerate(labels):
        save(root / f"images/{i:05d}.png", image_of(label, i))
        save_palette(root / f"labels/{i:05d}.png", label)
    return official("gta", root)


def test_splits_of_one_folder_are_not_joined(tmp_path):
    settings = own_settings(tree(tmp_path, MASKS), images="images/train", labels=None)
    domain = replace(settings.target, split="train+val")
    with pytest.raises(UserError, match=r"split=train\+val: several of these are the images .*images/train: give one"):
        open_domain(domain, settings, classes_of(settings), "data.target", labeled=False)


def refused(data):
    with pytest.raises(UserError) as caught:
        check_labels(data, "data.source")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_masks_of_0_and_255_are_refused_unless_the_map_says_what_255_is(tmp_path):
    root = tree(tmp_path, MASKS)
    line = refused(own(root))
    assert "4 labels 4 were looked at" in line
    assert str(root / "labels/train/0.png") in line
    assert "255 is read as ignore: masks of two classes?" in line
    assert "say what they mean, e.g. {0: background, 255: object}, in data.source.custom.label_map" in line
    found = check_labels(own(root, label_map={0: "background", 255: "object"}), "data.source")
    assert found.pixels.tolist() == [sum(int((m == v).sum()) for m in MASKS) for v in (0, 255)]
    # Said by a person, 255 may be ignored.
    check_labels(own(root, label_map={0: "background", 255: "ignore"}), "data.source")


@pytest.mark.parametrize("label_format", ["gray", "color"])
def test_labels_that_once_were_lossy_are_told_where_other_ids_are_ignored(tmp_path, caplog, label_format):
    ids = np.kron(blocks(3, (6, 10), [0, 100, 200], 1), np.ones((7, 5), np.uint8))
    drawn = ids if label_format == "gray" else np.dstack([ids, ids, ids])
    _, lossy = cv2.imencode(".jpg", drawn)
    names = {0: "a", 100: "b", 200: "c"} if label_format == "gray" else {"0,0,0": "a", "#646464": "b", "#c8c8c8": "c"}
    for label, expected in ((cv2.imdecode(lossy, -1), True), (np.where(drawn == 200, 7, drawn), False)):
        root = tree(tmp_path / str(expected), [label] * 2)
        for i in range(2):
            save(root / f"images/train/{i}.png", image_of(ids, i))
        data = own(root, names="abc", label_format=label_format, label_map=names, unlisted="ignore")
        caplog.clear()
        check_labels(data, "data.source")
        assert ("ids that label_map does not name, " in caplog.text) == expected
        report = check_domain(data, "data.source", tmp_path / "cache", labels="needed")
        assert [(p.damage, "saved as JPEG" in p.cure) for p in report.problems] == [(False, True)] * expected


def test_masks_are_refused_in_a_public_layout_too(tmp_path):
    for i, mask in enumerate(MASKS):
        save(tmp_path / f"image/{i}.png", image_of(mask, i))
        save(tmp_path / f"label/{i}.png", mask)
    assert "masks of two classes?" in refused(official("streets", tmp_path))


def test_train_ids_under_the_name_of_raw_ids(tmp_path):
    line = refused(gta(tmp_path / "a", *(blocks(i, SIZE, [0, 2, 8, 10, 13, 18, 255], 4) for i in range(3))))
    assert "no *.png has an id above 18: these are train ids under the name of raw ids" in line
    check_labels(gta(tmp_path / "b", *(blocks(i, SIZE, [7, 11, 23, 26], 4) for i in range(3))), "data.source")
    check_labels(official("synthia", synthia_tree(tmp_path / "c", blocks(0, SIZE, list(range(16)), 4))), "data.source")


@pytest.mark.parametrize(("low", "wrong"), [(2, False), (3, True)])
def test_a_conversion_that_stopped_half_way(tmp_path, low, wrong):
    labels = [blocks(i, SIZE, [0, 2, 10] if i < low else [7, 11, 23], 4) for i in range(8)]
    data = gta(tmp_path, *labels)
    if wrong:
        assert "3 of 8 labels have no id above 18; if these are train ids among raw ones" in refused(data)
    else:
        check_labels(data, "data.source")


def test_everything_ignored_in_one_file_is_legal_and_in_all_is_not(tmp_path, caplog):
    blank, seen = np.full(SIZE, 255, np.uint8), blocks(0, SIZE, [0, 1], 4)
    with caplog.at_level(logging.WARNING):
        check_labels(own(tree(tmp_path / "one", [blank, seen])), "data.source")
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        check_labels(own(tree(tmp_path / "most", [seen, blank, blank])), "data.source")
    assert "and 2 have no pixel of any class, the first is" in caplog.text
    assert "no label has a pixel of any class, only the ids 255" in refused(own(tree(tmp_path / "all", [blank, blank])))


def test_a_map_that_leaves_nearly_everything_out_is_told(tmp_path, caplog):
    label = np.full(SIZE, 9, np.uint8)
    label[0, :10] = 1
    with caplog.at_level(logging.WARNING):
        data = own(tree(tmp_path, [label]), label_map={0: "background", 1: "object"}, unlisted="ignore")
        check_labels(data, "data.source")
    assert f"and {100 * 10 / label.size:.1f} % of their pixels have a class, the rest is ignored" in caplog.text


def test_ids_that_a_map_does_not_name(tmp_path):
    root = tree(tmp_path, [blocks(i, SIZE, [0, 1], 4) for i in range(2)])
    line = refused(own(root, label_map={7: "background", 8: "object"}, unlisted="ignore"))
    assert (
        "only the ids 0, 1: labels of another encoding; leave out data.source.custom.label_map if they are tr" in line
    )
    line = refused(own(root, label_map={7: "background", 8: "object"}))
    assert "has the unknown label id" in line


def test_the_look_is_bounded_spread_and_the_same_each_time(tmp_path, monkeypatch):
    data = official("streets", streets_tree(tmp_path, count=20, size=(16, 24)))
    looked = []
    real = data.label_ids
    monkeypatch.setattr(data, "label_ids", lambda index: looked.append(index) or real(index))
    assert first_look(data).looked == 20
    looked.clear()
    monkeypatch.setattr(declared, "FILES", 7)
    assert first_look(data).looked == 7
    assert looked == [0, 3, 6, 9, 12, 15, 19]
    looked.clear()
    monkeypatch.setattr(declared, "PIXELS", 5 * 16 * 24)
    first_look(data)
    assert looked == [0, 4, 9, 14, 19]


def test_all_labels_of_ones_own_are_looked_at_and_compared_with_their_images(tmp_path, monkeypatch):
    monkeypatch.setattr(declared, "FILES", 4)
    monkeypatch.setattr(declared, "PIXELS", 1)
    labels = [blocks(i, SIZE, [0, 1], 4) for i in range(6)]
    root = tree(tmp_path, labels)
    assert check_labels(own(root), "data.source").looked == 6
    save(root / "labels/train/2.png", labels[2][:-1])  # neither of these is one of the four
    assert "labels/train/2.png is 15x24 but its image" in refused(own(root))
    labels[2][0, 0] = 7
    save(root / "labels/train/2.png", labels[2])
    assert "labels/train/2.png has the unknown label id 7" in refused(own(root))


def test_a_line_names_the_key_that_can_be_set(tmp_path):
    domain = DomainSettings("custom", str(tree(tmp_path, [np.full(SIZE, 7, np.uint8)])), custom={})
    data = own_settings(tmp_path)
    data.source = DomainSettings()
    data.target = data.validation["own"] = domain  # which takes its description from the target
    with pytest.raises(UserError, match=r"unknown label id 7: .* in data\.target\.custom\.label_map"):
        check_labels(open_domain(domain, data, classes_of(data), "data.validation.own", labeled=True), "")


def test_prepare_judges_by_the_same_rules_and_all_files(tmp_path):
    def problems(data):
        unlabelled = SegmentationDataset(
            data.spec, data.root, "train", data.classes, labeled=False, option="data.source"
        )
        return check_domain(unlabelled, "data.source", tmp_path / "cache", labels="needed").problems

    (mask,) = problems(own(tree(tmp_path / "masks", MASKS)))
    assert mask.damage
    assert "masks of two classes?" in mask.what
    assert "255: object" in mask.cure
    root = tree(tmp_path / "lossy", [blocks(0, SIZE, [0, 1], 4)])
    Image.fromarray(blocks(0, SIZE, [0, 1], 4)).save(root / "labels/train/0.png", format="JPEG")
    (lossy,) = problems(own(root, label_map={0: "background", 1: "object"}, unlisted="ignore"))
    assert lossy.damage
    assert "is a JPEG, which is lossy and changes ids" in lossy.what
    many = np.arange(SIZE[0] * SIZE[1] * 3, dtype=np.uint16).reshape(*SIZE, 3).astype(np.uint8)
    many[..., 2] = np.arange(SIZE[0])[:, None]
    (strange,) = problems(own(tree(tmp_path / "colours", [many]), label_format="color"))
    assert "has ids that the custom data set does not know: [" in strange.what
    assert "name them in label_map" in strange.cure
    (journal,) = tmp_path.glob("cache/checked/colours-*/labels.jsonl")
    kept = json.JSONDecoder().raw_decode(journal.read_text().splitlines()[1])[0]["ids"]  # a digest follows
    assert len(kept) == 16  # of hundreds
    assert sum(kept.values()) == many.shape[0] * many.shape[1]


# ---------------------------------------------------------------------- every command that reads labels


def test_training_validation_and_oracle_labels_are_all_looked_at(tmp_path):
    good = tree(tmp_path / "good", [blocks(i, SIZE, [0, 1], 4) for i in range(3)])
    bad = tree(tmp_path / "bad", MASKS)
    for wrong, labels, stage in (("source", False, "fit"), ("target", True, "fit"), ("validation", False, "validate")):
        settings = own_settings(good)
        domain = DomainSettings("custom", str(bad), custom={})
        if wrong == "validation":
            settings.validation["own"] = domain
        else:
            setattr(settings, wrong, domain)
        data = UDADataModule(settings, steps=2, seed=0, target_labels=labels)
        option = "data.validation.own" if wrong == "validation" else f"data.{wrong}"
        with pytest.raises(UserError, match=rf"^{option}: .* masks of two classes\?"):
            data.setup(stage)


def absent(caplog, settings):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        UDADataModule(settings, steps=2, seed=0).setup("fit")
    return caplog.messages


@pytest.mark.parametrize("rare", [False, True])
def test_a_class_without_a_pixel_is_named_before_training(tmp_path, caplog, rare):
    root = tree(tmp_path, [blocks(i, SIZE, [0, 1], 4) for i in range(3)])
    settings = own_settings(root, names=("a", "b", "c", "d"), label_map={0: "a", 1: "b", 2: "c"})
    settings.rare_class = RareClassSettings(enabled=rare, min_pixels=0, min_crop_pixels=0)
    assert absent(caplog, settings) == [
        "data.source: no id in its labels maps to d, which is evaluated",
        "data.source: none of its 3 labels has a pixel of c: evaluated, but not trained on",
        "data.validation.own: no id in its labels maps to d, which is evaluated",
    ]
    settings.class_set["subsets"] = {"some": ["a", "b"]}
    settings.eval_classes = "some"
    assert absent(caplog, settings) == []


def test_a_sample_says_that_it_is_one_unless_all_were_counted(tmp_path, caplog, monkeypatch):
    labels = [blocks(i, SIZE, [0, 1], 4) for i in range(6)]
    labels[2][0, 0] = 2
    settings = own_settings(tree(tmp_path, labels), names=("a", "b", "c"))
    monkeypatch.setattr(declared, "OWN", 4 * labels[0].size)
    (line,) = absent(caplog, settings)
    assert line.startswith("data.source: 4 of its 6 labels were looked at, and none has a pixel of c, evaluated; pyth")
    settings.rare_class = RareClassSettings(enabled=True, min_pixels=0, min_crop_pixels=0)
    assert absent(caplog, settings) == []  # all are counted
    settings.rare_class = RareClassSettings()
    assert absent(caplog, settings) == []  # they were


def test_synthia_lacks_what_its_results_are_not_reported_on(tmp_path, caplog):
    ids = [i for i in range(23) if i not in (16, 18, 20)]  # terrain, truck, train
    synthia_tree(tmp_path, blocks(0, (64, 96), ids, 4))
    domain = DomainSettings("synthia", str(tmp_path))
    settings = DataSettings("a", eval_classes="16", crop=[8, 8], source=domain, target=domain, validation={})
    assert absent(caplog, settings) == []
    settings.eval_classes = "19"
    (line,) = absent(caplog, settings)
    assert line.startswith("data.source: none of its 1 labels has a pixel of terrain, truck, train: evaluated")
