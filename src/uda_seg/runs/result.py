"""Building of a run's result, `result.json`."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from uda_seg.callbacks.checkpoint import Checkpoints
from uda_seg.config.replay import describe
from uda_seg.config.schema import Config, resolved
from uda_seg.data.datamodule import UDADataModule
from uda_seg.evaluation.evaluator import Scores
from uda_seg.methods.base import UDAModule
from uda_seg.models.segmentor import Segmentor
from uda_seg.results.log import read_log, validations_of
from uda_seg.results.packing import ImageConfusions, pack
from uda_seg.results.result import RESULT, Best, Cost, Result, Start, TargetScores, write_result
from uda_seg.runs.checkpoint import settings_of
from uda_seg.runs.contents import record_of
from uda_seg.runs.record import depth_maps


def start_digest(network: Segmentor) -> str:
    """Compute SHA-256 of the encoder's and the main head's weights, which do not depend on the method.

    Args:
        network: the student before its first step, on the CPU.
    """
    digest = hashlib.sha256()
    for part in (network.encoder, network.head("main")):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def watch_memory() -> None:
    """Let `peak_memory` count from here on, so that of several runs of a process each has its own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of the resident set
    except OSError:
        return


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Return the peak in bytes since `watch_memory`, and of what: tensors on the `GPU`, or this whole `process`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "GPU"
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024, "process"
    except (OSError, KeyError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"


def write_run(
    folder: Path,
    config: Config,
    data: UDADataModule,
    module: UDAModule,
    trainer: pl.Trainer,
    checkpoints: Checkpoints,
    seen: int = 0,
) -> None:
    """Write `result.json` of a run that has been validated after its last step.

    Args:
        folder: folder of the run, with its record and its log.
        config: configuration.
        data: the data module.
        module: the method.
        trainer: the trainer, at its last step.
        checkpoints: the callback that counts images and time.
        seen: labelled images that the initial weights had been trained on.
    """
    series, _ = read_log(folder / "metrics.csv")
    record, said = record_of(folder), describe(config)
    best = Best(checkpoints.best_miou, checkpoints.best_step) if checkpoints.best_step >= 0 else None
    choices = said["choices"]
    write_result(
        folder / RESULT,
        Result(
            run="/".join(folder.absolute().parts[-3:]),
            method=choices.get("method", said["method"]),
            data=config.data.name,
            model=choices.get("model", str(config.model.get("_target_", ""))),
            seed=config.seed,
            step=trainer.global_step,
            steps=config.steps,
            miou=module.miou,
            targets=_targets(data, module),
            best=best,
            validations=validations_of(
                series, dict.fromkeys((*module.scores, "target"))
            ),  # label-free scores: `target`
            start=_start(config, record, checkpoints),
            cost=_cost(data, trainer, checkpoints, seen),
            choices=choices,
            overrides=[o for o in map(movable, record.get("overrides", [])) if not o.startswith("hydra.")],
            settings=_settings(config),
            versions={**record.get("versions", {}), "uda_seg": str(record.get("uda_seg", ""))},
            git=str(record.get("git", "unknown")),
            device=f"{_device(trainer.strategy.root_device)}, {trainer.precision}",
        ),
    )


def _settings(config: Config) -> dict[str, Any]:
    said = settings_of(resolved(config), moved=True) | depth_maps(config)
    return {key: movable(value) for key, value in said.items()}


def _targets(data: UDADataModule, module: UDAModule) -> dict[str, TargetScores]:
    names, teacher = data.validation_images, module.teacher_scores
    return {
        target: _scores(scores, names[target], teacher[target].miou if target in teacher else None)
        for target, scores in module.scores.items()
    }


def _scores(scores: Scores, names: list[str], teacher: float | None) -> TargetScores:
    images, size = None, len(scores.per_class)
    if scores.images is not None:
        chosen = tuple(names[i] for i in scores.images.ids)
        images = pack(ImageConfusions(chosen, scores.images.confusion.numpy().reshape(-1, size, size)))
    return TargetScores(
        miou=scores.miou,
        per_class=scores.per_class,
        classes=list(scores.classes),
        pixel_accuracy=scores.pixel_accuracy,
        mean_accuracy=scores.mean_accuracy,
        means=scores.means,
        confusion=scores.confusion.tolist(),
        images=images,
        teacher_miou=teacher,
    )


def _start(config: Config, record: Mapping[str, Any], checkpoints: Checkpoints) -> Start:
    return Start(
        pretrained=None if config.pretrained is None else movable(config.pretrained),
        init=None if config.init is None else movable(config.init),
        digest=checkpoints.content.get("start"),
        files=dict(record.get("files", {})),
    )


def _cost(data: UDADataModule, trainer: pl.Trainer, checkpoints: Checkpoints, seen: int) -> Cost:
    peak, where = peak_memory(trainer.strategy.root_device)
    return Cost(
        wall_s=round(checkpoints.wall_s, 1),
        ranks=trainer.world_size,
        source_images=checkpoints.source_images - seen,
        target_images=trainer.global_step * data.target_batch * data.world_size,
        source_images_before=seen,
        labelled_target_images=data.labelled_target_images,
        peak_memory=peak,
        memory_of=where,
    )


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{device.type} {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads"


def movable(value: Any) -> Any:
    """Leave out the folders of an absolute path, also as the value of an override: they are those of one machine."""
    if not isinstance(value, str):
        return value
    key, equals, path = value.rpartition("=") if "=" in value else ("", "", value)
    return f"{key}{equals}{Path(path).name}" if path.strip("'\"").startswith(("/", "~")) else value
