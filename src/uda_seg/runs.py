"""A run's folder: what is in it, what a checkpoint says about itself, and how either is read back."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from uda_seg.config import CONF, Config
from uda_seg.errors import UserError
from uda_seg.methods.base import UDAModule
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.weights import read_tensors

log = logging.getLogger(__name__)

MADE = ("checkpoints", "panels", "metrics.csv", "metrics.json", "run.yaml", "evaluation")
PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "timm",
    "open_clip_torch",
    "albumentations",
)


def prepare_folder(folder: Path, config: Config) -> Path | None:
    """Make sure that nothing in `folder` gets lost; returns the checkpoint to resume from, if any.

    Raises:
        UserError: the folder holds a run and neither `resume` nor `overwrite` says what to do with it, or there is no
            readable checkpoint to resume.
    """
    if config.resume is not None:
        return _resume_from(folder, config.resume)
    if (folder / "checkpoints").exists():
        if not config.overwrite:
            raise UserError(
                f"{folder} already holds a run: continue it with resume=last or replace it with overwrite=true"
            )
        for name in MADE:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return None


def _resume_from(folder: Path, resume: str) -> Path:
    if resume != "last":
        read_checkpoint(Path(resume))
        return Path(resume)
    for name in ("last.ckpt", "fresh.ckpt", "previous.ckpt"):
        path = folder / "checkpoints" / name
        if not path.exists():
            continue
        try:
            read_checkpoint(path)
        except UserError as error:
            log.warning("%s; trying the one before", error)
            continue
        return path
    raise UserError(f"{folder / 'checkpoints'} has no checkpoint to resume: start the run without resume=last")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours: Lightning's dict with plain values under `uda_seg`.

    Raises:
        UserError: no such file, a truncated one, one with pickled objects, or another program's.
    """
    content = dict(read_tensors(path))
    if not isinstance(content.get("uda_seg"), Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise UserError(f"{path} is no checkpoint of uda_seg; official checkpoints have to be converted first")
    return content


def describe(config: Config, images_per_step: int = 0, before: int = 0) -> dict[str, Any]:
    """What a checkpoint says about itself: group choices and plain overrides, from which the same network is composed.

    Args:
        config: the run's.
        images_per_step: source images an optimiser step reads, over all ranks.
        before: source images that the `init` checkpoint had already been trained on.
    """
    choices: dict[str, str] = {}
    overrides: list[str] = []
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        groups = {p.name for p in CONF.iterdir() if p.is_dir()}
        choices = {k: str(v) for k, v in hydra.runtime.choices.items() if k in groups and v is not None}
        overrides = [o for o in hydra.overrides.task if o.lstrip("+~").partition("=")[0] not in groups]
    return {
        "format": 1,
        "version": importlib.metadata.version("uda_seg"),
        "choices": choices,
        "overrides": overrides,
        "classes": config.data.classes,
        "method": str(config.method["_target_"]).rpartition(".")[2],
        "seed": config.seed,
        "source_images_per_step": images_per_step,
        "source_images_before": before,
    }


# Not taken from a checkpoint: where a run was, how it was started, and anything that names code.
_NOT_REPLAYED = re.compile(
    r"^(\+|~)|^(init|resume|overwrite|checkpoint|input|output)=|^(hydra|trainer|logger|callbacks)\."
)


def replay(checkpoint: Mapping[str, Any], given: list[str]) -> list[str]:
    """Overrides that compose the checkpoint's network again; those given now win, `data=` replaces all of its data.

    Raises:
        UserError: an override that names code: a checkpoint says values, never classes.
    """
    said = checkpoint["uda_seg"]
    keys = {o.lstrip("+~").partition("=")[0] for o in given}
    stored = [
        f"{k}={v}" for k, v in said["choices"].items() if k not in ("trainer", "logger", "callbacks", "debug", "sweep")
    ]
    stored += [o for o in said["overrides"] if not _NOT_REPLAYED.search(o)]
    stored += ["pretrained=null"]
    if "data" in keys:
        stored = [o for o in stored if not o.startswith("data.")]
    for override in stored:
        if "_target_" in override or "${" in override:
            raise UserError(f"the checkpoint asks for {override}, which names code: not loaded")
    return [o for o in stored if o.partition("=")[0] not in keys] + given


def load_weights(module: UDAModule, path: Path) -> str:
    """Start a new run from a checkpoint's student; heads it lacks keep their random start. Returns a line for the log.

    The teacher starts as a copy of the student at its first update anyway.

    Raises:
        UserError: the checkpoint's classes or network differ.
    """
    content = read_checkpoint(path)
    check_classes(content, module, path)
    theirs: Mapping[str, Tensor] = content["state_dict"]
    mine = module.segmentor.state_dict()
    found = {name: theirs[f"segmentor.{name}"] for name in mine if f"segmentor.{name}" in theirs}
    wrong = [n for n in found if found[n].shape != mine[n].shape]
    missing = [n for n in mine if n not in found]
    essential = [n for n in missing if n.startswith(("encoder.", "heads.main."))]
    if wrong or essential:
        raise UserError(
            f"{path} is of another network: {(wrong + essential)[0]} does not match; choose the same model="
        )
    module.segmentor.load_state_dict({**mine, **found})
    fresh = sorted({".".join(name.split(".")[:2]) for name in missing})
    return f"{len(found)} tensors from {path}" + (f", fresh: {', '.join(fresh)}" if fresh else "")


def load_trained(module: UDAModule, content: Mapping[str, Any], path: Path, teacher: bool = False) -> Segmentor:
    """Fill the part of a module's network that segments at test, and ask for nothing that only training needs.

    Args:
        module: composed from the same checkpoint.
        content: of `read_checkpoint`.
        path: for messages.
        teacher: take the averaged network.

    Raises:
        UserError: classes, method or network differ, or there is no teacher.
    """
    check_classes(content, module, path)
    prefix = "teacher.network." if teacher else "segmentor."
    network = module.segmentor
    wanted = [n for n in network.state_dict() if n.startswith(("encoder.", f"heads.{network.eval_head}."))]
    found = {n: content["state_dict"][prefix + n] for n in wanted if prefix + n in content["state_dict"]}
    missing = [n for n in wanted if n not in found or found[n].shape != network.state_dict()[n].shape]
    if missing:
        whose = "has no teacher" if teacher and not found else f"does not fit the network: {missing[0]}"
        raise UserError(f"{path} {whose}; leave method= and model= to the checkpoint")
    network.load_state_dict(found, strict=False)
    return network.eval()


def check_classes(content: Mapping[str, Any], module: UDAModule, path: Path) -> None:
    """Raise UserError where a checkpoint's class set is not the module's."""
    theirs, mine = content["uda_seg"]["classes"], module.plan.classes.name
    if theirs != mine:
        raise UserError(f"{path} predicts the classes of {theirs}, this run those of {mine}: choose data= accordingly")


# ---------------------------------------------------------------------- records


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_without_nan(content), indent=2) + "\n")


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_record(folder: Path, config: Config) -> None:
    """Write `run.yaml`: resolved configuration, overrides, versions and the state of the code."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    record = {
        "overrides": overrides,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "uda_seg": importlib.metadata.version("uda_seg"),
        "git": _git(),
        "config": asdict(config),
    }
    write_text(folder / "run.yaml", yaml.safe_dump(record, sort_keys=False))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def device_precision(wanted: str) -> str:
    """Lightning's precision: `auto` is bf16-mixed where the hardware multiplies bf16 natively, 32-true elsewhere."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported()  # AVX-512's bf16 alone was measured slower than float32
    return "bf16-mixed" if fast else "32-true"
