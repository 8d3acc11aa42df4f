"""The schema of the configuration, and what is wrong with one, said in a line before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uda_seg.data.labels import CLASS_SETS
from uda_seg.data.settings import DataSettings
from uda_seg.errors import UserError
from uda_seg.methods.base import OptimizerSettings, ScheduleSettings, TeacherSettings

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
    """How `predict` reads: images are resized to fit into `size`, [height, width]; null keeps theirs."""

    size: list[int] | None = None


@dataclass
class BenchSettings:
    """What `bench` measures.

    Attributes:
        what: names of the measurements, or `all`.
        pairs: A/B pairs a ratio is the median of.
        output: JSON file of the figures; null prints only.
    """

    what: list[str] = field(default_factory=lambda: ["all"])
    pairs: int = 5
    output: str | None = None


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
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    teacher: TeacherSettings
    data: DataSettings
    model: dict[str, Any]
    method: dict[str, Any]
    trainer: TrainerSettings
    logger: LoggerSettings
    callbacks: CallbackSettings
    evaluator: EvaluatorSettings
    predict: PredictSettings
    bench: BenchSettings
    init: str | None = None
    resume: str | None = None
    checkpoint: str | None = None
    overwrite: bool = False
    text: str = "openclip"
    pretrained: str | None = None
    input: str | None = None
    output: str | None = None


def parse(raw: DictConfig) -> Config:
    """Check a composed configuration against the schema and give it as dataclasses.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type, or sizes that cannot be.
    """
    try:
        plain = OmegaConf.to_container(raw, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {_first_line(error)}") from error
    typed = OmegaConf.structured(Config)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(typed, plain))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
        known = [k for k, _ in leaves(OmegaConf.to_container(typed))]
        hint = "" if "not in" not in str(error) else f"; {nearest(str(key), known)}"
        raise UserError(f"configuration: {key}: {_first_line(error)}{hint}") from error
    assert isinstance(config, Config)
    check_target(config.method, "method")
    check_target(config.model, "model")
    _check_sizes(config)
    return config


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


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


def check_target(node: Mapping[str, Any], where: str) -> None:
    """Check a `_target_` node against the signature of what it names: that signature is its schema.

    Args:
        node: keys and values, `_target_` among them; nested targets are checked too.
        where: dotted name for messages.

    Raises:
        UserError: a key the target does not take, or a value of another type.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or not target.startswith("uda_seg."):
        raise UserError(f"{where}._target_={target}: only classes of uda_seg can be configured")
    found = get_class(target)
    parameters = inspect.signature(found).parameters
    hints = typing.get_type_hints(found.__init__)  # type: ignore[misc]
    known = [name for name in parameters if name not in ("segmentor", "plan", "num_classes", "channels")]
    for key, value in node.items():
        if key in ("_target_", "_partial_"):
            continue
        if key not in known:
            raise UserError(f"{where}.{key} is unknown; {nearest(key, known)}")
        if isinstance(value, Mapping) and "_target_" in value:
            check_target(value, f"{where}.{key}")
        elif not fits(value, hints.get(key, Any)):
            raise UserError(f"{where}.{key}={value} is of the wrong type: expected {_spell(hints[key])}")


def _spell(hint: Any) -> str:
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")  # type: ignore[return-value]


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


def _check_sizes(config: Config) -> None:
    data, optimizer = config.data, config.optimizer
    if data.classes not in CLASS_SETS:
        raise UserError(f"data.classes={data.classes} is unknown; {nearest(data.classes, CLASS_SETS)}")
    CLASS_SETS[data.classes].subset(data.eval_classes)
    for name, domain in (("source", data.source), ("target", data.target)):
        if domain is None or domain.size is None:
            continue
        if data.crop[0] > domain.size[0] or data.crop[1] > domain.size[1]:
            raise UserError(
                f"data.crop={data.crop} is larger than data.{name}.size={domain.size} (height, width): "
                "make the crop smaller"
            )
    for key, value in (("steps", config.steps), ("data.source_batch", data.source_batch)):
        if value < 1:
            raise UserError(f"{key}={value} must be at least 1")
    batch = min(data.source_batch, data.target_batch or data.source_batch)
    if not 1 <= optimizer.accumulate <= batch:
        raise UserError(f"optimizer.accumulate={optimizer.accumulate} must lie between 1 and the batch of {batch}")
    if dataclasses.asdict(config.schedule)["warmup"] > 1:
        raise UserError(f"schedule.warmup={config.schedule.warmup} is a fraction of the run: at most 1")
