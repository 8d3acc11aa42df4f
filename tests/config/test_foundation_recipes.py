"""Recipes on DINOv2, against the settings known of VFM-UDA, VFM-UDA++ and SoMA, written down here."""

from __future__ import annotations

import math

import pytest

from command_line import configured
from uda_seg.config.schema import CONF

METHODS, PAIRS = ("source_only", "dacs", "mic", "lcmsm"), ("gta2cs", "synthia2cs", "cs2acdc")
RECIPES = [f"{method}_{pair}_dinov2{size}" for method in METHODS for pair in PAIRS for size in "bl"]


def test_there_is_one_for_each_method_pair_and_size():
    assert {path.stem for path in (CONF / "experiment").glob("*dinov2*.yaml")} == {
        *RECIPES, "source_only_gta2dg_dinov2l_lora",
    }  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_full_fine_tuning_is_that_of_vfm_uda(recipe):
    config = configured(f"experiment={recipe}")
    method, pair, size = recipe.rpartition("_")[0].rpartition("_")[0], recipe.split("_")[-2], recipe[-1]
    encoder, said = config.model["encoder"], config.optimizer
    assert encoder["_target_"].endswith("ViTEncoder")
    assert encoder["name"] == {"b": "vit_base_patch14_dinov2", "l": "vit_large_patch14_dinov2"}[size]
    assert list(encoder["taps"]) == [-1]
    assert config.data.name == f"{pair}_hr"
    assert config.data.crop == [1024, 1024]
    assert (config.evaluator.inference, config.evaluator.window) == ("slide", [1024, 1024])
    head = said.lr * said.head_lr_multiplier
    assert math.isclose(head, 5e-5 * math.sqrt(config.data.source_batch), rel_tol=0.02)
    assert (said.head_lr_multiplier, said.layer_decay, said.weight_decay) == (10.0, 0.9, 0.01)
    steps = 60000 if method == "lcmsm" else 40000
    assert (config.steps, round(config.schedule.warmup * steps), config.schedule.power) == (steps, 0.0375 * steps, 1.0)
    assert config.data.rare_class.enabled
    if method in ("mic", "lcmsm"):
        assert (config.method["feature_distance"], config.method["distillation"]) == (0.0, 0.1)
        assert config.method["mask_block"] * config.data.crop[0] == 64


def test_adapters_are_those_of_soma():
    config = configured("experiment=source_only_gta2dg_dinov2l_lora")
    lora, said = config.model["encoder"]["lora"], config.optimizer
    assert (lora["rank"], lora["alpha"], lora["init"], list(lora["blocks"])) == (16, 16, "minor", list(range(8, 24)))
    assert (lora["separate"], lora["bias"]) == (True, True)
    assert list(config.model["encoder"]["taps"]) == [7, 11, 15, 23]
    # The release's rate of the network is 1e-4, with a multiplier of 0.5 for the backbone, which holds the adapters.
    assert (said.lr, said.lr * said.head_lr_multiplier) == (0.5 * 1e-4, 1e-4)
    assert (said.weight_decay, config.schedule.weight_decay, config.schedule.power) == (0.05, "cosine", 0.9)
    assert (config.data.source_batch, config.data.rare_class.enabled, config.steps) == (4, False, 40_000)
    assert (config.data.crop, config.evaluator.window, config.evaluator.stride) == ([512, 512], [512, 512], [341, 341])
    assert config.data.target is None
