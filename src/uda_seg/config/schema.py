"""The schema of the configuration, and what is wrong with one, said in a line before anything is built."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from uda_seg.data.custom import CustomClasses, CustomData, classes_of
from uda_seg.data.settings import DataSettings, DomainSettings, PackSettings, StreetsSettings
from uda_seg.errors import UserError
from uda_seg.evaluation.servers import SERVERS
from uda_seg.methods.base import UDAModule
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings, TeacherSettings
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.text import SOURCES
from uda_seg.options.constraints import (
    BitDepth,
    Channels,
    Count,
    CountOrZero,
    FilePath,
    Fraction,
    Interval,
    Length,
    LossWeight,
    OneOf,
    PixelSize,
    Rate,
    Ratio,
    Size,
    Text,
)
from uda_seg.options.validate import (
    check_plain,
    check_settings,
    check_target,
    expand_home,
    leaves,
    nearest,
    options,
    shown,
)

Domain = Annotated[str, OneOf(("source", "target"))]

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"


@dataclass
class TrainerSettings:
    """Hardware, and nothing that changes the mathematics (but `precision`).

    Attributes:
        accelerator: cpu, gpu (or cuda, the same), mps (Apple's) or auto.
        devices: number of devices, or auto.
        num_nodes: machines.
        strategy: auto is ddp from two devices on; `ddp` is it on one device too.
        precision: `auto` is bf16-mixed where the device computes it fast, 32-true elsewhere.
        max_steps: stop early after this many steps, the schedule unchanged; null runs all of `steps`.
        timeout: seconds that a rank waits for the others before it gives up.
        sync_batchnorm: batch-norm statistics over all ranks (GPUs alone).
        deterministic: Lightning's flag; `warn` is its third value.
        benchmark: let cuDNN try its convolutions out for every new size, and take the fastest.
        profiler: simple, advanced or null.
        overfit: train on the first batch again and again.
    """

    accelerator: Annotated[str, OneOf(("auto", "cpu", "gpu", "cuda", "mps"))] = "auto"
    devices: Any = "auto"
    num_nodes: Count = 1
    strategy: Annotated[str, OneOf(("auto", "ddp"))] = "auto"
    precision: Annotated[str, OneOf(("auto", "32-true", "bf16-mixed"))] = "auto"
    max_steps: Count | None = None
    timeout: Count = 1800
    sync_batchnorm: bool = False
    deterministic: Annotated[Any, OneOf((False, True, "warn"))] = False
    benchmark: bool = False
    profiler: Annotated[str | None, OneOf(("simple", "advanced", None))] = None
    overfit: bool = False


@dataclass
class LoggerSettings:
    """`csv` is always written; `kind` adds wandb or tensorboard.

    Attributes:
        kind: csv, wandb or tensorboard.
        log_every: steps between two logged points.
        project: W&B project.
        offline: W&B writes to the run's folder alone.
        tags: W&B tags.
    """

    kind: Annotated[str, OneOf(("csv", "wandb", "tensorboard"))] = "csv"
    log_every: Count = 20
    project: Text = "uda_seg"
    offline: bool = False
    tags: list[Text] = field(default_factory=list)


@dataclass
class CallbackSettings:
    """How often things around the step happen, in times a run.

    Attributes:
        checkpoints: how often `last.ckpt` is written.
        panels: how often the picture panels are written; 0 never.
        progress: show a progress bar (plain lines where there is no terminal).
    """

    checkpoints: Count = 5
    panels: CountOrZero = 4
    progress: bool = True


@dataclass
class EvaluatorSettings:
    """How a network is scored.

    Attributes:
        times: validations a run, the last one at its end.
        inference: `whole` images or a sliding `slide` window.
        window: height and width of the window.
        stride: vertical and horizontal stride of the window.
        windows_per_batch: windows that go through the network at once.
        scales: sizes at which each image is looked at, relative to that which the network gets.
        flip: look at each of them mirrored left-right too.
        average: what is averaged over scales and mirrored images: `probabilities` (the papers' codes) or `logits`.
        teacher: score the teacher too.
    """

    times: Count = 2
    inference: Annotated[str, OneOf(("whole", "slide"))] = "whole"
    window: Size = field(default_factory=lambda: [512, 512])
    stride: Size = field(default_factory=lambda: [256, 256])
    windows_per_batch: Count = 8
    scales: Annotated[list[Annotated[float, Interval(0.01, 10)]], Length(1, 32)] = field(default_factory=lambda: [1.0])
    flip: bool = False
    average: Annotated[str, OneOf(("probabilities", "logits"))] = "probabilities"
    teacher: bool = False


@dataclass
class MaskingSettings:
    """How methods that predict from block-masked images mask them.

    Attributes:
        weight: of the loss on such images.
        ratio: expected share of masked pixels.
    """

    weight: LossWeight = 1.0
    ratio: Fraction = 0.7


@dataclass
class PredictSettings:
    """How `predict` reads images.

    Attributes:
        size: [height, width] they are resized to fit into before the network; `auto`: that of the validation images,
            by which the network was scored; null: as they are.
        bits: how many of 16 bits a channel the images use; null: as in training, or found in the images.
    """

    size: Annotated[Any, PixelSize(("auto", None))] = "auto"
    bits: BitDepth | None = None


@dataclass
class ConvertSettings:
    """What `convert` takes from a released checkpoint.

    Attributes:
        teacher: the averaged copy in the student's place; `teacher=true` on the command line means this.
    """

    teacher: bool = False


@dataclass
class DepthSettings:
    """How `depth` learns, and from what; defaults: Monodepth2 (Godard et al. 2019).

    Attributes:
        supervision: `stereo` pairs, `monocular` sequences, or `both`.
        domains: whose images are learnt from: source, target.
        steps: optimiser steps.
        batch: images per step and rank.
        lr: learning rate of Adam, decayed polynomially.
        encoder_lr: that of the depth network's encoder relative to `lr`.
        pose_scale: size at which the pose network sees images, relative to theirs.
        clip_norm: largest L2 norm of the gradient; null leaves it alone.
        widths: channels of the decoder, full resolution first.
        scales: levels of the decoder that are supervised.
        smooth: weight of the smoothness at the finest level.
        auto_mask: leave pixels out that stand still relative to the camera.
        nearest: depth at disparity 1, in the network's unit (ten of which are a stereo baseline).
        farthest: depth at disparity 0.
        crop: [height, width] of the window depth is learnt in; null: whole images.
        flip: mirror half of the images.
        jitter: strength of the colour jitter.
        val_count: images of streets' validation split that are scored.
    """

    supervision: Annotated[str, OneOf(("stereo", "monocular", "both"))] = "stereo"
    domains: Annotated[list[Domain], Length(1, 2)] = field(default_factory=lambda: ["source", "target"])
    steps: Count = 40000
    batch: Count = 12
    lr: Rate = 1e-4
    encoder_lr: Ratio = 1.0
    pose_scale: Annotated[float, Interval(0.05, 1)] = 1.0
    clip_norm: Ratio | None = None
    widths: Annotated[list[Channels], Length(1, 16)] = field(default_factory=lambda: [16, 32, 64, 128, 256])
    scales: Annotated[int, Interval(1, 5)] = 4
    smooth: LossWeight = 1e-3
    auto_mask: bool = True
    nearest: Ratio = 0.1
    farthest: Ratio = 100.0
    crop: Size | None = None
    flip: bool = True
    jitter: Fraction = 0.1
    val_count: Count = 100


@dataclass
class BenchSettings:
    """What `bench` measures.

    Attributes:
        what: overhead, methods, evaluator, mixing, memory, render, ema, reading, busy, classic, precision, phases,
            `all` of them, or against.
        pairs: A/B pairs a ratio is the median of.
        steps: training steps in each half of a pair.
        scenes: scenes of each domain of streets that are rendered.
        habits: of the original repositories, those that `classic` has.
        tf32: whether `classic` multiplies and convolves in TF32 on a GPU, as under torch 1.7, or in full float32.
        against: overrides that tell another configuration from this one; `against.KEY=VALUE` on the command line.
        output: JSON file of the figures.
    """

    what: list[str] = field(default_factory=lambda: ["all"])
    pairs: Count = 5
    steps: Count = 10
    scenes: Count = 100
    habits: list[Annotated[str, OneOf(("backward", "ema", "augment", "item"))]] = field(
        default_factory=lambda: ["backward", "ema", "augment", "item"]
    )
    tf32: bool = True
    against: list[str] = field(default_factory=list)
    output: FilePath = "outputs/bench/bench.json"


@dataclass
class Config:
    """One run.

    Attributes:
        steps: optimiser steps of the whole run; schedule, warm-up and every round scale with it.
        seed: drives training; the rendered world has `data.world_seed`.
        init: checkpoint whose weights a new run starts from.
        resume: `last`, or a checkpoint, to continue a run from.
        checkpoint: what `evaluate` and `predict` read.
        submission: `evaluate`: write the files that this benchmark's server scores, instead of scoring.
        overwrite: true replaces the run that lies in this folder, as soon as the new one has a checkpoint.
        running_statistics: statistics used by batch norm at test: `all`, `mixed` or `target` (AdaBN).
        statistics_batches: target batches that `target` averages over.
        text: where LC-MSM's class-text embeddings come from.
        pretrained: the encoder's initial weights: `imagenet`, `builtin` (of the small networks), the path of a weights
            file, `hub:owner/repository` (Hugging Face), `timm:tag` (model=timm), or null.
        pretrained_allow_missing: names of the encoder's tensors or modules that the file may lack.
        input: `predict`: a folder of images, or one image.
        output: `predict`: where its pictures go.
        export: `depth`: write maps of the source and the target.
        official: `convert`: the released checkpoint.
        out: `convert`: the file to write.
        fix: `prepare`: repair damaged data where that is possible.
        unpack: `prepare`: unpack ZIPs in a root if folders are missing (`auto`), each missing file (`all`), or `never`.
    """

    steps: Count
    seed: Annotated[int, Interval(0, 2**32 - 1)]
    model: dict[str, Any]
    method: dict[str, Any]
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    callbacks: CallbackSettings = field(default_factory=CallbackSettings)
    evaluator: EvaluatorSettings = field(default_factory=EvaluatorSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    depth: DepthSettings = field(default_factory=DepthSettings)
    bench: BenchSettings = field(default_factory=BenchSettings)
    streets: StreetsSettings = field(default_factory=StreetsSettings)
    pack: PackSettings = field(default_factory=PackSettings)
    convert: ConvertSettings = field(default_factory=ConvertSettings)
    init: FilePath | None = None
    resume: FilePath | None = None
    checkpoint: FilePath | None = None
    submission: Annotated[str | None, OneOf((*SERVERS, None))] = None
    overwrite: bool = False
    running_statistics: Annotated[str, OneOf(("all", "mixed", "target"))] = "all"
    statistics_batches: Count = 40
    text: Annotated[str, OneOf((*SOURCES, "none"))] = "openclip"
    pretrained: FilePath | None = "imagenet"
    pretrained_allow_missing: list[Text] = field(default_factory=list)
    input: FilePath | None = None
    output: FilePath | None = None
    export: bool = False
    official: FilePath | None = None
    out: FilePath | None = None
    fix: bool = False
    unpack: Annotated[str, OneOf(("auto", "all", "never"))] = "auto"


def parse(raw: DictConfig) -> Config:
    """Check a composed configuration against the schema and give it as dataclasses, `~` in paths put right.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type or outside its limits, or
            sizes that cannot be.
    """
    typed = _typed()
    try:
        plain = _without_null_validation(OmegaConf.to_container(raw, resolve=True))
        check_plain(plain, Config)
        config = OmegaConf.to_object(OmegaConf.merge(typed, plain))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key or "?")
        known = [k for k, _ in leaves(OmegaConf.to_container(typed))]
        hint = f"; {nearest(key, known)}" if isinstance(error, ConfigKeyError) else ""
        raise UserError(f"configuration: {key}: {shown(str(error).splitlines()[0])}{hint}") from error
    except RecursionError as error:
        raise UserError("configuration: values are nested too deeply, or refer to each other in a circle") from error
    assert isinstance(config, Config)
    check_target(config.method, "method", UDAModule)
    check_target(config.model, "model", Segmentor)
    check_settings(config)
    _check_data(config)
    _check_sizes(config)
    expand_home(config)
    return config


@functools.cache
def _typed() -> DictConfig:
    """The schema as OmegaConf knows it; making it takes longer than all the rest of a check."""
    typed: DictConfig = OmegaConf.structured(Config)
    return typed


def _without_null_validation(tree: Any) -> Any:
    """A validation set that is null is none: so a data set can leave out one that it inherits, or all of them."""
    data = tree.get("data")
    sets = data.get("validation", {}) if isinstance(data, Mapping) else {}
    if not isinstance(sets, Mapping | None):
        return tree
    kept = {name: domain for name, domain in (sets or {}).items() if domain is not None}
    return {**tree, "data": {**data, "validation": kept}}


def key_of(override: str) -> str:
    """The key of an override as it is written: `key=value`, `+key=value`, `++key=value` or `~key`."""
    return override.lstrip("+~").partition("=")[0]


def groups() -> set[str]:
    """The configuration's groups: the folders of `conf/`."""
    return {path.name for path in CONF.iterdir() if path.is_dir()}


# Nodes that hold anything by their type, and what they are a mapping of.
_DESCRIBED: dict[tuple[type, str], Any] = {
    (DomainSettings, "custom"): CustomData,
    (DataSettings, "class_set"): CustomClasses,
    (CustomData, "label_map"): dict[int, Any],
}


def accepted(tree: Mapping[str, Any], asked: str = "") -> Iterator[str]:
    """Every dotted key that a composed tree could hold: the schema's, and what the classes it names take.

    Args:
        tree: plain values; what it names itself (validation sets) is named so.
        asked: a key whose own parts stand for the names of things that are named freely.
    """
    yield from _keys(Config, "", asked.split("."), tree)
    for key, node in leaves(tree):
        if isinstance(node, Mapping) and "_target_" in node:
            yield from (f"{key}.{option}" for option in options(node["_target_"], key))


def _keys(kind: type, where: str, asked: Sequence[str], tree: Any) -> Iterator[str]:
    for name, hint in typing.get_type_hints(kind).items():
        node = tree.get(name) if isinstance(tree, Mapping) else None
        rest = asked[1:] if asked[:1] == [name] else []
        yield f"{where}{name}"
        described = _DESCRIBED.get((kind, name), hint)
        for option in typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (described,):
            if is_dataclass(option):
                yield from _keys(typing.cast(type, option), f"{where}{name}.", rest, node)
            elif typing.get_origin(option) is dict:
                inner = typing.get_args(option)[1]
                # A set of validation images has to be there or added, and classes to build know their own options.
                free = kind is not Config and not is_dataclass(inner)
                named = [*(node if isinstance(node, Mapping) else ()), *(rest[:1] if free else ())]
                yield from _named(inner, f"{where}{name}.", named, rest[1:], node)


def _named(kind: Any, where: str, names: Sequence[Any], asked: Sequence[str], tree: Any) -> Iterator[str]:
    for name in names:
        yield f"{where}{name}"
        if is_dataclass(kind):
            node = tree.get(name) if isinstance(tree, Mapping) else None
            yield from _keys(typing.cast(type, kind), f"{where}{name}.", asked, node)


def _check_data(config: Config) -> None:
    data, parts = config.data, config.optimizer.accumulate
    if data.class_set is not None and data.classes != "custom":
        raise UserError(f"data.class_set is given, but data.classes={data.classes}: add data.classes=custom")
    classes_of(data).subset(data.eval_classes)
    if config.depth.nearest >= config.depth.farthest:
        raise UserError(f"depth.nearest={config.depth.nearest} must be below depth.farthest={config.depth.farthest}")
    batches = {"data.source_batch": data.source_batch, "data.target_batch": data.target_batch or data.source_batch}
    for key, batch in batches.items():
        if batch % parts:
            raise UserError(f"optimizer.accumulate={parts} must divide {key}={batch}")


def _check_sizes(config: Config) -> None:
    data, evaluator = config.data, config.evaluator
    domains = {"data.source": data.source, "data.target": data.target}
    sizes = {f"{name}.size": domain.size for name, domain in domains.items() if domain is not None}
    sizes |= {"data.crop": data.crop, "depth.crop": config.depth.crop}
    read = {"data.crop": ("source", "target"), "depth.crop": config.depth.domains}
    for key, names in read.items():
        for domain in (f"data.{name}.size" for name in names):
            crop, size = sizes[key], sizes.get(domain)
            if crop is not None and size is not None and (crop[0] > size[0] or crop[1] > size[1]):
                raise UserError(f"{key}={crop} is larger than {domain}={size} (height, width): make the crop smaller")
    if evaluator.inference == "slide":
        for window, stride in zip(evaluator.window, evaluator.stride, strict=True):
            if stride > window:
                raise UserError(
                    f"evaluator.stride={evaluator.stride} is larger than evaluator.window={evaluator.window}: "
                    "pixels between two windows would have no prediction"
                )
