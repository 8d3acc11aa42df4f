"""Metrics and record of a run."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.config.schema import Config, resolved
from uda_seg.errors import Damaged, UserError
from uda_seg.options.validate import leaves
from uda_seg.storage.files import read_json, read_yaml, write_text

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


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN becomes null."""
    write_text(path, json.dumps(_without_nan(content), indent=2) + "\n")


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def digests_of_files(config: Config) -> dict[str, str]:
    """Compute SHA-256 of every file in a configuration (checkpoints, weights, class text, descriptions), by key."""
    found = {}
    for key, value in leaves(resolved(config)):
        if isinstance(value, str) and key not in _NOT_READ:
            path = Path(value).expanduser()
            with contextlib.suppress(OSError, ValueError):
                if path.is_file():
                    with path.open("rb") as file:
                        found[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def reads_depth(config: Config) -> bool:
    """Return whether the configured method reads depth."""
    return bool(getattr(get_class(config.method["_target_"]), "needs_depth", False))


def depth_maps(config: Config) -> dict[str, str]:
    """List the depth maps that a run reads by key, as the command line gave them; empty without any."""
    if not reads_depth(config):
        return {}
    return {key: str(value) for key, value in leaves(resolved(config)) if key.endswith(".depth") and value is not None}


_NOT_READ = ("resume", "checkpoint", "input", "output", "out", "official", "bench.output")  # not read by training


@rank_zero_only
def write_record(folder: Path, config: Config) -> None:
    """Write `run.yaml`: resolved configuration, overrides, versions and the state of the code."""
    record = {
        "overrides": overrides(),
        "versions": versions(),
        "uda_seg": importlib.metadata.version("uda_seg"),
        "git": git_state(),
        "files": digests_of_files(config),
        "config": resolved(config),
    }
    write_text(folder / "run.yaml", yaml.safe_dump(record, sort_keys=False))


def overrides() -> list[str]:
    """Return the command-line overrides of this process's run; none where there was no command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}}


def read_record(folder: Path) -> dict[str, Any]:
    """Read the recorded configuration of a run; empty without a record.

    Raises:
        Damaged: the record cannot be read.
    """
    path = folder / "run.yaml"
    if not os.path.lexists(path):
        return {}
    try:
        record = read_yaml(path)
    except UserError as error:
        raise Damaged(f"{error}; what the run was made of is not known") from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise Damaged(f"{path} holds no configuration; what the run was made of is not known")
    return dict(record["config"])


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics of a finished run.

    Raises:
        Damaged: they are missing or cannot be read.
    """
    path, cure = folder / "metrics.json", "train the run to its end again with resume=last"
    metrics = read_json(path, cure)
    if not isinstance(metrics, dict) or not all(isinstance(metrics.get(key), int) for key in ("step", "seed")):
        raise Damaged(f"{path} holds no numbers of a run; {cure}")
    return metrics


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_state() -> str:
    """Describe the code's commit, `-dirty` if files differ from it; `unknown` outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
