"""Names of run folders."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from uda_seg.config.schema import key_of

# Overrides that do not change results, or that are another part of the folder's path.
_NOT_IN_NAME = re.compile(
    r"^(method|model|data|seed|resume|overwrite|logger|sweep|hydra|checkpoint|export)$"
    r"|^model\.(compile|compile_backend|channels_last)$|\.workers$|\.cache$|^depth\.supervision$"
    r"|^trainer\.(?!(accelerator|devices|num_nodes|precision|sync_batchnorm|overfit)$)"
    r"|^evaluator\.(windows_per_batch|teacher|label_free|label_free_images|choose_by)$|^(logger|hydra|bench|predict)[./]"
    r"|^callbacks\.(checkpoints|panels|validation_panels|progress)$"
)
_OF_MACHINE = re.compile(r"^trainer$|^trainer\.|\.root$")

_IN_PATH = {"method", "model", "data", "seed"}
_PLAIN = (("trainer", "auto"), ("callbacks", "default"))  # choices that say nothing
_LONGEST_NAME, _LONGEST_VALUE = 80, 40  # of the 255 bytes that file systems allow


def variant(overrides: Sequence[str], swept: Sequence[str] = ()) -> str:
    """Build the part of a run folder's name for differences from the method's defaults; empty without any.

    A key of which a multirun has several values is always named, so that no two of its jobs share a folder.

    Runs that differ in anything that affects results have different names, even if they differ only in the folder of a
    path, in characters that file names cannot contain, or in case, which some file systems ignore.
    """
    values = {key_of(o): "" if o.startswith("~") else _in_name(key_of(o), o.partition("=")[2]) for o in overrides}
    several = {*swept} - _IN_PATH
    parts = [f"{k}={v}" for k, v in values.items() if k in several or (is_named(k) and (k, v) not in _PLAIN)]
    name = "".join("," + _plain(part) for part in sorted(parts))
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:70]},{_digest(name)}"


def is_named(key: str) -> bool:
    """Return whether the value of this key is part of a run folder's name."""
    return not _NOT_IN_NAME.search(key)


def changes_results(key: str) -> bool:
    """Return whether results depend on this key, besides the path's parts; they do not on hardware and locations."""
    return is_named(key) and not _OF_MACHINE.search(key)


def _in_name(key: str, value: str) -> str:
    """Format a value for a folder's name: the last part of a path, with a digest if that is ambiguous."""
    if value.lower() in ("true", "false"):
        return value.lower()  # in the jobs of a multirun, Hydra writes a single value as True, one of several as true
    value = shown = _unquoted(value)
    if "/" in value and value[0] not in "[{":
        value = value if "://" in value else os.path.normpath(value)
        shown = _short(key, value)
    # Brackets and commas become hyphens, which is unambiguous for a flat list of numbers or words.
    plain = re.fullmatch(r"(?!-.*-$)[a-z0-9_.=+-]+|\[[a-z0-9_.]+(, ?[a-z0-9_.]+)*\]", shown)
    if plain and shown == value:
        return shown
    return f"{_plain(shown)[:_LONGEST_VALUE]}-{_digest(value)}"


def _short(key: str, path: str) -> str:
    """Shorten `<method>_<model>/seed<k>/checkpoints/last.ckpt` to `<method>_<model>`, other paths to the file name."""
    parts = Path(path).parts
    if key == "init" and len(parts) >= 4 and parts[-2] == "checkpoints":
        return parts[-4]
    return parts[-1] if parts else path


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text, flags=re.ASCII)


def _unquoted(value: str) -> str:
    """Remove the quotes of the command line from a value."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\" + value[0], value[0])
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def plain_name(name: str) -> str:
    """Convert a name to a single path component: names from checkpoints must not choose where files are written."""
    plain = _plain(name)[:_LONGEST_NAME]
    return plain if plain == name and plain.strip(".") else f"{plain.strip('.-')}-{_digest(name)}".lstrip("-")
