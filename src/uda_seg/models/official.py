"""Conversion of the released checkpoints of DAFormer, HRDA, MIC, LC-MSM and CorDA to our parameter names.

DAFormer, HRDA, MIC and LC-MSM write mmcv files with `meta`, `state_dict` and `optimizer`. The state dict is the whole
trainer's: the student, its EMA copy, the frozen ImageNet copy and more, each under its own prefix. CorDA writes
`model`, `ema_model`, `optimizer`, `config` and `iteration`. A file is recognised by its keys alone, not by class names
in its configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.models.mit import DEPTHS

BATCH = 2  # source images per step in all released configurations

# Parts of an mmcv file, matched exactly. Old files prefix every name with `module.`.
STUDENT, TEACHER = "model.", "ema_model."
PROJECTION = "text_embed_net."
TRAINING_ONLY = {
    "imnet_model.": "ImageNet copy: training alone reads it",
    "mic.": "another teacher, of masked images: training alone reads it",
    "clip_model.": "CLIP: its text embeddings are computed once, and not at test",
}
# Parts of a network: theirs -> ours. HRDA's `decode_head.head.` and `decode_head.scale_attention.` follow.
NETWORK = {"backbone.": "encoder.", "decode_head.": "heads.main.", "vlc_head.": "heads.language."}
CLASSIFIER = "backbone.head."

_TASKS = "heads.two_task."
_INITIAL, _ATTENTION = "initial_task_prediction_heads.", "multi_modal_distillation.self_attention."
# CorDA: S is segmentation, D the target's depth, D_src the source's. `X.Y` is the message from task Y to task X.
CORDA = {
    f"{_INITIAL}layers.S.": f"{_TASKS}segmentation_features.",
    f"{_INITIAL}layers.D.": f"{_TASKS}depth_features.",
    f"{_INITIAL}conv_out.S.conv2d_list.": "heads.main.conv2d_list.",
    f"{_INITIAL}conv_out.S.": f"{_TASKS}initial_segmentation.",
    f"{_INITIAL}conv_out.D.": f"{_TASKS}initial_target_depth.",
    f"{_INITIAL}conv_out.D_src.": f"{_TASKS}initial_source_depth.",
    f"{_ATTENTION}S.D.conv.": f"{_TASKS}to_segmentation.conv.",
    f"{_ATTENTION}S.D.attention.0.": f"{_TASKS}to_segmentation.gate.",
    f"{_ATTENTION}D.S.conv.": f"{_TASKS}to_depth.conv.",
    f"{_ATTENTION}D.S.attention.0.": f"{_TASKS}to_depth.gate.",
    "heads.S.": f"{_TASKS}segmentation.",
    "heads.D.": f"{_TASKS}target_depth.",
    "heads.D_src.": f"{_TASKS}source_depth.",
    **{part: f"encoder.{part}" for part in ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")},
}
# The released code returns from inside its loop over the dilations 6, 12, 18, 24, so the last two are never used.
UNUSED_DILATION = re.compile(r"\.conv2d_list\.[23]\.")
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


@dataclass(frozen=True)
class Dropped:
    """A group of tensors that is not converted: the reason, and their number."""

    why: str
    count: int


@dataclass(frozen=True)
class Official:
    """A released checkpoint with our parameter names.

    Attributes:
        kind: readable description.
        overrides: Hydra overrides that compose the same architecture.
        student: names as in `Segmentor.state_dict`.
        teacher: likewise, with the student's batch-norm statistics; empty if the file has no EMA copy.
        outside: parameters of the method outside of the network.
        dropped: groups that are not converted.
        untrained: name prefixes of our network that the file lacks because nothing reads them; filled with zeros.
        step: number of optimiser steps, 0 if the file does not tell.
    """

    kind: str
    overrides: tuple[str, ...]
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    outside: dict[str, Tensor] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    untrained: tuple[str, ...] = ()
    step: int = 0


def recognise(content: Mapping[str, object], path: Path) -> Official:
    """Recognise a file by its keys and rename the parameters of its networks.

    Args:
        content: of `weights.read_tensors`.
        path: for error messages.

    Raises:
        UserError: unknown kind of file, or unknown tensors in it.
    """
    if "uda_seg" in content:
        raise UserError(f"{path} is a checkpoint of uda_seg already: give it as checkpoint= or init=")
    student = _tensors(content.get("model"))
    if any(name.startswith(_INITIAL) for name in student):
        return _corda(student, _tensors(content.get("ema_model")), path, _number(content.get("iteration")))
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    tensors = _tensors(content.get("state_dict")) or student or _tensors(content)
    return _mmcv(tensors, path, str(meta.get("config", "")), _number(meta.get("iter")))


def _tensors(content: object) -> dict[str, Tensor]:
    found = content if isinstance(content, Mapping) else {}
    # Every parameter and running statistic has a dimension; batch norm's step counter has none.
    tensors = {
        str(name): value
        for name, value in found.items()
        if isinstance(value, Tensor) and (value.dim() > 0 or str(name).endswith("num_batches_tracked"))
    }
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


# ---------------------------------------------------------------------------------------------------- mmcv


def _mmcv(tensors: Mapping[str, Tensor], path: Path, config: str, step: int) -> Official:
    trainer = any(name.startswith(STUDENT) for name in tensors)
    known = (STUDENT, TEACHER, PROJECTION, *TRAINING_ONLY) if trainer else tuple(NETWORK)
    strange = [name for name in tensors if not name.startswith(known)]
    student = _part(tensors, STUDENT) if trainer else dict(tensors)
    if strange or not any(name.startswith("decode_head.") for name in student):
        raise _unknown(tensors, strange, path)
    dropped = [Dropped(why, len(_part(tensors, prefix))) for prefix, why in TRAINING_ONLY.items() if trainer]
    dropped.append(Dropped("ImageNet classifier of the encoder", len(_part(student, CLASSIFIER))))
    kind, overrides = _structure(student, path)
    if kind != "LC-MSM":
        masked = re.search(r"mask_mode['\"]?\s*[=:]\s*['\"]separate", config) is not None
        overrides = (f"method={('mic' if masked else 'daformer') if trainer else 'source_only'}", *overrides)
        kind = f"MIC ({kind})" if masked else kind
    renamed, averaged = _network(student, path), _network(_part(tensors, TEACHER), path)
    projection = {f"projection.{name}": value for name, value in _part(tensors, PROJECTION).items()}
    return Official(
        kind=kind,
        overrides=overrides,
        student=renamed,
        teacher=_with_statistics(averaged, renamed),
        outside=projection,
        dropped=tuple(d for d in dropped if d.count),
        step=step,
    )


def _network(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    return _renamed({n: t for n, t in tensors.items() if not n.startswith(CLASSIFIER)}, NETWORK, path)


def _renamed(tensors: Mapping[str, Tensor], table: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in table if name.startswith(prefix)), None)
        if prefix is None:
            raise UserError(f"{path}: {name} is of no network that is known here; it cannot be converted")
        renamed[table[prefix] + name.removeprefix(prefix)] = tensor
    return renamed


def _structure(student: Mapping[str, Tensor], path: Path) -> tuple[str, tuple[str, ...]]:
    """Describe a MiT segmentor and return the overrides that compose it."""
    multiresolution = any(name.startswith("decode_head.scale_attention.") for name in student)
    head = "decode_head.head." if multiresolution else "decode_head."
    names = (f"{head}embed_layers.0.proj.weight", f"{head}conv_seg.weight")
    if missing := [name for name in names if name not in student]:
        raise UserError(
            f"{path}: its decoder is not DAFormer's ({missing[0]} is missing); DAFormer, HRDA, MIC, LC-MSM and CorDA "
            "can be converted"
        )
    embedding, classifier = (student[name] for name in names)
    encoder, width = _variant(student), len(embedding)
    wide = width == 512 and not multiresolution
    model = ["model=daformer512_mitb5" if wide else "model=daformer_mitb5"]
    if multiresolution:
        attention = student.get("decode_head.scale_attention.conv_seg.bias", classifier)
        model = ["model=hrda_mitb5", "data=gta2cs_hr", "evaluator=slide"]
        model += ["evaluator.window=[1024,1024]", "evaluator.stride=[512,512]"]
        model += ["model.attention=shared"] if len(attention) < len(classifier) else []
    model += [f"model.encoder.variant={encoder}"] if encoder != "b5" else []
    model += [f"model.head.width={width}"] if not wide and width != 256 else []
    if any(name.startswith("vlc_head.") for name in student):
        return "LC-MSM", ("method=lcmsm", *model)
    return ("HRDA" if multiresolution else "DAFormer"), tuple(model)


def _variant(student: Mapping[str, Tensor]) -> str:
    """Infer the MiT variant from the number of blocks and the first width; b5 if none matches."""
    numbers = [re.match(r"backbone\.block(\d)\.(\d+)\.", name) for name in student]
    blocks = {(found[1], found[2]) for found in numbers if found}
    depths = tuple(sum(stage == str(i) for stage, _ in blocks) for i in range(1, 5))
    first = student.get("backbone.norm1.weight")
    if first is not None and len(first) == 32 and depths == DEPTHS["b0"]:
        return "b0"
    return next((name for name, known in DEPTHS.items() if known == depths and name != "b0"), "b5")


def _with_statistics(teacher: dict[str, Tensor], student: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the EMA copy the student's batch-norm statistics.

    The released trainers average only parameters and run the copy on batch statistics, so the statistics in its buffers
    were never used.
    """
    return {name: student[name] if name.endswith(STATISTICS) and name in student else t for name, t in teacher.items()}


def _unknown(tensors: Mapping[str, Tensor], strange: list[str], path: Path) -> UserError:
    if any(name.startswith(("block1.0.", "layer1.0.", "Scale.")) for name in tensors):
        return UserError(f"{path} has no decoder that is known here: its encoder alone can be used, pretrained={path}")
    first = f" (it has {(strange or list(tensors))[0]})" if tensors else " (it holds no tensors)"
    return UserError(
        f"{path} is of no network that is known here{first}; checkpoints of DAFormer, HRDA, MIC, LC-MSM and CorDA can "
        "be converted"
    )


# ---------------------------------------------------------------------------------------------------- CorDA


def _corda(student: dict[str, Tensor], teacher: dict[str, Tensor], path: Path, step: int) -> Official:
    gta = any(name.startswith(f"{_INITIAL}conv_out.S.conv2d_list.") for name in student)
    unused = [name for name in student if UNUSED_DILATION.search(name)]
    renamed, averaged = (
        _renamed({n: t for n, t in tensors.items() if not UNUSED_DILATION.search(n)}, CORDA, path)
        for tensors in (student, teacher)
    )
    # The SYNTHIA model has no classifier on the encoder; ours keeps the plain one, with all of its dilations.
    main = ("model.head.dilations=[6,12]", "method.initial=main", "method.label_by_initial=0.100004")
    initial = main if gta else ("method.initial=features",)
    return Official(
        kind=f"CorDA ({'GTA' if gta else 'SYNTHIA'})",
        overrides=(
            *("method=corda", "model=deeplabv2_r101", f"data={'gta2cs' if gta else 'synthia2cs'}"),
            *("model.encoder.freeze_norm=true", "model.align_corners=true", "method.dilations=[6,12]", *initial),
            *("method.depth_weight=batch_mean", "method.depth_start=0.0", "method.jitter_order=bgr"),
            *("method.mix_classes=image_and_ignore", "method.encoder_updates=released", "teacher.batch_norm=train"),
            *("method.augment_draws=released", "data.validation.cityscapes.image_resize=pil_bilinear"),
        ),
        student=renamed,
        teacher=_with_statistics(averaged, renamed),
        dropped=(Dropped("dilations 18 and 24: the released code never used them", len(unused)),) if unused else (),
        # The SYNTHIA model has no classifier on the encoder itself; ours keeps one, which CorDA does not read.
        untrained=() if gta else ("heads.main.",),
        step=step,
    )
