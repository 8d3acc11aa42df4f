"""The networks that the page offers: students and teachers of checkpoints, under names that tell them apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from uda_seg.config.commands import PredictConfig
from uda_seg.config.compose import composed
from uda_seg.config.replay import replay
from uda_seg.runs.checkpoint import read_checkpoint
from uda_seg.runs.trained import TrainedSegmentor, trained

TEACHER = " (teacher)"  # end of a teacher's name


def networks_of(paths: Sequence[Path], config: PredictConfig, device: torch.device) -> dict[str, TrainedSegmentor]:
    """Load the networks of checkpoints, name -> network: each one's student, and its teacher if it has one.

    Each has its own classes and the size of its own validation; how images are taken (`evaluator`, `predict.size`) is
    that of `config`.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    found = {}
    for path, name in zip(paths, names_of(paths), strict=True):
        content = read_checkpoint(path)
        own = composed(replay(content, [], PredictConfig), PredictConfig)
        own.evaluator, own.predict = config.evaluator, config.predict
        found[name] = trained(own, content, path, teacher=False).to(device)
        if has_teacher(content):
            found[f"{name}{TEACHER}"] = trained(own, content, path, teacher=True).to(device)
    return found


def first_choice(networks: Iterable[str], teacher: bool) -> list[str]:
    """Select a network of each checkpoint: its teacher if this is wanted and there, else its student."""
    names = list(networks)
    students = [name for name in names if not name.endswith(TEACHER)]
    return [f"{name}{TEACHER}" if teacher and f"{name}{TEACHER}" in names else name for name in students]


def has_teacher(content: dict[str, Any]) -> bool:
    """Return whether a checkpoint has a teacher."""
    return any(name.startswith("teacher.network.") for name in content["state_dict"])


def names_of(paths: Sequence[Path]) -> list[str]:
    """Name checkpoints by the parts of their paths in which they differ; a single one by its run and file."""
    parts = [[*(part for part in path.absolute().parent.parts if part != "checkpoints"), path.stem] for path in paths]
    first = _common(parts)
    last = _common([each[first:][::-1] for each in parts])
    whole = len(parts) == 1
    names = ["/".join(each[-3:] if whole else each[first : len(each) - last] or each[-2:]) for each in parts]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """Count the first entries that all lists share."""
    return sum(1 for _ in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*parts, strict=False)))
