"""Adapters and frozen trunks of vision transformers: equal functions, gradients where they belong, held once."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

from uda_seg.errors import UserError
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.lora import Adapter, LoRALinear, LoRASettings, add_adapters, merge_adapters
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.timm_encoder import TimmEncoder
from uda_seg.models.trunk import adapt, digest, frozen_tensors, layer_ids, shared_copy, undecayed, vit_of

VIT = "vit_tiny_patch16_224"


def small_vit(name: str = VIT, **options) -> nn.Module:
    torch.manual_seed(0)
    small = {"depth": 3, "embed_dim": 24, "num_heads": 3, "img_size": 32, "num_classes": 0}
    model = timm.create_model(name, **(small | options)).eval()
    for n, p in model.named_parameters():
        if "gamma" in n:
            nn.init.ones_(p)  # LayerScale begins so small that blocks hardly count
    return model


class Trunk(TimmEncoder):
    """An encoder around a transformer of a few thousand weights."""

    def __init__(self, trunk: nn.Module, freeze: bool | int = False, lora: dict | None = None) -> None:
        nn.Module.__init__(self)
        self.body = trunk
        self.channels, self.strides = (24,), (16,)
        adapt(self, freeze, lora)

    def forward(self, x):
        return self.body.forward_intermediates(x, indices=[2], intermediates_only=True)


def disturbed(network: nn.Module) -> None:
    """Move every adapter away from its start."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Adapter):
                module.a.add_(torch.randn_like(module.a) * 0.1)
                module.b.add_(torch.randn_like(module.b) * 0.1)
                if module.bias is not None:
                    module.bias.add_(torch.randn_like(module.bias) * 0.1)


# Rows split as these families have them: one qkv; q, k, v with a gated MLP; qkv whose bias is kept apart.
FAMILIES = {
    VIT: {},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 16},
    "eva02_tiny_patch14_224": {"patch_size": 16},
    "vit_small_patch16_dinov3": {},
    "eva_giant_patch14_224": {"patch_size": 16, "mlp_ratio": 2},
    "beit_base_patch16_224": {},
}


SOMA = {"init": "minor", "separate": True, "bias": True}


@pytest.mark.parametrize("options", [{"init": "gaussian"}, {"init": "minor"}, SOMA], ids=["gaussian", "minor", "soma"])
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_start_as_the_network_learn_and_merge_into_it(name, options) -> None:
    plain = small_vit(name, **FAMILIES[name])
    image = torch.randn(2, 3, 32, 32)
    before = plain(image)
    encoder = Trunk(plain, lora={"rank": 4, "alpha": 8, **options})
    adapters = [module for module in plain.modules() if isinstance(module, Adapter)]
    # EVA's and BEiT's bias of qkv is now added after the product: rounding alone.
    torch.testing.assert_close(plain(image), before, atol=2e-6, rtol=1e-5)

    disturbed(plain)
    after = plain(image)
    (after * torch.randn_like(after)).sum().backward()
    assert adapters
    assert all(p.grad.abs().sum() > 0 for m in adapters for p in m.parameters())
    trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in encoder.named_parameters() if ".lora." in n}
    assert (after - before).abs().max() > 1e-2

    merged = copy.deepcopy(plain)
    assert merge_adapters(merged) == len(adapters)
    assert not any(".lora." in n for n in merged.state_dict())
    # W + s B A is rounded to float32 once per entry: 6e-8 relative over sums of at most 100 terms, three blocks deep.
    torch.testing.assert_close(merged(image), after, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain(image), after)  # what was merged is the copy


def test_an_adapter_computes_its_formula() -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 5)
    layer = LoRALinear(base, LoRASettings(rank=2, alpha=3.0))
    nn.init.normal_(layer.lora.b)
    x = torch.randn(4, 6)
    wanted = x @ base.weight.T + base.bias + 3.0 / 2 * (x @ layer.lora.a.T) @ layer.lora.b.T
    torch.testing.assert_close(layer(x), wanted)
    assert layer.weight is base.weight
    assert set(layer.state_dict()) == {"weight", "bias", "lora.a", "lora.b"}


def test_adapters_of_q_k_and_v_apart_are_those_of_three_layers_with_trained_biases() -> None:
    """SoMA has a layer each: the joint one starts and moves as they do, and its update has three times the rank."""
    torch.manual_seed(0)
    base, x = nn.Linear(6, 15), torch.randn(4, 6)
    three = [nn.Linear(6, 5) for _ in range(3)]
    with torch.no_grad():
        for part, weight, bias in zip(three, base.weight.chunk(3), base.bias.chunk(3), strict=True):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    settings = LoRASettings(rank=2, alpha=3.0, **SOMA)
    joint, apart = LoRALinear(base, settings, parts=3), [LoRALinear(layer, settings) for layer in three]
    disturbed(joint)
    with torch.no_grad():
        for index, layer in enumerate(apart):
            for name in ("a", "b", "bias"):
                own = getattr(joint.lora, name).chunk(3)[index]
                start = getattr(joint.lora, f"{name}0", torch.zeros(15)).chunk(3)[index]
                getattr(layer.lora, name).add_(own - start)
    wanted = torch.cat([layer(x) for layer in apart], -1)
    torch.testing.assert_close(joint(x), wanted)
    torch.testing.assert_close(joint.merged()(x), wanted, atol=1e-5, rtol=1e-5)
    assert not base.bias.requires_grad
    assert joint.bias is base.bias
    assert torch.linalg.matrix_rank(joint.lora.delta(), atol=1e-4) > 2 * 2


def test_minor_components_are_those_of_the_smallest_singular_values() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 5)
    adapter = Adapter(weight, rank=2, alpha=6.0, init="minor")
    _, vectors = torch.linalg.eigh(weight.double().T @ weight.double())  # ascending squares of singular values
    part = weight.double() @ vectors[:, :2] @ vectors[:, :2].T
    torch.testing.assert_close((adapter.scale * adapter.b @ adapter.a).double(), part, atol=1e-5, rtol=1e-5)
    # SoMA's own form, W - B0 A0 + B A, after a step.
    nn.init.normal_(adapter.a)
    x = torch.randn(3, 5)
    soma = F.linear(x, weight - part.float() + adapter.scale * adapter.b @ adapter.a)
    torch.testing.assert_close(F.linear(x, weight) + adapter(x), soma, atol=1e-5, rtol=1e-5)


def test_the_start_from_minor_components_is_the_network_bit_for_bit() -> None:
    plain, image = small_vit(), torch.randn(2, 3, 32, 32)
    before = plain(image)
    Trunk(plain, lora={"rank": 4, "init": "minor"})
    assert torch.equal(plain(image), before)


@pytest.mark.parametrize(
    ("lora", "freeze", "told"),
    [
        ({"rank": 4, "blocks": [0, 3]}, False, r"lora.blocks=\[0, 3\]: give different ones of 0 to 2"),
        ({"rank": 4, "blocks": [1, 1]}, False, r"blocks=\[1, 1\]: give different ones of 0 to 2"),
        ({"rank": 4, "blocks": [0]}, 2, "lora.blocks has 0, which model.encoder.freeze=2 freezes"),
        ({"rank": 25}, False, "lora.rank=25 is more than the 24 of attn.qkv"),
        ({"rnak": 4}, False, "lora.rnak is unknown; did you mean model.encoder.lora.rank"),
        ({"rank": 0}, False, "lora.rank=0"),
        ({"rank": True}, False, "lora.rank=True is of the wrong type"),
        ({"targets": ["qvk"]}, False, "lora.targets"),
        ({"init": "major"}, False, "lora.init=major"),
        (None, 4, "freeze=4: the transformer has 3 blocks"),
    ],
)
def test_what_does_not_fit_a_transformer_is_told_in_one_line(lora, freeze, told) -> None:
    with pytest.raises(UserError, match=told):
        Trunk(small_vit(), freeze, lora)


@pytest.mark.parametrize("options", [{"lora": {"rank": 4}}, {"freeze": 2}])
def test_a_cnn_has_no_blocks_to_adapt(options) -> None:
    with pytest.raises(UserError, match="of plain vision transformers"):
        TimmEncoder("test_efficientnet", **options)


def test_a_missing_target_is_told_with_the_layers_there_are() -> None:
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = nn.Linear(2, 2)

    with pytest.raises(UserError, match="block 0 has no qkv; its linear layers: mixer"):
        add_adapters([Block()], [0], LoRASettings(rank=1))


# ------------------------------------------------------------------ layers and freezing


@pytest.mark.parametrize(
    "name", [VIT, "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"]
)
def test_layers_and_decays_are_those_of_timm(name) -> None:
    model = timm.create_model(name, num_classes=5, depth=3, img_size=32)
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    wanted = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = {n: id(p) for n, p in model.named_parameters() if not n.startswith("head.")}
    model.reset_classifier(0)  # as in an encoder; timm counts the classifier as the last layer
    layers, without = layer_ids(model), undecayed(model)
    found = {n: (0.5 ** (4 - layers[n]), 0.0 if n in without else 0.05) for n, _ in model.named_parameters()}
    assert found == {n: wanted[key] for n, key in names.items()}
    assert {0, 1, 2, 3} <= set(layers.values())


@pytest.mark.parametrize("blocks", [1, 2])
def test_frozen_blocks_have_no_gradient_and_no_dropout(blocks) -> None:
    vit = small_vit(proj_drop_rate=0.5, drop_path_rate=0.2, pos_drop_rate=0.5).train()
    encoder = Trunk(vit, freeze=blocks).train()
    encoder(torch.randn(2, 3, 32, 32))[0].sum().backward()
    without = {n for n, p in vit.named_parameters() if p.grad is None}
    early = ("cls_token", "pos_embed", "patch_embed", *(f"blocks.{i}" for i in range(blocks)))
    assert without == {n for n, _ in vit.named_parameters() if n.startswith((*early, "norm."))}  # taps precede the norm
    modes = {n: m.training for n, m in vit.named_modules()}
    assert not any(modes[n] for n in modes if n.startswith(early))
    assert not vit.pos_drop.training
    assert all(modes[n] for n in modes if n.startswith("blocks.") and not n.startswith(early))
    assert {n.removeprefix("body.") for n in frozen_tensors(encoder)} == {
        n for n in vit.state_dict() if n.startswith(early)
    }
    encoder.eval()
    assert not any(m.training for m in encoder.modules())


def test_a_frozen_cnn_keeps_its_statistics() -> None:
    encoder = TimmEncoder("test_efficientnet", freeze=True).train()
    before = {n: t.clone() for n, t in encoder.state_dict().items()}
    image = torch.randn(2, 3, 64, 64)
    first = encoder(image)
    assert not any(stage.requires_grad for stage in first)
    assert all(torch.equal(a, b) for a, b in zip(first, encoder.eval()(image), strict=True))
    assert all(torch.equal(t, before[n]) for n, t in encoder.state_dict().items())
    assert frozen_tensors(encoder).keys() == encoder.state_dict().keys()


# ------------------------------------------------------------------ sharing


def bytes_held(*networks: nn.Module) -> int:
    tensors = [t for n in networks for t in (*n.parameters(), *n.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize(("options", "most"), [({"freeze": True}, 1.15), ({"lora": {"rank": 4}}, 1.15), ({}, 3.5)])
def test_student_teacher_and_reference_hold_a_frozen_trunk_once(options, most) -> None:
    vit = small_vit(embed_dim=192, depth=4)
    trunk = bytes_held(vit)
    encoder = Trunk(vit, **options)
    encoder.channels = (192,)
    student = Segmentor(encoder, partial(DAFormerHead, width=8), num_classes=19)
    teacher, reference = shared_copy(student), shared_copy(student.encoder)
    share = bytes_held(student, teacher, reference) / trunk
    assert 1 <= share <= most
    assert bool(options) or share > 3
    assert not any(p.requires_grad for p in (*teacher.parameters(), *reference.parameters()))
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    theirs, mine = dict(teacher.named_parameters()), dict(student.named_parameters())
    assert all((theirs[n] is mine[n]) == (n not in trained) for n in mine)


def test_a_digest_is_of_values_names_and_shapes() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}
    first = digest(tensors)
    assert first == digest(dict(reversed(tensors.items())))
    assert len(first) == 64
    others = [
        {**tensors, "a": torch.arange(6.0) + 1},
        {**tensors, "a": torch.arange(6.0).reshape(2, 3)},
        {"c": tensors["a"], "b": tensors["b"]},
        {"a": tensors["a"]},
    ]
    assert len({first, *map(digest, others)}) == 5
    assert digest({"s": torch.tensor(1.0)})
    assert digest({"t": torch.ones(2, 3).T}) == digest({"t": torch.ones(3, 2)})


def test_only_plain_transformers_have_layers() -> None:
    assert vit_of(TimmEncoder(VIT)) is not None
    assert vit_of(TimmEncoder("test_efficientnet")) is None
