"""Heads: what they compute, against slow re-statements of their formulas."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.deeplab import DeepLabV2Head, ResNet101
from uda_seg.models.language import LanguageHead, SpatialBlock, correlate
from uda_seg.models.segformer import SegFormerHead
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.small import ResidualEncoder

CHANNELS = (4, 6, 8, 10)


def stages() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, c, 16 >> i, 24 >> i) for i, c in enumerate(CHANNELS)]


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(16, 24), mode="bilinear", align_corners=False)


def conv_bn_relu(x: Tensor, state: dict[str, Tensor], name: str, **how: int) -> Tensor:
    """Inference-time batch norm written out."""
    y = F.conv2d(x, state[f"{name}.conv.weight"], **how)
    gain = state[f"{name}.bn.weight"] / (state[f"{name}.bn.running_var"] + 1e-5).sqrt()
    shift = state[f"{name}.bn.bias"] - gain * state[f"{name}.bn.running_mean"]
    return (y * gain[:, None, None] + shift[:, None, None]).relu()


def scrambled(head: torch.nn.Module) -> dict[str, Tensor]:
    """Random values everywhere, variances positive, so that no tensor can be confused with another."""
    state = {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v for k, v in head.state_dict().items()}
    state = {k: v if "running_var" in k else v - 1.0 for k, v in state.items()}
    head.load_state_dict(state)
    head.eval()
    return state


def test_daformer_head_is_its_formula() -> None:
    head = DAFormerHead(CHANNELS, 5, width=8, dilations=(1, 2, 3))
    state, maps = scrambled(head), stages()
    embedded = [
        torch.einsum("bchw,dc->bdhw", x, state[f"embed_layers.{i}.proj.weight"])
        + state[f"embed_layers.{i}.proj.bias"][:, None, None]
        for i, x in enumerate(maps)
    ]
    x = torch.cat([up(e) for e in embedded], 1)
    branches = [conv_bn_relu(x, state, "fuse_layer.aspp_modules.0")]
    for i, d in ((1, 2), (2, 3)):
        name = f"fuse_layer.aspp_modules.{i}"
        y = conv_bn_relu(x, state, f"{name}.depthwise_conv", padding=d, dilation=d, groups=x.shape[1])
        branches.append(conv_bn_relu(y, state, f"{name}.pointwise_conv"))
    want = conv_bn_relu(torch.cat(branches, 1), state, "fuse_layer.bottleneck", padding=1)
    fused = head.fuse(maps)
    torch.testing.assert_close(fused, want, rtol=1e-4, atol=1e-4)
    want = F.conv2d(want, state["conv_seg.weight"], state["conv_seg.bias"])
    torch.testing.assert_close(head(maps), want, rtol=1e-4, atol=1e-3)
    assert head.width == fused.shape[1]


def test_segformer_head_concatenates_coarse_to_fine() -> None:
    head = SegFormerHead(CHANNELS, 5, width=3)
    state, maps = scrambled(head), stages()
    parts = []
    for i in (4, 3, 2, 1):
        weight, bias = state[f"linear_c{i}.proj.weight"], state[f"linear_c{i}.proj.bias"]
        parts.append(up(torch.einsum("bchw,dc->bdhw", maps[i - 1], weight) + bias[:, None, None]))
    fused = conv_bn_relu(torch.cat(parts, 1), state, "linear_fuse")
    want = F.conv2d(fused, state["linear_pred.weight"], state["linear_pred.bias"])
    torch.testing.assert_close(head(maps), want, rtol=1e-4, atol=1e-4)


def test_correlation_is_the_cosine_over_the_temperature() -> None:
    torch.manual_seed(0)
    fused, text = torch.randn(2, 6, 3, 4), torch.randn(5, 6)
    got = correlate(fused, text, 0.07)
    for b, c, y, x in [(0, 0, 0, 0), (1, 4, 2, 3), (0, 2, 1, 1)]:
        pixel, word = fused[b, :, y, x].double(), text[c].double()
        cosine = float(pixel @ word) / math.sqrt(float(pixel @ pixel) * float(word @ word))
        assert float(got[b, c, y, x]) == pytest.approx(cosine / 0.07, rel=1e-5)
    assert float(correlate(text.T[None, :, :, None], text, 0.07).amax()) == pytest.approx(14.2857, rel=1e-4)
    assert correlate(torch.zeros(1, 6, 1, 1), text, 0.07).isfinite().all()


def test_spatial_block_applies_ten_shared_weights_twice() -> None:
    torch.manual_seed(0)
    block = SpatialBlock()
    weight, bias = block.parameters()
    assert weight.numel() + bias.numel() == 10
    x = torch.randn(2, 5, 6, 7)

    def once(maps: Tensor) -> Tensor:
        each = [F.conv2d(maps[:, c : c + 1], weight, bias, padding=1) for c in range(5)]
        return torch.cat([m + maps.max(dim=1, keepdim=True).values for m in each], 1)

    torch.testing.assert_close(block(x), once(once(x).relu()))
    order = torch.randperm(5)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_language_head_classifies_fused_map_then_correlation() -> None:
    head = LanguageHead(CHANNELS, 5, width=8).eval()
    torch.manual_seed(0)
    text, maps = torch.randn(5, 8, requires_grad=True), stages()
    fused = head.fuse(maps)
    refined = head.spatial_block(correlate(fused, text, 0.07))
    weight, bias = head.conv_seg.weight, head.conv_seg.bias
    want = F.conv2d(fused, weight[:, :8]) + F.conv2d(refined, weight[:, 8:], bias)
    got = head(maps, text=text)
    torch.testing.assert_close(got, want)
    got.square().mean().backward()
    assert float(text.grad.abs().sum()) > 0
    with pytest.raises(ValueError, match="text"):
        head(maps)


def test_language_head_without_correlation_is_a_daformer_head() -> None:
    control, plain = LanguageHead(CHANNELS, 5, width=8, correlation=False), DAFormerHead(CHANNELS, 5, width=8)
    plain.load_state_dict(control.state_dict())
    maps = stages()
    assert torch.equal(control.eval()(maps, text=torch.randn(5, 8)), plain.eval()(maps))
    assert torch.equal(control(maps), plain(maps))


def test_language_head_on_a_segmentor_under_bfloat16() -> None:
    encoder = ResidualEncoder(widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1))
    segmentor = Segmentor(encoder, partial(DAFormerHead, width=8), 5)
    segmentor.attach("language", partial(LanguageHead, width=8))
    text = torch.randn(5, 8, requires_grad=True)
    label = torch.randint(0, 5, (2, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        result = segmentor.supervise(torch.rand(2, 3, 32, 32), label, head="language", text=text)
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    assert text.grad is not None
    assert all(p.grad is None for p in segmentor.heads["main"].parameters())


def test_every_head_starts_near_uniform() -> None:
    for head in (DAFormerHead(CHANNELS, 5), SegFormerHead(CHANNELS, 5), DeepLabV2Head(CHANNELS, 5)):
        last = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)][-1]
        assert float(last.weight.detach().std()) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(("dilations", "reach"), [((6, 12), 12), ((6, 12, 18, 24), 24)])
def test_deeplab_head_sums_its_dilated_convolutions(dilations: tuple[int, ...], reach: int) -> None:
    head = DeepLabV2Head((3, 4), 2, dilations)
    x = torch.randn(1, 4, 60, 60)
    want = sum(
        F.conv2d(x, head.conv2d_list[i].weight, head.conv2d_list[i].bias, padding=d, dilation=d)
        for i, d in enumerate(dilations)
    )
    torch.testing.assert_close(head([torch.randn(1, 3, 60, 60), x]), want)
    impulse = torch.zeros(1, 4, 60, 60)
    impulse[..., 30, 30] = 1
    touched = (head.classify(impulse) - head.classify(torch.zeros_like(impulse)))[0, 0].abs() > 0
    assert sorted({int(v) for v in touched.nonzero()[:, 0] - 30})[-1] == reach


def test_caffe_resnet_maps_512_to_65() -> None:
    with torch.device("meta"):
        encoder = ResNet101()
        maps = encoder(torch.empty(1, 3, 512, 512))
        # ResNet-101 without its classifier (25.5 M is ResNet-50's): the number torchvision's has too.
        assert sum(p.numel() for p in encoder.parameters()) == 42_500_160
    assert [tuple(x.shape[1:]) for x in maps] == [
        (256, 129, 129),
        (512, 65, 65),
        (1024, 65, 65),
        (2048, 65, 65),
    ]
    assert encoder.channels == (256, 512, 1024, 2048)


def test_caffe_resnet_strides_on_the_1x1_and_v1c_on_the_3x3() -> None:
    tiny = partial(ResNet101, blocks=(1, 1, 2, 2), width=4)
    caffe, deep = tiny("caffe"), tiny("v1c")
    for encoder, places in ((caffe, (2, 1)), (deep, (1, 2))):
        block = encoder.get_submodule("layer2.0")
        assert (block.conv1.stride[0], block.conv2.stride[0]) == places
    dilations = [[b.conv2.dilation[0] for b in getattr(e, f"layer{i}")] for e in (caffe, deep) for i in (3, 4)]
    assert dilations == [[2, 2], [4, 4], [1, 2], [2, 4]]
    assert [x.shape[-1] for x in deep(torch.rand(1, 3, 64, 64))] == [16, 8, 8, 8]
    assert {"stem.0.weight", "stem.7.weight"} <= set(deep.state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.downsample.1.running_mean"} <= set(caffe.state_dict())
    with pytest.raises(ValueError, match="torchvision"):
        tiny("torchvision")


def test_frozen_norm_keeps_its_affine_but_moves_its_statistics() -> None:
    encoder = ResNet101(blocks=(1, 1, 1, 1), width=4, freeze_norm=True)
    before = encoder.bn1.running_mean.clone()
    sum(x.mean() for x in encoder(torch.rand(2, 3, 32, 32))).backward()
    assert encoder.bn1.weight.grad is None
    assert encoder.conv1.weight.grad is not None
    assert not torch.equal(encoder.bn1.running_mean, before)
