"""What is found among a person's files, and that nothing is left out in silence."""

from __future__ import annotations

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image
from trees import camvid_tree, noise, save, streets_tree

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.domains import open_domain
from uda_seg.data.folders import composed, ends_in, files_below, kinds_of, scan, twins, without_end
from uda_seg.data.labels import CAMVID, CITYSCAPES
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.specs import SPECS
from uda_seg.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def custom(root, images="image", labels="label", **said):
    return DomainSettings("custom", str(root), custom={"images": images, "labels": labels, **said})


def opened(domain, labeled=True, option="data.source"):
    return open_domain(domain, DataSettings(), CITYSCAPES, option, labeled=labeled)


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("a.png", ".png", "a"), ("a.PNG", ".png", "a"), ("x/a_leftImg8bit.PnG", "_leftImg8bit.png", "x/a"),
        ("a.jpeg", ".*", "a"), ("a.b.TIFF", ".*", "a.b"), ("a_rgb.jpg", "_rgb.*", "a"), ("a.txt", ".*", None),
        ("a.jpg", ".png", None), ("a_depth.jpg", "_rgb.*", None),
    ],
)  # fmt: skip
def test_ends_of_names_count_in_any_case(name, suffix, stem):
    assert ends_in(name, suffix) == (stem is not None)
    assert stem is None or without_end(name, suffix) == stem


def test_hidden_files_and_what_systems_leave_are_no_files(tmp_path):
    touch(
        tmp_path, "a.png", "._a.png", ".b.png", "Thumbs.db", "__MACOSX/a.png", ".cache/c.png", "@eaDir/d.png", "e/f.PNG"
    )
    assert files_below(tmp_path) == ["a.png", "e/f.PNG"]
    assert scan(tmp_path, ".png") == ["a.png", "e/f.PNG"]


def test_links_are_followed_and_never_in_circles(tmp_path):
    touch(tmp_path / "root", "a.png", "sub/b.png")
    touch(tmp_path / "other", "c.png")
    (tmp_path / "root/linked").symlink_to(tmp_path / "other")
    (tmp_path / "root/sub/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/sub/further_up").symlink_to(tmp_path)
    (tmp_path / "other/self").symlink_to(tmp_path / "other")
    (tmp_path / "root/itself").symlink_to(tmp_path / "root/itself")
    (tmp_path / "root/gone.png").symlink_to(tmp_path / "nowhere.png")
    assert files_below(tmp_path / "root") == ["a.png", "gone.png", "itself", "linked/c.png", "sub/b.png"]


def test_a_folder_that_cannot_be_looked_into_is_told(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "closed/b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot look into the folder \S+/closed: Permission denied"):
        files_below(tmp_path)


def test_other_files_are_counted_and_named(tmp_path, caplog):
    root = streets_tree(tmp_path, count=2)
    touch(root / "image", "b.jpg", "a.jpg", "c.GIF", "notes.txt", "._x.png", "Thumbs.db")
    data = opened(DomainSettings("streets", str(root)))
    assert len(data) == 2
    said = "left out of {}, whose images end in .png: 4 files (2 .jpg, 1 .gif, 1 .txt): a.jpg, b.jpg, c.GIF, ..."
    assert said.format(root / "image") in caplog.text
    assert kinds_of(["a"]) == "1 file (1 without a suffix): a"


def test_capital_suffixes_are_images_and_labels(tmp_path, caplog):
    root = camvid_tree(tmp_path, count=3)
    for folder in ("train", "trainannot"):
        (root / folder / "001.png").rename(root / folder / "001.PNG")
    (root / "trainannot/002.png").rename(root / "trainannot/002.Png")
    data = SegmentationDataset(SPECS["camvid"], root, "train", CAMVID, labeled=True)
    assert data.names == ["000.png", "001.PNG", "002.png"]
    assert [data.label_path(i).name for i in range(3)] == ["000.png", "001.PNG", "002.Png"]
    assert caplog.text == ""
    for i in range(3):
        sample = data.read(i)
        assert sample.label is not None
        known = sample.label != 255
        np.testing.assert_array_equal(sample.image[..., 0][known], sample.label[known])


def test_any_kind_of_image_can_be_asked_for(tmp_path):
    label = np.zeros((8, 12), np.uint8)
    for name in ("a.png", "b.JPG", "c.gif", "d.tif"):
        (tmp_path / "image").mkdir(exist_ok=True)
        Image.fromarray(noise(0)).save(tmp_path / "image" / name)
        save(tmp_path / "label" / f"{name[0]}.png", label)
    data = opened(custom(tmp_path, image_suffix=".*"))
    assert data.names == ["a.png", "b.JPG", "c.gif", "d.tif"]
    assert all(data.read(i).image.shape == (8, 12, 3) for i in range(4))
    Image.fromarray(noise(0)).save(tmp_path / "image/a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg and a\.png would share one label: rename one of them"):
        opened(custom(tmp_path, image_suffix=".*"))
    assert len(opened(custom(tmp_path, image_suffix=".*"), labeled=False)) == 5


def test_labels_beside_their_images_are_no_images(tmp_path, caplog):
    for name in ("a", "b"):
        save(tmp_path / f"one/{name}.png", noise(0))
        save(tmp_path / f"one/{name}_mask.png", np.zeros((8, 12), np.uint8))
        save(tmp_path / f"two/{name}.png", noise(0))
        save(tmp_path / f"two/masks/{name}.png", np.zeros((8, 12), np.uint8))
    for labeled in (True, False):
        assert opened(custom(tmp_path, "one", "one", label_suffix="_mask.png"), labeled).names == ["a.png", "b.png"]
        assert opened(custom(tmp_path, "two", "two/masks"), labeled).names == ["a.png", "b.png"]
    assert caplog.text == ""


def test_what_lies_there_instead_is_said(tmp_path):
    touch(tmp_path / "image", "a.jpg", "b.jpg")
    with pytest.raises(UserError, match=r"no image \S+/image/\*\*/\*\.png, but 2 files \(2 \.jpg\): a\.jpg, b\.jpg"):
        opened(DomainSettings("streets", str(tmp_path)), labeled=False)
    root = streets_tree(tmp_path / "tree", count=1)
    (root / "label/000000.png").rename(root / "label/000000.bmp")
    with pytest.raises(UserError, match=r"have no label.*\(1 file \(1 \.bmp\): 000000\.bmp lie there\)"):
        opened(DomainSettings("streets", str(root)))


def test_labels_of_ones_own_that_are_missing_or_called_otherwise_have_their_own_cures(tmp_path):
    names = ("a [1]", "ä b", "c")
    for name in names:
        save(tmp_path / f"image/{name}.png", noise(0))
        save(tmp_path / f"label/{name}_L.png", np.zeros((8, 12), np.uint8))
    with pytest.raises(UserError, match=r"3 of 3 images.*: set data\.source\.custom\.label_suffix=_L\.png$"):
        opened(custom(tmp_path))
    assert len(opened(custom(tmp_path, label_suffix="_L.png"))) == 3
    (tmp_path / "label/c_L.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images.* label them, or leave them out: data\.source\.exclude"):
        opened(custom(tmp_path, label_suffix="_L.png"))


@pytest.mark.parametrize("folder", ["{x}/{split}", "{split", "/somewhere/{split}", "~/photos"])
def test_a_folder_that_no_pattern_can_be_is_told_with_its_key(tmp_path, folder):
    with pytest.raises(UserError, match=r"data\.source\.custom\.images=\S+: "):
        opened(custom(tmp_path, folder))


@pytest.mark.parametrize("folder", [".", "./", "", "././/"])
def test_images_may_lie_in_the_root_itself(tmp_path, folder):
    save(tmp_path / "a.png", noise(0))
    save(tmp_path / "sub/b.png", noise(1))
    assert opened(custom(tmp_path, folder, None), labeled=False).names == ["a.png", "sub/b.png"]
    for name in ("a.png", "sub/b.png"):
        save(tmp_path / "label" / name, np.zeros((8, 12), np.uint8))
    data = opened(custom(tmp_path, folder))
    assert data.names == ["a.png", "sub/b.png"]
    assert data.label_path(1) == tmp_path / "label/sub/b.png"


def test_labels_may_lie_in_the_root_itself_above_the_images(tmp_path):
    save(tmp_path / "image/a.png", noise(0))
    save(tmp_path / "a.png", np.zeros((8, 12), np.uint8))
    assert opened(custom(tmp_path, labels=".")).label_path(0) == tmp_path / "a.png"
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"1 of 1 images have no label.*\(1 file \(1 \.png\): b\.png lie there\)"):
        opened(custom(tmp_path, labels="."))


def test_a_missing_root_of_images_in_the_root_is_not_sought_in_folders_around_it(tmp_path):
    save(tmp_path / "holiday.png", noise(0))
    with pytest.raises(UserError, match=r"no folder \S+/absent: set data\.source\.root to .* holds \*\*/\*\.png, "):
        opened(custom(tmp_path / "absent", ".", None), labeled=False)


@pytest.mark.parametrize("folder", ["image/{split}/", ".//image//{split}", "{split}/*/", "*/{split}"])
def test_folders_may_be_written_with_further_slashes_and_split_names_hold_none(tmp_path, folder):
    for split in ("train", "val"):
        place = folder.format(split=split).replace("*", "image")
        save(tmp_path / place / f"{split}.png", noise(0))
        save(tmp_path / place.replace("image", "label") / f"{split}.png", np.zeros((8, 12), np.uint8))
    domain = custom(tmp_path, folder, folder.replace("image", "label"), image_suffix=".png")
    if "*" in folder:  # images and labels in one place
        domain = custom(tmp_path, folder, None)
    domain.split = "train+val"
    data = opened(domain, labeled="*" not in folder)
    assert len(data) >= 2
    assert not any("//" in name or name.startswith("/") for name in data.names)
    assert all(data.image_path(i).is_file() for i in range(len(data)))
    if data.labeled:
        assert [data.label_path(i).name for i in range(2)] == ["train.png", "val.png"]


def test_validation_images_without_labels_are_told_with_the_way_to_do_without(tmp_path):
    root = streets_tree(tmp_path, count=1)
    (root / "label/000000.png").unlink()
    for domain in (DomainSettings("streets", str(root)), custom(root, labels=None)):
        with pytest.raises(UserError, match=r"label.*to train without scores: '~data\.validation\.target'"):
            opened(domain, option="data.validation.target")


@pytest.mark.parametrize("chosen", [["a.png", "b.png"], ["b.png"]])
def test_chosen_images_without_labels_are_told_with_the_list_of_those_that_have_one(tmp_path, chosen):
    for name in ("a.png", "b.png"):
        save(tmp_path / "image" / name, noise(0))
    save(tmp_path / "label/a.png", np.zeros((8, 12), np.uint8))
    said = (
        r"have no label.*: set data\.target\.labelled to a file with the names of images that have labels, one a line$"
    )
    with pytest.raises(UserError, match=said):
        open_domain(
            custom(tmp_path), DataSettings(), CITYSCAPES, "data.target", labeled=True, choose=lambda names: chosen
        )


def test_accents_may_be_encoded_otherwise_in_labels_and_patterns(tmp_path):
    def spelled(form, name):
        return unicodedata.normalize(form, name)

    root = camvid_tree(tmp_path, count=4)
    for folder, forms in (("train", ["NFD", "NFC", "NFC"]), ("trainannot", ["NFC", "NFD", "NFC"])):
        for i, form in enumerate(forms):
            (root / folder / f"00{i}.png").rename(root / folder / spelled(form, f"été{i}.png"))
    data = SegmentationDataset(SPECS["camvid"], root, "train", CAMVID, labeled=True)
    assert len(data) == 4
    for i in range(4):
        assert composed(data.names[i]) == composed(data.label_path(i).name)
        assert data.read(i).label is not None
    kept = SegmentationDataset(SPECS["camvid"], root, "train", CAMVID, labeled=True, include=[spelled("NFD", "été*")])
    assert sorted(map(composed, kept.names)) == [spelled("NFC", f"été{i}.png") for i in range(3)]
    assert twins([spelled("NFC", "é.png"), spelled("NFD", "é.png")], ".png") is not None
