"""The schema of the configuration, and what is wrong with one, said in a line before anything is built."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from uda_seg.data.labels import CLASS_SETS
from uda_seg.data.settings import DataSettings
from uda_seg.errors import UserError
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings, TeacherSettings

_PACKAGE = Path(__file__).resolve().parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"


@dataclass
class TrainerSettings:
    """Hardware, and nothing that changes the mathematics (but `precision`).

    Attributes:
        accelerator: cpu, gpu or auto.
        devices: number of devices, or auto.
        num_nodes: machines.
        strategy: Lightning's strategy; auto is ddp from two devices on.
        precision: `auto` is bf16-mixed where the device computes it fast, 32-true elsewhere.
        max_steps: stop early after this many steps, the schedule unchanged; null runs all of `steps`.
        sync_batchnorm: batch-norm statistics over all ranks.
        deterministic: Lightning's flag; `warn` is its third value.
        profiler: simple, advanced or null.
        overfit: train on the first batch again and again.
    """

    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    max_steps: int | None = None
    sync_batchnorm: bool = False
    deterministic: Any = False
    profiler: str | None = None
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

    kind: str = "csv"
    log_every: int = 20
    project: str = "uda_seg"
    offline: bool = False
    tags: list[str] = field(default_factory=list)


@dataclass
class CallbackSettings:
    """How often things around the step happen, in times a run.

    Attributes:
        checkpoints: how often `last.ckpt` is written.
        panels: how often the picture panels are written; 0 never.
        progress: show a progress bar (plain lines where there is no terminal).
    """

    checkpoints: int = 5
    panels: int = 4
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
        teacher: score the teacher too.
    """

    times: int = 2
    inference: str = "whole"
    window: list[int] = field(default_factory=lambda: [512, 512])
    stride: list[int] = field(default_factory=lambda: [256, 256])
    windows_per_batch: int = 8
    teacher: bool = False


@dataclass
class PredictSettings:
    """How `predict` reads images.

    Attributes:
        size: [height, width] they are resized to fit into before the network; `auto`: that of the validation images,
            by which the network was scored; null: as they are.
    """

    size: Any = "auto"


@dataclass
class BenchSettings:
    """What `bench` measures.

    Attributes:
        what: overhead, evaluator, mixing, memory, render, ema, phases, or `all`.
        pairs: A/B pairs a ratio is the median of.
        steps: training steps in each half of a pair.
        scenes: scenes of each domain of streets that are rendered.
        output: JSON file of the figures.
    """

    what: list[str] = field(default_factory=lambda: ["all"])
    pairs: int = 5
    steps: int = 10
    scenes: int = 100
    output: str = "outputs/bench/bench.json"


@dataclass
class Config:
    """One run.

    Attributes:
        steps: optimiser steps of the whole run; schedule, warm-up and every round scale with it.
        seed: drives training; the rendered world has `data.world_seed`.
        init: checkpoint whose weights a new run starts from.
        resume: `last`, or a checkpoint, to continue a run from.
        checkpoint: what `evaluate` and `predict` read.
        overwrite: allow a run folder that is not empty.
        text: where LC-MSM's class-text embeddings come from.
        pretrained: the encoder's start: `imagenet`, the path of a weights file, or null.
        input: `predict`: a folder of images, or one image.
        output: `predict`: where its pictures go.
    """

    steps: int
    seed: int
    model: dict[str, Any]
    method: dict[str, Any]
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    callbacks: CallbackSettings = field(default_factory=CallbackSettings)
    evaluator: EvaluatorSettings = field(default_factory=EvaluatorSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    bench: BenchSettings = field(default_factory=BenchSettings)
    init: str | None = None
    resume: str | None = None
    checkpoint: str | None = None
    overwrite: bool = False
    text: str = "openclip"
    pretrained: str | None = None
    input: str | None = None
    output: str | None = None


# What a value may be, where its type alone does not say.
CHOICES: dict[str, tuple[str | None, ...]] = {
    "optimizer.name": ("adamw", "sgd"),
    "teacher.update": ("start", "end"),
    "teacher.batch_norm": ("eval", "train"),
    "data.cache": ("auto", "memory", "none"),
    "data.classes": tuple(CLASS_SETS),
    "trainer.precision": ("auto", "32-true", "bf16-mixed"),
    "trainer.profiler": ("simple", "advanced", None),
    "evaluator.inference": ("whole", "slide"),
    "logger.kind": ("csv", "wandb", "tensorboard"),
}
POSITIVE = (
    "steps",
    "optimizer.lr",
    "optimizer.clip_norm",
    "data.source_batch",
    "data.target_batch",
    "data.val_batch",
    "trainer.max_steps",
    "trainer.num_nodes",
    "evaluator.times",
    "evaluator.windows_per_batch",
    "callbacks.checkpoints",
    "logger.log_every",
    "bench.pairs",
    "bench.steps",
    "bench.scenes",
)
FRACTIONS = ("schedule.warmup", "teacher.alpha", "teacher.threshold")


def parse(raw: DictConfig) -> Config:
    """Check a composed configuration against the schema and give it as dataclasses.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type, or sizes that cannot be.
    """
    typed = OmegaConf.structured(Config)
    try:
        plain = OmegaConf.to_container(raw, resolve=True)
        config = OmegaConf.to_object(OmegaConf.merge(typed, plain))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key or "?")
        known = [k for k, _ in leaves(OmegaConf.to_container(typed))]
        hint = f"; {nearest(key, known)}" if isinstance(error, ConfigKeyError) else ""
        raise UserError(f"configuration: {key}: {str(error).splitlines()[0]}{hint}") from error
    assert isinstance(config, Config)
    check_target(config.method, "method")
    check_target(config.model, "model")
    _check_values(config)
    _check_sizes(config)
    return config


def key_of(override: str) -> str:
    """The key of an override as it is written: `key=value`, `+key=value`, `++key=value` or `~key`."""
    return override.lstrip("+~").partition("=")[0]


def groups() -> set[str]:
    """The configuration's groups: the folders of `conf/`."""
    return {path.name for path in CONF.iterdir() if path.is_dir()}


def nearest(key: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or the list of what there is where nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known)[:12])}"


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of nested dicts, inner nodes included, with its value."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            name = f"{prefix}{key}"
            yield name, value
            yield from leaves(value, f"{name}.")


def accepted(tree: Mapping[str, Any]) -> Iterator[str]:
    """Every dotted key that a composed tree could hold: the schema's, and what the classes it names take."""
    yield from (key for key, _ in leaves(OmegaConf.to_container(OmegaConf.structured(Config))))
    for key, node in leaves(tree):
        if isinstance(node, Mapping) and "_target_" in node:
            yield from (f"{key}.{option}" for option in options(node["_target_"], key))


def options(target: object, where: str) -> dict[str, Any]:
    """Option -> annotated type of the class that a `_target_` at the key `where` names.

    Raises:
        UserError: there is no such class, or it is not one of this package.
    """
    wrong = UserError(f"{where}._target_={target}: only classes of uda_seg can be configured")
    if not isinstance(target, str):
        raise wrong
    try:
        found = get_class(target)
    except Exception as error:  # Hydra reports a missing module or class by errors of several kinds
        raise wrong from error
    if found.__module__.partition(".")[0] != "uda_seg":
        raise wrong
    hints = typing.get_type_hints(found.__init__)  # type: ignore[misc]
    given = ("segmentor", "plan", "num_classes", "channels")  # by the code that builds it
    return {name: hints.get(name, Any) for name in inspect.signature(found).parameters if name not in given}


def check_target(node: Mapping[str, Any], where: str) -> None:
    """Check a `_target_` node against the signature of what it names: that signature is its schema.

    Args:
        node: keys and values, `_target_` among them; nested targets are checked too.
        where: dotted name for messages.

    Raises:
        UserError: a key the target does not take, or a value of another type.
    """
    known = options(node.get("_target_"), where)
    for key, value in node.items():
        name = f"{where}.{key}"
        if key in ("_target_", "_partial_"):
            continue
        if key not in known:
            raise UserError(f"{name} is unknown; {nearest(key, known)}")
        if isinstance(value, Mapping) and "_target_" in value:
            check_target(value, name)
        elif "_target_" in str(value):
            raise UserError(f"{name}={value}: a class can be configured at its own key only")
        elif not fits(value, known[key]):
            raise UserError(f"{name}={value} is of the wrong type: expected {_spell(known[key])}")


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain YAML value has the annotated type (an int passes as a float, a list as a tuple)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is typing.Literal:
        return hint is Any or value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if hint is type(None) or value is None:
        return hint is type(None) and value is None
    if origin in (list, tuple, Sequence):
        element = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(fits(item, element) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float)
    return not isinstance(hint, type) or isinstance(value, hint)


def _check_values(config: Config) -> None:
    for key, choices in CHOICES.items():
        if (value := _select(config, key)) not in choices:
            words = ["null" if choice is None else choice for choice in choices]
            raise UserError(f"{key}={value} is none of {', '.join(words)}; {nearest(str(value), words)}")
    for key in POSITIVE:
        if (value := _select(config, key)) is not None and value <= 0:
            raise UserError(f"{key}={value} must be greater than 0")
    for key in FRACTIONS:
        if not 0 <= (value := _select(config, key)) <= 1:
            raise UserError(f"{key}={value} is a fraction: between 0 and 1")
    CLASS_SETS[config.data.classes].subset(config.data.eval_classes)
    data, optimizer = config.data, config.optimizer
    batch = min(data.source_batch, data.target_batch or data.source_batch)
    if not 1 <= optimizer.accumulate <= batch:
        raise UserError(f"optimizer.accumulate={optimizer.accumulate} must lie between 1 and the batch of {batch}")


def _check_sizes(config: Config) -> None:
    data, evaluator = config.data, config.evaluator
    domains = {"data.source": data.source, "data.target": data.target}
    domains |= {f"data.validation.{name}": domain for name, domain in data.validation.items()}
    sizes = {f"{name}.size": domain.size for name, domain in domains.items() if domain is not None}
    sizes |= {"evaluator.window": evaluator.window, "evaluator.stride": evaluator.stride, "data.crop": data.crop}
    sizes |= {"predict.size": None if config.predict.size == "auto" else config.predict.size}
    for key, size in sizes.items():
        if size is not None and not (fits(size, list[int]) and len(size) == 2 and min(size) > 0):
            raise UserError(f"{key}={size} is no size: give [height,width] in pixels")
    for key in ("data.source.size", "data.target.size"):
        size = sizes.get(key)
        if size is not None and (data.crop[0] > size[0] or data.crop[1] > size[1]):
            raise UserError(f"data.crop={data.crop} is larger than {key}={size} (height, width): make the crop smaller")


def _select(config: Config, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)
