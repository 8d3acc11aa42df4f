"""Released checkpoints through the command: converted, evaluated, used; broken and foreign ones refused."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
import torch

from command_line import configured
from models import released
from uda_seg import convert, evaluate, predict
from uda_seg.config.commands import ConvertConfig, EvaluateConfig
from uda_seg.config.schema import CONF, Config
from uda_seg.data.labels import CAMVID, CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.methods.base import Plan
from uda_seg.methods.options.source_only import SourceOnlyOptions
from uda_seg.methods.source_only import SourceOnly
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.official import recognise
from uda_seg.models.segmentor import Segmentor
from uda_seg.runs.build import instantiate_module
from uda_seg.runs.checkpoint import check_same, load_trained, load_weights, read_checkpoint

CLASSES = 11
SMALL = ("model.encoder.dims=[4,4,10,8]", "model.encoder.depths=[1,1,1,1]", "model.head.width=4")
CORDA = {"width": 4, "blocks": (1, 1, 1, 1), "tasks": 32, "classes": CLASSES}
SMALL_CORDA = ("model.encoder.width=4", "model.encoder.blocks=[1,1,1,1]", "method.width=32")


WITH_HRDA = pytest.mark.skipif(not (CONF / "model" / "hrda_mitb5.yaml").exists(), reason="no model=hrda_mitb5 yet")


def on_camvid(data: Path) -> list[str]:
    """Eleven classes, and images of 32 x 48 to try a network on."""
    where = ["data=streets2camvid", f"data.target.root={data}"]
    return [*where, "data.target.size=[32,48]", "data.crop=[32,32]", "trainer=cpu"]


def daformer() -> tuple[dict, dict]:
    shapes = released.daformer(*released.TINY, width=4, classes=CLASSES)
    return released.random(shapes, 0), released.random(shapes, 1)


def saved(content: object, path: Path, legacy: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def converted(path: Path, out: Path, *overrides: str) -> dict:
    """What the command writes, without composing a configuration for each test."""
    given = convert.expand([f"official={path}", f"out={out}", *overrides])
    convert.convert(configured(*given, kind=ConvertConfig), out.parent)
    return read_checkpoint(out)


def strip(tensors: dict, prefix: str) -> dict:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def test_a_daformer_file_is_evaluated_and_predicts_as_its_network_does(cli, camvid, tmp_path):
    student, teacher = daformer()
    copy = {f"imnet_model.{n}": t for n, t in student.items()}
    official = saved(released.mmcv(student, teacher, copy), tmp_path / "iter_40000.pth")
    out = tmp_path / "run" / "checkpoints" / "last.ckpt"
    finished = cli(convert.main, f"official={official}", f"out={out}", *on_camvid(camvid), *SMALL)
    assert finished.code == 0, finished.err
    for said in ("iter_40000.pth: DAFormer", "encoder", "heads.main", "ImageNet copy", "the student's"):
        assert said in finished.out
    content = torch.load(out, weights_only=True)
    assert content["global_step"] == 40000
    assert content["uda_seg"]["source_images"] == 80000
    assert content["uda_seg"]["choices"]["model"] == "daformer_mitb5"
    assert not [o for o in content["uda_seg"]["overrides"] if str(tmp_path / "iter") in o or "_target_" in o]
    assert len(content["state_dict"]) == 2 * len(student)

    finished = cli(evaluate.main, f"checkpoint={out}", "evaluator.teacher=true")
    assert finished.code == 0, finished.err
    assert "target (teacher)" in finished.out
    image = next((camvid / "val").iterdir())
    assert cli(predict.main, f"checkpoint={out}", f"input={image}", "output=out").code == 0

    network = Segmentor(
        MixVisionTransformer("b0", *released.TINY), partial(DAFormerHead, width=4), num_classes=CLASSES
    ).eval()
    network.encoder.load_state_dict(strip(student, "backbone."))
    network.heads["main"].load_state_dict(strip(student, "decode_head."))
    pixels = torch.from_numpy(cv2.imread(str(image))[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        label = network.predict(pixels).argmax(1)[0].numpy()
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / "labelIds" / image.name), -1), label)


def test_the_teacher_takes_the_students_place(camvid, tmp_path):
    student, teacher = daformer()
    path = saved(released.mmcv(student, teacher), tmp_path / "official.pth", legacy=True)
    where = [*on_camvid(camvid), *SMALL]
    both = converted(path, tmp_path / "student.ckpt", *where)["state_dict"]
    averaged = converted(path, tmp_path / "teacher.ckpt", "teacher=true", *where)["state_dict"]
    for theirs, tensor in teacher.items():
        name = theirs.replace("backbone.", "encoder.").replace("decode_head.", "heads.main.")
        want = student[theirs] if theirs.endswith(released.BUFFERS) else tensor
        assert torch.equal(both[f"segmentor.{name}"], student[theirs])
        assert torch.equal(both[f"teacher.network.{name}"], want)
        assert torch.equal(averaged[f"segmentor.{name}"], want)
    alone = saved(released.mmcv(student, None), tmp_path / "alone.pth")
    with pytest.raises(UserError, match="has no averaged copy"):
        converted(alone, tmp_path / "no.ckpt", "teacher=true", *where)


@WITH_HRDA
def test_an_hrda_file_is_evaluated(cli, camvid, tmp_path):
    shapes = released.hrda(*released.TINY, width=4, classes=CLASSES, attention=4)
    student = released.random(shapes, 0)
    path = saved(released.mmcv(student, released.random(shapes, 1)), tmp_path / "iter_40000.pth")
    out = tmp_path / "hrda" / "checkpoints" / "last.ckpt"
    small = [*SMALL, "model.attention_width=4", "model.detail=[32,32]", "evaluator=whole", "data.target.size=[64,96]"]
    where = [o for o in on_camvid(camvid) if not o.startswith("data.target.size")]
    finished = cli(convert.main, f"official={path}", f"out={out}", *where, *small)
    assert finished.code == 0, finished.err
    assert "iter_40000.pth: HRDA" in finished.out
    tensors = torch.load(out, weights_only=True)["state_dict"]
    for part in ("head.conv_seg.weight", "scale_attention.fuse_layer.bn.running_var"):
        assert torch.equal(tensors[f"segmentor.heads.main.{part}"], student[f"decode_head.{part}"])
    finished = cli(evaluate.main, f"checkpoint={out}")
    assert finished.code == 0, finished.err
    assert "mIoU" in finished.out


def corda(gta: bool) -> dict:
    shapes = released.corda(gta, **CORDA)
    config = {"pretrained": "coco", "training": {"batch_size": 2, "data": {"crop": True}}}
    student, teacher = released.random(shapes, 0), released.random(shapes, 1)
    return {"model": student, "ema_model": teacher, "iteration": 250000, "config": config}


def test_a_corda_file_builds_its_own_network_again(cli, camvid, tmp_path):
    path = saved(corda(gta=True), tmp_path / "checkpoint-iter250000.pth", legacy=True)
    out = tmp_path / "corda" / "checkpoints" / "last.ckpt"
    finished = cli(convert.main, f"official={path}", f"out={out}", *on_camvid(camvid), *SMALL_CORDA)
    assert finished.code == 0, finished.err
    assert "dilations 18 and 24" in finished.out
    said = torch.load(out, weights_only=True)["uda_seg"]
    wanted = {"method.initial=main", "model.head.dilations=[6,12]", "method.dilations=[6,12]"}
    assert wanted | {"model.align_corners=true"} <= {o.lstrip("+") for o in said["overrides"]}
    finished = cli(evaluate.main, f"checkpoint={out}")
    assert finished.code == 0, finished.err
    assert "mIoU" in finished.out


def test_corda_of_synthia_segments_from_its_own_features(camvid, tmp_path, capsys):
    content = corda(gta=False)
    path, out = saved(content, tmp_path / "checkpoint.pth"), tmp_path / "last.ckpt"
    where = [*on_camvid(camvid), *SMALL_CORDA]
    found = converted(path, out, *where)
    assert "read by nothing: zeros" in capsys.readouterr().out
    config = configured(*convert.expand([f"official={path}", f"out={out}", *where]), kind=ConvertConfig)
    plan = Plan(steps=1, seed=0, classes=CAMVID, eval_classes=CAMVID.subset("11"), crop=(1, 1))
    network = load_trained(instantiate_module(config, plan), found, out)
    initial = network.get_parameter("heads.two_task.initial_segmentation.weight")
    assert torch.equal(initial, content["model"]["initial_task_prediction_heads.conv_out.S.weight"])
    assert not network.get_parameter("heads.main.conv2d_list.0.weight").any()
    with torch.no_grad():
        assert network.predict(torch.rand(1, 3, 32, 48)).shape == (1, CLASSES, 32, 48)


def full(name: str) -> dict:
    tables = {"daformer": released.daformer, "lcmsm": released.lcmsm, "hrda": released.hrda}
    if name.startswith("corda"):
        tensors = released.zeros(released.corda(gta=name == "corda_gta"))
        return {"model": tensors, "ema_model": tensors, "iteration": 250000}
    tensors = released.zeros(tables[name](*released.B5))
    projection = {"text_embed_net.weight": torch.zeros(()).expand(512, 1024), "text_embed_net.bias": torch.zeros(512)}
    return released.mmcv(tensors, tensors, projection if name == "lcmsm" else {})


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("daformer", 2 * 1110),
        pytest.param("hrda", 2 * 1126, marks=WITH_HRDA),
        ("lcmsm", 2 * 1170 + 2),
        ("corda_gta", 2 * (748 - 16)),
        ("corda_synthia", 2 * (742 - 12 + 8)),
    ],
)
def test_files_of_the_real_size(tmp_path, name, entries):
    path = saved(full(name), tmp_path / "official.pth")
    tensors = converted(path, tmp_path / "last.ckpt")["state_dict"]
    assert len(tensors) == entries
    if name == "lcmsm":
        assert tensors["projection.weight"].shape == (512, 1024)
        assert tensors["segmentor.heads.language.conv_seg.weight"].shape == (19, 531, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "parameters"), [("daformer", "gta2cs", 85_155_283), ("hrda", "gta2cs_hr", 85_685_990)]
)
def test_real_sizes_from_the_file_to_the_score(cli, official, tmp_path, name, data, parameters):
    """A checkpoint of the official size, every tensor with values of its own: converted, loaded whole, scored."""
    shapes = {"daformer": released.daformer, "hrda": released.hrda}[name](*released.B5)
    student = released.random(shapes, 0)
    path = saved(released.mmcv(student, released.random(shapes, 1)), tmp_path / "iter_40000.pth")
    out = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert cli(convert.main, f"official={path}", f"out={out}").code == 0
    small = [
        f"data={data}",
        f"data.target.root={official['cityscapes']}",
        "trainer=cpu",
        "data.workers=0",
        "data.validation.cityscapes.count=1",
    ]
    small += ["data.validation.cityscapes.size=[64,128]", "callbacks.progress=false"]
    finished = cli(evaluate.main, f"checkpoint={out}", *small)
    assert finished.code == 0, finished.err
    assert "mIoU (19)" in finished.out
    config = configured(*evaluate.expand([f"checkpoint={out}", *small]), kind=EvaluateConfig)
    scorer = evaluate.trained(config, evaluate.build_data(config), out, read_checkpoint(out))
    assert sum(p.numel() for p in scorer.segmentor.parameters()) == parameters
    loaded = scorer.segmentor.state_dict()
    assert len(loaded) == len(student)
    for theirs, tensor in student.items():
        assert torch.equal(
            loaded[theirs.replace("backbone.", "encoder.").replace("decode_head.", "heads.main.")], tensor
        )


# The recipes of every kind of released file; of the first LC-MSM settings and of CorDA's ablation too.
PAIRS = ("gta2cs", "synthia2cs", "cs2acdc", "cs2darkzurich")
PUBLISHERS = {f"{method}_{pair}": method for method in ("daformer", "hrda", "mic_hrda") for pair in PAIRS}
PUBLISHERS |= {f"mic_{pair}": "mic" for pair in PAIRS[:2]}
PUBLISHERS |= {f"lcmsm_{name}": "lcmsm" for name in (*PAIRS[:2], "first_gta", "first_synthia")}
PUBLISHERS |= {"corda_gta2cs": "corda_gta", "corda_synthia2cs": "corda_synthia"}
PUBLISHERS |= {"corda_synthia2cs_mono": "corda_synthia"}
UNRELEASED = ("lcmsm_hrda", "dacs", "bicl", "t2sda", "source_only", "depth")  # or of a kind that is not converted
SMALL_OF = dict.fromkeys(("daformer", "mic", "lcmsm"), SMALL)
SMALL_OF |= dict.fromkeys(("hrda", "mic_hrda"), (*SMALL, "model.attention_width=4"))
SMALL_OF |= dict.fromkeys(("corda_gta", "corda_synthia"), SMALL_CORDA)


def small_file(kind: str) -> dict:
    """A released file of the kind, with 19 classes and few channels."""
    if kind.startswith("corda"):
        return {"model": released.random(released.corda(kind == "corda_gta", **{**CORDA, "classes": 19}), 0)}
    tables = {"lcmsm": released.lcmsm, "hrda": partial(released.hrda, attention=4)}
    tables |= {"daformer": released.daformer, "mic": released.daformer, "mic_hrda": tables["hrda"]}
    student = released.random(tables[kind](*released.TINY, width=4), 0)
    return released.mmcv(student, None, config="mask_mode='separate'" if kind.startswith("mic") else "")


SHAPES: dict[str, dict[str, torch.Size]] = {}


def shapes_of(config: Config) -> dict[str, torch.Size]:
    """Of the tensors of a network of full size; recipes with the same network and method share it."""
    key = repr((config.model, config.method, config.data.classes, config.data.class_set))
    if key not in SHAPES:
        SHAPES[key] = {name: tensor.shape for name, tensor in convert.untrained_network(config).items()}
    return SHAPES[key]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Kind -> checkpoint, converted as anybody would; and the shapes of the network of full size."""
    folder, made = tmp_path_factory.mktemp("published"), {}

    def give(kind):
        if kind not in made:
            path, out = saved(small_file(kind), folder / f"{kind}.pth"), folder / f"{kind}.ckpt"
            converted(path, out, *SMALL_OF[kind])
            name = {"mic": "daformer", "mic_hrda": "hrda"}.get(kind, kind)
            said = recognise(full(name), path)
            made[kind] = out, shapes_of(configured(*convert.with_defaults(said, [])))
        return made[kind]

    return give


@pytest.mark.parametrize("recipe", PUBLISHERS)
def test_a_recipe_starts_from_the_checkpoint_that_it_publishes(recipe, published):
    kind = PUBLISHERS[recipe]
    path, shapes = published(kind)
    config = configured(f"experiment={recipe}", "pretrained=null", *SMALL_OF[kind])
    plan = Plan(steps=1, seed=0, classes=CITYSCAPES, eval_classes=CITYSCAPES.subset("19"), crop=(32, 32))
    module = instantiate_module(config, plan)
    assert "fresh" not in load_weights(module, path)
    written = strip(read_checkpoint(path)["state_dict"], "segmentor.")
    network = module.segmentor.state_dict()
    assert network.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in network.items())
    assert shapes_of(configured(f"experiment={recipe}", "pretrained=null")) == shapes


def test_no_recipe_that_publishes_is_left_out():
    recipes = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    released = {recipe for recipe in recipes if not recipe.startswith(UNRELEASED) and "dinov2" not in recipe}
    assert released == PUBLISHERS.keys()


def test_a_file_of_ones_own_classes(tmp_path):
    student, _ = daformer()
    classes = tmp_path / "classes.yaml"
    classes.write_text(f"names: {[f'c{i}' for i in range(CLASSES)]}\n")
    own = ["data=custom", "data.classes=custom", f"data.class_set={classes}", "data.eval_classes=all"]
    path = saved(released.mmcv(student, None), tmp_path / "own.pth")
    found = converted(path, tmp_path / "last.ckpt", *own, *SMALL)
    assert found["uda_seg"]["classes"] == "custom"
    assert len(found["state_dict"]) == len(student)


def test_what_is_missing_or_does_not_fit_is_refused(camvid, tmp_path):
    student, _ = daformer()
    where = [*on_camvid(camvid), *SMALL]
    short = {n: t for n, t in student.items() if n != "decode_head.conv_seg.bias"}
    path = saved(released.mmcv(short, None), tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"short\.pth: student lacks 1 of .*heads\.main\.conv_seg\.bias; nothing"):
        converted(path, tmp_path / "last.ckpt", *where)
    path = saved(released.mmcv(student, None), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"wants \(19,.*choose another model= or data="):
        converted(path, tmp_path / "last.ckpt", "data=gta2cs", *SMALL)
    deeper = ["model.encoder.depths=[1,1,1,2]", *on_camvid(camvid), *SMALL[::2]]
    with pytest.raises(UserError, match=r"lacks .*encoder\.block4\.1\."):
        converted(path, tmp_path / "last.ckpt", *deeper)
    assert not (tmp_path / "last.ckpt").exists()
    for out, said in (
        ("x.safetensors", "name the checkpoint"),
        (".", "name the checkpoint"),
        (path.name, "is official"),
    ):
        with pytest.raises(UserError, match=said):
            converted(path, tmp_path / out, *where, "overwrite=true")
    assert path.is_file()
    converted(path, tmp_path / "last.ckpt", *where)
    with pytest.raises(UserError, match="exists already"):
        converted(path, tmp_path / "last.ckpt", *where)
    converted(path, tmp_path / "last.ckpt", "overwrite=true", *where)


BAD = {
    "NaN": (lambda t: t * torch.nan, "is not finite"),
    "int8": (lambda t: t.to(torch.int8), "holds torch.int8"),
    "half": (lambda t: t.half(), None),
    "text": (lambda t: "weights", "conv_seg.weight is missing"),
    "a number": (lambda t: t.sum(), "conv_seg.weight is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_are_none_are_refused_before_anything_is_written(camvid, tmp_path, name):
    change, expected = BAD[name]
    student, _ = daformer()
    student["decode_head.conv_seg.weight"] = change(student["decode_head.conv_seg.weight"])
    path, out = saved(released.mmcv(student, None), tmp_path / "bad.pth"), tmp_path / "last.ckpt"
    if expected is None:
        assert converted(path, out, *on_camvid(camvid), *SMALL)
        return
    with pytest.raises(UserError, match=rf"bad\.pth.*{expected}") as caught:
        converted(path, out, *on_camvid(camvid), *SMALL)
    assert "\n" not in str(caught.value)
    assert not out.exists()


class Evil:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_objects_are_refused_without_running_them(cli, tmp_path, legacy):
    student, _ = daformer()
    path = saved({**released.mmcv(student, None), "hook": Evil()}, tmp_path / "evil.pth", legacy)
    finished = cli(convert.main, f"official={path}", "out=last.ckpt")
    assert "evil.pth: not loaded" in finished.error
    assert "exec" in finished.error
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_of_numpy_beside_the_weights_are_read(tmp_path, legacy):
    student, _ = daformer()
    content = released.mmcv(student, None)
    content["meta"]["hook_msgs"] = {"best_score": np.float64(0.6885), "best_step": np.int64(4), "f": np.float32(1)}
    path = saved(content, tmp_path / "official.pth", legacy)
    assert "model=daformer_mitb5" in convert.expand([f"official={path}", "out=last.ckpt"])
    content["meta"]["hook_msgs"] = {"best_ckpt": PurePosixPath("x")}  # harmless too, but nobody asked for it
    with pytest.raises(UserError, match=r"pickled objects \(pathlib"):
        convert.expand([f"official={saved(content, path, legacy)}", "out=last.ckpt"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.98])
def test_truncated_files_are_named(tmp_path, legacy, share):
    student, _ = daformer()
    path = saved(released.mmcv(student, None), tmp_path / "cut.pth", legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError) as caught:
        convert.expand([f"official={path}", f"out={tmp_path}/last.ckpt"])
    assert "cut.pth" in str(caught.value)
    assert "fetch it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_missing(cli, tmp_path):
    assert "official= is missing: python -m uda_seg.convert official=" in cli(convert.main, "out=x.ckpt").error
    assert "there is no such file" in cli(convert.main, "official=no.pth", "out=x.ckpt").error
    (tmp_path / "some.pth").write_bytes(pickle.dumps({}))
    assert "out= is missing" in cli(convert.main, "official=some.pth").error


def test_help_says_what_it_does(cli):
    finished = cli(convert.main, "--help")
    assert finished.code == 0
    assert finished.out.startswith("`python -m uda_seg.convert official=FILE out=FILE`")


def test_a_converted_checkpoint_cannot_be_resumed(camvid, tmp_path, make_segmentor, make_plan):
    student, _ = daformer()
    path = saved(released.mmcv(student, None), tmp_path / "official.pth")
    converted(path, tmp_path / "last.ckpt", *on_camvid(camvid), *SMALL)
    module = SourceOnly(make_segmentor(), make_plan(), SourceOnlyOptions())
    with pytest.raises(UserError, match="contains only weights: start a new run from it with init="):
        check_same(module, tmp_path / "last.ckpt", configured("method=source_only", "data=streets2camvid"))
