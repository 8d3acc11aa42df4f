"""Files in the official naming of DINOv2 and DINOv3, and the normalisation that weights were trained with."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.segmentor import IMAGENET_MEAN, Encoder, Segmentor
from uda_seg.models.timm_encoder import TimmEncoder
from uda_seg.models.vit import ViTEncoder

DINOV2, DINOV3 = "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb"


def of_timm(name: str) -> dict[str, Tensor]:
    """Random weights of a whole timm model, none of them at an initial value of zero or one."""
    torch.manual_seed(3)
    return {key: torch.randn_like(x) * 0.02 for key, x in timm.create_model(name, num_classes=0).state_dict().items()}


def official_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Registers have another name, the class token is stored without its position, and there is a mask token."""
    state = dict(state)
    positions = torch.randn(1, 1, state["cls_token"].shape[-1])
    state["register_tokens"] = state.pop("reg_token")
    state["cls_token"] = state["cls_token"] - positions
    state["pos_embed"] = torch.cat([positions, state["pos_embed"]], dim=1)
    return state | {"mask_token": torch.randn(1, state["cls_token"].shape[-1])}


def official_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Registers are storage tokens, LayerScale has modules, keys have a masked bias, and the rotation is stored."""
    official = {}
    for key, x in state.items():
        if key.endswith("q_bias"):
            bias = [x, torch.zeros_like(x), state[key.replace("q_bias", "v_bias")]]
            official[key.replace("q_bias", "qkv.bias")] = torch.cat(bias)
            official[key.replace("q_bias", "qkv.bias_mask")] = torch.ones(3 * len(x))
        elif not key.endswith("v_bias"):
            key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            official[key.replace("reg_token", "storage_tokens")] = x
    return official | {"rope_embed.periods": torch.rand(16), "mask_token": torch.randn(1, 192)}


@pytest.mark.parametrize(("name", "official"), [(DINOV2, official_dinov2), (DINOV3, official_dinov3)])
def test_an_official_file_loads_completely(name: str, official: Any, tmp_path: Path, capsys: Any) -> None:
    state = of_timm(name)
    torch.save(official(state), tmp_path / "official.pth")
    encoder = ViTEncoder(name, weights=tmp_path / "official.pth")
    assert encoder.pretrained
    trunk = encoder.trunk.state_dict()
    assert set(state) - set(trunk) == {"norm.weight", "norm.bias"}
    for key, x in trunk.items():
        torch.testing.assert_close(x, state[key], atol=1e-6, rtol=0)  # the class token was taken apart and summed again
    for norm in encoder.norms:
        assert torch.equal(norm.weight, state["norm.weight"])
        assert torch.equal(norm.bias, state["norm.bias"])
    assert not capsys.readouterr().out


@pytest.mark.parametrize("spoil", ["missing", "other size", "nonsense", "not finite"])
def test_a_wrong_file_is_one_line(spoil: str, tmp_path: Path) -> None:
    state = official_dinov3(of_timm(DINOV3))
    if spoil == "missing":
        del state["storage_tokens"], state["blocks.3.norm1.weight"]
    elif spoil == "other size":
        state["cls_token"] = torch.randn(1, 1, 384)
    elif spoil == "not finite":
        state["blocks.3.norm1.weight"][5] = torch.nan
    torch.save({"a": torch.ones(1)} if spoil == "nonsense" else state, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=r"wrong\.pth") as caught:
        ViTEncoder(DINOV3, weights=tmp_path / "wrong.pth")
    said = {"missing": "2 tensors missing", "other size": "cls_token is (1, 1, 384), the model wants (1, 1, 192)"}
    assert said.get(spoil, "") in str(caught.value)
    assert "\n" not in str(caught.value)


def network(encoder: Encoder, **options: Any) -> Segmentor:
    return Segmentor(encoder, partial(DAFormerHead, width=4), 3, **options)


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(("encoder", "mean"), [
    (partial(ViTEncoder, "eva02_tiny_patch14_224", taps=[0]), CLIP_MEAN),
    (partial(ViTEncoder, "vit_tiny_patch16_224", taps=[0]), (0.5, 0.5, 0.5)),
    (partial(ViTEncoder, "vit_tiny_patch16_224.augreg_in21k", taps=[0]), (0.5, 0.5, 0.5)),
    (partial(ViTEncoder, DINOV2, taps=[0]), IMAGENET_MEAN),
    (partial(TimmEncoder, "tf_efficientnet_lite0"), (0.5, 0.5, 0.5)),
    (partial(TimmEncoder, "test_resnet"), (0.5, 0.5, 0.5)),
    (partial(TimmEncoder, "resnet10t"), IMAGENET_MEAN),
])  # fmt: skip
def test_images_are_normalised_as_the_weights_were_trained(encoder: Any, mean: Any, caplog: Any) -> None:
    segmentor = network(encoder())
    assert segmentor.mean.flatten().tolist() == pytest.approx(list(mean))
    grey = segmentor.mean.expand(1, 3, 4, 4)
    assert segmentor.normalize(grey).abs().max() < 1e-6
    assert not caplog.records


def test_a_mean_that_contradicts_the_weights_is_told_and_used(caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    same = network(ViTEncoder("test_vit"), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert not caplog.records
    other = network(ViTEncoder("test_vit"), mean=IMAGENET_MEAN)
    said = "model.mean=[0.485, 0.456, 0.406], but the encoder's weights were trained with [0.5, 0.5, 0.5]"
    assert said in caplog.text
    assert other.mean.flatten().tolist() == pytest.approx(list(IMAGENET_MEAN))
    assert torch.equal(other.std, same.std)


@pytest.mark.parametrize(("name", "told"), [("test_vit", "all have stride 16"), ("test_resnet", "")])
def test_maps_of_one_stride_are_told(name: str, told: str, caplog: Any) -> None:
    TimmEncoder(name)
    assert [told in record.getMessage() for record in caplog.records] == [True] * bool(told)


def test_a_tag_of_another_normalisation_has_to_be_in_the_name() -> None:
    """A checkpoint knows the name alone: with the tag only in `pretrained` it would normalise in another way."""
    one = timm.get_pretrained_cfg("vit_base_patch16_224")
    other = timm.get_pretrained_cfg("vit_base_patch16_224.mae")
    assert one is not None
    assert other is not None
    assert one.mean != other.mean
    with pytest.raises(UserError, match=r"say model\.encoder\.name=vit_base_patch16_224\.mae pretrained=imagenet"):
        ViTEncoder("vit_base_patch16_224", weights="timm:mae")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit_bse_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2"),
        ("dinov2_vitb14", "vit_base_patch14_dinov2"),
        ("zzz", "none"),
    ],
)
def test_a_name_that_timm_does_not_know_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"timm knows no model '{name}' \(model.encoder.name\); nearest: {nearest}"):
        ViTEncoder(name)
