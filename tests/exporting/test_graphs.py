"""Exported graphs of every family of networks give what the network gives, at sizes they were not captured at."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame

from uda_seg.config.compose import composed
from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.exporting import formats
from uda_seg.exporting.compare import Difference, batches, check, difference
from uda_seg.exporting.graph import Exported, captured
from uda_seg.exporting.same_padding import SameConvolution, without_same_padding
from uda_seg.methods.base import Plan
from uda_seg.models.segmentor import Segmentor, resize
from uda_seg.models.vit_neck import gathered, onto, onto_image
from uda_seg.models.vit_trunk import _bicubic, _bicubic_in_graph
from uda_seg.options.validate import class_of, defaults
from uda_seg.runs.build import instantiate_module

FAMILIES = {  # name -> overrides
    "daformer": ["model=daformer_mitb0"],
    "segformer": ["model=segformer_mitb5"],
    "deeplabv2": ["model=deeplabv2_r101"],
    "timm": ["model=timm"],
    "daformer_lite": ["model=daformer_lite"],
    "small": ["model=daformer_small"],
    "hrda": ["model=hrda_small"],
    "vit": ["model=vit"],
    "vit_adapter": ["model=vit", "++model.encoder.neck=adapter"],
    "eomt": ["model=vit_eomt", "++model.head.queries=5", "++model.head.blocks=1"],
    "lora": ["model=vit", "++model.encoder.lora={rank: 2}"],
    "frozen": ["model=vit", "++model.encoder.freeze=true"],
    "corda": ["method=corda", "model=daformer_small"],
    "lcmsm": ["method=lcmsm", "model=daformer_small", "method.text=file"],
}
CHEAP = {"deeplabv2"}
FIXED = {"hrda": (96, 161)}  # the number of its windows depends on the size
SIZES = ((1, 96, 160), (3, 101, 67), (2, 64, 64), (1, 131, 98))  # batch, height, width: even, odd, small, large


TINY = {
    "MixVisionTransformer": {"dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]},
    "ResNet101": {"blocks": [1, 1, 1, 1], "width": 4},
    "ResidualEncoder": {"widths": [4, 6, 8, 8], "blocks": [1, 1, 1, 1]},
    "TimmEncoder": {"name": "test_convnext"},
    "ViTEncoder": {"name": "test_vit"},
}


def tiny(config):
    encoder, head = config.model["encoder"], config.model["head"]
    encoder.update(TINY.get(encoder["_target_"].rpartition(".")[2], {}))
    if "width" in defaults(class_of(head["_target_"], "model.head")):  # 256 or 768 where no file says it
        head["width"] = 8
    if "detail" in config.model:
        config.model.update(detail=[32, 64], attention_width=8)
    return config


def network(family: str) -> Segmentor:
    """A tiny network of the family, whose every part has an effect."""
    config = tiny(composed([*FAMILIES[family], "pretrained=null"]))
    if "method=lcmsm" in FAMILIES[family]:
        config.method["width"] = 8
    plan = Plan(steps=4, seed=0, classes=CITYSCAPES, eval_classes=tuple(range(19)), crop=(64, 128))
    torch.manual_seed(0)
    segmentor = instantiate_module(config, plan).segmentor.eval()
    for name, parameter in segmentor.named_parameters():
        if not parameter.any() or "lora.b" in name or "scale" in name:  # an adapter begins without an effect
            torch.nn.init.normal_(parameter, std=0.05)
    return segmentor


def images(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 3, h, w, generator=generator) for n, h, w in SIZES]


@pytest.fixture(
    scope="module", params=[pytest.param(f, marks=[] if f in CHEAP else [pytest.mark.slow]) for f in FAMILIES]
)
def family(request):
    segmentor = network(request.param)
    exported = Exported(segmentor)
    size = FIXED.get(request.param)
    return segmentor, captured(exported, size), size


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_graph_is_the_network_at_every_size(family, kind, tmp_path):
    segmentor, program, size = family
    path = tmp_path / "graph"
    if kind == "onnx":
        formats.write_onnx(program, path, "logits", {"classes": ["a"]})
        run = formats.run_onnx(path)
    else:
        formats.write_torch_export(program, path, {})
        run = formats.run_torch_export(path)
    for batch in images():
        batch = batch if size is None else resize(batch, size)
        with torch.no_grad():
            expected, found = segmentor(batch), run(batch)
        # Convolutions of another library sum in another order; logits of these networks are of the order of 1 to 100.
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())), batch.shape
        assert difference(segmentor, run, batch, "logits").agreement >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("output", ["probabilities", "labels"])
def test_outputs(output, tmp_path):
    segmentor = network("deeplabv2")
    formats.write_onnx(captured(Exported(segmentor, output), None), tmp_path / "graph", output, {})
    run = formats.run_onnx(tmp_path / "graph")
    with torch.no_grad():
        logits = segmentor(images()[0])
    expected = logits.argmax(1).to(torch.uint8) if output == "labels" else logits.softmax(1)
    found = run(images()[0])
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.allclose(found.float(), expected.float(), atol=1e-4)


def test_one_size_alone(tmp_path):
    segmentor = network("small")
    formats.write_torch_export(captured(Exported(segmentor), (64, 96)), tmp_path / "graph", {"smallest": 2})
    run = formats.run_torch_export(tmp_path / "graph")
    batch = torch.rand(3, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(run(batch), segmentor(batch), atol=1e-5)
    with pytest.raises(UserError, match=r"fails on 1 x 65 x 96 images .*, nothing is written: give one size"):
        difference(segmentor, run, torch.rand(1, 3, 65, 96), "logits")


def test_exporting_leaves_the_network_as_it_was():
    segmentor = network("lora")
    before = {name: tensor.clone() for name, tensor in segmentor.state_dict().items()}
    segmentor.attach("spare", torch.nn.Identity())
    exported = Exported(segmentor)
    assert "spare" in segmentor.heads
    assert "spare" not in exported.network.heads
    assert not any("lora" in name for name, _ in exported.network.named_parameters())
    assert segmentor.state_dict().keys() == before.keys()
    batch = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(exported(batch), segmentor(batch), atol=1e-4)


def test_a_graph_that_differs_is_told_with_what_differs():
    segmentor = network("deeplabv2")
    batch = torch.rand(2, 3, 64, 96)

    def shifted(image):
        return segmentor(image).roll(1, dims=-1)

    found = difference(segmentor, shifted, batch, "logits")
    with pytest.raises(
        UserError, match=r"nothing is written: on 2 x 64 x 96: [\d.]+ % of the pixels have the same class"
    ):
        check([found], 1e-3)
    same = Difference((1, 8, 8), 1.0, 1e-6)
    assert check([same], 1e-3).startswith("the same as the network on batches of 1 x 8 x 8: 100.000 %")
    for worse in (
        Difference((1, 8, 8), 0.998, 0.0),
        Difference((1, 8, 8), 1.0, 0.01),
        Difference((1, 8, 8), 1.0, np.nan),
    ):
        with pytest.raises(UserError, match="nothing is written"):
            check([same, worse], 1e-3)


def test_batches_are_of_several_sizes():
    found = [tuple(b.shape) for b in batches([torch.rand(3, 40, 60)] * 3, smallest=33, size=None)]
    assert found == [(3, 3, 40, 60), (1, 3, 39, 59), (2, 3, 33, 45)]
    assert [tuple(b.shape) for b in batches([torch.rand(3, 40, 60)] * 3, 33, (64, 32))] == [
        (1, 3, 64, 32),
        (3, 3, 64, 32),
    ]


def test_hrda_asks_for_a_size():
    with pytest.raises(UserError, match=r"its graph is of one size: add export\.size"):
        captured(Exported(network("hrda")), None)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else sys)
    with pytest.raises(UserError, match=r"format=onnx needs onnxruntime: pip install '\.\[export\]'"):
        formats.need_onnx()


@pytest.mark.parametrize("size", [(96, 160), (97, 161), (70, 83), (31, 240)])
@pytest.mark.parametrize(("cell", "stride"), [(4.0, 4), (3.5, 4), (14.0, 16), (32.0, 32), (28.0, 32)])
def test_resampling_in_a_graph_is_that_of_the_network(size, cell, stride):
    x = torch.rand(2, 3, *(int(-(-side // cell)) + 1 for side in size))
    cells = tuple(-(-side // stride) for side in size)
    assert torch.allclose(gathered(x, cell, size, cells), onto_image(x, cell, size, stride), atol=1e-5)
    whole = gathered(x, cell, (cells[0] * stride, cells[1] * stride), cells)
    assert torch.allclose(whole, onto(x, cell, (stride, stride), cells), atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(8, 8), (10, 7), (6, 23), (37, 16), (16, 33)])
def test_bicubic_weights_in_a_graph_are_pytorchs(old, new):
    weights = _bicubic_in_graph(old, new, torch.zeros(1))
    assert torch.allclose(weights, _bicubic(old, new, torch.float32, torch.device("cpu")), atol=1e-5)


@pytest.mark.parametrize("size", [(8, 9), (7, 16), (1, 5)])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 2, 1), (4, 3, 1), (3, 2, 2)])
def test_constant_padding_and_chosen_rows_are_same_padding(size, kernel, stride, dilation):
    theirs = Conv2dSame(3, 4, kernel, stride, dilation=dilation)
    x = torch.rand(2, 3, *size)
    assert torch.allclose(SameConvolution(theirs)(x), theirs(x), atol=1e-6)


def test_windows_with_gaps_are_left_to_timm():
    network = torch.nn.Sequential(Conv2dSame(3, 3, 1, 2), torch.nn.Sequential(Conv2dSame(3, 3, 3, 2)))
    without_same_padding(network)
    assert [type(network[0]), type(network[1][0])] == [Conv2dSame, SameConvolution]
