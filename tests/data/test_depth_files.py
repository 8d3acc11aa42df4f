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
from uda_seg.data.depth import DepthFiles
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.errors import UserError

SIZE = (8, 16)


def distances(seed=0):
    """Metres between 4 and 60, far above near, none that rounding to centimetres or 1/256 m could move far."""
    return np.sort(np.random.default_rng(seed).uniform(4, 60, SIZE), axis=0)[::-1]


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


def test_joined_splits_find_the_depth_of_each(tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        cityscapes_tree(tmp_path, np.full(SIZE, 7, np.uint8), split=split)
        file = tmp_path / f"depth/{split}/aachen/aachen_000000_000019_depth_stereoscopic.mat"
        file.parent.mkdir(parents=True)
        savemat(file, {"depth_map": distances(seed)})
    domain = DomainSettings("cityscapes", str(tmp_path), split="train+val")
    data = open_domain(domain, DataSettings(), CITYSCAPES, "data.source", labeled=False, depth=True)
    for i in range(2):
        np.testing.assert_allclose(data.read(i).depth, 655.36 / (distances(i) + 0.01), rtol=2e-3)


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
    raw = np.sort(np.random.default_rng(0).integers(200, 65536, SIZE).astype(np.uint16), axis=0)
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
    return r"depth/000000.png is empty: copy or unpack the file again"


def far(root):
    save(root / "depth/000000.png", np.full(SIZE, 65000, np.uint16))
    return r"the median inverse depth would be 2.581, not between 13.1 and 163: .* set data.source.depth_encoding"


@pytest.mark.parametrize("damage", [missing, eight_bit, picture, empty, far])
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
    with pytest.raises(UserError, match=r"depth.json does not say what the maps are: export the depth maps again"):
        read("camvid", tmp_path / "c", depth=str(tmp_path / "c/maps"))


def street(seed=0):
    """Log-normal distances in metres, their median 15, growing from the camera to the horizon, and no depth above."""
    metres = np.random.default_rng(seed).lognormal(np.log(15), 0.8, (24, 32))
    return np.vstack([np.zeros((8, 32)), np.sort(metres, axis=None)[::-1].reshape(24, 32)])


def disparity(metres, factor):
    return np.divide(factor, metres, out=np.zeros_like(metres), where=metres > 0)


# 16-bit files as they are written, and what each of them may be read as.
WRITTEN = {
    "millimetres": (lambda metres: metres * 1000, set()),
    "centimetres": (lambda metres: metres * 100, {"centimetres", "metres"}),  # 0.39 times as far: not seen
    "256ths of a metre": (lambda metres: metres * 256, {"metres", "centimetres"}),  # 2.56 times as far: not seen
    "monocular disparity": (lambda metres: 65535 * disparity(metres, 0.6), {"disparity"}),
    "inverse metres": (lambda metres: 256 * disparity(metres, 655.36) - 256 * (metres > 0), {"disparity"}),
}


def write_maps(folder, encode, scenes):
    for i, metres in enumerate(scenes):
        save(folder / f"{i}.png", np.rint(encode(metres)).clip(0, 65535).astype(np.uint16))
    return [folder / f"{i}.png" for i in range(len(scenes))]


@pytest.mark.parametrize("read_as", ["metres", "centimetres", "disparity"])
@pytest.mark.parametrize("written", WRITTEN)
def test_streets_read_in_a_wrong_unit_or_upside_down_in_distance_are_refused(written, read_as, tmp_path):
    encode, allowed = WRITTEN[written]
    files = write_maps(tmp_path, encode, [street(seed) for seed in range(3)])
    if read_as in allowed:
        assert DepthFiles(files, read_as, "data.source.depth").read(0, (32, 32)).shape == (32, 32)
        return
    with pytest.raises(UserError, match=r"0.png: as 16-bit PNG .* set data.source.depth_encoding to one of metres \("):
        DepthFiles(files, read_as, "data.source.depth")


@pytest.mark.parametrize(("per_metre", "refused"), [(1, False), (10, True), (100, True), (0.1, True)])
def test_matlab_files_in_another_unit_are_refused(per_metre, refused, tmp_path):
    savemat(tmp_path / "a.mat", {"depth_map": street() * per_metre})
    if not refused:
        z = DepthFiles([tmp_path / "a.mat"], "sfsu", "data.target.depth").read(0, (32, 32))
        np.testing.assert_allclose(z[8:], 655.36 / (street()[8:] + 0.01), rtol=1e-5)
        return
    with pytest.raises(UserError, match=r"a.mat: as SFSU .mat in metres the median inverse depth would be"):
        DepthFiles([tmp_path / "a.mat"], "sfsu", "data.target.depth")


def test_near_and_far_are_judged_over_several_images(tmp_path):
    odd, scenes = street()[::-1], [street(seed) for seed in range(4)]
    DepthFiles(write_maps(tmp_path, WRITTEN["256ths of a metre"][0], [odd, *scenes]), "metres", "data.source.depth")
    files = write_maps(tmp_path, WRITTEN["256ths of a metre"][0], [odd, odd, scenes[0]])
    with pytest.raises(UserError, match="the upper image halves would be nearer than the lower ones"):
        DepthFiles(files, "metres", "data.source.depth")


def test_maps_that_nothing_describes_are_not_guessed_at(tmp_path):
    write_streets(tmp_path / "data", distances())
    metres = distances(1)
    save(tmp_path / "maps/000000.png", np.rint(metres * 100).astype(np.uint16))
    said = r"maps has no depth.json to say how its files hold depth: set data.source.depth_encoding to one of metres \("
    with pytest.raises(UserError, match=said):
        read("streets", tmp_path / "data", depth=str(tmp_path / "maps"))
    z = read("streets", tmp_path / "data", depth=str(tmp_path / "maps"), depth_encoding="centimetres")
    np.testing.assert_allclose(z, 655.36 / (metres + 0.01), rtol=2e-3)
    # A folder without maps lacks those first.
    with pytest.raises(UserError, match="1 of 1 images have no depth"):
        read("streets", tmp_path / "data", depth=str(tmp_path / "none"))
    # SFSU's files say by their name what they are.
    write_sfsu(tmp_path / "city", metres)
    z = read("cityscapes", tmp_path / "city", depth=str(tmp_path / "city/depth/train"))
    np.testing.assert_allclose(z, 655.36 / (metres + 0.01), rtol=1e-5)


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
