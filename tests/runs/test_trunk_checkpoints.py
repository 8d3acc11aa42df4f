"""Checkpoints of runs with a frozen trunk: without it, and of use only together with the very same one."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from test_train import checkpoint

import uda_seg
from command_line import NETWORK, small_run
from uda_seg import train as command
from uda_seg.config.replay import replay
from uda_seg.errors import UserError
from uda_seg.methods.frozen_trunk import leave_out_trunk, with_trunk
from uda_seg.models.vit import ViTEncoder
from uda_seg.runs.trained import load

VIT = ["model=timm", "model.encoder.name=test_vit", "model.head.width=8", "model.head.dilations=[1]"]
WAYS = {
    "frozen": ["model.encoder.freeze=true"],
    "blocks": ["model.encoder.freeze=2", "optimizer.layer_decay=0.9"],
    "lora": ["model.encoder.lora={rank: 2, init: minor}"],
}


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of weights."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), folder / f"trunk{seed}.pth")
    return sorted(folder.iterdir())


@pytest.fixture
def train(cli, camvid, tmp_path):
    def run(*overrides):
        usual = [o for o in small_run(camvid, steps=2) if o not in NETWORK]
        return cli(command.main, *usual, *VIT, f"hydra.run.dir={tmp_path / 'run'}", *overrides)

    return run


@pytest.mark.parametrize("way", ["frozen", pytest.param("blocks", marks=pytest.mark.slow), "lora"])
def test_a_checkpoint_holds_what_was_trained_and_is_completed_by_its_trunk(way, train, trunks, tmp_path, camvid):
    settings = ["method=dacs", *WAYS[way]]
    assert train(*settings, f"pretrained={trunks[0]}").code == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = checkpoint(tmp_path / "run")
    said, state = content["uda_seg"]["trunk"], content["state_dict"]
    assert (said["weights"], said["file"], len(said["sha256"])) == (None, "trunk0.pth", 64)
    assert str(trunks[0].parent) not in str({**content["uda_seg"], "overrides": None})
    kept = {n for n in state if "encoder." in n}
    blocks = {"segmentor.encoder.body.model.blocks.2.attn.qkv.weight", "teacher.network.encoder.body.model.norm.weight"}
    assert not any("pos_embed" in n or "blocks.0.attn.qkv.weight" in n for n in kept)
    assert {"frozen": not kept, "blocks": bool(kept & blocks), "lora": all(".lora." in n for n in kept)}[way]

    with pytest.raises(UserError, match=r"which was the file trunk0\.pth: add pretrained=FILE"):
        load(last)
    with pytest.raises(UserError, match=rf"its frozen trunk, .*trunk0\.pth.*{trunks[1].name} has another"):
        load(last, f"pretrained={trunks[1]}")
    image = torch.rand(3, 32, 48)
    student, teacher = (load(last, f"pretrained={trunks[0]}", teacher=t) for t in (False, True))
    assert all(torch.equal(t, state[f"segmentor.{n}"]) for n, t in student.network.state_dict().items()
               if f"segmentor.{n}" in state)  # fmt: skip
    assert not torch.equal(student.predict(image, "logits"), teacher.predict(image, "logits"))

    told = train(*settings, f"pretrained={trunks[1]}", "steps=3", "resume=last")
    assert "does not hold its frozen trunk" in told.error
    told = train(*settings, "pretrained=null", "steps=3", "resume=last")
    assert "this network was built without weights: give pretrained=FILE with trunk0.pth" in told.error
    assert train(*settings, f"pretrained={trunks[0]}", "steps=3", "resume=last").code == 0
    assert checkpoint(tmp_path / "run")["global_step"] == 3
    if way == "lora":
        with pytest.raises(UserError, match=r"has adapters, as segmentor\.enc.*: give its model\.encoder\.lora too"):
            load(last, f"pretrained={trunks[0]}", "model.encoder.lora=null")


def test_a_trunk_that_no_file_has_stays_in_the_checkpoint_once(train, tmp_path):
    assert train("method=dacs", "pretrained=null", "model.encoder.freeze=true").code == 0
    content = checkpoint(tmp_path / "run")
    held = {n for n in content["state_dict"] if "encoder." in n}
    assert "trunk" not in content["uda_seg"]
    assert held
    assert all(n.startswith("segmentor.") for n in held)
    networks = [load(tmp_path / "run" / "checkpoints" / "last.ckpt", teacher=t).network for t in (False, True)]
    for name in (n.removeprefix("segmentor.") for n in held):
        assert all(torch.equal(n.state_dict()[name], content["state_dict"][f"segmentor.{name}"]) for n in networks)
    again = train("method=dacs", "pretrained=null", "model.encoder.freeze=true", "steps=3", "resume=last")
    assert again.code == 0, again.err


def test_a_run_starts_from_another_with_the_same_trunk_or_keeps_the_other_ones(train, trunks, tmp_path):
    assert train("method=source_only", f"pretrained={trunks[0]}", "model.encoder.freeze=true").code == 0
    first = tmp_path / "run" / "checkpoints" / "last.ckpt"
    moved = first.rename(tmp_path / "first.ckpt")
    again = ["method=source_only", "overwrite=true", f"init={moved}", "model.encoder.freeze=true"]
    assert "does not hold its frozen trunk" in train(*again, f"pretrained={trunks[1]}").error
    assert train(*again[:-1], f"pretrained={trunks[0]}").code == 0  # all of it is trained from here on
    whole = (tmp_path / "run" / "checkpoints" / "last.ckpt").rename(tmp_path / "whole.ckpt")
    assert train(*again[:2], f"init={whole}", again[-1], f"pretrained={trunks[0]}").code == 0
    content = checkpoint(tmp_path / "run")  # whose trunk no file has any more
    assert "trunk" not in content["uda_seg"]
    assert any("pos_embed" in n for n in content["state_dict"])
    # Neither does the file that the resumed network is built with, before the checkpoint's trunk replaces it.
    assert train("method=source_only", again[-1], f"pretrained={trunks[0]}", "steps=3", "resume=last").code == 0
    resumed = checkpoint(tmp_path / "run")
    assert "trunk" not in resumed["uda_seg"]
    assert all(
        torch.equal(resumed["state_dict"][n], t)
        for n, t in content["state_dict"].items()
        if "pos_" in n or "blocks" in n
    )
    assert any("pos_embed" in n for n in resumed["state_dict"])


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [("imagenet", "++model.encoder.weights=imagenet"), ("hub:a/b@main", "++model.encoder.weights=hub:a/b@main")],
)
def test_a_trunk_by_name_is_had_again_without_a_question(weights, wanted):
    trunk = {"weights": weights, "file": None, "sha256": "0" * 64}
    said = {"uda_seg": {"choices": {}, "overrides": ["pretrained=/their/file"], "trunk": trunk}}
    assert replay(said, []) == [wanted]
    assert replay(said, ["pretrained=mine.pth"]) == ["pretrained=mine.pth"]


@pytest.mark.parametrize(
    "trunk",
    [
        {"weights": "/etc/passwd", "file": None, "sha256": "0"},
        {"weights": "hub:../../x", "file": None, "sha256": "0"},
        {"weights": "secret", "file": None, "sha256": "0"},
        {"weights": None, "file": None, "sha256": "0"},
        {"weights": "imagenet"},
        "imagenet",
    ],
)
def test_no_path_is_taken_from_a_checkpoint(trunk, tmp_path):
    said = {"choices": {}, "overrides": [], "classes": "cityscapes", "trunk": trunk}
    torch.save({"uda_seg": said, "state_dict": {}}, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="trunk is missing or nonsense"):
        uda_seg.load(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("options", [{"taps": [0]}, {"lora": {"rank": 2}}])
def test_a_trunk_of_other_blocks_is_not_called_another_file(options):
    def encoder(**more):
        made = ViTEncoder("test_vit", **{"taps": [1], "freeze": True} | more)
        made.loaded_from = "imagenet"
        return made

    state = {f"segmentor.encoder.{name}": tensor for name, tensor in encoder().state_dict().items()}
    content = {"uda_seg": {"trunk": leave_out_trunk(state, encoder())}, "state_dict": state}
    said = r"x does not hold its frozen trunk of \d+ tensors, and of this network \d+ are not in it: give .*taps"
    with pytest.raises(UserError, match=said):
        with_trunk(content, encoder(**options), "x")
