"""`python -m uda_seg.depth` from training to maps that CorDA reads, on pictures of a few kilobytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from command_line import NETWORK, configured
from data.trees import camvid_tree, sequence_tree
from uda_seg import depth as command
from uda_seg.data.datasets import open_domain
from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import UserError


@pytest.fixture
def tree(tmp_path):
    """Pictures large enough for a network of stride 32."""
    return sequence_tree(tmp_path / "data", 3, (64, 96))


def overrides(tree, *more):
    return [
        "data=streets", f"data.source.root={tree}", f"data.target.root={tree}", "data.source.size=[64,96]",
        "data.target.size=[64,96]", "data.crop=[64,64]", "data.source.count=3", "data.target.count=2",
        "data.target.domain=camera", "depth.steps=2", "depth.batch=2", "depth.val_count=2", "depth.widths=[4]",
        "depth.scales=2", "depth.domains=[target]", "trainer=cpu", "callbacks.progress=false", "data.workers=0",
        "logger.log_every=1", *NETWORK, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("supervision", ["stereo", "both"])
def test_train_score_and_export_maps_that_are_read_back(tree, tmp_path, supervision, caplog):
    folder = tmp_path / "run"
    given = overrides(tree, f"depth.supervision={supervision}", "export=true")
    with caplog.at_level("INFO"):
        command.depth(configured(*given), folder)
    assert "data.source: no sequence of game was learnt from: zero-shot from camera" in caplog.text
    scores = json.loads((folder / "depth_metrics.json").read_text())
    assert set(scores) == {"target", "target, each pixel's median"}
    assert scores["target, each pixel's median"]["abs_rel"] == pytest.approx(1 / 22, abs=0.06)
    assert (folder / "depth.png").is_file()
    assert json.loads((folder / "maps/camera/depth.json").read_text())["encoding"] == "disparity"
    config = configured(*given, f"data.target.depth={folder / 'maps/camera'}")
    z = open_domain(config.data.target, config.data, CITYSCAPES, "data.target", labeled=False, depth=True).read(1).depth
    assert z.shape == (64, 96)
    assert (z > 1).all()

    (folder / "maps/camera/000001.png").unlink()
    caplog.clear()
    with caplog.at_level("INFO"):  # a trained network goes on where an export stopped
        command.depth(configured(*given, f"checkpoint={folder / 'checkpoints/last.ckpt'}"), folder)
    assert "2 depth maps in" in caplog.text
    assert "1 of them new" in caplog.text
    again = open_domain(config.data.target, config.data, CITYSCAPES, "data.target", labeled=False, depth=True)
    np.testing.assert_array_equal(again.read(1).depth, z)


def test_a_run_goes_on_where_it_stopped(tree, tmp_path):
    whole = command.depth(configured(*overrides(tree, "depth.steps=4")), tmp_path / "whole")
    command.depth(configured(*overrides(tree, "depth.steps=4", "trainer.max_steps=2")), tmp_path / "half")
    resumed = command.depth(configured(*overrides(tree, "depth.steps=4", "resume=last")), tmp_path / "half")
    assert resumed == whole


def test_images_without_sequences_get_maps_from_a_network_of_others(tree, tmp_path, caplog):
    folder, camvid = tmp_path / "run", camvid_tree(tmp_path / "camvid", count=2)
    command.depth(configured(*overrides(tree, "depth.domains=[source]", "depth.steps=3")), folder)
    scores = (folder / "depth_metrics.json").read_text()
    # Validation was due at the second step; the scores are nevertheless those of the last.
    assert "\n3,val/source/abs_rel," in (folder / "metrics.csv").read_text()
    new = [o for o in overrides(tree) if not o.startswith(("data=", "data.target"))]
    here = ["data=streets2camvid", *new, f"data.target.root={camvid}"]
    checkpoint = f"checkpoint={folder / 'checkpoints/last.ckpt'}"
    command.depth(configured(*here, "depth.domains=[source]", "export=true", checkpoint), folder)
    assert (folder / "depth_metrics.json").read_text() == scores  # those of training stay
    assert (folder / "evaluation/streets2camvid/depth_metrics.json").is_file()
    config = configured(*here, f"data.target.depth={folder / 'maps/camvid'}")
    with caplog.at_level("INFO"):
        found = open_domain(config.data.target, config.data, CITYSCAPES, "data.target", labeled=False, depth=True)
    assert "maps/camvid was learnt from game (zero-shot)" in caplog.text
    assert found.read(1).depth.shape == (36, 48)


def test_what_is_wrong_is_said(tree, tmp_path):
    with pytest.raises(UserError, match=r"depth.domains names sauce, but data=streets has no such domain"):
        command.build_data(configured(*overrides(tree, "depth.domains=[sauce]")))
    first = overrides(tree, "export=true")
    command.depth(configured(*first), tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        command.depth(configured(*first), tmp_path / "run")
    with pytest.raises(UserError, match="is of another network: pose"):
        command.depth(configured(*first, "resume=last", "depth.supervision=both"), tmp_path / "run")
    file = tmp_path / "run/maps/game/depth.json"
    file.write_text(file.read_text().replace("weights", "weight"))
    checkpoint = f"checkpoint={tmp_path / 'run/checkpoints/last.ckpt'}"
    with pytest.raises(UserError, match="maps/game holds maps of another network: replace them with overwrite=true"):
        command.depth(configured(*first, checkpoint), tmp_path / "run")
    with pytest.raises(UserError, match="is of another network"):
        command.depth(configured(*first, checkpoint, "depth.widths=[6]"), tmp_path / "run")
