"""Location of the on-disk cache."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """Return `UDA_SEG_CACHE`, or `uda_seg` in the user's cache folder (XDG)."""
    if named := os.environ.get("UDA_SEG_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uda_seg"
