"""What is written beside a run: its numbers, and the record of what it was made of."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.config import Config
from uda_seg.files import write_text

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
    """Write JSON whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_without_nan(content), indent=2) + "\n")


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@rank_zero_only
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
