"""Options that older versions wrote by another name."""

from __future__ import annotations

import pytest

from uda_seg.cli.command import check
from uda_seg.config.compose import composed
from uda_seg.config.former import PLAIN_BICL, todays_method, todays_options
from uda_seg.config.replay import replay

OLD = {"base": "daformer", "feature_distance": 0.005, "mask_weight": 1.0}  # as every checkpoint of T2S-DA has them


@pytest.mark.parametrize(
    ("overrides", "choices", "base", "found"),
    [
        (["method.base=mic", "method.pull_weight=0.5"], {}, "mic", (0.005, 1.0)),
        (["method.base=dacs"], {}, "dacs", (0.0, 0.0)),
        ([], {}, "daformer", (0.005, 0.0)),
        ([], {"experiment": "t2sda_mic_gta2cs"}, "mic", (0.005, 1.0)),
    ],
)
def test_a_checkpoint_of_t2sda_on_a_base_composes_its_method(overrides, choices, base, found):
    said = {
        "choices": {"method": "t2sda", "data": "gta2cs", **choices},
        "overrides": overrides,
        "options": {**OLD, "base": base},
        "method": "T2SDA",
    }
    config = composed(check(replay({"uda_seg": said}, [])))
    weights = (config.method["feature_distance"], config.method["mask_weight"])
    assert weights == found
    assert config.method.get("pull_weight") == (0.5 if len(overrides) == 2 else 0.1)
    trained = todays_options(said)
    assert (trained["feature_distance"], trained["mask_weight"]) == weights
    assert "base" not in trained


@pytest.mark.parametrize(
    ("option", "method"),
    [
        ({}, "BiCL"), ({"feature": "backbone"}, "BiCL"), ({"feature": "logits"}, "ReleasedBiCL"),
        ({"stem": "own", "feature": "projection"}, "ReleasedBiCL"),
    ],
)  # fmt: skip
def test_a_run_of_bicl_as_released_can_be_resumed_by_its_recipe(option, method):
    assert todays_method({"method": "BiCL", "options": {**PLAIN_BICL, **option}}) == method
    assert todays_method({"method": "CorDA", "options": {"encoder_updates": "released"}}) == "CorDA"


@pytest.mark.parametrize(("version", "overrides", "mean"), [
    (1, [], [0.485, 0.456, 0.406]),
    (1, ["++model.mean=[0.4,0.4,0.4]"], [0.4, 0.4, 0.4]),
    (2, [], None),
])  # fmt: skip
def test_a_timm_network_of_before_keeps_the_mean_that_it_was_trained_with(version, overrides, mean):
    choices = {"method": "dacs", "data": "streets", "model": "timm"}
    config = composed(replay({"uda_seg": {"format": version, "choices": choices, "overrides": overrides}}, []))
    assert config.model.get("mean") == mean
    assert (config.model.get("std") is None) == (version == 2)
