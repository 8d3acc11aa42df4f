"""`import uda_seg` as a notebook uses it: what it exports, loading and predicting, and the page about it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import uda_seg
from command_line import NETWORK, small_run
from uda_seg import predict, train
from uda_seg.config.commands import PrepareConfig
from uda_seg.errors import UserError
from uda_seg.visualize.pictures import colorize

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.fixture(scope="module")
def checkpoint(camvid, tmp_path_factory):
    """A trained run, which was configured and built in Python."""
    folder = tmp_path_factory.mktemp("python") / "run"
    config = uda_seg.compose("method=dacs", *small_run(camvid, 2), "optimizer.lr=0.01")
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = uda_seg.build_data(config)
    module = uda_seg.build_module(config, data)
    uda_seg.build_trainer(config, folder, data).fit(module, datamodule=data)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def photograph(camvid):
    """An image whose size is not that of training."""
    path = sorted((camvid / "val").iterdir())[0]
    return Image.open(path).resize((61, 45))


def test_the_names_are_there_and_importing_them_is_not_paid_by_all():
    for name in uda_seg.__all__:
        assert getattr(uda_seg, name) is not None
    assert set(uda_seg.__all__) <= set(dir(uda_seg))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = uda_seg.nothing
    code = "import sys, uda_seg; sys.exit(bool({'torch', 'numpy', 'hydra'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_configuration_is_checked_as_on_the_command_line():
    assert uda_seg.compose("method=dacs", "steps=3", "seed=5").steps == 3
    assert uda_seg.compose("data=streets", "fix=true", kind=PrepareConfig).fix
    with pytest.raises(UserError, match=r"did you mean optimizer\.lr\?"):
        uda_seg.compose("optimizer.lrr=1")


def test_what_python_built_is_loaded_as_what_the_command_built(cli, camvid, checkpoint, tmp_path):
    words = ("method=dacs", *small_run(camvid, 2), "optimizer.lr=0.01", "hydra.run.dir=run")
    assert cli(train.main, *words).code == 0
    ours = torch.load(checkpoint, weights_only=True)
    other = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in ours["state_dict"].items())
    assert ours["uda_seg"]["choices"].items() <= other["uda_seg"]["choices"].items()


def test_predictions_are_those_of_the_command(cli, camvid, checkpoint, photograph, tmp_path):
    (tmp_path / "in").mkdir()
    photograph.save(tmp_path / "in" / "street.png")
    done = cli(predict.main, f"checkpoint={checkpoint}", "input=in", "output=out", "evaluator.teacher=true")
    assert done.code == 0, done
    model = uda_seg.load(checkpoint, teacher=True)
    labels = model.predict(photograph)
    assert (labels.shape, labels.dtype) == ((45, 61), np.uint8)
    assert np.array_equal(labels, np.array(Image.open(tmp_path / "out" / "labelIds" / "street.png")))
    assert np.array_equal(model.palette[labels], np.array(Image.open(tmp_path / "out" / "colour" / "street.png")))
    assert np.array_equal(model.palette[labels], colorize(labels, model.classes.palette))
    assert model.class_names[labels[0, 0]] in model.classes.names
    assert not np.array_equal(labels, uda_seg.load(checkpoint).predict(photograph))  # the student's


@pytest.mark.parametrize("kind", ["numpy", "uint8", "float", "batch"])
def test_every_kind_of_image_gives_the_same(checkpoint, photograph, kind):
    model = uda_seg.load(checkpoint, device="cpu")
    array = np.array(photograph)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image = {"numpy": array, "uint8": tensor, "float": tensor / 255, "batch": torch.stack([tensor, tensor.flip(-1)])}
    expected = model.predict(photograph)
    found = model.predict(image[kind])
    assert isinstance(found, np.ndarray if kind == "numpy" else torch.Tensor)
    assert np.array_equal(np.asarray(found[0] if kind == "batch" else found), expected)
    probabilities = model.predict(image[kind], output="probabilities")
    scores = np.asarray(probabilities[0] if kind == "batch" else probabilities)
    assert scores.shape == (len(model.class_names), *expected.shape)
    assert np.allclose(scores.sum(0), 1, atol=1e-5)  # a float32 softmax over 11 classes
    assert np.array_equal(np.take_along_axis(scores, expected[None].astype(int), 0)[0], scores.max(0))
    logits = np.asarray(model.predict(photograph, output="logits"))
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(0), scores, atol=1e-5)


def test_labels_are_the_largest_logits_also_where_probabilities_tie(checkpoint, photograph):
    close = torch.tensor([0.0, 1e-9]).view(1, 2, 1, 1).expand(1, 2, 45, 61)
    model = replace(uda_seg.load(checkpoint), infer=lambda *_: close)
    assert (np.diff(model.predict(photograph, output="probabilities"), axis=0) == 0).all()
    assert (model.predict(photograph) == 1).all()  # as the evaluator counts


def test_a_read_only_array_a_grey_image_and_a_window_are_taken(checkpoint, photograph):
    model = uda_seg.load(str(checkpoint), "evaluator=slide", "evaluator.window=[32,32]", "evaluator.stride=[16,16]")
    assert model.infer.window == (32, 32)
    frozen = np.array(photograph)
    frozen.setflags(write=False)
    assert model.predict(frozen).shape == (45, 61)
    assert model.predict(photograph.convert("L")).shape == (45, 61)
    assert model.to("cpu").device.type == "cpu"


def turned(image: Image.Image) -> Image.Image:
    """Return the image as a phone would store it."""
    image.getexif()[274] = 6
    return image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]: give uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (torch.zeros(4, 4, 3), r"give \[3, H, W\]"),
        (torch.full((3, 4, 4), 2.0), r"give floats in \[0, 1\]"),
        (torch.full((3, 4, 4), torch.nan), r"give floats in \[0, 1\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
        (Image.new("I;16", (4, 4)), "scale it to 8 bits"),
        (turned(Image.new("RGB", (4, 4))), "exif_transpose"),
    ],
)
def test_what_is_no_image_is_refused(checkpoint, image, said):
    model = uda_seg.load(checkpoint)
    with pytest.raises(ValueError, match=said):
        model.predict(image)
    with pytest.raises(ValueError, match="give labels, probabilities or logits"):
        model.predict(np.zeros((4, 4, 3), np.uint8), output="label")


def test_what_is_no_checkpoint_is_one_line(tmp_path, checkpoint):
    with pytest.raises(UserError, match="there is no such checkpoint"):
        uda_seg.load(tmp_path / "nothing.ckpt")
    with pytest.raises(UserError, match="configuration"):
        uda_seg.load(checkpoint, "evaluator.windw=[1,1]")


def test_the_page_about_it_runs(tmp_path, monkeypatch, photograph):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    config = '"steps=20", "data.source.count=40", "data.target.count=40"'
    assert config in blocks[0]
    sizes = [
        f"data.{name}.{key}"
        for name in ("source", "target", "validation.target")
        for key in ("size=[32,64]", "count=2")
    ]
    small = ["steps=2", "data.crop=[32,32]", "statistics_batches=1", "trainer=cpu", "callbacks.progress=false", *sizes]
    blocks = [block.replace(config, ", ".join(repr(word) for word in [*small, *NETWORK])) for block in blocks]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    photograph.save("street.png")
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["labels"].shape == (45, 61)
    assert names["picture"].shape == (45, 61, 3)
    assert names["logits"].shape == (1, 19, 64, 128)
    assert names["sheet"].width == 1100
