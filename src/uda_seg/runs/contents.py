"""Contents of a run's folder: its checkpoints, its record, the files that are its own, and which run it is."""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uda_seg.config.schema import Config, resolved
from uda_seg.config.settings import VALIDATION_PANELS
from uda_seg.errors import UserError
from uda_seg.runs.checkpoint import read_checkpoint, settings_of
from uda_seg.runs.record import digests_of_files
from uda_seg.storage.files import read_yaml

log = logging.getLogger(__name__)

RECORD = "run.yaml"
# In order of preference.
RESUMABLE = ("last.ckpt", "fresh.ckpt", "previous.ckpt", "best.ckpt", "best_unsupervised.ckpt")
# Files of a run; the record comes last, because it identifies the others.
WRITTEN = (
    *(f"checkpoints/{name}" for name in RESUMABLE),
    *(
        "model_checkpoints/*.ckpt",
        "pseudo_labels/round_*",
        *(f"panels/{name}_*.png" for name in ("step", *VALIDATION_PANELS)),
        "profile/*-simple*.txt",
        "profile/*-advanced*.txt",
    ),
    *("tensorboard/events.out.tfevents.*", "tensorboard/hparams.yaml", "wandb/id.txt"),
    *("depth.md", "depth.png", "depth_metrics.json", "label_free.npz"),
    *("metrics.csv", "metrics.json", "result.json", "labelled_*.txt", RECORD),
)


def checkpoints_in(folder: Path) -> list[Path]:
    """List the checkpoints of a run in order of preference, readable or not."""
    return [path for name in RESUMABLE if (path := folder / "checkpoints" / name).exists()]


def newest_checkpoint(folder: Path) -> Path:
    """Find the last readable checkpoint of a run.

    Raises:
        UserError: there is none; gives the first one's defect and the cure.
    """
    said: list[str] = []
    for path in checkpoints_in(folder):
        try:
            read_checkpoint(path)
        except UserError as error:
            log.warning("%s; trying an earlier one", error)
            said.append(str(error))
            continue
        return path
    cure = "replace the run with overwrite=true" if recorded(folder) else "move them away to begin a run here"
    raise UserError(f"{folder} has no checkpoint to resume, all are damaged: {said[0]}; {cure}")


def holds_run(folder: Path) -> bool:
    """Return whether a folder contains a run, finished or not, even if its checkpoints were moved away."""
    return recorded(folder) or bool(checkpoints_in(folder))


def recorded(folder: Path) -> bool:
    """Return whether `run.yaml` is a record of this package, in any version, which a run writes first."""
    try:
        lines = (folder / RECORD).read_bytes().splitlines()
    except OSError:
        return False
    return {b"overrides", b"uda_seg", b"config"} <= {line.partition(b":")[0] for line in lines}


def in_the_way(folder: Path) -> Path | None:
    """Find the first file that a run would overwrite and that is not known to be a run's; None if there is none.

    A run starts only in a folder without one, so everything next to its record is its own.
    """
    if recorded(folder):
        return None
    found = (path for pattern in WRITTEN for path in sorted(folder.glob(pattern)))
    return next((path for path in found if not _is_checkpoint(path)), None)


def own_files(folder: Path) -> list[Path]:
    """List the files and folders of a run in its folder, the record last, without foreign files."""
    known = recorded(folder)
    found = [path for pattern in WRITTEN for path in folder.glob(pattern) if known or _is_checkpoint(path)]
    return [*_dashboard(folder), *_evaluations(folder), *found] if known else found


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of this package, without reading its tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            content = archive.read(name)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return b"uda_seg" in content and b"state_dict" in content


def _dashboard(folder: Path) -> list[Path]:
    """List W&B's files of the run, by its stored id."""
    try:
        key = (folder / "wandb" / "id.txt").read_text()
    except (OSError, ValueError):
        return []
    if not re.fullmatch(r"[0-9a-f]{16}", key):
        return []
    inside = (folder / "wandb").iterdir()
    return [p for p in inside if f"-{key}" in (os.readlink(p) if p.is_symlink() else p.name)]


def _evaluations(folder: Path) -> list[Path]:
    """List scores and submissions of the run's network, recognised by their content."""
    found: list[Path] = []
    for scores, keys, names in (
        ("scores.json", {"miou_over", "per_class"}, ("confusion_*.png", "scores.md", "scores.json", "evaluate.log")),
        ("depth_metrics.json", {"abs_rel"}, ("depth.md", "depth.png", "depth_metrics.json", "depth.log")),
    ):
        for path in folder.glob(f"evaluation/*/{scores}"):
            content = _json(path)
            if content and all(isinstance(v, Mapping) and keys <= v.keys() for v in content.values()):
                found += [match for name in names for match in path.parent.glob(name)]
    for path in folder.glob("evaluation/*/submission/*/submission.json"):
        if {"checkpoint", "network", "submission"} <= _json(path).keys():
            found += [*path.parent.rglob("*.png"), *path.parent.parent.glob(f"{path.parent.name}.zip"), path]
    return found


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


# ---------------------------------------------------------------------- which run it is


def record_of(folder: Path) -> Mapping[str, Any]:
    """Read a run's record; empty if missing or unreadable."""
    try:
        content = read_yaml(folder / RECORD) if recorded(folder) else None
    except UserError:
        return {}
    return content if isinstance(content, Mapping) and isinstance(content.get("config"), Mapping) else {}


def overrides_of(folder: Path) -> list[str]:
    """Return the command-line overrides of a run."""
    said = record_of(folder).get("overrides")
    return [str(override) for override in said] if isinstance(said, list) else []


def same_run(folder: Path, config: Config, moved: bool = False) -> bool:
    """Return whether a folder's record has these settings and the same contents of input files.

    Args:
        folder: folder of a run.
        config: configuration to compare with.
        moved: leave out locations of data and the hardware.
    """
    record, settings = record_of(folder), resolved(config)
    # Records of older versions have settings of all commands.
    before = {key: value for key, value in record.get("config", {}).items() if key in settings}
    if not record or settings_of(before, moved) != settings_of(settings, moved):
        return False
    return moved or record.get("files", {}) in ({}, digests_of_files(config))
