"""Every method on every family of plain vision transformers: trained, frozen or adapted, plain, with HRDA and as EoMT.

A set of pairs stands for the product in short; all of it is tried in `make soak`.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import timm
import torch
from test_all import LOOK_INSIDE, METHODS, batches_for, doubled
from test_steps import fit
from torch import Tensor

from uda_seg.config.compose import composed
from uda_seg.errors import UserError
from uda_seg.methods.base import UDAModule
from uda_seg.methods.frozen_trunk import leave_out_trunk, with_trunk
from uda_seg.models.segmentor import Segmentor
from uda_seg.runs.build import instantiate_module

NAMES = (
    "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224",
)  # fmt: skip
NETWORKS = {
    "vit": [],
    "hrda_vit": ["model.detail=[32,64]", "model.attention_width=8"],
    "vit_eomt": ["model.head.blocks=2"],
}
WAYS = {
    "trained": [],
    "frozen": ["model.encoder.freeze=true"],
    "adapted": ["model.encoder.lora={rank: 2, init: minor}"],
}
CASES = list(itertools.product(METHODS, NAMES, NETWORKS, WAYS))


@pytest.fixture(autouse=True)
def small_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks of 24 channels, of each family's own kind."""
    create = timm.create_model

    def small(name: str, **options: Any) -> Any:
        return create(name, **options, depth=3, embed_dim=24, num_heads=3)

    monkeypatch.setattr(timm, "create_model", small)


def pairs_of(case: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Return the pairs of choices in a case; families and methods meet where a method looks inside the network."""
    method, *rest = case
    mine = {(method, choice) for choice in rest[1:]} if method in {*LOOK_INSIDE, "mic"} else set()
    return {(method,), *mine, *itertools.combinations(rest, 2)}


def in_short() -> set[tuple[str, ...]]:
    """Choose few cases that have every pair."""
    chosen: set[tuple[str, ...]] = set()
    left = set().union(*map(pairs_of, CASES))
    while left:
        best = max(CASES, key=lambda case: len(pairs_of(case) & left))
        chosen.add(best)
        left -= pairs_of(best)
    return chosen


SHORT = in_short()


def configured(case: tuple[str, ...]) -> Any:
    method, name, network, way = case
    settings = [f"method={method}", f"model={network}", f"model.encoder.name={name}", "pretrained=null"]
    config = composed([*settings, "model.head.width=8", *NETWORKS[network], *WAYS[way]])
    if method == "lcmsm":
        config.method["width"] = 8
    return config


def built(config: Any, make_plan: Any, seed: int = 0) -> UDAModule:
    torch.manual_seed(seed)
    return instantiate_module(config, make_plan(steps=1, crop=(64, 128) if "detail" in config.model else (32, 64)))


def with_gradients(module: UDAModule, batch: Any) -> set[str]:
    """Train one step and return the student's parameters that had a gradient, all of them finite."""
    found: dict[str, Tensor] = {}
    for key, parameter in module.segmentor.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, key=key: found.__setitem__(key, gradient))
    fit(module, [batch])
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    return set(found)


def logits(module: UDAModule, image: torch.Tensor) -> list[torch.Tensor]:
    networks = [module.segmentor, *([] if module.teacher is None else [module.teacher.network])]
    with torch.no_grad():
        return [network.eval().predict(image) for network in networks]


def networks_of(module: UDAModule) -> dict[str, Segmentor]:
    return {"segmentor.": module.segmentor} | (
        {} if module.teacher is None else {"teacher.network.": module.teacher.network}
    )


def assert_saved_and_loaded(module: UDAModule, again: UDAModule, image: Tensor) -> None:
    """A checkpoint without the frozen trunk gives equal logits in a network of the same trunk."""
    ours, theirs = module.segmentor.encoder, again.segmentor.encoder
    ours.loaded_from = "imagenet"
    state = module.state_dict()
    trunk = leave_out_trunk(state, ours)
    assert (trunk is None) == (not ours.frozen)
    assert not ours.frozen or not [k for k in state if "encoder.trunk." in k and ".lora." not in k]
    plain = {key: tensor for key, tensor in ours.trunk.state_dict().items() if ".lora." not in key}
    theirs.trunk.load_state_dict(plain, strict=False)
    content = {"state_dict": state, "uda_seg": {} if trunk is None else {"trunk": trunk}}
    whole = with_trunk(content, theirs, "the checkpoint")
    for (prefix, one), other in zip(networks_of(module).items(), networks_of(again).values(), strict=True):
        other.load_state_dict({k.removeprefix(prefix): t for k, t in whole.items() if k.startswith(prefix)})
        with torch.no_grad():
            wanted, found = (network.eval().predict(image) for network in (one, other))
        assert wanted.isfinite().all()
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c in SHORT else [pytest.mark.slow], id="-".join(c)) for c in CASES],
)
def test_a_step_trains_what_it_should_and_is_saved(case: tuple[str, ...], make_plan: Any, make_batch: Any) -> None:
    method, _, network, way = case
    config = configured(case)
    module = built(config, make_plan)
    batch = batches_for(module, make_batch)[0]
    batch = doubled(batch) if network == "hrda_vit" else batch
    trained = with_gradients(module, batch)

    names = {name for name, _ in module.segmentor.named_parameters()}
    trunk = {name for name in names if name.startswith("encoder.trunk.")}
    adapters = {name for name in trunk if ".lora." in name}
    assert bool(adapters) == (way == "adapted")
    assert trained & trunk == {"trained": trunk, "frozen": set(), "adapted": adapters}[way]
    # CorDA's two tasks read the main head's fused map and classify it themselves.
    idle = re.compile(r"heads\.main\.(head\.)?(conv_seg|class_layer|mask_layers)\." if method == "corda" else "$^")
    assert trained - trunk == {name for name in names - trunk if not idle.match(name)}
    assert_saved_and_loaded(module, built(config, make_plan, seed=1), batch["target"].image / 255)


def test_eomts_classifier_serves_no_other_head(make_plan: Any) -> None:
    settings = ["method=corda", "model=vit_eomt", "model.encoder.name=test_vit2", "pretrained=null"]
    config = composed([*settings, "method.initial=main"])
    with pytest.raises(UserError, match=r"method\.initial=main: EoMT classifies queries"):
        instantiate_module(config, make_plan())
