"""The result of a run: what `result.json` in its folder holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from uda_seg.errors import Damaged, UserError
from uda_seg.results.packing import Counts, ImageConfusions, PackedImages, unpack
from uda_seg.storage.files import read_json, write_text

SCHEMA = 1  # version of the file
RESULT = "result.json"
CURE = "resume the run to its end with resume=last to write it again, or leave the file out"

# NaN, a score of what does not occur, is null in JSON.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True)
class Start:
    """Weights that training began with.

    Attributes:
        pretrained: the setting: a name, or the name of a file.
        init: file name of the checkpoint of `init=`; None without one.
        digest: SHA-256 of the encoder and the main head before the first step, the same for every method that is
            given the same network, weights and seed; None for a run whose beginning is not known.
        files: SHA-256 of the files read, by key of the configuration.
    """

    pretrained: str | None = None
    init: str | None = None
    digest: str | None = None
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What training took.

    Attributes:
        wall_s: wall-clock seconds, validations included, over all resumptions.
        ranks: number of processes.
        source_images, target_images: images that the steps read over all ranks and resumptions, repetitions included.
        source_images_before: labelled images that the checkpoint of `init=` had been trained on.
        labelled_target_images: target images whose labels were trained on.
        peak_memory: bytes at most in use by the first rank since the run was last started: of its GPU, or of its
            process where there is none.
        memory_of: `GPU` or `process`.
    """

    wall_s: Number = math.nan
    ranks: int = 1
    source_images: int | None = None
    target_images: int | None = None
    source_images_before: int = 0
    labelled_target_images: int = 0
    peak_memory: int | None = None
    memory_of: str = ""


@dataclass(frozen=True)
class TargetScores:
    """Scores of the student on one validation set after the last step, in [0, 1].

    Attributes:
        miou: mean IoU over `classes`.
        per_class: IoU of all classes of the class set in the order of their ids, NaN for one that does not occur.
        classes: names of the classes in `miou`.
        means: mIoU over the subsets that papers report, by name.
        confusion: [C][C] pixels, row = label, column = prediction; None in runs of earlier versions.
        images: the same for each image; None in runs of earlier versions.
        teacher_miou: of the EMA teacher; None if it was not scored.
    """

    miou: Number
    per_class: dict[str, Number]
    classes: list[str]
    pixel_accuracy: Number = math.nan
    mean_accuracy: Number = math.nan
    means: dict[str, Number] = field(default_factory=dict)
    confusion: list[list[int]] | None = None
    images: PackedImages | None = None
    teacher_miou: float | None = None

    @cached_property
    def subset(self) -> list[int]:
        """Ids of the classes in `miou`."""
        names = list(self.per_class)
        return [names.index(name) for name in self.classes]

    @cached_property
    def unpacked(self) -> ImageConfusions | None:
        """Confusion matrices of the single images; None in runs of earlier versions."""
        return None if self.images is None else unpack(self.images)


@dataclass(frozen=True)
class Best:
    """The best validation of a run: an oracle's choice, because it is made on the target's labels."""

    miou: Number
    step: int
    chosen_on: str = "target labels"


@dataclass(frozen=True)
class Validation:
    """Scores of one validation.

    Attributes:
        step: completed optimiser steps.
        miou: mean over the targets, in [0, 1].
        targets: the values logged as `val/<target>/<name>`, by target and name: `miou`, `pixel_accuracy`,
            `teacher_miou`, and scores that need no labels as `label_free/<score>`.
    """

    step: int
    miou: Number
    targets: dict[str, dict[str, Number]] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        run: name of the run, the last parts of its folder.
        method, data, model: the choices of `method=`, `data=` and `model=`.
        seed: seed of training.
        step, steps: completed steps, and length of the run.
        miou: the student's mIoU in [0, 1] after the last step, mean over targets.
        best: the best validation; None without one.
        targets: scores by validation set, in the order of the settings.
        validations: all validations, in order.
        start, cost: initial weights, and what training took.
        choices: choice in each group of the configuration.
        overrides: overrides of the command line; of paths outside of the project only the last part.
        settings: resolved settings that the scores depend on, by dotted key, without locations of data.
        versions, git: packages, and state of the code.
        device: the processor or GPU, and the precision.
        schema: version of the file.
    """

    run: str
    method: str
    data: str
    model: str
    seed: int
    step: int
    steps: int
    miou: Number
    targets: dict[str, TargetScores]
    best: Best | None = None
    validations: list[Validation] = field(default_factory=list)
    start: Start = field(default_factory=Start)
    cost: Cost = field(default_factory=Cost)
    choices: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git: str = "unknown"
    device: str = "unknown"
    schema: int = SCHEMA

    @property
    def finished(self) -> bool:
        """Whether the run took all its steps."""
        return self.step >= self.steps


_ADAPTER = TypeAdapter(Result)


def write_result(path: Path, result: Result) -> None:
    """Write a result as JSON, a key per line; NaN becomes null."""
    lines = (f"{json.dumps(key)}: {json.dumps(_plain(value))}" for key, value in asdict(result).items())
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_result(path: Path) -> Result:
    """Read a file of `write_result`, wherever it is and whatever its name.

    Raises:
        Damaged: it is missing, damaged, or no such file.
        UserError: a newer version wrote it.
    """
    content = read_json(path, CURE)
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise Damaged(f"{path} is no result of a run; {CURE}")
    if content["schema"] > SCHEMA:
        newer = f"{path} was written by a newer version of uda_seg, in version {content['schema']} of the file"
        raise UserError(f"{newer}; this one reads up to {SCHEMA}: update uda_seg")
    try:
        result = _ADAPTER.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(f"{path} is damaged at {place}: {first['msg']}; {CURE}") from error
    for name, scores in result.targets.items():
        if wrong := _defect(scores):
            raise Damaged(f"{path} is damaged at targets.{name}: {wrong}; {CURE}")
    return result


def _defect(scores: TargetScores) -> str | None:
    """Say what does not fit within one target's scores; None if all does."""
    size = len(scores.per_class)
    if not scores.classes or not set(scores.classes) <= set(scores.per_class):
        return "classes of the mean that have no IoU"
    if scores.confusion is None:
        return None if scores.images is None else "counts per image without their sum"
    if [len(row) for row in scores.confusion] != [size] * size:
        return f"the confusion matrix is not {size} x {size}"
    try:
        images = scores.unpacked
    except ValueError as error:
        return str(error)
    if images is not None and (images.counts.shape[-1] != size or not _same(images.counts.sum(0), scores.confusion)):
        return "the images' confusion matrices do not sum to the whole one"
    return None


def _same(counts: Counts, rows: Sequence[Sequence[int]]) -> bool:
    return bool(np.array_equal(counts, np.array(rows)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
