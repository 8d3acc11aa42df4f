"""`python -m uda_seg.depth` from training to maps that CorDA reads, on pictures of a few kilobytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from command_line import NETWORK
from command_line import configured as configured_for
from data.trees import blocks, camvid_tree, save, sequence_tree
from ranks import on_ranks
from uda_seg import depth as command
from uda_seg import train
from uda_seg.config.commands import DepthConfig
from uda_seg.config.replay import replay
from uda_seg.config.schema import CONF
from uda_seg.data.depth_layouts import maps_name
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import CAMVID, CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.methods.depth import SelfSupervisedDepth
from uda_seg.models.depth import DepthHead
from uda_seg.models.segmentor import Segmentor
from uda_seg.runs import build
from uda_seg.runs.checkpoint import read_checkpoint
from uda_seg.runs.depth_maps import Scale, describe_maps

configured = partial(configured_for, kind=DepthConfig)


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


def scored(config, folder):
    """What a validation by an untrained network says."""
    torch.manual_seed(0)
    data = command.build_data(config)
    module = command.build_module(config, data)
    build.new_trainer(config, folder, 2, [], []).validate(module, datamodule=data, verbose=False)
    return module.scores


def test_scores_on_several_ranks_are_those_of_one(tree, tmp_path):
    """Of two images; a third rank has none."""
    alone, shared = (
        on_ranks(world, scored, configured(*overrides(tree, *ranks)), tmp_path)
        for world, ranks in ((1, ()), (3, ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3")))
    )
    for scores in shared:
        assert tuple(scores["target"]) == pytest.approx(tuple(alone[0]["target"]), rel=1e-6)
    assert len(shared) == 3


def test_a_run_that_is_asked_to_stop_saves_itself(tree, tmp_path, monkeypatch):
    losses = SelfSupervisedDepth.losses

    def stopped(self, batch):
        if self.trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, batch)

    monkeypatch.setattr(SelfSupervisedDepth, "losses", stopped)
    common = ("depth.steps=9", "callbacks.checkpoints=1", "evaluator.times=1")
    with pytest.raises(SystemExit) as end:
        command.depth(configured(*overrides(tree, *common)), tmp_path)
    assert end.value.code == 128 + signal.SIGTERM
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == 2


def test_monocular_depth_is_in_no_unit(tree, tmp_path):
    folder = tmp_path / "run"
    given = overrides(tree, "depth.supervision=monocular", "export=true")
    command.depth(configured(*given), folder)
    scores = json.loads((folder / "depth_metrics.json").read_text())
    # Every exact map is of one distance, so a constant is right after the scaling of each image by its median.
    assert scores["target, each pixel's median"]["abs_rel"] == pytest.approx(0, abs=1e-3)
    assert "after median scaling" in (folder / "depth.md").read_text()
    assert (folder / "depth.png").is_file()
    said = json.loads((folder / "maps/camera/depth.json").read_text())
    assert said["encoding"] == "disparity"
    assert "in no unit" in said["z"]
    assert said["learnt_from"] == "camera"

    config = configured(*given, f"data.target.depth={folder / 'maps/camera'}")
    module = command.build_module(config, command.build_data(config))
    command.load(module, folder / "checkpoints/last.ckpt")
    image = cv2.imread(str(tree / "image/000001.png"))[..., ::-1].copy()
    with torch.no_grad():
        disparity = module.eval().network.predict(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0, 0].numpy()
    raw = cv2.imread(str(folder / "maps/camera/000001.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(raw, 65535 * disparity, atol=1)
    found = open_domain(config.data.target, config.data, CITYSCAPES, "data.target", labeled=False, depth=True)
    np.testing.assert_allclose(found.read(1).depth, 256 * disparity + 1, atol=0.01)


def test_the_picture_of_monocular_depth_is_scaled_by_the_median(tree, tmp_path, monkeypatch):
    """A network that is right but for a factor is drawn as the exact depth is."""
    config = configured(*overrides(tree, "depth.supervision=monocular"))
    data = command.build_data(config)
    data.setup("validate")
    module = command.build_module(config, data)
    monkeypatch.setattr(module, "depth", lambda image, baseline: torch.full((len(image), 1, 64, 96), 0.3))
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(command, "shade", lambda metres: drawn.append(metres) or np.zeros((64, 96, 3), np.uint8))
    command.picture(module, data)
    exact, predicted = torch.stack(drawn).chunk(2)
    assert predicted.unique().item() == pytest.approx(exact.median().item())


@pytest.mark.parametrize(("experiment", "data"), [("depth_viper", "gta2cs"), ("depth_synthia", "synthia2cs")])
def test_maps_are_written_of_the_data_given_now_not_of_the_sequences_learnt_from(experiment, data):
    choices = {"experiment": experiment, "method": "source_only", "model": "deeplabv2_r101", "data": "gta2cs"}
    said = {"uda_seg": {"choices": choices, "overrides": ["data.source.root=SEQUENCES"]}}
    given = [f"data={data}", "data.source.root=SINGLE", "data.target.root=CITYSCAPES", "export=true"]
    config = configured(*replay(said, given, DepthConfig))
    assert (config.data.source.dataset, config.data.source.root) == (data.removesuffix("2cs"), "SINGLE")
    assert config.data.source.size == configured(f"data={data}").data.source.size
    assert (config.data.target.dataset, config.data.target.root) == ("cityscapes", "CITYSCAPES")
    # The network and what it learnt remain those of the checkpoint, with what the experiment's own parent says.
    assert (config.depth.supervision, config.depth.domains, config.depth.crop) == ("monocular", ["source"], [512, 512])


STREETS = "outputs/streets/depth_stereo_daformer_small/seed0"


def on_camvid(tree, camvid, *more):
    """Overrides for data=streets2camvid, of which a person gives no more than the roots."""
    sizes = [o for o in overrides(tree) if not o.startswith(("data=", "data.target", "depth.domains", *NETWORK))]
    return ["data=streets2camvid", *sizes, f"data.target.root={camvid}", "data.target.size=[64,96]", *more]


def test_the_documented_commands_bring_depth_to_images_without_sequences(tree, tmp_path, cli):
    """Learn on streets, export for CamVid, train CorDA with what is there: each as the usage says."""
    camvid = camvid_tree(tmp_path / "camvid", count=2, size=(64, 96))
    camvid_tree(camvid, "val", 1, (64, 96))
    for i in range(3):
        save(tree / f"label/{i:06d}.png", blocks(i, (64, 96), [0, 2, 10]))
    learn = [o for o in overrides(tree, "depth.steps=3") if not o.startswith("depth.domains")]
    learn += [f"hydra.run.dir={STREETS}"]  # what it is without any other override: tested below
    done = cli(command.main, *learn)
    assert done.code == 0, done
    assert "data.source and data.target scored on training images" in done.out + done.err
    folder = tmp_path / STREETS
    assert "scored on training images" in (folder / "depth.md").read_text()
    scores = (folder / "depth_metrics.json").read_text()
    # Validation was due at the second step; the scores are nevertheless those of the last.
    assert "\n3,val/source/abs_rel," in (folder / "metrics.csv").read_text()

    for view in ("previous", "next", "right"):
        shutil.rmtree(tree / f"image_{view}")  # scoring opens no training views
    checkpoint = f"checkpoint={STREETS}/checkpoints/last.ckpt"
    # The target, which has no sequences, must do no harm.
    done = cli(command.main, checkpoint, *on_camvid(tree, camvid), "export=true")
    assert done.code == 0, done
    assert (folder / "depth_metrics.json").read_text() == scores  # those of training stay
    assert set(json.loads((folder / "evaluation/streets2camvid/depth_metrics.json").read_text())) == {
        "source", "source, each pixel's median",
    }  # fmt: skip

    given = [o for o in on_camvid(tree, camvid) if not o.startswith("depth.")]  # which training does not read
    corda = ["method=corda", *given, *NETWORK, "steps=1", "data.source_batch=2", "callbacks.panels=0"]
    done = cli(train.main, *corda)
    assert done.code == 0, done
    assert (
        f"data.target: the depth in {STREETS}/maps/camvid was learnt from game, camera (zero-shot)"
        in done.out + done.err
    )


def test_a_trained_network_makes_maps_of_domains_that_depth_cannot_be_learnt_from(tree, tmp_path):
    command.depth(configured(*overrides(tree)), tmp_path)
    more = sequence_tree(tmp_path / "more", 2, (64, 96))
    night = [f"data.more_sources.night.{k}={v}" for k, v in (("dataset", "streets"), ("root", more), ("share", 0.5))]
    size = "data.more_sources.night.size=[64,96]"
    given = [*overrides(tree), *night, size, "data.reader=shards", "depth.domains=[source,target]", "export=true"]
    command.depth(configured(*given, f"checkpoint={tmp_path / 'checkpoints/last.ckpt'}"), tmp_path)
    assert len(list((tmp_path / "maps/game").glob("*.png"))) == 3
    assert len(list((tmp_path / "maps/streets").glob("*.png"))) == 2
    assert not (tmp_path / "maps/camera").exists()  # of shards


def test_each_domain_has_the_unit_of_its_own_stereo_camera():
    scale = Scale({"synthia_seqs": 0.8, "cityscapes": 0.2})
    assert [scale.of(name) for name in ("synthia_seqs", "cityscapes", "camvid")] == [0.8, 0.2, 0.8]
    assert Scale.read({"baselines": scale.baselines}) == scale
    assert Scale.read({"baseline": 0.5, "domains": ["game", "camera"]}) == Scale({"game": 0.5, "camera": 0.5})


def test_maps_that_are_not_made_yet_are_asked_for_by_methods_of_depth_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    camvid_tree(tmp_path, count=2)
    config = configured("data=streets2camvid", f"data.target.root={tmp_path}")
    target, data = config.data.target, config.data
    assert open_domain(target, data, CAMVID, "data.target", labeled=True).read(0).depth is None
    with pytest.raises(UserError) as caught:
        open_domain(target, data, CAMVID, "data.target", labeled=False, depth=True)
    assert f"2 of 2 images have no depth, the first misses {STREETS}/maps/camvid/000.png" in str(caught.value)
    assert "python -m uda_seg.depth data=streets, " in str(caught.value)
    assert f"checkpoint=<run>/checkpoints/last.ckpt data=streets2camvid data.target.root={tmp_path} export=true" in str(
        caught.value
    )


def test_maps_of_camvid_are_looked_for_where_the_command_puts_them():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = compose("depth", command.expand(["data=streets"]), return_hydra_config=True)
        camvid = compose("config", ["data=streets2camvid", "seed=3"])
    HydraConfig.instance().set_config(run)
    try:
        assert f"{run.hydra.run.dir}/maps/camvid" == camvid.data.target.depth
    finally:
        HydraConfig.instance().cfg = None


def test_a_domain_without_exact_depth_is_not_scored_and_that_is_said(tree, caplog):
    config = configured(*overrides(tree))
    data = command.build_data(config)
    data.validation_names = ()
    with caplog.at_level("INFO"):
        command.report(command.build_module(config, data), data, None, tree)
    assert "no scores: there is no exact depth of camera" in caplog.text


def test_scores_of_images_that_are_learnt_from_are_called_that(tree, caplog):
    data = command.build_data(configured(*overrides(tree)))
    data.setup("validate")
    assert "no separate validation images: data.target scored on training images" in caplog.text
    assert not data.train
    rendered = configured("data=streets", "depth.domains=[source]")
    assert command.build_data(rendered).seen == ""  # the cache has a folder for each split


def test_what_is_wrong_is_said(tree, tmp_path):
    with pytest.raises(UserError, match=r"depth.domains names target, but data=streets2dg has no such domain"):
        command.build_data(configured("data=streets2dg"))
    several = r"data.source alone, but data=streets_two_sources also has data.more_sources.night: choose a pair"
    with pytest.raises(UserError, match=several):
        command.build_data(configured("data=streets_two_sources")).setup("fit")
    command.build_data(configured("data=streets_two_sources", "depth.domains=[target]")).check_learnable()
    shards = command.build_data(configured("data=streets", "data.reader=shards", "depth.domains=[source,target]"))
    with pytest.raises(UserError, match=r"data\.reader=shards has single images"):
        shards.setup("fit")
    with pytest.raises(UserError, match=r"data.target.split=train\+val: sequences are read of one split at a time"):
        command.build_data(configured(*overrides(tree, "data.target.split=train+val"))).setup("fit")
    with pytest.raises(
        UserError, match=r"crop=\[64, 97\] is larger than the images of data.target, which are \[64, 96"
    ):
        command.depth(configured(*overrides(tree, "depth.crop=[64,97]", "data.target.size=null")), tmp_path / "crop")
    first = overrides(tree, "export=true")
    command.depth(configured(*first), tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        command.depth(configured(*first), tmp_path / "run")
    with pytest.raises(UserError, match="is of another network: pose"):
        command.depth(configured(*first, "resume=last", "depth.supervision=both"), tmp_path / "run")
    file = tmp_path / "run/maps/game/depth.json"
    whole = file.read_text()
    checkpoint = f"checkpoint={tmp_path / 'run/checkpoints/last.ckpt'}"
    file.write_text(whole[:20])
    with pytest.raises(
        UserError, match=r"game/depth.json cannot be read .*; export the depth maps again with overwrite"
    ):
        command.depth(configured(*first, checkpoint), tmp_path / "run")
    command.depth(configured(*first, checkpoint, "overwrite=true"), tmp_path / "run")
    assert file.read_text() == whole
    file.write_text(whole.replace("weights", "weight"))
    with pytest.raises(
        UserError, match="maps/game holds maps of another network or other images: replace them with overwrite=true"
    ):
        command.depth(configured(*first, checkpoint), tmp_path / "run")
    with pytest.raises(UserError, match="is of another network"):
        command.depth(configured(*first, checkpoint, "depth.widths=[6]"), tmp_path / "run")


def test_domains_of_one_kind_have_folders_of_their_own():
    config = configured("data=custom", "data.more_targets.night.dataset=custom", "data.more_targets.night.share=1")
    domains = config.data.sources | config.data.targets
    names = {option: maps_name(config.data, option, domain) for option, domain in domains.items()}
    assert names == {
        "data.source": "custom", "data.target": "custom_target", "data.more_targets.night": "custom_night",
    }  # fmt: skip


def test_maps_of_other_images_are_not_taken_for_these(tmp_path):
    (tmp_path / "0.png").write_bytes(b"a map")
    said = {"encoding": "disparity", "images": "streets, train, world 0"}
    for before, fits in (({"encoding": "disparity"}, True), (said, True), ({**said, "images": "world 1"}, False)):
        (tmp_path / "depth.json").write_text(json.dumps(before))
        if fits:
            describe_maps(tmp_path, said, overwrite=False)
            continue
        with pytest.raises(UserError, match="of another network or other images"):
            describe_maps(tmp_path, said, overwrite=False)
    describe_maps(tmp_path, said, overwrite=True)
    assert not (tmp_path / "0.png").exists()


def test_a_checkpoint_in_no_runs_folder_does_not_say_where_maps_go(tmp_path):
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"last\.ckpt is in no run's folder.*say hydra\.run\.dir"):
        command.expand([f"checkpoint={tmp_path}/last.ckpt", "export=true"])


def test_depth_is_learnt_at_one_resolution_by_the_encoder_of_a_network_of_two():
    config = configured("data=streets", "model=hrda_small", "pretrained=null", "model.activation_checkpointing=true")
    module = command.build_module(config, SimpleNamespace(views=("right",), validation_names=()))
    assert type(module.network) is Segmentor
    assert isinstance(module.network.heads["main"], DepthHead)
    assert module.network.encoder.activation_checkpointing
