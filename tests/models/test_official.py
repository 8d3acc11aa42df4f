"""Released checkpoints, generated from tables of their names, by our names: sizes, renaming, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from models import released
from uda_seg.config.compose import composed
from uda_seg.config.schema import CONF
from uda_seg.errors import UserError
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.deeplab import DeepLabV2Head, ResNet101
from uda_seg.models.language import LanguageHead
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.official import Official, recognise
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.two_task import TwoTaskHead

FILE = Path("iter_40000.pth")
TABLES = {
    "mit_b5": (released.mit(*released.B5), 1052, 81_443_008),
    "daformer": (released.daformer(*released.B5), 1110, 85_155_283),
    "hrda": (released.hrda(*released.B5), 1126, 85_685_990),
    "lcmsm": (released.lcmsm(*released.B5), 1170, 109_923_929),
    "corda_gta": (released.corda(gta=True), 748, 48_015_074),
    "corda_synthia": (released.corda(gta=False), 742, 46_619_049),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_the_published_sizes(name: str) -> None:
    shapes, entries, parameters = TABLES[name]
    assert (len(shapes), released.parameters(shapes)) == (entries, parameters)


def shapes_of(module: torch.nn.Module) -> released.Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def ours(kind: str) -> Segmentor:
    """Our network, built without a configuration."""
    with torch.device("meta"):
        if kind.startswith("corda"):
            network = Segmentor(ResNet101(), partial(DeepLabV2Head, dilations=[6, 12]), 19)
            initial = "main" if kind == "corda_gta" else "features"
            network.attach("two_task", TwoTaskHead(network.heads["main"], 19, initial=initial))  # type: ignore[arg-type]
            return network
        width = 512 if kind == "lcmsm" else 256
        network = Segmentor(MixVisionTransformer("b5"), partial(DAFormerHead, width=width), 19)
        if kind == "lcmsm":
            network.attach("language", LanguageHead)
        return network


def file_of(kind: str) -> dict:
    tensors = released.zeros(TABLES[kind][0])
    if kind.startswith("corda"):
        return {"model": tensors, "ema_model": tensors, "iteration": 250000, "config": {}, "optimizer": {}}
    return released.mmcv(tensors, tensors)


@pytest.mark.parametrize("kind", ["daformer", "lcmsm", "corda_gta", "corda_synthia"])
def test_every_released_name_is_one_of_ours(kind: str) -> None:
    official = recognise(file_of(kind), FILE)
    wanted = shapes_of(ours(kind))
    if kind == "corda_synthia":  # its network has no classifier on the encoder, and ours does not read it
        assert official.untrained == ("heads.main.",)
        wanted = {n: s for n, s in wanted.items() if not n.startswith("heads.main.")}
    for network in (official.student, official.teacher):
        assert {n: tuple(t.shape) for n, t in network.items()} == wanted
    dropped = {"corda_gta": 16, "corda_synthia": 12}.get(kind, 0)
    assert sum(d.count for d in official.dropped) == dropped
    assert len(TABLES[kind][0]) - dropped == len(official.student)


@pytest.mark.skipif(not (CONF / "model" / "hrda_mitb5.yaml").exists(), reason="model=hrda_mitb5 is not there yet")
def test_every_name_of_hrda_is_one_of_ours() -> None:
    from hydra.utils import instantiate

    config = composed(["model=hrda_mitb5", "data=gta2cs", "pretrained=null"])
    with torch.device("meta"):
        network = instantiate(config.model, num_classes=19)
    official = recognise(file_of("hrda"), FILE)
    for found in (official.student, official.teacher):
        assert {n: tuple(t.shape) for n, t in found.items()} == shapes_of(network)


def test_hrda_by_the_prefix_rule() -> None:
    student = recognise(file_of("hrda"), FILE).student
    assert len(student) == 1126
    assert {
        "encoder.block3.39.attn.kv.weight",
        "heads.main.head.fuse_layer.bottleneck.bn.running_var",
        "heads.main.scale_attention.conv_seg.bias",
    } <= set(student)


# By hand: each task's, each depth's and each direction's parts of CorDA have the same shapes, so that only values tell.
CORDA_NAMES = {
    "layer3.22.conv3.weight": "encoder.layer3.22.conv3.weight",
    "initial_task_prediction_heads.layers.S.1.bn2.bias": "heads.two_task.segmentation_features.1.bn2.bias",
    "initial_task_prediction_heads.layers.D.0.downsample.1.bias": "heads.two_task.depth_features.0.downsample.1.bias",
    "initial_task_prediction_heads.conv_out.D.weight": "heads.two_task.initial_target_depth.weight",
    "initial_task_prediction_heads.conv_out.D_src.weight": "heads.two_task.initial_source_depth.weight",
    "initial_task_prediction_heads.conv_out.S.conv2d_list.1.bias": "heads.main.conv2d_list.1.bias",
    "multi_modal_distillation.self_attention.S.D.conv.weight": "heads.two_task.to_segmentation.conv.weight",
    "multi_modal_distillation.self_attention.S.D.attention.0.weight": "heads.two_task.to_segmentation.gate.weight",
    "multi_modal_distillation.self_attention.D.S.conv.weight": "heads.two_task.to_depth.conv.weight",
    "multi_modal_distillation.self_attention.D.S.attention.0.weight": "heads.two_task.to_depth.gate.weight",
    "heads.S.conv2d_list.0.weight": "heads.two_task.segmentation.conv2d_list.0.weight",
    "heads.D.conv2d_list.1.weight": "heads.two_task.target_depth.conv2d_list.1.weight",
    "heads.D_src.conv2d_list.1.weight": "heads.two_task.source_depth.conv2d_list.1.weight",
}


def test_parts_of_corda_that_look_alike_are_told_apart() -> None:
    content = file_of("corda_gta")
    for value, name in enumerate(CORDA_NAMES, start=1):
        shape = content["model"][name].shape
        content["model"] = {**content["model"], name: torch.tensor(float(value)).expand(shape)}
    student = recognise(content, FILE).student
    for value, name in enumerate(CORDA_NAMES.values(), start=1):
        assert student[name].flatten()[0] == value, name


def small(kind: str = "daformer", **changes: object) -> Official:
    shapes = released.daformer(*released.TINY, width=4)
    student, teacher = released.random(shapes, 0), released.random(shapes, 1)
    return recognise(released.mmcv(student, teacher, **changes), FILE)  # type: ignore[arg-type]


def test_the_teacher_has_its_weights_and_the_students_statistics() -> None:
    official = small()
    norm = "heads.main.fuse_layer.bottleneck.bn."
    for name, tensor in official.teacher.items():
        own = torch.equal(tensor, official.student[name])
        assert own == name.endswith(released.BUFFERS), name
    assert norm + "running_var" in official.teacher


def test_training_only_parts_are_dropped_and_named() -> None:
    shapes = released.daformer(*released.TINY, width=4)
    student = released.random(shapes, 0)
    more = {f"imnet_model.{n}": t for n, t in student.items()}
    more |= {f"mic.teacher.ema_model.{n}": t for n, t in student.items()}
    more |= {"clip_model.visual.proj": torch.zeros(2), "model.backbone.head.weight": torch.zeros(1000, 8)}
    official = recognise(released.mmcv(student, student, more), FILE)
    assert {d.why.partition(":")[0]: d.count for d in official.dropped} == {
        "ImageNet copy": len(shapes),
        "another teacher, of masked images": len(shapes),
        "CLIP": 1,
        "ImageNet classifier of the encoder": 1,
    }
    assert len(official.student) == len(shapes)
    assert official.step == 40000


def test_old_files_and_plain_segmentors() -> None:
    shapes = released.daformer(*released.TINY, width=4)
    plain = released.random(shapes, 0)
    official = recognise({"state_dict": plain, "meta": {}}, FILE)
    assert "method=source_only" in official.overrides
    assert not official.teacher
    old = {f"module.{n}": t for n, t in released.mmcv(plain, plain)["state_dict"].items()}
    assert recognise({"state_dict": old}, FILE).student.keys() == official.student.keys()
    corda = released.zeros(released.corda(gta=True, width=4, blocks=(1, 1, 1, 1), tasks=8))
    parallel = {f"module.{n}": t for n, t in corda.items()}
    assert recognise({"model": parallel}, FILE).student.keys() == recognise({"model": corda}, FILE).student.keys()


def test_methods_and_networks_are_told() -> None:
    assert {"method=daformer", "model=daformer_mitb5"} <= set(recognise(file_of("daformer"), FILE).overrides)
    assert {"method=lcmsm", "model=daformer512_mitb5"} <= set(recognise(file_of("lcmsm"), FILE).overrides)
    masked = small(config="uda = dict(\n    mask_mode='separatetrgaug',\n    mask_alpha='same')")
    assert "method=mic" in masked.overrides
    assert "method=daformer" in small(config="mask_mode=None").overrides
    hrda = recognise(file_of("hrda"), FILE).overrides
    assert {"model=hrda_mitb5", "data=gta2cs_hr", "evaluator=slide", "evaluator.window=[1024,1024]"} <= set(hrda)
    assert "model.attention=shared" not in hrda
    one = released.hrda(*released.TINY) | released.affine("decode_head.scale_attention.conv_seg", 1, 256, 1, 1)
    assert "model.attention=shared" in recognise(released.mmcv(released.zeros(one), None), FILE).overrides
    b3 = released.mmcv(released.zeros(released.daformer(released.B5[0], (3, 4, 18, 3))), None)
    assert "model.encoder.variant=b3" in recognise(b3, FILE).overrides
    gta, synthia = (recognise(file_of(kind), FILE).overrides for kind in ("corda_gta", "corda_synthia"))
    assert {"method.initial=main", "data=gta2cs", "method.dilations=[6,12]", "model.head.dilations=[6,12]"} <= set(gta)
    assert {"method.initial=features", "data=synthia2cs"} <= set(synthia)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"uda_seg": {}, "state_dict": {}}, "checkpoint of uda_seg already"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"state_dict": {"features.0.weight": torch.zeros(1)}}, "features.0.weight"),
        (released.zeros(released.mit(*released.TINY)), "its encoder alone can be used, pretrained="),
        ({"model": released.zeros(released.resnet101(4, (1, 1, 1, 1)))}, "its encoder alone can be used"),
        ({"state_dict": {"backbone.norm1.weight": torch.zeros(4), "decode_head.conv_seg.bias": torch.zeros(19)}},
         "its decoder is not DAFormer's"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_a_line(content: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recognise(content, FILE)
    assert said in str(caught.value)
    assert str(FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tensor_nobody_knows_is_refused() -> None:
    shapes = released.daformer(*released.TINY, width=4)
    student = released.random(shapes, 0)
    with pytest.raises(UserError, match=r"auxiliary_head\.conv\.weight is of no network that is known"):
        recognise(released.mmcv({**student, "auxiliary_head.conv.weight": torch.zeros(1)}, None), FILE)
