"""What is wrong with a configuration is said in a line, before anything is built; what is in conf/ is right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from command_line import Everything
from uda_seg.cli.command import check
from uda_seg.config.commands import COMMANDS, DepthConfig
from uda_seg.config.compose import composed
from uda_seg.config.keys import plain_defaults, primary
from uda_seg.config.schema import CONF, Config, accepted, completed, groups, key_of, parse
from uda_seg.errors import UserError
from uda_seg.options.constraints import Count
from uda_seg.options.validate import check_target, complaint, leaves, nearest, options

FILES = sorted(
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in CONF.glob("*/**/*.yaml")
    if path.parent.name != "parts"
)


def names(group: str) -> list[str]:
    return [file.partition("/")[2] for file in FILES if file.startswith(f"{group}/")]


@pytest.fixture(scope="module")
def raw() -> DictConfig:
    """A composed configuration (composing takes half a second, checking none)."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config")
    OmegaConf.set_struct(config, False)
    return config


@pytest.fixture
def parsed(raw):
    def parsed(*overrides: str) -> Config:
        return parse(OmegaConf.merge(raw, OmegaConf.from_dotlist(list(overrides))), Everything)

    return parsed


# What the release of a paper does otherwise is said of its own method and network.
WITH = {
    "quirks/bicl": ["method=bicl", "data=gta2cs"],
    "quirks/corda": ["method=corda", "data=gta2cs"],
    "quirks/dacs": ["method=dacs", "data=gta2cs"],
    "quirks/hrda": ["model=hrda_small"],
}


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith(("method/", "data/", "experiment/"))])
def test_every_file_composes_and_fits_the_schema(file):
    group, _, name = file.partition("/")
    assert isinstance(composed([f"{group}={name}", *WITH.get(file, [])]), Config)


LIGHT = ("streets2camvid", "streets2custom")  # photographs: an ImageNet start where it is installed


def choices():
    """Every method with a pair of each kind and every pair of domains with a method; the others in `make soak`."""
    found = []
    for method, data in itertools.product(names("method"), names("data")):
        chosen = data in ("streets", "gta2cs") or method == "lcmsm"  # which sets most
        found.append(pytest.param(method, data, marks=[] if chosen else [pytest.mark.slow], id=f"{method}-{data}"))
    return found


@pytest.mark.parametrize(("method", "data"), choices())
def test_every_method_goes_with_every_pair_of_domains(method, data):
    config = composed([f"method={method}", f"data={data}"])
    assert config.data.name == data
    small = ("ResidualEncoder", "EfficientNetLite") if data in LIGHT else ("ResidualEncoder",)
    assert config.model["encoder"]["_target_"].endswith(small) == data.startswith("streets")


def test_later_groups_win_over_earlier_and_the_command_line_over_all():
    config = composed(["data=streets", "method=lcmsm", "model=segformer_mitb5", "optimizer.lr=7"])
    assert config.steps < 60_000  # of the data, not of the method
    assert config.model["head"]["_target_"].endswith("SegFormerHead")  # of the command line, not of the data
    assert config.optimizer.lr == 7
    config = composed(["experiment=lcmsm_first_gta", "schedule.power=2"])
    assert config.data.name == "gta2cs"
    assert config.steps == 60_000
    assert config.method["feature_distance"] == 0.009
    assert config.schedule.power == 2


@pytest.mark.parametrize(
    ("recipe", "source", "classes", "steps", "width"),
    [
        ("hrda_gta2cs", [1440, 2560], "19", 40_000, 256),
        ("mic_hrda_synthia2cs", [1520, 2560], "16", 40_000, 256),
        ("lcmsm_hrda_gta2cs", [1440, 2560], "19", 60_000, 512),
    ],
)
def test_recipes_at_full_resolution_have_the_published_sizes(recipe, source, classes, steps, width):
    config = composed([f"experiment={recipe}"])
    data, model, evaluator = config.data, completed(config.model), config.evaluator
    assert (data.crop, data.source.size, data.target.size) == ([1024, 1024], source, [1024, 2048])
    assert data.validation["cityscapes"].size == data.target.size
    assert (evaluator.inference, evaluator.window, evaluator.stride) == ("slide", [1024, 1024], [512, 512])
    assert data.target.margins == [30, 240, 30, 30]
    assert (data.rare_class.enabled, data.rare_class.min_pixels, data.rare_class.min_crop_pixels) == (True, 3000, 6000)
    assert (data.eval_classes, config.steps, model["head"]["width"]) == (classes, steps, width)
    assert (model["context_scale"], model["detail"], model["detail_loss"]) == (0.5, [512, 512], 0.1)
    assert (model["detail_offsets"], model["detail_multiple"], model["attention"]) == ("released", 8, "class")
    assert config.method["mask_block"] * data.crop[0] == 64
    assert config.teacher.margins == ("lcmsm" not in recipe)


def test_data_is_data_and_a_preset_makes_a_small_network_learn_in_minutes():
    minutes, paper = (composed(["method=lcmsm", "data=streets", *more]) for more in ([], ["preset=paper"]))
    assert minutes.data == paper.data
    assert (minutes.steps, minutes.optimizer.lr, minutes.method["text"]) == (400, 1e-3, "file")
    assert (minutes.method["mask_weight"], minutes.method["mask_ratio"]) == (0.3, 0.3)
    plain = composed(["method=lcmsm", "data=gta2cs"])
    assert replace(paper, data=plain.data, evaluator=plain.evaluator, callbacks=plain.callbacks) == plain
    for method, ratio in (("mic", 0.3), ("t2sda_mic", 0.3), ("t2sda", None), ("dacs", None)):
        options = composed([f"method={method}", "data=streets"]).method
        assert (options["mask_ratio"] if options["mask_weight"] else None) == ratio
    weights = composed(["method=source_only", "data=streets_random"])
    assert (weights.steps, weights.optimizer.lr, weights.pretrained, weights.schedule.power) == (1500, 2e-3, None, 0.9)
    assert composed(["data=streets_random"], DepthConfig).depth.widths == [8, 16, 24, 48, 64]
    assert composed(["data=streets", "preset=paper"], DepthConfig).depth.widths == [16, 32, 64, 128, 256]


def test_groups_come_in_their_order():
    defaults = [
        key
        for entry in OmegaConf.load(CONF / "config.yaml").defaults
        for key in ([entry] if isinstance(entry, str) else entry)
    ]
    assert defaults == [
        *("config_defaults", "_self_", "trainer", "logger", "callbacks", "evaluator", "model"),
        *("method", "preset", "optional preset/parts@method", "data", "quirks"),
        *("experiment", "sweep", "debug"),
    ]  # fmt: skip


@pytest.mark.parametrize(("more", "window"), [
    ([], [512, 512]),
    (["data.crop=[448,560]"], [448, 560]),
    (["evaluator=whole"], None),
    (["evaluator=slide", "evaluator.window=[64,64]", "evaluator.stride=[9,9]"], [64, 64]),
    (["data=streets"], None),  # which says so for every network
])  # fmt: skip
def test_vision_transformers_slide_windows_of_the_crop(more, window):
    evaluator = composed(["method=dacs", "data=gta2cs", "model=vit", *more]).evaluator
    assert evaluator.inference == ("whole" if window is None else "slide")
    if window is not None:
        assert evaluator.window == window
    if "evaluator=slide" not in more and window is not None:
        assert evaluator.stride == [side // 2 for side in window]


def test_the_sweep_of_controls_holds_them_and_methods_that_there_are():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = compose("config", ["sweep=controls"], return_hydra_config=True).hydra
    methods = hydra.sweeper.params.method.split(",")
    assert {"source_only", "source_only_strong", "adabn", "oracle"} < set(methods) <= set(names("method"))
    assert hydra.mode.name == "MULTIRUN"


SETTINGS = ("evaluator", "trainer", "logger", "callbacks")


def test_files_say_only_what_differs_from_the_defaults_of_the_schema():
    defaults = dict(leaves(plain_defaults(Config)))
    files: dict[str, Any] = {"": CONF / "config.yaml"}
    files |= {f"{group}.": CONF / group for group in SETTINGS}
    said = [
        (f"{prefix}{key}", value)
        for prefix, place in files.items()
        for path in ([place] if place.suffix else sorted(place.glob("*.yaml")))
        for key, value in leaves(OmegaConf.to_container(OmegaConf.load(path)))
        if not key.startswith(("defaults", "hydra")) and not isinstance(value, dict)
    ]
    assert len(said) > 10
    assert [key for key, value in said if key in defaults and defaults[key] == value] == []


def restated(node: Any) -> list[str]:
    """Options of a file's classes that it gives their own default."""
    return [
        f"{key}.{name}"
        for key, inner in [("", node), *leaves(node)]
        if isinstance(inner, dict) and "_target_" in inner
        for name, default in completed({"_target_": inner["_target_"]}).items()
        if name in inner and name not in ("_target_", "name", "variant") and inner[name] == default
    ]


@pytest.mark.parametrize("group", ["method", "model"])
def test_files_of_classes_say_only_what_differs_from_their_defaults(group):
    inherits = {"hrda_small", "vit_eomt"}  # what another file says, they may take back
    files = [path for path in sorted((CONF / group).glob("*.yaml")) if path.stem not in inherits]
    assert len(files) > 5
    assert {
        path.stem: found for path in files if (found := restated(OmegaConf.to_container(OmegaConf.load(path))))
    } == {}


@pytest.mark.parametrize("kind", COMMANDS.values())
def test_what_is_composed_without_any_file_is_the_schema(kind):
    """A configuration built in Python means the same as a composed one, and a command sees only what it reads."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        tree = compose(primary(kind), ["data=custom", "method=source_only"])
    assert set(tree) == {f.name for f in fields(kind)}
    known = dict(leaves(asdict(kind(model={}, method={}))))
    for key, value in leaves(OmegaConf.to_container(tree)):
        chosen = key.startswith(("data.", "model.", "method."))
        assert chosen or isinstance(value, dict) or value == known[key], key


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("bench.pairs=3", "bench.pairs is read by uda_seg.bench, not by uda_seg.train"),
        ("+depth.steps=3", "depth.steps is read by uda_seg.depth, not by uda_seg.train"),
        ("fix=true", "fix is read by uda_seg.prepare, not by uda_seg.train"),
        ("checkpoint=x", "uda_seg.export, not by uda_seg.train: to begin with its weights say init="),
        ("text=file", "text is now method.text"),
        ("masking.ratio=0.5", "masking.ratio is now method.mask_ratio"),
        ("masking={ratio: 0.5}", "masking is now method.mask_weight and method.mask_ratio"),
        ("model.recompute=true", "model.recompute is now model.activation_checkpointing"),
    ],
)
def test_a_key_of_another_command_or_of_an_older_version_is_answered_with_what_to_say(override, said):
    with pytest.raises(UserError) as caught:
        check([override])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"depth": {"steps": 3}}, "depth is read by uda_seg.depth, not by uda_seg.train"),
        ({"text": "file"}, "text is now method.text"),
        ({"masking": {"ratio": 0.5}}, "masking.ratio is now method.mask_ratio"),
        ({"model": {"recompute": True}}, "model.recompute is now model.activation_checkpointing"),
    ],
)
def test_such_a_key_in_a_file_of_ones_own_is_answered_too(raw, content, said):
    with pytest.raises(UserError) as caught:
        parse(OmegaConf.merge(raw, content))
    assert said in str(caught.value)


def test_the_packaged_conf_is_found_where_the_package_lies():
    assert (CONF / "config.yaml").is_file()
    assert {"method", "model", "data", "trainer", "logger", "experiment", "debug"} <= groups()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps=many", "steps=many is of the wrong type: expected a whole number"),
        ("steps='5'", "steps=5 is of the wrong type: expected a whole number, not text"),
        ("optimizer.lr=high", "optimizer.lr=high is of the wrong type: expected a number"),
        ("data.flip=perhaps", "data.flip"),
        ("data.crop=[256,256]", "data.crop=[256, 256] is larger than data.source.size=[128, 256]"),
        ("data.crop=[64]", "data.crop=[64] is no size"),
        ("data.crop=[0,64]", "data.crop=[0, 64] is no size"),
        ("data.validation.target.size=[64]", "data.validation.target.size=[64] is no size"),
        ("predict.size=[1,2,3]", "predict.size=[1, 2, 3] is no size"),
        ("predict.size=large", "predict.size=large is no size"),
        ("data.eval_classes=17", "17"),
        ("data.classes=citiscapes", "did you mean cityscapes?"),
        ("optimizer.name=adam", "optimizer.name=adam is none of adamw, sgd; did you mean adamw?"),
        ("logger.kind=tensorbord", "did you mean tensorboard?"),
        ("trainer.profiler=detailed", "trainer.profiler=detailed is none of simple, advanced, null"),
        ("steps=0", "steps=0 must be at least 1"),
        ("seed=-1", "seed=-1 must lie between 0 and"),
        ("method.text=openclp", "did you mean openclip?"),
        ("method.text=fil", "method.text=fil is none of openclip, file, shuffled, openclip-shuffled, random, none"),
        ("optimizer.lr=0", "optimizer.lr=0 must lie between 1e-15 and 1000"),
        ("optimizer.lr=.nan", "optimizer.lr=nan must lie between 1e-15 and 1000"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] must have 2 entries, not 1"),
        ("optimizer.betas=[0.9,1]", "optimizer.betas=[0.9, 1] must be at least 0 and below 1"),
        ("optimizer.clip_norm=-1", "optimizer.clip_norm=-1 must lie between 1e-06 and"),
        ("optimizer.accumulate=0", "optimizer.accumulate=0 must be at least 1"),
        ("optimizer.accumulate=3", "optimizer.accumulate=3 must divide data.source_batch=4"),
        ("schedule.warmup=1", "schedule.warmup=1 must be at least 0 and below 1"),
        ("teacher.alpha=1.5", "teacher.alpha=1.5 must lie between 0 and 1"),
        ("teacher.threshold=-0.1", "teacher.threshold=-0.1 must lie between 0 and 1"),
        ("data.workers=-1", "data.workers=-1 must be at least 0"),
        ("data.source.count=0", "data.source.count=0 must be at least 1"),
        ("data.validation.target.count=-2", "data.validation.target.count=-2 must be at least 1"),
        ("data.target.margins=[1,2]", "data.target.margins=[1, 2] must have 4 entries, not 2"),
        ("data.rare_class.tries=0", "data.rare_class.tries=0 must lie between 1 and 1000"),
        ("data.rare_class.temperature=0", "data.rare_class.temperature=0 must lie between"),
        ("data.crop_max_ratio=0", "data.crop_max_ratio=0 must be greater than 0 and at most 1"),
        ("method.temperature=0", "method.temperature=0 must lie between 0.0001 and"),
        ("method.mask_ratio=1.5", "method.mask_ratio=1.5 must lie between 0 and 1"),
        ("method.width=0", "method.width=0 must lie between 1 and 16384"),
        ("model.head.dropout=1", "model.head.dropout=1 must be at least 0 and below 1"),
        ("depth.crop=[512,512]", "depth.crop=[512, 512] is larger than data.source.size=[128, 256] (height, width)"),
        ("depth.crop=[64]", "depth.crop=[64] is no size: give [height,width]"),
        ("depth.crop=[64,0]", "depth.crop=[64, 0] is no size"),
        ("depth.domains=[]", "depth.domains=[] must have 1 to 2 entries, not 0"),
        ("depth.domains=[sauce]", "depth.domains=['sauce'] is none of source, target; did you mean source?"),
        ("depth.widths=[]", "depth.widths=[] must have 1 to 16 entries, not 0"),
        ("depth.widths=[8,0]", "depth.widths=[8, 0] must lie between 1 and 16384"),
        ("schedule.power=1e30", "schedule.power=1e+30 must lie between 0 and 100"),
        ("optimizer.lr=1e-300", "optimizer.lr=1e-300 must lie between 1e-15 and 1000"),
        ("optimizer.lr=.inf", "optimizer.lr=inf must lie between"),
        ("steps=99999999999999999999", "steps=99999999999999999999 must be at most 2147483647"),
        ("steps=${steps}", "steps"),
        ("steps=${oc.env:NOBODY_HAS_THIS}", "steps: KeyError raised while resolving interpolation"),
        ("trainer.deterministic=maybe", "trainer.deterministic=maybe is none of false, true, warn"),
        ("data.flip=7", "data.flip=7 is of the wrong type: expected true or false"),
        ("data.name=true", "data.name=True is of the wrong type: expected text"),
        ("data.name=../x", "data.name=../x is no name for a folder"),
        ("data.source.root=''", "data.source.root= is empty"),
        ("bench.what=${data}", "bench.what="),
        ("steps=[1]", "steps=[1] is of the wrong type: expected a whole number"),
        ("logger.tags=a", "logger.tags=a is of the wrong type: expected a list"),
        ("optimizer=3", "optimizer=3 is of the wrong type: expected keys with their values"),
        ("data.validation.target=5", "data.validation.target"),
        ("data.class_set={names: [a]}", "data.class_set is given, but data.classes=cityscapes"),
        ("model.encoder.widths=[]", "model.encoder.widths=[] must have 4 entries, not 0"),
        ("model.encoder.widths=[-4,8,8,8]", "model.encoder.widths=[-4, 8, 8, 8] must lie between 2 and 8192"),
        ("model.encoder.blocks=[0,1,1,1]", "model.encoder.blocks=[0, 1, 1, 1] must lie between 1 and 1000"),
        ("model.head.dilations=[]", "model.head.dilations=[] must have 1 to 32 entries, not 0"),
        ("model.head.dilations=[-1]", "model.head.dilations=[-1] must lie between 1 and 1024"),
        ("model.std=[0,0,0]", "model.std=[0, 0, 0] must lie between 1e-06 and 1e+06"),
        ("model.encoder=5", "model.encoder=5 is of the wrong type: expected Encoder"),
        ("model.head=5", "model.head=5 is of the wrong type: expected a class to build"),
        ("model.head._partial_=false", "model.head._partial_=False must be true here"),
        ("model.encoder._target_=uda_seg.models.daformer.DAFormerHead", "is no Encoder that can be built"),
        ("model.encoder._target_=uda_seg.models.segmentor.Encoder", "is no Encoder that can be built"),
        ("model.head._target_=uda_seg.models.mit.MixVisionTransformer", "is no head of a network"),
        ("method._target_=uda_seg.methods.depth.SelfSupervisedDepth", "is no UDAModule that can be built"),
        ("depth.nearest=200", "depth.nearest=200.0 must be below depth.farthest=100.0"),
        ("callbacks.others=None", "callbacks.others=None is of the wrong type: expected keys"),
        ("stepz=3", "did you mean steps?"),
        ("trainer.max_step=3", "did you mean trainer.max_steps?"),
        ("method.mask_ration=0.1", "method.mask_ration is unknown; did you mean mask_ratio?"),
        ("method.mask_ratio=much", "method.mask_ratio=much is of the wrong type: expected a number"),
        ("method.mix_classes=both", "method.mix_classes=both is none of image, image_and_ignore, batch"),
        ("model.head.dilations=3", "model.head.dilations=3 is of the wrong type"),
        ("data.name=${no.such.key}", "no.such.key"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(parsed, override, said):
    with pytest.raises(UserError) as caught:
        parsed(override)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "uda_seg.storage.files.shutil.rmtree",
        "uda_seg.errors.UserError",
        "uda_seg.models.nothing.There",
        "uda_seg.models.mit.Nothing",
        "uda_seg",
        None,
        3,
    ],
)
def test_what_is_no_class_is_refused(target):
    with pytest.raises(UserError, match=r"is no class that can be configured|there is no module"):
        options(target, "method")


@pytest.mark.parametrize(
    ("key", "kind"), [("method", "UDAModule"), ("model", "Segmentor"), ("model.encoder", "Encoder")]
)
def test_a_class_of_another_kind_is_refused_whoever_has_it(parsed, key, kind):
    with pytest.raises(UserError, match=rf"{key}\._target_=subprocess.Popen is no {kind} that can be built"):
        parsed(f"{key}._target_=subprocess.Popen")


@pytest.mark.parametrize("key", ["method", "model.encoder"])
def test_targets_are_checked_wherever_they_stand(parsed, key):
    with pytest.raises(UserError, match=rf"{key}\._target_=os.system is no class"):
        parsed(f"{key}._target_=os.system")


def test_a_class_hidden_in_a_list_is_refused(parsed):
    with pytest.raises(UserError, match="a class can be configured at its own key only"):
        parsed("model.head.dilations=[{_target_: os.system, command: ls}]")
    node = {"_target_": "uda_seg.models.segmentor.Segmentor", "encoder": {"inner": {"_target_": "os.system"}}}
    with pytest.raises(UserError, match="at its own key only"):
        check_target(node, "model")


def test_accepted_keys_are_those_of_the_schema_and_of_the_signatures(parsed):
    config = parsed()
    keys = set(accepted({"model": config.model, "method": config.method}))
    assert {"steps", "trainer.max_steps", "data.source.root", "model.encoder.widths", "method.temperature"} <= keys
    assert not {"model.num_classes", "method.plan", "method.segmentor", "model.head.channels"} & keys


def test_options_are_what_the_class_takes():
    assert options("uda_seg.methods.source_only.AdaBN", "method") == {"strong_augment": bool}


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (1, float, True),
        (1.5, int, False),
        (True, int, False),
        (1, bool, False),
        ("1", int, False),
        (None, int, False),
        (None, int | None, True),
        ("x", int | None, False),
        ([1, 2], tuple[int, ...], True),
        ([1, "2"], Sequence[int], False),
        ("12", Sequence[str], False),
        ({"a": 1}, dict[str, int], True),
        ("image", Literal["image", "batch"], True),
        ("other", Literal["image", "batch"], False),
        (object(), Any, True),
        (0, Count | None, False),
        (None, Count | None, True),
        ([1, 0], list[Count], False),
        ("a/b", Path, True),
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        (5, torch.dtype, True),  # what another package's class means is not known
        ("x", torch.dtype | int, True),
    ],
)
def test_values_fit_annotations_or_not(value, hint, expected):
    assert (complaint(value, hint) is None) is expected


def test_micro_batches_are_whole_in_both_domains(parsed):
    assert parsed("optimizer.accumulate=2", "data.target_batch=6").optimizer.accumulate == 2
    with pytest.raises(UserError, match=r"optimizer.accumulate=4 must divide data.target_batch=6"):
        parsed("optimizer.accumulate=4", "data.target_batch=6")


def test_a_sliding_window_leaves_no_pixel_out(parsed):
    slide = ("evaluator.inference=slide", "evaluator.window=[64,96]")
    assert parsed(*slide, "evaluator.stride=[64,96]").evaluator.stride == [64, 96]
    with pytest.raises(UserError, match=r"evaluator.stride=\[64, 97\] is larger than evaluator.window=\[64, 96\]"):
        parsed(*slide, "evaluator.stride=[64,97]")


def test_depth_is_learnt_in_a_window_of_the_images_that_it_is_learnt_from(parsed):
    crop = ("depth.crop=[96,192]", "data.source.size=[96,192]", "data.crop=[64,64]", "data.target.size=[64,128]")
    assert parsed(*crop, "depth.domains=[source]").depth.crop == [96, 192]
    with pytest.raises(UserError, match=r"depth.crop=\[96, 192\] is larger than data.target.size=\[64, 128\]"):
        parsed(*crop)


def test_nearest_names_one_or_lists_what_there_is():
    assert nearest("methd", ["method", "model"]) == "did you mean method?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


@pytest.mark.parametrize("override", ["a.b=1", "+a.b=1", "++a.b=x=y", "~a.b"])
def test_key_of(override):
    assert key_of(override) == "a.b"


def test_a_class_needs_what_it_is_built_from():
    with pytest.raises(UserError, match=r"model\.encoder is missing: Segmentor needs it"):
        check_target({"_target_": "uda_seg.models.segmentor.Segmentor"}, "model")


def test_the_home_folder_stands_for_a_tilde_in_every_path(parsed, monkeypatch):
    monkeypatch.setenv("HOME", "/home/her")
    paths = ("data.source.root", "data.validation.target.depth", "init", "pretrained", "method.text_file")
    config = parsed(*(f"{path}=~/x" for path in paths))
    assert (config.data.source.root, config.init, config.pretrained) == ("/home/her/x",) * 3
    assert config.data.validation["target"].depth == config.method["text_file"] == "/home/her/x"
    assert config.model["encoder"]["weights"] == "/home/her/x"  # which follows pretrained
