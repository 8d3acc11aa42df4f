"""Depth files of every kind become the same inverse depth, cropped and mirrored with their images."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
import torch
from scipy.io import savemat
from trees import cityscapes_tree, gta_tree, save, streets_tree, synthia_tree

from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.datasets import open_domain
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.errors import UserError

SIZE = (8, 16)


def distances(seed=0):
    """Metres between 4 and 60, none that rounding to centimetres or 1/256 m could move far."""
    return np.random.default_rng(seed).uniform(4, 60, SIZE)


def write_streets(root, metres):
    streets_tree(root, 1, SIZE)
    save(root / "depth/000000.png", np.rint(metres * 256).astype(np.uint16))


def write_synthia(root, metres):
    synthia_tree(root, np.full(SIZE, 3, np.uint16))
    plane = np.rint(metres * 100).astype(np.uint16)
    save(root / "Depth/Depth/0000000.png", np.dstack([plane] * 3))


def write_sfsu(root, metres):
    cityscapes_tree(root, np.full(SIZE, 7, np.uint8))
    file = root / "depth/train/aachen/aachen_000000_000019_depth_stereoscopic.mat"
    file.parent.mkdir(parents=True)
    savemat(file, {"depth_map": metres})


METRIC = {"streets": write_streets, "synthia": write_synthia, "cityscapes": write_sfsu}


def read(dataset, root, **options):
    domain = DomainSettings(dataset, str(root), **options)
    return open_domain(domain, DataSettings(), CITYSCAPES, "data.source", labeled=False, depth=True).read(0).depth


@pytest.mark.parametrize("dataset", METRIC)
def test_metric_files_have_one_scale(dataset, tmp_path):
    metres = distances()
    METRIC[dataset](tmp_path, metres)
    z = read(dataset, tmp_path)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z, 655.36 / (metres + 0.01), rtol=2e-3)


def test_what_is_unknown_is_exactly_one(tmp_path):
    metres = distances()
    metres[0, :4] = [np.inf, -1.0, 0.05, 700.0]
    write_sfsu(tmp_path / "sfsu", metres)
    assert (read("cityscapes", tmp_path / "sfsu")[0, :4] == 1.0).all()
    metres = distances()
    metres[0, :2] = [0.0, 655.35]  # SYNTHIA's sky is the largest 16-bit number of centimetres
    write_synthia(tmp_path / "synthia", metres)
    z = read("synthia", tmp_path / "synthia")
    assert (z[0, :2] == 1.0).all()
    assert (z[1:] != 1.0).all()


def test_disparity_files(tmp_path):
    gta_tree(tmp_path, np.full(SIZE, 7, np.uint8))
    raw = np.random.default_rng(0).integers(200, 65536, SIZE).astype(np.uint16)
    raw[0, 0] = 0
    save(tmp_path / "disparity/00001.png", raw)
    np.testing.assert_allclose(read("gta", tmp_path), raw / 256 + 1, rtol=1e-6)
    assert read("gta", tmp_path)[0, 0] == 1.0


def test_a_folder_of_maps_stands_in_for_the_data_sets_own_and_says_how_it_is_encoded(tmp_path):
    write_streets(tmp_path / "data", distances())
    metres = distances(1)
    save(tmp_path / "maps/000000.png", np.rint(metres * 100).astype(np.uint16))
    (tmp_path / "maps/depth.json").write_text(json.dumps({"encoding": "centimetres"}))
    z = read("streets", tmp_path / "data", depth=str(tmp_path / "maps"))
    np.testing.assert_allclose(z, 655.36 / (metres + 0.01), rtol=2e-3)


def test_another_resolution_is_sampled_and_another_shape_refused(tmp_path):
    write_streets(tmp_path, distances())
    coarse = np.rint(distances()[::2, ::2] * 256).astype(np.uint16)
    save(tmp_path / "depth/000000.png", coarse)
    z = read("streets", tmp_path)
    assert z.shape == SIZE
    assert set(z.ravel()) <= set((655.36 / (coarse / 256 + 0.01)).astype(np.float32).ravel())
    save(tmp_path / "depth/000000.png", coarse.T.copy())
    with pytest.raises(UserError, match=r"depth/000000.png is 8x4 but its image is 8x16"):
        read("streets", tmp_path)


def missing(root):
    (root / "depth/000000.png").unlink()
    return r"1 of 1 images have no depth, the first misses .*depth/000000.png; learn depth with"


def eight_bit(root):
    save(root / "depth/000000.png", np.full(SIZE, 90, np.uint8))
    return r"depth/000000.png is uint8, not 16-bit depth"


def picture(root):
    save(root / "depth/000000.png", np.arange(8 * 16 * 3, dtype=np.uint16).reshape(8, 16, 3) + 999)
    return r"depth/000000.png has channels that differ"


def empty(root):
    (root / "depth/000000.png").write_bytes(b"")
    return r"depth/000000.png cannot be read as an image"


def millimetres(root):
    """A file in millimetres, read in 1/256 m: everything is four times as far; here far beyond any street."""
    save(root / "depth/000000.png", np.full(SIZE, 65000, np.uint16))
    return r"the median inverse depth would be 2.581, not between 3 and 400: .* set data.source.depth_encoding"


@pytest.mark.parametrize("damage", [missing, eight_bit, picture, empty, millimetres])
def test_what_is_wrong_with_depth_is_said(damage, tmp_path):
    write_streets(tmp_path, distances())
    message = damage(tmp_path)
    with pytest.raises(UserError, match=message):
        read("streets", tmp_path)


def test_other_damages_are_said(tmp_path):
    write_sfsu(tmp_path, distances())
    savemat(tmp_path / "depth/train/aachen/aachen_000000_000019_depth_stereoscopic.mat", {"disparity": np.ones(3)})
    with pytest.raises(UserError, match="holds no depth_map"):
        read("cityscapes", tmp_path)
    write_streets(tmp_path / "s", distances())
    with pytest.raises(UserError, match=r"data.source.depth_encoding=feet is unknown: use one of metres"):
        read("streets", tmp_path / "s", depth_encoding="feet")
    save(tmp_path / "c/train/0.png", np.zeros((8, 8, 3), np.uint8))
    line = (
        "data.source: camvid has no depth of its own; learn depth with python -m uda_seg.depth data=streets, write "
        "maps with python -m uda_seg.depth checkpoint=<run>/checkpoints/last.ckpt data=streets "
        f"data.source.root={tmp_path / 'c'} export=true, then set data.source.depth=<run>/maps/camvid"
    )
    with pytest.raises(UserError, match=re.escape(line)):
        read("camvid", tmp_path / "c")
    (tmp_path / "c/maps").mkdir()
    (tmp_path / "c/maps/depth.json").write_text("[]")
    with pytest.raises(UserError, match=r"depth.json cannot be read: export the depth maps again"):
        read("camvid", tmp_path / "c", depth=str(tmp_path / "c/maps"))


def test_an_image_without_valid_depth_is_allowed(tmp_path):
    write_streets(tmp_path, distances())
    save(tmp_path / "depth/000000.png", np.zeros(SIZE, np.uint16))
    assert (read("streets", tmp_path) == 1.0).all()


def test_depth_is_cropped_mirrored_and_padded_with_its_image(tmp_path):
    """The trees' red channel is the label; here depth repeats it, so that all three must stay together."""
    domains = {}
    for name in ("source", "target"):
        root = streets_tree(tmp_path / name, 3, (20, 30), ids=[4, 9, 16])
        for file in sorted((root / "label").iterdir()):
            label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            save(root / "depth" / file.name, label.astype(np.uint16) * 256)
        domains[name] = DomainSettings("streets", str(root))
    module = UDADataModule(DataSettings(crop=[16, 24], **domains), steps=3, seed=0, needs_depth=True)
    module.setup("fit")
    for batch in module.train_dataloader():
        for domain in batch.values():
            assert domain.depth.shape == (2, 1, 16, 24)
            expected = 655.36 / (domain.image[:, :1].float() + 0.01)
            torch.testing.assert_close(domain.depth, expected)
    batch = UDADataModule(DataSettings(crop=[16, 24], **domains), steps=1, seed=0)
    batch.setup("fit")
    assert next(iter(batch.train_dataloader()))["source"].depth is None
