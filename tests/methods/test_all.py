"""Every method runs on every network, from the very files users choose them by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_steps import Target, fit

from uda_seg.command import composed
from uda_seg.config import CONF
from uda_seg.train import instantiate_module

METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml"))

# The same classes with as few and as narrow layers as they take: structure is what is tested here.
TINY = {
    "MixVisionTransformer": {"dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]},
    "ResNet101": {"blocks": [1, 1, 1, 1], "width": 4},
    "ResidualEncoder": {"widths": [4, 6, 8, 8], "blocks": [1, 1, 1, 1]},
    "TimmEncoder": {"name": "test_convnext", "weights": None},
}


def tiny(config):
    encoder, head = config.model["encoder"], config.model["head"]
    encoder.update(TINY[encoder["_target_"].rpartition(".")[2]])
    if "width" in head:
        head["width"] = 8
    return config


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_method_runs_on_network(method, model, make_plan, make_batch):
    config = tiny(composed([f"method={method}", f"model={model}", "text=file", "pretrained=null"]))
    if method == "lcmsm":
        config.method["width"] = 8
    torch.manual_seed(0)
    module = instantiate_module(config, make_plan(steps=2))
    before = torch.cat([p.detach().flatten() for p in module.segmentor.parameters()])
    trainer = fit(module, [make_batch(seed, depth=module.needs_depth) for seed in range(2)])
    after = torch.cat([p.detach().flatten() for p in module.segmentor.parameters()])
    assert trainer.global_step == 2
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    if method == "adabn":
        module.trainer.datamodule = Target([make_batch(seed) for seed in range(2)])
        module.estimate_statistics()
    logits = module.segmentor.eval().predict(make_batch()["target"].image / 255.0)
    assert logits.shape == (2, 19, 32, 64)
    assert torch.isfinite(logits).all()


def test_the_configuration_is_where_the_package_looks():
    assert (CONF / "config.yaml").is_file()
    assert Path(CONF).name == "conf"
