"""Schema of the configuration, and its validation with errors of one line."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uda_seg.data.custom import CustomClasses, CustomData, classes_of
from uda_seg.data.settings import DataSettings, DomainSettings, PackSettings, StreetsSettings
from uda_seg.data.specs import DatasetSpec
from uda_seg.errors import UserError
from uda_seg.evaluation.servers import SERVERS
from uda_seg.methods.base import UDAModule
from uda_seg.methods.options.base import options_of
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
    check_target,
    class_of,
    defaults,
    expand_home,
    leaves,
    nearest,
    options,
    read,
    shown,
)

Domain = Annotated[str, OneOf(("source", "target"))]

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"


@dataclass
class TrainerSettings:
    """Hardware settings; except for `precision` they do not change the mathematics.

    Attributes:
        accelerator: cpu, gpu (or its synonym cuda), mps (Apple) or auto.
        devices: number of devices, or auto.
        num_nodes: number of machines.
        strategy: `auto` is ddp on two or more devices; `ddp` also on one.
        precision: `auto` is bf16-mixed on devices with fast bf16, otherwise 32-true.
        max_steps: stop early after this many steps with the schedule unchanged; null runs all of `steps`.
        timeout: seconds that a rank waits for others before it fails.
        sync_batchnorm: batch-norm statistics over all ranks (only GPUs).
        deterministic: Lightning's flag: true, false or `warn`.
        benchmark: let cuDNN select the fastest convolution for every new size.
        profiler: simple, advanced or null.
        overfit: train repeatedly on the first batch.
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
        log_every: steps between log entries.
        project: W&B project.
        offline: W&B writes only to the run's folder.
        tags: W&B tags.
    """

    kind: Annotated[str, OneOf(("csv", "wandb", "tensorboard"))] = "csv"
    log_every: Count = 20
    project: Text = "uda_seg"
    offline: bool = False
    tags: list[Text] = field(default_factory=list)


@dataclass
class CallbackSettings:
    """Frequencies of callbacks, in times per run.

    Attributes:
        checkpoints: number of times that `last.ckpt` is written.
        panels: number of times that image panels are written; 0: never.
        progress: show a progress bar (plain lines without a terminal).
        others: further Lightning callbacks by name, each a class with its options; in files and on the command line
            they are next to the settings above.
    """

    checkpoints: Count = 5
    panels: CountOrZero = 4
    progress: bool = True
    others: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluatorSettings:
    """Evaluation settings.

    Attributes:
        times: validations per run, the last one at its end.
        inference: `whole` images or sliding windows (`slide`).
        window: height and width of the window.
        stride: vertical and horizontal stride of the window.
        windows_per_batch: windows per image in one forward.
        scales: scales of multi-scale inference, relative to the network's input size.
        flip: add a horizontally flipped view of each scale.
        average: quantity averaged over scales and flips: `probabilities` (the papers' codes) or `logits`.
        teacher: also score the teacher.
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
    """Block masking of images, for the methods that use it.

    Attributes:
        weight: weight of the loss on masked images.
        ratio: expected share of masked pixels.
    """

    weight: LossWeight = 1.0
    ratio: Fraction = 0.7


@dataclass
class PredictSettings:
    """Input settings of `predict`.

    Attributes:
        size: [height, width] that images are resized to fit inside; `auto`: that of the validation images, on which the
            network was scored; null: no resize.
        bits: used bits per channel of 16-bit images; null: as in training, or determined from the images.
    """

    size: Annotated[Any, PixelSize(("auto", None))] = "auto"
    bits: BitDepth | None = None


@dataclass
class ConvertSettings:
    """Settings of `convert`.

    Attributes:
        teacher: use the EMA copy as the student; `teacher=true` on the command line is short for it.
    """

    teacher: bool = False


@dataclass
class DepthSettings:
    """Settings of `depth`; defaults: Monodepth2 (Godard et al. 2019).

    Attributes:
        supervision: `stereo` pairs, `monocular` sequences, or `both`.
        domains: training domains: source, target.
        steps: optimiser steps.
        batch: images per step and rank.
        lr: learning rate of Adam, with polynomial decay.
        encoder_lr: learning rate of the depth network's encoder relative to `lr`.
        pose_scale: input scale of the pose network.
        clip_norm: maximum L2 norm of the gradient; null: no clipping.
        widths: channels of the decoder, full resolution first.
        scales: number of supervised decoder levels.
        smooth: weight of the smoothness at the finest level.
        auto_mask: leave out pixels that are static relative to the camera.
        nearest: depth at disparity 1, in the network's unit (the stereo baseline is a tenth of it).
        farthest: depth at disparity 0.
        crop: [height, width] of training crops; null: whole images.
        flip: flip half of the images horizontally.
        jitter: strength of the colour jitter.
        val_count: number of images of streets' validation split to score.
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
    """Settings of `bench`.

    Attributes:
        what: overhead, methods, evaluator, mixing, memory, render, ema, reading, busy, classic, precision, phases,
            `all` of them, or against.
        pairs: number of A/B pairs whose median is the ratio.
        steps: training steps in each half of a pair.
        scenes: scenes to render of each domain of streets.
        habits: habits of the original repositories that `classic` has.
        tf32: `classic` uses TF32 on a GPU, as under PyTorch 1.7, instead of full float32.
        against: overrides of the other configuration; `against.KEY=VALUE` on the command line.
        output: JSON file of the results.
    """

    what: Annotated[list[str], Length(1, 32)] = field(default_factory=lambda: ["all"])
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
        steps: optimiser steps of the whole run; schedule, warm-up and rounds scale with it.
        seed: seed of training; the rendered world has `data.world_seed`.
        init: checkpoint with the initial weights of a new run.
        resume: `last`, or a checkpoint, to continue a run from.
        checkpoint: checkpoint for `evaluate` and `predict`.
        submission: `evaluate`: write files for this benchmark's test server instead of scoring.
        overwrite: replace the run in this folder as soon as the new one has a checkpoint.
        running_statistics: batch-norm statistics at test: `all`, `mixed` or `target` (AdaBN).
        statistics_batches: number of target batches for `target`.
        text: source of LC-MSM's class-text embeddings.
        pretrained: the encoder's initial weights: `imagenet`, `builtin` (of the small networks), the path of a weights
            file, `hub:owner/repository` (Hugging Face), `timm:tag` (model=timm), or null.
        pretrained_allow_missing: names of the encoder's tensors or modules that the file may lack.
        input: `predict`: a folder of images, or one image.
        output: `predict`: output folder.
        export: `depth`: write maps of the source and the target.
        official: `convert`: the released checkpoint.
        out: `convert`: the file to write.
        fix: `prepare`: repair damaged data if possible.
        unpack: `prepare`: unpack ZIPs in a root if folders are missing (`auto`), all missing files (`all`), or `never`.
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

    def __post_init__(self) -> None:
        """Leave room for what the configuration was composed from, which is not part of the schema."""
        self.origin: Origin | None = None


@dataclass(frozen=True)
class Origin:
    """Sources of a configuration: the choice in each group, and the overrides."""

    choices: Mapping[str, str]
    overrides: Sequence[str]

    @classmethod
    def of(cls, hydra: Any) -> Origin:
        """Read them from Hydra's own node."""
        choices = {k: str(v) for k, v in hydra.runtime.choices.items() if k in groups() and v is not None}
        return cls(choices, [str(override) for override in hydra.overrides.task])


def parse(raw: DictConfig) -> Config:
    """Validate a composed configuration, convert it to dataclasses, and expand `~` in paths.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type or out of range, or impossible
            sizes.
    """
    try:
        plain = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key or "?")
        raise UserError(f"configuration: {key}: {shown(str(error).splitlines()[0])}") from error
    except RecursionError as error:
        raise UserError("configuration: values are nested too deeply, or refer to each other in a circle") from error
    config = read(_callbacks_apart(_without_null_domains(plain)), Config)
    config.method = _checked_method(config.method)
    check_target(config.model, "model", Segmentor)
    for name, node in config.callbacks.others.items():
        check_target(node, f"callbacks.{name}", pl.Callback)
    for key, domain in config.data.domains.items():
        if has_target(domain.custom):
            check_target(domain.custom, f"{key}.custom", DatasetSpec)
    _check_data(config)
    _check_sizes(config)
    expand_home(config)
    return config


def _checked_method(node: Mapping[str, Any]) -> dict[str, Any]:
    """Check a method's node, and add the defaults of its options.

    Raises:
        UserError: a class that is no method, or an unknown, missing or invalid option.
    """
    method = class_of(node.get("_target_"), "method")
    if issubclass(method, UDAModule):
        options_of(method)
    check_target(node, "method", UDAModule)
    return {"_target_": node["_target_"], **defaults(method), **node}


def _without_null_domains(tree: Any) -> Any:
    """Remove named domains that are null, with which a data set drops inherited ones."""
    data = tree.get("data")
    if not isinstance(data, Mapping):
        return tree
    named = {key: data.get(key, {}) or {} for key in ("more_sources", "more_targets", "validation")}
    kept = {
        key: {name: domain for name, domain in sets.items() if domain is not None}
        for key, sets in named.items()
        if isinstance(sets, Mapping)
    }
    return {**tree, "data": {**data, **kept}}


def _callbacks_apart(tree: Any) -> Any:
    """Move callbacks that stand beside our settings to `others`, without those that are null."""
    callbacks = tree.get("callbacks")
    if not isinstance(callbacks, Mapping) or not isinstance(callbacks.get("others", {}), Mapping | None):
        return tree
    known = {f.name for f in fields(CallbackSettings)}
    kept = {name: value for name, value in callbacks.items() if name in known}
    others = {**(kept.get("others") or {}), **{n: node for n, node in callbacks.items() if n not in known}}
    for name, node in others.items():
        if node is not None and not has_target(node):
            hint = nearest(f"callbacks.{name}", [f"callbacks.{other}" for other in callbacks if other != name])
            raise UserError(f"callbacks.{name}={shown(node)} has no _target_, the class of the callback; {hint}")
    return {**tree, "callbacks": {**kept, "others": {n: node for n, node in others.items() if node is not None}}}


def has_target(node: object) -> bool:
    """Check whether a value is a node that builds a class."""
    return isinstance(node, Mapping) and "_target_" in node


def can_name_a_class(key: str) -> bool:
    """Check whether a class may be added at this key: a callback, or a custom data set."""
    domain = r"data\.(source|target|(more_sources|more_targets|validation)\.[\w-]+)"
    return re.fullmatch(rf"callbacks\.[\w-]+|{domain}\.custom", key) is not None


def key_of(override: str) -> str:
    """Return the key of an override `key=value`, `+key=value`, `++key=value` or `~key`."""
    return override.lstrip("+~").partition("=")[0]


def groups() -> set[str]:
    """Return the configuration's groups, the folders of `conf/`."""
    return {path.name for path in CONF.iterdir() if path.is_dir()}


# Untyped nodes, and the type of their values.
_DESCRIBED: dict[tuple[type, str], Any] = {
    (DomainSettings, "custom"): CustomData,
    (DataSettings, "class_set"): CustomClasses,
    (CustomData, "label_map"): dict[int, Any],
}


def accepted(tree: Mapping[str, Any], asked: str = "") -> Iterator[str]:
    """Yield every dotted key that a composed tree could contain: the schema's, and options of its classes.

    Args:
        tree: plain values, including freely named nodes (validation sets).
        asked: a key whose parts substitute freely chosen names.
    """
    yield from _keys(Config, "", asked.split("."), tree)
    for key, node in leaves(tree):
        if isinstance(node, Mapping) and "_target_" in node:
            yield from (f"{key}.{option}" for option in options(node["_target_"], key))
            if can_name_a_class(key):
                yield from (key, f"{key}._target_")


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
                # A validation set has to exist or be added, and classes to build define their own options.
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
    domains = data.sources | data.targets
    sizes = {f"{name}.size": domain.size for name, domain in domains.items()}
    sizes |= {"data.crop": data.crop, "depth.crop": config.depth.crop}
    read = {"data.crop": list(domains), "depth.crop": [f"data.{name}" for name in config.depth.domains]}
    for key, names in read.items():
        for domain in (f"{name}.size" for name in names):
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
