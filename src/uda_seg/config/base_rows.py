"""Base rows of sweeps: what a sweep's file says that its other rows are compared with."""

from __future__ import annotations

from uda_seg.config.schema import CONF
from uda_seg.storage.files import read_yaml


def base_rows() -> dict[str, str]:
    """Return the overrides of the base row of every sweep in `conf/sweep` that has one, separated by blanks."""
    found = {
        path.stem: read_yaml(path)["hydra"].get("launcher", {}) for path in sorted((CONF / "sweep").glob("*.yaml"))
    }
    return {sweep: launcher["base"] for sweep, launcher in found.items() if launcher.get("base")}
