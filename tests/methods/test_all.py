"""Methods run on networks, from the very files users choose them by; all on all of them in `make soak`."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_steps import Target, fit

from uda_seg.config.compose import composed
from uda_seg.config.naming import variant
from uda_seg.config.schema import CONF
from uda_seg.methods.bicl import BiCL
from uda_seg.methods.options.bicl import Ablation
from uda_seg.methods.settings import OptimizerSettings
from uda_seg.options.validate import class_of, defaults
from uda_seg.runs.build import instantiate_module

METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
BICL_TERMS = ("source/ce", "target/ce", "contrast/forward", "contrast/backward")
MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml"))

# The same classes with as few and as narrow layers as they take: structure is what is tested here.
TINY = {
    "MixVisionTransformer": {"dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]},
    "ResNet101": {"blocks": [1, 1, 1, 1], "width": 4},
    "ResidualEncoder": {"widths": [4, 6, 8, 8], "blocks": [1, 1, 1, 1]},
    "EfficientNetLite": {},
    "TimmEncoder": {"name": "test_convnext", "weights": None},
    "ViTEncoder": {"name": "test_vit", "weights": None},
}


def tiny(config):
    encoder, head = config.model["encoder"], config.model["head"]
    encoder.update(TINY[encoder["_target_"].rpartition(".")[2]])
    if "width" in defaults(class_of(head["_target_"], "model.head")):  # 256 or 768 where no file says it
        head["width"] = 8
    if "detail" in config.model:
        config.model.update(detail=[32, 64], attention_width=8)
    return config


def doubled(batch):
    """The same pixels twice as large: a network of two resolutions needs something to see at the lower."""

    def twice(x):
        return None if x is None else x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    names = ("image", "label", "valid", "depth", "pseudo")
    return {k: replace(domain, **{n: twice(getattr(domain, n)) for n in names}) for k, domain in batch.items()}


def batches_for(module, make_batch):
    """What the method reads; in BiCL's the target has labels, those of the other source image."""
    batches = [make_batch(seed, depth=module.needs_depth) for seed in range(2)]
    if isinstance(module, BiCL):
        for batch in batches:
            batch["target"].pseudo = batch["source"].label.flip(0)
            batch["target"].pseudo[:, :8] = 255
    return batches


# What a method can trip over is how a network is built: one file of each kind, the others have the same classes.
KINDS = {"daformer_small", "deeplabv2_r101", "hrda_deeplabv2_r101", "hrda_small", "segformer_mitb5", "timm", "vit"}
LOOK_INSIDE = {"bicl", "corda", "lcmsm", "t2sda"}  # they read features or side branches, or bring heads
FEW_KINDS = {"deeplabv2_r101", "hrda_small"}


def in_short(method: str, model: str) -> bool:
    """Whether a pair stands for the others of its kind: each method and each network is in one."""
    return model in (KINDS if method in LOOK_INSIDE else FEW_KINDS) or (method == "mic" and model not in KINDS)


def pairs():
    return [
        pytest.param(*pair, marks=[] if in_short(*pair) else [pytest.mark.slow], id="-".join(pair))
        for pair in itertools.product(METHODS, MODELS)
    ]


def test_each_method_and_each_network_is_in_a_pair_that_is_always_tried():
    tried = [pair for pair in itertools.product(METHODS, MODELS) if in_short(*pair)]
    assert ({method for method, _ in tried}, {model for _, model in tried}) == (set(METHODS), set(MODELS))
    assert {*LOOK_INSIDE, "mic"} <= set(METHODS)


@pytest.mark.parametrize(("method", "model"), pairs())
def test_method_runs_on_network(method, model, make_plan, make_batch):
    config = tiny(composed([f"method={method}", f"model={model}", "pretrained=null"]))
    if method == "lcmsm":
        config.method["width"] = 8
    torch.manual_seed(0)
    module = instantiate_module(config, make_plan(steps=2, crop=(64, 128) if "hrda" in model else (32, 64)))
    before = torch.cat([p.detach().flatten() for p in module.segmentor.parameters()])
    batches = batches_for(module, make_batch)
    trainer = fit(module, [doubled(batch) for batch in batches] if "hrda" in model else batches)
    after = torch.cat([p.detach().flatten() for p in module.segmentor.parameters()])
    assert trainer.global_step == 2
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    if method == "bicl":
        assert min(module.recorded[f"train/{name}"] for name in BICL_TERMS) > 0
    if method == "adabn":
        module.trainer.datamodule = Target([doubled(make_batch(seed)) for seed in range(2)])
        module.estimate_statistics()
    logits = module.segmentor.eval().predict(doubled(make_batch())["target"].image / 255.0)
    assert logits.shape == (2, 19, 64, 128)
    assert torch.isfinite(logits).all()


def test_bicl_as_released_runs(make_plan, make_batch):
    """DeepLab's branches side by side, the source's own stem, absent classes at cosine -1."""
    plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=1e-3))
    module = instantiate_module(tiny(composed(["experiment=bicl_gta2cs", "pretrained=null"])), plan)
    assert (module.options.feature, module.options.absent, module.calibration.value.shape) == (
        "logits",
        "opposite",
        (19, 4 * 19),
    )
    own = torch.cat([p.detach().flatten() for p in module.source_stem.parameters()])
    fit(module, batches_for(module, make_batch))
    assert not torch.equal(own, torch.cat([p.detach().flatten() for p in module.source_stem.parameters()]))
    for name in (*BICL_TERMS, "source/entropy", "target/entropy"):
        assert module.recorded[f"train/{name}"] > 0, name
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_the_ablation_is_six_runs(make_plan, make_batch):
    """Each step adds its terms to the one before, in a folder of its own; the first is the source-only control."""
    jobs = OmegaConf.load(CONF / "experiment/bicl_ablation.yaml").hydra.sweeper.params
    steps = jobs["method.until"].split(",")
    assert [Ablation[step.upper()] for step in steps] == list(Ablation)
    batches = [make_batch(seed) for seed in range(3)]
    assert len({variant(["experiment=bicl_ablation", f"method.until={step}"]) for step in steps}) == 6
    terms, weights = [], []
    config = tiny(composed(["experiment=bicl_ablation", "model=daformer_small", "pretrained=null"]))
    for step in steps:
        config.method["until"] = step
        torch.manual_seed(0)
        module = instantiate_module(config, make_plan())
        read = batches if step == "source" else batches_for(module, make_batch)
        fit(module, read)
        terms.append({name.removeprefix("train/") for name in module.recorded} & set(BICL_TERMS))
        weights.append(module.segmentor.state_dict())
    assert terms == [set(BICL_TERMS[: 1 + i]) for i in (0, 1, 2, 3, 3, 3)]
    torch.manual_seed(0)
    config = tiny(composed(["method=source_only", "model=daformer_small", "pretrained=null"]))
    control = instantiate_module(config, make_plan())
    fit(control, batches)
    for name, tensor in control.segmentor.state_dict().items():
        assert torch.equal(weights[0][name], tensor), name


def test_the_configuration_is_where_the_package_looks():
    assert (CONF / "config.yaml").is_file()
    assert Path(CONF).name == "conf"
