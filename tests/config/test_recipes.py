"""Every recipe as it is composed, against the values known of its release, written down here and not read off conf/."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from command_line import configured
from uda_seg.config import compose as composing
from uda_seg.config.commands import DepthConfig
from uda_seg.config.schema import CONF, Config, completed, parse
from uda_seg.data.transforms import fit_inside

GTA, SYNTHIA, CITYSCAPES, ACDC = (1052, 1914), (760, 1280), (1024, 2048), (1080, 1920)
SIZES = {"gta": GTA, "synthia": SYNTHIA, "cityscapes": CITYSCAPES, "acdc": ACDC, "darkzurich": ACDC}
V1, V2 = [30, 240, 0, 0], [30, 240, 30, 30]  # of Cityscapes' 1024 rows: 15 and 120 of a crop at half of the size

# What an image has after the resize, the crop, the margins, and the size and way of the test.
HALF = {"crop": [512, 512], "rare_crop": 1500, "inference": "whole"}
FULL = {"crop": [1024, 1024], "rare_crop": 6000, "inference": "slide", "window": [1024, 1024], "stride": [512, 512]}
CS_HALF = {"target": ("cityscapes", (512, 1024)), "test": (512, 1024), "margins": V1}
CS_FULL = {"target": ("cityscapes", (1024, 2048)), "test": (1024, 2048), "margins": V2}
PAIRS: dict[str, dict[str, Any]] = {
    "gta2cs": {**HALF, **CS_HALF, "source": ("gta", (704, 1280)), "classes": "19"},
    "synthia2cs": {**HALF, **CS_HALF, "source": ("synthia", (760, 1280)), "classes": "16"},
    "gta2cs_hr": {**FULL, **CS_FULL, "source": ("gta", (1407, 2560)), "classes": "19"},
    "synthia2cs_hr": {**FULL, **CS_FULL, "source": ("synthia", (1520, 2560)), "classes": "16"},
}
for name in ("acdc", "darkzurich"):
    adverse = {"margins": None, "classes": "19"}
    half = {"source": ("cityscapes", (512, 1024)), "target": (name, (540, 960)), "test": (540, 960)}
    full = {"source": ("cityscapes", (1024, 2048)), "target": (name, (1080, 1920)), "test": (1080, 1920)}
    PAIRS |= {f"cs2{name}": {**HALF, **adverse, **half}, f"cs2{name}_hr": {**FULL, **adverse, **full}}

# The trainers. `mask` is the side of a block in pixels and the share of hidden ones.
FAMILY: dict[str, Any] = {
    "steps": 40000, "optimizer": ("adamw", 6e-5, 0.01, 10.0), "betas": [0.9, 0.999], "warmup": 1500, "power": 1.0,
    "alpha": 0.999, "update": "start", "batch_norm": "train", "threshold": 0.968, "trusts_margins": True,
    "mix": "batch", "distance": (0.005, 0.75), "rare": True, "mask": None, "crop_ratio": 0.75, "flip": True,
    "encoder": "MixVisionTransformer", "width": 256,
}  # fmt: skip
DAFORMER = FAMILY
DACS = {**FAMILY, "alpha": 0.99, "trusts_margins": False, "distance": (0.0, 0.75), "rare": False,
        "encoder": "ResNet101", "width": None, "dilations": [6, 12]}  # fmt: skip
MIC = {**FAMILY, "mask": (32, 0.7)}
MIC_FULL = {**FAMILY, "mask": (64, 0.7)}
LCMSM = {**FAMILY, "steps": 60000, "trusts_margins": False, "mask": (32, 0.5), "width": 512}
SLIDE = {"inference": "slide", "window": [512, 512], "stride": [256, 256]}
SGD = {"betas": [0.9, 0.999], "warmup": 0, "power": 0.9, "threshold": 0.968, "trusts_margins": False, "rare": False,
       "mask": None, "crop_ratio": 1.0, "encoder": "ResNet101", "width": None, "aligned": True,
       "frozen": True}  # fmt: skip
CORDA = {**SGD, "steps": 250000, "optimizer": ("sgd", 2.5e-4, 5e-4, 10.0), "momentum": 0.9, "alpha": 0.999,
         "update": "end", "batch_norm": "train", "mix": "image_and_ignore", "flip": False,
         "source": ("gta", (720, 1280))}  # fmt: skip
BICL = {**SGD, "steps": 100000, "optimizer": ("sgd", 7.5e-5, 5e-4, 10.0), "momentum": 0.9, "alpha": 0.999,
        "update": "start", "batch_norm": "train", "flip": True, "crop": [730, 730], "test": (730, 1460),
        "target": ("cityscapes", (850, 1700)), "dilations": [6, 12, 18, 24]}  # fmt: skip
SOURCE_ONLY = {**FAMILY, "batch_norm": "eval", "trusts_margins": False}
DACS_OWN = {**CORDA, "alpha": 0.99, "distance": (0.0, 0.75), "dilations": [6, 12]}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "dacs_released_gta2cs": ("gta2cs", DACS_OWN),
    "dacs_gta2cs": ("gta2cs", DACS),
    "dacs_synthia2cs": ("synthia2cs", DACS),
    "daformer_gta2cs": ("gta2cs", DAFORMER),
    "daformer_synthia2cs": ("synthia2cs", DAFORMER),
    "daformer_cs2acdc": ("cs2acdc", {**DAFORMER, "margins": V1}),
    "daformer_cs2darkzurich": ("cs2darkzurich", {**DAFORMER, "margins": V1}),
    "mic_gta2cs": ("gta2cs", MIC),
    "mic_synthia2cs": ("synthia2cs", MIC),
    "lcmsm_gta2cs": ("gta2cs", {**LCMSM, **SLIDE}),
    "lcmsm_synthia2cs": ("synthia2cs", {**LCMSM, **SLIDE}),
    "lcmsm_first_gta": ("gta2cs", {**LCMSM, **SLIDE, "distance": (0.009, 0.75), "power": 1.1}),
    "lcmsm_first_synthia": ("synthia2cs", {**LCMSM, **SLIDE, "distance": (0.005, 0.7), "mask": (64, 0.7)}),
    "lcmsm_hrda_gta2cs": ("gta2cs_hr", {**LCMSM, "mask": (64, 0.5)}),
    "lcmsm_hrda_synthia2cs": ("synthia2cs_hr", {**LCMSM, "mask": (64, 0.5)}),
    "corda_gta2cs": ("gta2cs", CORDA),
    "corda_synthia2cs": ("synthia2cs", {**CORDA, "source": ("synthia", (720, 1280))}),
    "corda_synthia2cs_mono": ("synthia2cs", {**CORDA, "source": ("synthia", (720, 1280))}),
    "bicl_gta2cs": ("gta2cs", {**BICL, "source": ("gta", (850, 1546))}),
    "bicl_synthia2cs": ("synthia2cs", {**BICL, "source": ("synthia", (850, 1432))}),
    "source_only_gta2cs": ("gta2cs", SOURCE_ONLY),
    "source_only_synthia2cs": ("synthia2cs", SOURCE_ONLY),
}
for pair in ("gta2cs", "synthia2cs"):
    RECIPES |= {f"t2sda_{pair}": (pair, DAFORMER), f"t2sda_mic_{pair}": (pair, MIC)}
    RECIPES |= {f"{base}_{pair}": (f"{pair}_hr", FAMILY) for base in ("hrda", "t2sda_hrda")}
    RECIPES |= {f"{base}_{pair}": (f"{pair}_hr", MIC_FULL) for base in ("mic_hrda", "t2sda_mic_hrda")}
for pair in ("cs2acdc", "cs2darkzurich"):
    RECIPES |= {f"hrda_{pair}": (f"{pair}_hr", FAMILY), f"mic_hrda_{pair}": (f"{pair}_hr", MIC_FULL)}

# They have no pair of their own, or train no segmentation.
OTHERS = {"bicl_ablation", "source_only_gta2dg", "t2sda_gta2dg"}
DINOV2 = {path.stem for path in (CONF / "experiment").glob("*dinov2*.yaml")}  # in test_foundation_recipes.py
OTHERS |= {f"depth_{name}" for name in ("cityscapes", "cityscapes_stereo", "viper", "synthia")}


def resized(domain: Any, official: tuple[int, int]) -> tuple[int, int]:
    return fit_inside(official, domain.size) if domain.keep_ratio else tuple(domain.size)


def found(config: Config) -> dict[str, Any]:
    """The configuration in the words of the tables above."""
    data, method, model, said = config.data, config.method, completed(config.model), config.optimizer
    (test,) = data.validation.values()
    assert data.target is not None
    masks = method.get("mask_weight", 0.0) if method.get("base", "mic") == "mic" else 0.0
    window = {} if config.evaluator.inference == "whole" else {
        "window": config.evaluator.window, "stride": config.evaluator.stride,
    }  # fmt: skip
    return {
        "crop": data.crop, "rare_crop": data.rare_class.min_crop_pixels, "inference": config.evaluator.inference,
        **window, "source": (data.source.dataset, resized(data.source, SIZES[data.source.dataset])),
        "target": (data.target.dataset, resized(data.target, SIZES[data.target.dataset])),
        "test": resized(test, SIZES[test.dataset]), "margins": data.target.margins, "classes": data.eval_classes,
        "steps": config.steps, "optimizer": (said.name, said.lr, said.weight_decay, said.head_lr_multiplier),
        "momentum": said.momentum, "betas": said.betas, "warmup": round(config.schedule.warmup * config.steps),
        "power": config.schedule.power, "alpha": config.teacher.alpha, "update": config.teacher.update,
        "batch_norm": config.teacher.batch_norm, "threshold": config.teacher.threshold,
        "trusts_margins": config.teacher.margins, "mix": method.get("mix_classes"),
        "distance": (method.get("feature_distance"), method.get("feature_distance_ratio")),
        "rare": data.rare_class.enabled,
        "mask": (method["mask_block"] * data.crop[0], method["mask_ratio"]) if masks == 1.0 else None,
        "crop_ratio": data.crop_max_ratio, "flip": data.flip,
        "encoder": model["encoder"]["_target_"].rpartition(".")[2], "width": model["head"].get("width"),
        "aligned": model.get("align_corners", False), "frozen": model["encoder"].get("freeze_norm", False),
        "dilations": model["head"].get("dilations"),
    }  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_values_of_its_release(recipe: str) -> None:
    config = configured(f"experiment={recipe}")
    pair, trainer = RECIPES[recipe]
    assert config.data.name == pair
    have = found(config)
    unsaid = ("mix", "distance") if recipe.startswith(("source_only", "bicl")) else ()
    unsaid += ("distance",) if recipe.startswith("corda") else ()
    wanted = {key: value for key, value in {**PAIRS[pair], **trainer}.items() if key not in unsaid}
    assert {key: have[key] for key in wanted} == wanted
    data = config.data
    assert (data.source_batch, data.target_batch, config.optimizer.clip_norm) == (2, 2, None)
    assert (data.rare_class.temperature, data.rare_class.min_pixels, data.rare_class.tries) == (0.01, 3000, 10)
    filters = (data.source.image_resize, data.target.image_resize)
    pil = {"corda": ("pil_bicubic", "pil_bilinear"), "bicl": ("pil_bicubic", "pil_bicubic")}
    pil["dacs_released"] = pil["corda"]
    family = next((name for name in pil if recipe.startswith(name)), None)
    assert filters == pil.get(family, ("bilinear", "bilinear"))
    assert [test.image_resize for test in data.validation.values()] == [
        "pil_bilinear" if family in ("corda", "dacs_released") else "bilinear"
    ]
    assert data.crop_tries == 11  # the release looks at ten crops, then takes another
    if not recipe.startswith("source_only") and not recipe.startswith("bicl"):
        assert config.method["augment_draws"] == "released"
    if "ResNet101" in have["encoder"]:
        mean, std = ([255 * value for value in config.model[name]] for name in ("mean", "std"))
        assert mean == pytest.approx([122.67891434, 116.66876762, 104.00698793], abs=1e-8)  # red first
        assert std == pytest.approx([1, 1, 1], abs=1e-12)
    assert config.running_statistics == "all"
    model = completed(config.model)
    assert ("HRDA" in model["_target_"]) == data.name.endswith("_hr")
    if data.name.endswith("_hr"):
        assert (model["context_scale"], model["detail"], model["detail_loss"]) == (0.5, [512, 512], 0.1)
        assert (model["detail_offsets"], model["detail_multiple"], model["attention"]) == ("released", 8, "class")
        assert (model["attention_width"], model["detail_stride"]) == (256, None)  # null: half a window


def test_what_single_recipes_have_of_their_own() -> None:
    for pair in ("cs2acdc", "cs2darkzurich"):
        method = configured(f"experiment=mic_hrda_{pair}").method
        assert (method["mask_augment"], method["mask_images"]) == (False, "both")
    method = configured("experiment=mic_hrda_gta2cs").method
    assert (method["mask_augment"], method["mask_images"]) == (True, "target")
    for recipe, rows in (("t2sda_mic_gta2cs", 512), ("t2sda_hrda_synthia2cs", 1024), ("t2sda_mic_hrda_gta2cs", 1024)):
        assert int(configured(f"experiment={recipe}").method["fourier_beta"] * rows) == 5
    gta, synthia, mono = (configured(f"experiment=corda_{r}") for r in ("gta2cs", "synthia2cs", "synthia2cs_mono"))
    assert (gta.method["initial"], round(gta.method["label_by_initial"] * gta.steps)) == ("main", 25001)
    assert (synthia.method["initial"], synthia.method["label_by_initial"]) == ("features", 0.0)
    assert (gta.data.source.depth_resize, synthia.data.source.depth_resize) == ("bilinear", "nearest")
    assert (synthia.data.target.depth_encoding, mono.data.target.depth_encoding) == (None, "disparity")
    for method in (gta.method, synthia.method, mono.method):
        assert (method["source_depth"], method["mixed_depth"], method["jitter"]) == (0.01, 0.001, 0.25)
        assert (method["depth_weight"], method["jitter_order"]) == ("batch_mean", "bgr")
        assert (method["dilations"], method["encoder_updates"], method["depth_start"]) == ([6, 12], "released", 0.0)
    method = configured("experiment=dacs_released_gta2cs").method
    assert (method["source_ce"], method["jitter"], method["jitter_order"]) == ("labelled", 0.25, "bgr")
    assert method["encoder_updates"] == "released"
    method = configured("experiment=bicl_gta2cs").method
    assert (method["resolution"], method["source_ce"], method["encoder_updates"]) == ("labels", "labelled", "released")
    weights = ("forward_weight", "backward_weight", "target_weight", "entropy_weight")
    assert [method[name] for name in weights] == [0.2, 0.2, 0.3, 0.4]
    assert (method["rounds"], method["class_share"], method["image_share"]) == (10, 0.1, 0.1)
    assert (method["temperature"], method["dynamic_threshold"]) == (0.1, 0.8)
    method = configured("experiment=lcmsm_gta2cs").method
    assert (method["text"], method["text_model"], method["temperature"]) == ("openclip", "ViT-H-14", 0.07)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_recipes_compose(name: str) -> None:
    config = configured(f"experiment={name}", kind=DepthConfig if name.startswith("depth") else Config)
    if isinstance(config, DepthConfig):
        depth = config.depth
        assert (depth.steps, depth.batch, depth.lr, depth.encoder_lr, depth.crop) == (350000, 4, 1e-4, 0.1, [512, 512])
        assert (depth.widths, depth.scales, depth.smooth) == ([16, 32, 64, 128, 256], 4, 1e-3)
        assert (depth.nearest, depth.farthest, depth.flip) == (0.1, 100.0, True)


def test_no_recipe_is_left_out() -> None:
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == RECIPES.keys() | OTHERS | DINOV2


def said_of(*overrides: str) -> set[str]:
    """What the log of such a run lists, key and value."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        tree = compose("config", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(tree)
        with open_dict(tree):
            del tree["hydra"]
        try:
            return set(composing.departures(parse(tree)))
        finally:
            HydraConfig.instance().cfg = None


def test_the_log_lists_all_that_a_run_does_otherwise_than_its_method() -> None:
    assert said_of("method=lcmsm", "data=gta2cs") == set()
    streets = said_of("method=dacs", "data=streets")
    assert {"model daformer_small (deeplabv2_r101)", "data.rare_class.enabled True (False)"} <= streets
    assert "evaluator.inference whole (slide)" in said_of("method=lcmsm", "data=streets")
    plain = said_of("method=mic", "data=gta2cs", "data.rare_class.enabled=false")
    assert "data.rare_class.enabled False (True)" in plain
    corda = said_of("experiment=corda_gta2cs", "pretrained=null")
    assert {
        "model.align_corners True (False)",
        "method.jitter_order bgr (rgb)",
        "pretrained None (imagenet)",
    } <= corda
    assert {key.split()[0] for key in corda if key.startswith("model")} == {
        "model.align_corners", "model.encoder.freeze_norm", "model.head.dilations",
    }  # fmt: skip
