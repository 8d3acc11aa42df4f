from __future__ import annotations

import stat
import zipfile
from collections import namedtuple

import numpy as np
import pytest
from trees import gta_tree

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.prepare import archives
from uda_seg.data.prepare.archives import (
    find_archives,
    folders_of,
    lacks_folders,
    list_members,
    missing_members,
    unpack,
)
from uda_seg.data.specs import SPECS
from uda_seg.errors import UserError

GTA = folders_of(SPECS["gta"], "gta")


def pack(file, names, prefix=""):
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.writestr(prefix + name, name.encode() * 3)
    return file


def members(root, folders=GTA):
    return list_members(find_archives(root), folders)


def test_the_folders_of_a_data_set_are_those_of_images_labels_and_depth():
    assert folders_of(SPECS["cityscapes"], "cityscapes") == {"leftImg8bit", "gtFine", "depth", "disparity"}
    camvid = {"train", "trainannot", "val", "valannot", "test", "testannot"}
    assert folders_of(SPECS["camvid"], "camvid") == camvid
    assert folders_of(SPECS["acdc"], "acdc") == {"rgb_anon", "gt"}
    assert folders_of(SPECS["bdd100k"], "bdd100k") == {"images", "labels", "seg"}
    assert folders_of(SPECS["mapillary"], "mapillary") == {"training", "validation"}
    assert folders_of(SPECS["synthia_seqs"], "synthia_seqs") == set()


HELD = {
    "cityscapes": ["leftImg8bit/train/aachen/a_leftImg8bit.png", "gtFine/train/aachen/a_gtFine_labelIds.png"],
    "acdc": ["rgb_anon/fog/train/G/a_rgb_anon.png", "gt/fog/train/G/a_gt_labelTrainIds.png"],
    "darkzurich": ["rgb_anon/train/night/G/a_rgb_anon.png", "rgb_anon/train/day/G/b_rgb_anon.png"],
    "bdd100k": ["bdd100k/images/10k/train/a.jpg", "bdd100k/labels/sem_seg/masks/train/a.png"],
    "bdd100k first": ["bdd100k/seg/images/train/a.jpg", "bdd100k/seg/labels/train/a_train_id.png"],
    "mapillary": ["training/images/a.jpg", "training/v1.2/labels/a.png"],
    "mapillary first": ["mv/training/images/a.jpg", "mv/training/labels/a.png"],
}


@pytest.mark.parametrize("name", HELD)
def test_the_archives_of_every_layout_are_unpacked_once(tmp_path, name):
    """A reader finds what came out, and then no folder is missing any more, whatever single files are taken away."""
    dataset = name.split()[0]
    spec, labeled = SPECS[dataset], dataset != "darkzurich"
    pack(tmp_path / "a.zip", HELD[name])
    found = members(tmp_path, folders_of(spec, dataset))
    assert len(found) == len(HELD[name])
    assert lacks_folders(spec, "train", tmp_path, found)
    unpack(found, tmp_path)
    assert not lacks_folders(spec, "train", tmp_path, found)
    assert len(SegmentationDataset(spec, tmp_path, "train", CITYSCAPES, labeled=labeled)) == 1
    (tmp_path / found[0].target).unlink()
    assert not lacks_folders(spec, "train", tmp_path, found)


def test_folders_that_keep_their_archives_names_are_not_unpacked_again(tmp_path):
    pack(tmp_path / "leftImg8bit_trainvaltest.zip", HELD["cityscapes"][:1])
    pack(tmp_path / "gtFine_trainvaltest.zip", HELD["cityscapes"][1:])
    found = members(tmp_path, folders_of(SPECS["cityscapes"], "cityscapes"))
    (tmp_path / "leftImg8bit_trainvaltest/leftImg8bit/train").mkdir(parents=True)
    assert lacks_folders(SPECS["cityscapes"], "train", tmp_path, found)  # the labels
    (tmp_path / "gtFine_trainvaltest/gtFine/train").mkdir(parents=True)
    assert not lacks_folders(SPECS["cityscapes"], "train", tmp_path, found)


@pytest.mark.parametrize("prefix", ["", "GTA/", "a/b/c/"])
def test_files_go_where_they_belong_whatever_stands_before(tmp_path, prefix):
    pack(tmp_path / "01_images.zip", ["images/00001.png", "read_mapping/x.m", "license.txt"], prefix)
    pack(tmp_path / "01_labels.zip", ["labels/00001.png", "__MACOSX/labels/._00001.png"], prefix)
    found = members(tmp_path)
    assert sorted(member.target for member in found) == ["images/00001.png", "labels/00001.png"]
    unpack(found, tmp_path)
    assert (tmp_path / "images/00001.png").read_bytes() == b"images/00001.png" * 3
    assert not (tmp_path / "license.txt").exists()
    assert missing_members(found, tmp_path) == []
    (tmp_path / "labels/00001.png").write_bytes(b"half")
    assert [member.target for member in missing_members(found, tmp_path)] == ["labels/00001.png"]


@pytest.mark.parametrize("name", ["../images/x.png", "/images/x.png", "images/../../x.png", "images\\..\\..\\x.png",
                                  "C:/images/x.png"])  # fmt: skip
def test_a_name_that_leads_out_is_refused_before_anything_is_unpacked(tmp_path, name):
    pack(tmp_path / "root/01_images.zip", ["images/a.png", name])
    with pytest.raises(UserError, match=r"01_images\.zip holds the file name .* leads out of its folder"):
        members(tmp_path / "root")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["01_images.zip"]


def test_a_link_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        link = zipfile.ZipInfo("images/a.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"a\.zip holds the link"):
        members(tmp_path)


def test_a_cut_off_zip_and_a_damaged_file_are_told(tmp_path):
    file = pack(tmp_path / "a.zip", ["images/a.png", "images/b.png"])
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(UserError, match=r"a\.zip cannot be read as a ZIP .*copy it again"):
        members(tmp_path)
    place = whole.index(b"images/a.png") + len(b"images/a.png") + 2
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    with pytest.raises(UserError, match=r"a\.zip: images/a\.png is damaged"):
        unpack(members(tmp_path), tmp_path)
    assert not (tmp_path / "images/a.png").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_no_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    pack(tmp_path / "a.zip", ["images/a.png"])
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"has room for 0\.0 GB, its ZIPs unpack to .* make room"):
        unpack(members(tmp_path), tmp_path)
    assert not (tmp_path / "images").exists()


def test_files_that_were_changed_by_hand_are_renamed(tmp_path, caplog):
    with zipfile.ZipFile(tmp_path / "01.zip", "w") as packed:
        for i in range(2):
            packed.writestr(f"images/{i}.png", b"from the ZIP")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(b"mine")
    unpack(missing_members(members(tmp_path), tmp_path), tmp_path)
    found = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    assert found == {"0.png": b"from the ZIP", "1.png": b"from the ZIP", "0.png.replaced": b"mine"}
    assert "1 files in" in caplog.text


def test_a_whole_data_set_comes_out_as_it_went_in(tmp_path):
    tree = gta_tree(tmp_path / "tree", np.full((8, 8), 7, np.uint8))
    (tmp_path / "root").mkdir()
    with zipfile.ZipFile(tmp_path / "root/01.zip", "w") as packed:
        for path in tree.rglob("*.png"):
            packed.write(path, path.relative_to(tree))
    unpack(members(tmp_path / "root"), tmp_path / "root")
    for path in tree.rglob("*.png"):
        assert (tmp_path / "root" / path.relative_to(tree)).read_bytes() == path.read_bytes()
