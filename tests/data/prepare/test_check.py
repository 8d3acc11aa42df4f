from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from trees import (
    blocks,
    camvid_tree,
    cityscapes_tree,
    gta_tree,
    image_of,
    save,
    save_palette,
    streets_tree,
    synthia_tree,
)

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.depth import DepthFiles
from uda_seg.data.labels import CAMVID, CITYSCAPES
from uda_seg.data.prepare import check as checking
from uda_seg.data.prepare.check import check_domain, to_text
from uda_seg.data.prepare.journal import Finding, Journal
from uda_seg.data.prepare.repair import repair, set_aside
from uda_seg.data.specs import SPECS
from uda_seg.data.statistics import count_classes

SEEN = blocks(0, (32, 48), [0, 7, 8, 11, 23, 26])


def check(name, root, tmp_path, labels="needed", classes=CITYSCAPES, whole=False, count=None, sized=False):
    spec = SPECS[name]
    if not sized:  # most trees have images of a few pixels
        spec = replace(spec, size=None)
    data = SegmentationDataset(spec, root, "train", classes, labeled=False, count=count)
    return check_domain(data, "data.source", tmp_path / "cache", labels=labels, whole=whole)


def told(report):
    return [(problem.kind, problem.damage) for problem in report.problems]


@pytest.mark.parametrize("name", ["gta", "synthia", "cityscapes", "camvid", "streets"])
def test_a_sound_data_set_has_no_problem_and_the_counts_of_its_labels(tmp_path, name):
    makers = {
        "gta": lambda r: gta_tree(r, SEEN),
        "synthia": lambda r: synthia_tree(r, blocks(0, (32, 48), list(range(23)))),
        "cityscapes": lambda r: cityscapes_tree(r, SEEN),
        "camvid": camvid_tree,
        "streets": streets_tree,
    }
    root, classes = makers[name](tmp_path / "tree"), CAMVID if name == "camvid" else CITYSCAPES
    report = check(name, root, tmp_path, classes=classes)
    assert told(report) == []
    counted = count_classes(SegmentationDataset(SPECS[name], root, "train", classes, labeled=True))
    np.testing.assert_array_equal(report.statistics.pixels, counted.pixels)
    np.testing.assert_array_equal(report.statistics.areas, counted.areas)
    assert report.shapes.tolist() == [list(report.dataset.read(i).image.shape[:2]) for i in range(len(report.dataset))]


def test_what_was_checked_is_not_checked_again(tmp_path, monkeypatch):
    root, read = streets_tree(tmp_path / "tree"), []
    real = checking.check_image_file
    monkeypatch.setattr(checking, "check_image_file", lambda path: read.append(path.name) or real(path))
    first = check("streets", root, tmp_path)
    assert len(read) == 12
    again = check("streets", root, tmp_path)
    assert len(read) == 12
    np.testing.assert_array_equal(first.statistics.pixels, again.statistics.pixels)
    save(root / "image/000002.png", np.zeros((8, 8, 3), np.uint8))
    changed = check("streets", root, tmp_path)
    assert read[12:] == ["000002.png"]
    assert [(p.kind, p.index) for p in changed.problems] == [("size", 2)]


def test_a_check_that_was_killed_goes_on(tmp_path, monkeypatch):
    root, read, limit = streets_tree(tmp_path / "tree"), [], 4
    real = checking.check_image_file
    monkeypatch.setattr(checking, "in_threads", lambda work, items, title: map(work, items))

    def some(path):
        if len(read) == limit:
            raise KeyboardInterrupt
        read.append(path)
        return real(path)

    monkeypatch.setattr(checking, "check_image_file", some)
    with pytest.raises(KeyboardInterrupt):
        check("streets", root, tmp_path)
    (journal,) = (tmp_path / "cache").rglob("images.jsonl")
    journal.write_text(journal.read_text()[:-9])  # the last line is torn
    limit = 99
    assert told(check("streets", root, tmp_path)) == []
    assert len(read) == 12 + 1
    assert all(json.loads(line.partition("\t")[0]) for line in journal.read_text().splitlines())


def test_every_kind_of_unreadable_file_is_one_problem(tmp_path):
    root = streets_tree(tmp_path / "tree")
    whole = (root / "image/000000.png").read_bytes()
    (root / "image/000000.png").write_bytes(whole[:-5])
    (root / "image/000001.png").write_bytes(b"")
    (root / "label/000002.png").write_bytes(b"<html>")
    content = bytearray((root / "label/000003.png").read_bytes())
    content[60] ^= 1
    (root / "label/000003.png").write_bytes(content)
    report = check("streets", root, tmp_path)
    assert [(p.kind, p.damage, p.index) for p in report.problems] == [("unreadable", True, i) for i in range(4)]
    assert report.good == [4, 5]
    text = to_text(report.problems)
    assert text.count("\n") == 4
    assert f"damage\t{root}/image/000000.png\tis cut off after" in text


def test_images_without_labels_and_labels_without_images(tmp_path):
    root = streets_tree(tmp_path / "tree")
    (root / "label/000001.png").unlink()
    (root / "image/000004.png").unlink()
    report = check("streets", root, tmp_path)
    assert ("missing", True) in told(report)
    (extra,) = [p for p in report.problems if p.kind == "extra"]
    assert extra.file.endswith("label/000004.png")
    assert extra.damage  # training refuses it
    assert report.labels == 4
    optional = check("streets", root, tmp_path, labels="optional")
    assert not optional.damaged
    assert set_aside(optional) == []
    assert repair(report, "streets") == []  # nothing can be unpacked or converted
    assert "1 images with their labels, and 1 labels without an image, set aside" in set_aside(report)[0]
    assert {p.name for p in root.rglob("*.damaged")} == {"000001.png.damaged", "000004.png.damaged"}
    assert told(check("streets", root, tmp_path)) == []
    assert len(SegmentationDataset(SPECS["streets"], root, "train", CITYSCAPES, labeled=True)) == 4


def test_what_training_refuses_is_damage_here_whatever_the_case_of_a_suffix(tmp_path):
    root = streets_tree(tmp_path / "tree")
    (root / "image/000004.png").unlink()
    (root / "label/000004.png").rename(root / "label/000004.PNG")
    report = check("streets", root, tmp_path)
    assert [(p.kind, p.damage, p.file) for p in report.problems] == [("extra", True, f"{root}/label/000004.PNG")]
    (root / "label/000004.PNG").unlink()
    save(root / "image/000003.PNG", image_of(SEEN))
    (twins,) = check("streets", root, tmp_path).problems
    assert (twins.kind, twins.damage, twins.what) == ("twins", True, "000003.PNG and 000003.png would share one label")
    assert not check("streets", root, tmp_path, labels="optional").damaged


def test_the_first_images_alone_make_no_label_superfluous(tmp_path):
    root = streets_tree(tmp_path / "tree")
    assert told(check("streets", root, tmp_path, count=2)) == []


def test_a_target_without_labels_is_sound(tmp_path):
    root = streets_tree(tmp_path / "tree")
    (root / "label").rename(root / "elsewhere")
    report = check("streets", root, tmp_path, labels="optional")
    assert told(report) == []
    assert report.statistics is None
    assert not report.dataset.labeled
    (problem,) = check("streets", root, tmp_path).problems
    assert problem.damage
    assert problem.what.startswith("none of 6 images has a label there: image/**/*.png and label/**/*.png is expected")


def test_labels_of_another_encoding(tmp_path):
    eight_bits = synthia_tree(tmp_path / "pil", np.full((8, 8), 3, np.uint8))
    save(eight_bits / "GT/LABELS/0000000.png", np.full((8, 8, 3), 3, np.uint8))
    (problem,) = [p for p in check("synthia", eight_bits, tmp_path).problems if p.kind == "label"]
    assert "not 16-bit" in problem.what
    raw = cityscapes_tree(tmp_path / "raw", SEEN, suffix="labelTrainIds")
    (problem,) = [p for p in check("cityscapes", raw, tmp_path).problems if p.damage]
    assert "ids that Cityscapes does not know: 23, 26" in problem.what
    converted = cityscapes_tree(tmp_path / "converted", blocks(0, (32, 48), [0, 2, 8, 10, 13, 18, 255]))
    (problem,) = [p for p in check("cityscapes", converted, tmp_path).problems if p.damage]
    assert "train ids under the name of raw ids" in problem.what
    no_void = gta_tree(tmp_path / "no_void", blocks(0, (32, 48), [0, 2, 8, 10, 13, 18]))
    (problem,) = [p for p in check("gta", no_void, tmp_path).problems if p.damage]
    assert "train ids under the name of raw ids" in problem.what
    void = gta_tree(tmp_path / "void", np.zeros((8, 8), np.uint8))
    (problem,) = [p for p in check("gta", void, tmp_path).problems if p.damage]
    assert "no label has a pixel of any class, only the ids 0:" in problem.what


@pytest.mark.parametrize(("converted", "damage"), [(1, False), (5, True)])
def test_a_conversion_in_place_that_stopped_is_told(tmp_path, converted, damage):
    for i in range(40):
        ids = [0, 2, 10, 13] if i < converted else [7, 11, 23, 26]
        label = blocks(i, (8, 16), ids, block=2)
        save(tmp_path / f"gta/images/{i:05d}.png", image_of(label, i))
        save_palette(tmp_path / f"gta/labels/{i:05d}.png", label)
    (problem,) = check("gta", tmp_path / "gta", tmp_path).problems
    assert f"{converted} of 40 labels have no id above 18, the first is {tmp_path}" in problem.what
    assert problem.damage == damage


def test_pairs_of_other_sizes_are_set_aside_with_labels_of_all_kinds(tmp_path):
    root = two_kinds(tmp_path / "gta")
    save_palette(root / "labels/00002.png", SEEN)
    save(root / "images/00001.png", np.zeros((16, 48, 3), np.uint8))
    report = check("gta", root, tmp_path)
    assert told(report).count(("size", True)) == 1
    set_aside(report)
    assert {p.name for p in root.rglob("*.damaged")} == {"00001.png.damaged", "00001_labelTrainIds.png.damaged"}
    assert not check("gta", root, tmp_path).damaged


def test_labels_that_training_resizes_are_noted_and_counted(tmp_path):
    root = two_kinds(tmp_path / "gta")
    save_palette(root / "labels/00002.png", SEEN)
    save(root / "images/00001.png", np.zeros((33, 48, 3), np.uint8))
    report = check("gta", root, tmp_path)
    assert ("size", False) in told(report)
    assert "1 labels are of another size than their image, such as that of 00001.png" in to_text(report.problems)
    assert not report.damaged
    assert report.statistics.pixels.sum(1).all()


def test_what_a_mac_leaves_beside_files_is_no_image(tmp_path):
    root = streets_tree(tmp_path / "tree")
    (root / "image/._000001.png").write_bytes(b"\0\5\x16\7")
    assert told(check("streets", root, tmp_path)) == []


@pytest.mark.parametrize(("labels", "expected"), [("optional", []), ("needed", [("missing", True)])])
def test_a_data_set_whose_labels_are_not_read(tmp_path, labels, expected):
    save(tmp_path / "viper/train/img/001/001_00001.jpg", np.zeros((8, 16, 3), np.uint8))
    report = check("viper", tmp_path / "viper", tmp_path, labels=labels)
    assert told(report) == expected
    assert report.statistics is None


def test_counts_and_sizes_are_those_of_the_release(tmp_path):
    root = cityscapes_tree(tmp_path / "tree", SEEN)
    problems = check("cityscapes", root, tmp_path, whole=True, sized=True).problems
    assert [(p.kind, p.damage) for p in problems] == [("count", False), ("size", False)]
    assert problems[0].what == "1 images, the official Cityscapes has 2975 in train"
    assert "1 images are not 1024x2048 (height x width), the first is 32x48" in problems[1].what


def two_kinds(root):
    """GTA labels of which a conversion has finished some: 0 raw, 1 both, 2 converted alone."""
    for i in range(3):
        save(root / f"images/{i:05d}.png", image_of(SEEN, i))
        if i < 2:
            save_palette(root / f"labels/{i:05d}.png", SEEN)
        if i > 0:
            train = np.select([SEEN == 7, SEEN == 8, SEEN == 11, SEEN == 23, SEEN == 26], [0, 1, 2, 10, 13], 255)
            save(root / f"labels/{i:05d}_labelTrainIds.png", train.astype(np.uint8))
    return root


def test_depth_files_are_read_too(tmp_path):
    root = streets_tree(tmp_path / "tree")
    for i in range(6):
        save(root / f"depth/{i:06d}.png", np.full((32, 48), 256 * 10, np.uint16))
    data = SegmentationDataset(
        SPECS["streets"],
        root,
        "train",
        CITYSCAPES,
        labeled=False,
        depth=lambda names: DepthFiles([root / "depth" / name for name in names], "metres", "data.source"),
    )
    (root / "depth/000001.png").write_bytes((root / "depth/000001.png").read_bytes()[:-3])
    save(root / "depth/000002.png", np.full((32, 48), 10, np.uint8))  # whole, but cut by PIL
    save(root / "depth/000003.png", np.full((48, 32), 2560, np.uint16))  # of another image
    save(root / "depth/000004.png", np.full((16, 24), 2560, np.uint16))  # any resolution will do
    report = check_domain(data, "data.source", tmp_path / "cache", labels="needed")
    assert [(p.kind, p.damage, p.file[-10:]) for p in report.problems] == [
        ("depth", True, f"00000{i}.png") for i in (1, 2, 3)
    ]
    for problem, said in zip(
        report.problems, ("is cut off", "not 16-bit depth", "is 48x32 but its image 32x48"), strict=True
    ):
        assert said in problem.what
    assert set_aside(report) == []  # images and labels are whole


def test_mixed_versions_are_told_and_the_conversion_can_be_finished(tmp_path):
    root = two_kinds(tmp_path / "gta")
    report = check("gta", root, tmp_path)
    assert sorted(kind for kind, _ in told(report)) == ["missing", "mixed", "mixed"]
    assert report.damaged
    assert "1 labels converted to *_labelTrainIds.png" in repair(report, "gta")[0]
    made, true = (cv2.imread(str(root / f"labels/0000{i}_labelTrainIds.png"), -1) for i in (0, 1))
    np.testing.assert_array_equal(made, true)
    assert not check("gta", root, tmp_path).damaged


def test_a_conversion_of_a_few_is_finished_for_all_only_where_that_makes_them_complete(tmp_path):
    root = two_kinds(tmp_path / "gta")
    for number in "34":
        for folder in ("images", "labels"):
            content = (root / folder / "00000.png").read_bytes()
            (root / folder / f"0000{number}.png").write_bytes(content)
    lost = root / "labels/00002_labelTrainIds.png"
    kept = lost.read_bytes()
    lost.unlink()
    report = check("gta", root, tmp_path)
    assert report.dataset.encoding.suffix == ".png"
    assert repair(report, "gta") == []
    lost.write_bytes(kept)
    assert "3 labels converted" in repair(check("gta", root, tmp_path), "gta")[0]
    assert not check("gta", root, tmp_path).damaged


def test_unreadable_pairs_are_set_aside_and_never_deleted(tmp_path):
    root = streets_tree(tmp_path / "tree")
    (root / "image/000003.png").write_bytes(b"x")
    before = {path.read_bytes() for path in root.rglob("*.png")}
    report = check("streets", root, tmp_path)
    assert repair(report, "streets") == []
    assert "1 images with their labels" in set_aside(report)[0]
    assert (root / "image/000003.png.damaged").read_bytes() == b"x"
    assert (root / "label/000003.png.damaged").exists()
    assert {path.read_bytes() for path in root.rglob("*.png*")} == before
    report = check("streets", root, tmp_path)
    assert told(report) == []
    assert len(report.dataset) == 5


def test_many_unreadable_files_are_left_alone(tmp_path):
    root = streets_tree(tmp_path / "tree")
    for i in range(4):
        (root / f"image/00000{i}.png").write_bytes(b"x")
    assert set_aside(check("streets", root, tmp_path)) == []
    assert not list(root.rglob("*.damaged"))
    for i in (1, 2, 3):  # 1 of 3 is little, 2 of 3 are not
        (root / f"image/00000{i}.png").write_bytes((root / "image/000005.png").read_bytes())
    few = check("streets", root, tmp_path, count=1)
    assert set_aside(few) == []
    assert len(set_aside(check("streets", root, tmp_path))) == 1


def test_thousands_of_findings_take_little_memory(tmp_path):
    """A journal line a file, nothing else that grows with the images' pixels."""
    import tracemalloc

    journal = Journal(tmp_path / "j.jsonl", "label")
    finding = Finding((1052, 1914), {raw: 100000 + raw for raw in range(25)})
    tracemalloc.start()
    for i in range(2000):
        journal.note(f"/data/gta/labels/{i:05d}.png", [12345, 10**18 + i], finding)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    journal.close()
    assert grown / 2000 < 1500  # bytes a label: 25 000 take 40 MB
