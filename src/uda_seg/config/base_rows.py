"""Base rows of sweeps: what a sweep's file says that its other rows are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uda_seg.config.schema import CONF
from uda_seg.storage.files import read_yaml


def base_rows() -> dict[str, str]:
    """Return the overrides of the base row of every sweep in `conf/sweep` that has one, separated by blanks."""
    found = {path.stem: _launcher(path) for path in sorted((CONF / "sweep").glob("*.yaml"))}
    return {sweep: launcher["base"] for sweep, launcher in found.items() if launcher.get("base")}


def _launcher(path: Path) -> dict[str, Any]:
    """Read the options of a sweep's launcher, which a file of the user's need not have."""
    hydra = (read_yaml(path) or {}).get("hydra") or {}
    return hydra.get("launcher") or {}
