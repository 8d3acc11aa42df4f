"""MiT against an independent implementation, the published sizes and the published names."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.language import LanguageHead
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.segformer import SegFormerHead
from uda_seg.models.segmentor import Segmentor


def count(module: nn.Module) -> tuple[int, int]:
    """State entries and parameters."""
    return len(module.state_dict()), sum(p.numel() for p in module.parameters())


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder = MixVisionTransformer("b5")
        assert count(encoder) == (1052, 81_443_008)
        assert count(Segmentor(encoder, DAFormerHead, 19)) == (1110, 85_155_283)
        assert count(DAFormerHead(encoder.channels, 19))[1] == 3_712_275
        wide = partial(DAFormerHead, width=512)
        assert count(wide(encoder.channels, 19))[1] == 14_240_275
        assert count(LanguageHead(encoder.channels, 19))[1] == 14_240_646
        student = Segmentor(encoder, wide, 19)
        student.attach("language", LanguageHead)
        assert count(student) == (1170, 109_923_929)


def test_published_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in MixVisionTransformer("b5").state_dict().items()}
        head = {k: tuple(v.shape) for k, v in DAFormerHead((64, 128, 320, 512), 19).state_dict().items()}
        language = {k: tuple(v.shape) for k, v in LanguageHead((64, 128, 320, 512), 19).state_dict().items()}
        segformer = SegFormerHead((64, 128, 320, 512), 19).state_dict()
    assert shapes["patch_embed1.proj.weight"] == (64, 3, 7, 7)
    assert shapes["patch_embed4.norm.bias"] == (512,)
    assert shapes["block1.2.attn.sr.weight"] == (64, 64, 8, 8)
    assert shapes["block3.39.attn.kv.weight"] == (640, 320)
    assert shapes["block2.5.mlp.dwconv.dwconv.weight"] == (512, 1, 3, 3)
    assert shapes["block4.0.mlp.fc2.weight"] == (512, 2048)
    assert shapes["norm3.weight"] == (320,)
    assert not any(k.startswith("block4") and ".sr." in k for k in shapes)
    assert head["embed_layers.3.proj.weight"] == (256, 512)
    assert head["fuse_layer.aspp_modules.0.conv.weight"] == (256, 1024, 1, 1)
    assert head["fuse_layer.aspp_modules.0.bn.running_var"] == (256,)
    assert head["fuse_layer.aspp_modules.3.depthwise_conv.conv.weight"] == (1024, 1, 3, 3)
    assert head["fuse_layer.aspp_modules.1.depthwise_conv.bn.weight"] == (1024,)
    assert head["fuse_layer.aspp_modules.2.pointwise_conv.conv.weight"] == (256, 1024, 1, 1)
    assert head["fuse_layer.bottleneck.conv.weight"] == (256, 1024, 3, 3)
    assert head["conv_seg.weight"] == (19, 256, 1, 1)
    assert language["spatial_block.depthwise.depthwise.weight"] == (1, 1, 3, 3)
    assert language["conv_seg.weight"] == (19, 531, 1, 1)
    assert {"linear_c1.proj.weight", "linear_fuse.conv.weight", "linear_fuse.bn.bias"} <= set(segformer)


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_same_maps_as_an_independent_implementation(variant: str) -> None:
    encoders = pytest.importorskip("segmentation_models_pytorch.encoders")
    torch.manual_seed(0)
    oracle = encoders.get_encoder(f"mit_{variant}", weights=None).eval()
    ours = MixVisionTransformer(variant).eval()
    # Large random norms and biases: a wrong epsilon or a forgotten bias shows.
    weights = {k: v + 0.1 * torch.randn_like(v) for k, v in oracle.state_dict().items()}
    oracle.load_state_dict(dict(weights))
    ours.load_state_dict(weights)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for got, want in zip(ours(image), oracle(image)[2:], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_norms_have_the_published_epsilons() -> None:
    eps = {n: m.eps for n, m in MixVisionTransformer("b0").named_modules() if isinstance(m, nn.LayerNorm)}
    for name, value in eps.items():
        default = name.startswith("patch_embed") or name.endswith("attn.norm")
        assert value == (1e-5 if default else 1e-6), name


def test_drop_path_rises_linearly_over_all_blocks() -> None:
    encoder = MixVisionTransformer("b0", dims=(4, 4, 10, 8), depths=(2, 1, 2, 1), drop_path=0.5)
    rates = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for stage in (1, 2, 3, 4)
        for block in getattr(encoder, f"block{stage}")
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_start_weights() -> None:
    torch.manual_seed(0)
    encoder = MixVisionTransformer("b0")
    assert float(encoder.get_parameter("block3.0.attn.kv.weight").detach().std()) == pytest.approx(0.02, rel=0.05)
    depthwise = encoder.get_parameter("block4.0.mlp.dwconv.dwconv.weight")
    assert float(depthwise.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert float(encoder.get_parameter("block4.0.mlp.dwconv.dwconv.bias").abs().max()) == 0


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="b6"):
        MixVisionTransformer("b6")
