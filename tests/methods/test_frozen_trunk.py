"""Methods on frozen and adapted transformers: what trains, what copies share, and what a checkpoint holds."""

from __future__ import annotations

import copy
import os
from functools import partial

import pytest
import torch
from test_steps import fit

from numerics import LEFT, assert_same_sums, in_float64
from ranks import SharedDraws, on_ranks
from uda_seg.errors import UserError
from uda_seg.methods import source_terms, teacher
from uda_seg.methods.options.self_training import SelfTrainingOptions
from uda_seg.methods.parameter_groups import ParameterRules
from uda_seg.methods.self_training import SelfTraining
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.eomt import EoMT, EoMTHead
from uda_seg.models.lora import Adapter
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.timm_encoder import TimmEncoder
from uda_seg.models.trunk import frozen_tensors
from uda_seg.models.vit import ViTEncoder

DISTANCE = {"feature_distance": 0.5, "feature_distance_ratio": 0.05}
WAYS = {"frozen": {"freeze": True}, "blocks": {"freeze": 3}, "lora": {"lora": {"rank": 2, "init": "minor"}}}


def on_vit(**options) -> Segmentor:
    torch.manual_seed(0)
    encoder = TimmEncoder("test_vit", **options)
    encoder.pretrained = True
    torch.manual_seed(1)
    return Segmentor(encoder, partial(DAFormerHead, width=8, dilations=[1]), num_classes=19)


def unshared(network):
    return copy.deepcopy(network).requires_grad_(False)


def after_three_steps(make_plan, make_batch, way, **options):
    module = SelfTraining(on_vit(**way), make_plan(steps=3), SelfTrainingOptions(**options))
    trainer = fit(module, [make_batch(seed) for seed in range(3)])
    return module, trainer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [{}, {**DISTANCE, "mask_weight": 1.0}])
def test_sharing_what_is_frozen_changes_no_bit(way, method, make_plan, make_batch, monkeypatch):
    shared, trainer = after_three_steps(make_plan, make_batch, WAYS[way], **method)
    encoders = [shared.segmentor.encoder, shared.teacher.network.encoder]
    encoders += [] if shared.reference is None else [shared.reference.encoder]
    frozen = [frozen_tensors(encoder) for encoder in encoders]
    assert frozen[0]
    assert all(tensors[name] is tensor for tensors in frozen for name, tensor in frozen[0].items())

    for module in (teacher, source_terms):
        monkeypatch.setattr(module, "shared_copy", unshared)
    apart, _ = after_three_steps(make_plan, make_batch, WAYS[way], **method)
    assert next(iter(frozen_tensors(apart.teacher.network.encoder).values())) is not frozen[0]
    found, wanted = shared.state_dict(), apart.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert shared.recorded == apart.recorded

    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in shared.segmentor.parameters() if p.requires_grad}
    start = on_vit(**WAYS[way]).state_dict()
    moved = {n for n, t in shared.segmentor.state_dict().items() if not torch.equal(t, start[n])}
    assert moved.isdisjoint(f"encoder.{n}" for n in frozen[0])
    assert any(".lora." in n for n in moved) == ("lora" in WAYS[way])


@pytest.mark.parametrize(("neck", "told"), [("simple", False), ("adapter", True)])
def test_holding_features_to_an_adapters_random_start_is_told(neck, told, make_plan, caplog):
    encoder = ViTEncoder("test_vit2", taps=[0], neck=neck)
    encoder.pretrained = True
    network = Segmentor(encoder, partial(DAFormerHead, width=8, dilations=[1]), num_classes=19)
    SelfTraining(network, make_plan(), SelfTrainingOptions(distillation=0.1))
    assert told == ("distillation: the initial encoder's last map contains the stem of" in caplog.text)


def trained_on_ranks(make_plan, batches):
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    from test_distributed import fit_on_ranks, share_of, without_batch_norm

    with in_float64():
        network = on_vit(lora={"rank": 2, "init": "minor"}).double()
        without_batch_norm(network)
        plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=0.1))
        module = SelfTraining(network, plan, SelfTrainingOptions(**DISTANCE)).double()
        with torch.no_grad():  # at no distance from the reference its gradient has no direction but rounding's
            for adapter in (m for m in network.modules() if isinstance(m, Adapter)):
                adapter.b.mul_(1.5)
        SharedDraws({len(domain.image) // world for domain in batches[0].values()}, rank, world).install()
        fit_on_ranks(module, [share_of(batch, rank, world) for batch in batches], world)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_two_ranks_train_adapters_as_one_process(make_plan, make_batch):
    batches = [{n: make_batch(s, batch=2 * k)[n] for n, k in (("source", 3), ("target", 5))} for s in range(2)]
    [joined] = on_ranks(1, trained_on_ranks, make_plan, batches)
    start = on_vit(lora={"rank": 2, "init": "minor"}).double().state_dict()
    assert any(not torch.equal(joined[f"segmentor.{n}"], t) for n, t in start.items() if ".lora." in n)
    for state in on_ranks(2, trained_on_ranks, make_plan, batches):
        for name, tensor in joined.items():
            assert_same_sums(state[name], tensor, name, LEFT)


# ------------------------------------------------------------------ groups and their schedule


def test_parameters_of_a_transformer_have_rates_by_layer_and_new_ones_that_of_heads():
    encoder = TimmEncoder("test_vit", lora={"rank": 2})
    encoder.pyramid = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.GroupNorm(1, 4))
    network = Segmentor(encoder, partial(DAFormerHead, width=8), 19)
    rules = ParameterRules(network, OptimizerSettings(layer_decay=0.5, head_lr_multiplier=4.0, weight_decay=0.1))
    depth = len(encoder.trunk.blocks)
    vit = "segmentor.encoder.body.model."
    assert rules(f"{vit}blocks.0.attn.qkv.lora.a") == (0.5**depth, 0.1)
    assert rules(f"{vit}blocks.{depth - 1}.mlp.fc1.lora.b") == (0.5, 0.1)
    assert rules(f"{vit}blocks.{depth - 1}.mlp.fc1.bias") == (0.5, 0.0)
    assert rules(f"{vit}pos_embed") == (0.5 ** (depth + 1), 0.0)
    assert rules("segmentor.encoder.pyramid.0.weight") == (4.0, 0.1)
    assert rules("segmentor.encoder.pyramid.1.weight") == (4.0, 0.0)
    assert rules("segmentor.heads.main.conv.weight") == (4.0, 0.1)
    assert rules("text_projection.weight") == (1.0, 0.1)


def test_tokens_of_our_own_modules_have_no_weight_decay():
    settings = OptimizerSettings(weight_decay=0.1)
    network = EoMT(ViTEncoder("test_vit2", taps=[-1]), partial(EoMTHead, queries=3, blocks=1, width=8), 19)
    rules = ParameterRules(network, settings)
    assert rules("segmentor.heads.main.queries") == (settings.head_lr_multiplier, 0.0)
    assert rules("segmentor.heads.main.class_layer.weight") == (settings.head_lr_multiplier, 0.1)
    adapted = Segmentor(ViTEncoder("test_vit2", taps=[-1], neck="adapter"), partial(DAFormerHead, width=8), 19)
    assert ParameterRules(adapted, settings)("segmentor.encoder.neck.stem.level") == (settings.head_lr_multiplier, 0.0)


def test_other_encoders_have_no_layers(make_segmentor, make_plan):
    with pytest.raises(UserError, match=r"optimizer.layer_decay=0.9 is of plain vision transformers"):
        SelfTraining(make_segmentor(), make_plan(optimizer=OptimizerSettings(layer_decay=0.9)), SelfTrainingOptions())


def test_weight_decay_is_annealed_along_half_a_cosine(make_segmentor, make_plan, make_batch):
    """Against SGD written out on a parameter that has no gradient: only its decay moves it."""
    plan = make_plan(
        steps=4,
        optimizer=OptimizerSettings(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.5),
        schedule=ScheduleSettings(warmup=0.0, power=0.0, weight_decay="cosine"),
    )
    module = SelfTraining(make_segmentor(), plan, SelfTrainingOptions())
    used = []

    def seen(optimizer, step):
        SelfTraining.set_learning_rate(module, optimizer, step)
        used.append([(group["base_weight_decay"], group["weight_decay"]) for group in optimizer.param_groups])

    module.set_learning_rate = seen
    fit(module, [make_batch(seed) for seed in range(4)])
    decays = [found for groups in used for base, found in groups[:1] if base == 0.5]
    assert decays == pytest.approx([0.5, 0.5 * 0.8535533906, 0.25, 0.5 * 0.1464466094])
    assert {found for groups in used for base, found in groups if base == 0} <= {0.0}
