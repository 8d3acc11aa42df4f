"""Neighbours, stereo partners and cameras belong to their image."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trees import noise, save, sequence_tree

from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.sequence_module import SequenceData
from uda_seg.data.sequences import VIEWS, SequenceDataset, SequenceSteps
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.errors import UserError


def open_sequences(root, supervision="both", dataset="streets", depth=False, size=None):
    domain = DomainSettings(dataset, str(root), size=size)
    return SequenceDataset(domain, DataSettings(), CITYSCAPES, "data.target", VIEWS[supervision], depth)


def pixels(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)


def test_views_come_in_their_order_with_their_camera(tmp_path):
    sample = open_sequences(sequence_tree(tmp_path), depth=True)[2]
    assert torch.equal(sample.image[0], pixels(noise(2)))
    for place, v in enumerate((2, 3, 1)):  # previous, next, right
        assert torch.equal(sample.views[0, place], pixels(noise(10 * v + 2)))
    assert sample.intrinsics[0].tolist() == [[12.0, 0, 5.5], [0, 12.0, 3.5], [0, 0, 1]]
    assert sample.baseline.tolist() == [0.5]
    torch.testing.assert_close(sample.depth, torch.full((1, 1, 8, 12), 12.0), rtol=1e-4, atol=0)


def test_workers_are_as_many_as_the_cores_of_a_machine_let_its_ranks_have(tmp_path, monkeypatch):
    domain = DomainSettings("streets", str(sequence_tree(tmp_path)))
    settings = DataSettings(source=domain, target=domain, cache="none")
    data = SequenceData(settings, ["target"], "both", batch=1, steps=3, seed=0)
    data.train = [open_sequences(tmp_path)]
    monkeypatch.setattr(SequenceDataset, "in_memory", False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(32)), raising=False)
    monkeypatch.setattr("uda_seg.data.parallel.quota", lambda: float("inf"))
    data.trainer = SimpleNamespace(global_rank=1, world_size=64, num_devices=8, global_step=0)
    assert data.train_dataloader().num_workers == 3


def test_a_resize_takes_the_camera_along(tmp_path):
    sample = open_sequences(sequence_tree(tmp_path), size=[4, 6])[0]
    assert sample.image.shape == (1, 3, 4, 6)
    np.testing.assert_allclose(
        sample.intrinsics[0], [[5.0, 0, 2.5], [0, 5.0, 1.5], [0, 0, 1]]
    )  # centred before, and after


def test_images_without_a_neighbour_are_left_out_and_none_is_an_error(tmp_path, caplog):
    root = sequence_tree(tmp_path)
    (root / "image_next/000001.png").unlink()
    with caplog.at_level("INFO"):
        kept = open_sequences(root, "monocular")
    assert kept.names == ["000000.png", "000002.png", "000003.png"]
    assert "1 of 4 images have no previous and next" in caplog.text
    assert len(open_sequences(root, "stereo")) == 4
    for file in (root / "image_right").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no image under .*image has its right: streets needs image_right/"):
        open_sequences(root, "stereo")


def test_damages_are_named(tmp_path):
    root = sequence_tree(tmp_path)
    save(root / "image_right/000000.png", noise(0, (8, 10)))
    with pytest.raises(UserError, match=r"image_right/000000.png has another size than .*image/000000.png"):
        open_sequences(root, "stereo")[0]
    (root / "camera/000001.json").write_text("{")
    with pytest.raises(UserError, match=r"camera/000001.json cannot be read"):
        open_sequences(root, "stereo")[1]
    with pytest.raises(UserError, match=r"data.target.dataset=camvid has no sequences: use one of streets, city"):
        open_sequences(root, dataset="camvid")


def test_cityscapes_keeps_its_views_apart(tmp_path):
    stem = "train/aachen/aachen_000003_0000"
    save(tmp_path / f"leftImg8bit/{stem}19_leftImg8bit.png", noise(0))
    save(tmp_path / f"leftImg8bit_sequence/{stem}18_leftImg8bit.png", noise(1))
    save(tmp_path / f"leftImg8bit_sequence/{stem}20_leftImg8bit.png", noise(2))
    save(tmp_path / f"rightImg8bit/{stem}19_rightImg8bit.png", noise(3))
    sample = open_sequences(tmp_path, dataset="cityscapes")[0]
    for place in range(3):
        assert torch.equal(sample.views[0, place], pixels(noise(place + 1)))
    # The calibration is of 2048 x 1024 pixels; these pictures were shrunk to 12 x 8 before.
    assert sample.intrinsics[0, 0, 0].item() == pytest.approx(2262.52 * 12 / 2048)
    assert sample.intrinsics[0, 1, 2].item() == pytest.approx((513.137 + 0.5) * 8 / 1024 - 0.5)
    camera = {"intrinsic": {"fx": 512, "fy": 256, "u0": 1023.5, "v0": 511.5}, "extrinsic": {"baseline": 0.2}}
    file = tmp_path / f"camera/{stem}19_camera.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(camera))
    sample = open_sequences(tmp_path, dataset="cityscapes")[0]
    assert sample.intrinsics[0].tolist() == [[3, 0, 5.5], [0, 2, 3.5], [0, 0, 1]]
    assert sample.baseline.item() == pytest.approx(0.2)


def test_a_camera_file_without_a_calibration_is_named(tmp_path):
    stem = "train/aachen/aachen_000003_000019"
    for side in ("left", "right"):
        save(tmp_path / f"{side}Img8bit/{stem}_{side}Img8bit.png", noise(0))
    file = tmp_path / f"camera/{stem}_camera.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match=r"000019_camera.json holds no intrinsic and extrinsic calibration"):
        open_sequences(tmp_path, "stereo", dataset="cityscapes")[0]


def test_a_batch_depends_on_seed_rank_and_step_alone(tmp_path):
    domains = [open_sequences(sequence_tree(tmp_path), "stereo")]
    whole = SequenceSteps(domains, batch=4, steps=2, seed=3)
    assert sorted(whole[1].intrinsics[:, 0, 0].tolist()) == [10, 11, 12, 13]  # a pass is every image once
    ranks = [SequenceSteps(domains, batch=2, steps=2, seed=3, rank=r, world_size=2)[1] for r in range(2)]
    together = torch.cat([rank.intrinsics for rank in ranks])
    assert sorted(together[:, 0, 0].tolist()) == sorted(whole[1].intrinsics[:, 0, 0].tolist())
    assert torch.equal(whole[1].image, SequenceSteps(domains, batch=4, steps=9, seed=3)[1].image)
