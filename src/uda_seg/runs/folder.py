"""Folder of a run: locked by one process, never losing a run, and never touching other files."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from uda_seg.config.schema import Config, resolved
from uda_seg.config.settings import VALIDATION_PANELS
from uda_seg.errors import UserError
from uda_seg.launch.ranks import this_rank
from uda_seg.runs.checkpoint import read_checkpoint, settings_of
from uda_seg.runs.record import digests_of_files
from uda_seg.storage.aside import Aside
from uda_seg.storage.files import part_name, read_yaml, remove_parts
from uda_seg.storage.lock import FolderLock
from uda_seg.storage.owner import Owner
from uda_seg.storage.slurm import slurm_job

log = logging.getLogger(__name__)

RECORD = "run.yaml"
# In order of preference.
RESUMABLE = ("last.ckpt", "fresh.ckpt", "previous.ckpt", "best.ckpt", "best_unsupervised.ckpt")
REPLACED = "replaced_run"
ELSEWHERE = "choose another folder with hydra.run.dir=..."
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
_OWN_NAME = re.compile(
    r"(last|fresh|previous|best|best_unsupervised)\.ckpt|label_free\.npz"
    r"|round_\d+\.npy|(step|disagreement|prototypes|features|confidence)_\d+\.png|id\.txt|depth\.(md|png)"
    r"|depth_metrics\.json|metrics\.(csv|json)|result\.json|run\.yaml|uda_seg\.lock|labelled_.+\.txt"
)
WAIT_S = 60.0  # seconds that other ranks wait for the first one


# ---------------------------------------------------------------------- one process at a time


def alone_in(folder: Path, what: str, elsewhere: str = ELSEWHERE) -> AbstractContextManager[FolderLock | None]:
    """Lock a folder within the block, on the first rank.

    Args:
        folder: folder, created if necessary.
        what: description of this process, following "in use by".
        elsewhere: how to choose another folder.

    Raises:
        UserError: another process has it.
    """
    if this_rank() > 0:
        return contextlib.nullcontext()
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    owner = Owner(what, job=slurm_job() or "", restarts=int(restarts) if restarts.isdigit() else 0)
    return FolderLock(folder, owner, elsewhere)


@contextlib.contextmanager
def run_folder(folder: Path, config: Config, steps: int) -> Iterator[RunFolder]:
    """Lock a run's folder for the duration of the run.

    First finish what an earlier, killed process left: a run that was set aside is restored, and temporary files are
    deleted. In the end, however the run ends, a run that was set aside is restored unless the new one has a checkpoint.

    Args:
        folder: folder of the run.
        config: configuration of the run to start or resume there.
        steps: length of the run.

    Raises:
        UserError: another process uses the folder, or its contents are covered by neither `resume` nor `overwrite`.
    """
    with alone_in(folder, "a run") as lock:
        aside = Aside(folder, REPLACED)
        if lock is None:
            _wait_until_settled(aside, config)
        else:
            settle(aside)
            remove_leftovers(folder)
        place = RunFolder(folder, config, steps, lock)
        try:
            yield place
        finally:
            if lock is not None and not lock.taken:
                settle(aside)


def settle(aside: Aside) -> None:
    """Finish the replacement of a run: delete the old one if there is a new checkpoint, otherwise restore it.

    Raises:
        UserError: files cannot be moved; names the folder.
    """
    state = aside.state
    try:
        if state == "done" or (state == "aside" and checkpoints_in(aside.folder)):
            aside.drop()
        elif state:
            aside.bring_back(own_files(aside.folder))
            log.warning("%s: the run that was to be replaced has been restored", aside.folder)
    except OSError as error:
        raise UserError(
            f"cannot restore the run that was set aside in {aside.place}: {error.strerror or error}; nothing is lost"
        ) from error


def _wait_until_settled(aside: Aside, config: Config) -> None:
    """Wait until the first rank has settled the folder."""
    until = time.monotonic() + WAIT_S
    while aside.state and not config.overwrite and time.monotonic() < until:
        time.sleep(0.1)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of killed processes in a locked run folder."""
    inside = ("", "checkpoints/", "pseudo_labels/", "panels/", "wandb/")
    parts = [path for place in inside for path in folder.glob(f"{place}.*.tmp")]
    remove_parts((path for path in parts if _OWN_NAME.match(part_name(path) or "")), alone=True)
    # Other commands may write here.
    remove_parts(path for place in ("evaluation", "maps") for path in (folder / place).rglob(".*.tmp"))


# ---------------------------------------------------------------------- the run and the one before


class RunFolder:
    """Start of a run in its folder.

    Attributes:
        resume: the checkpoint to resume from; None for a new run.
    """

    def __init__(self, folder: Path, config: Config, steps: int, lock: FolderLock | None) -> None:
        self.folder, self.config, self.lock = folder, config, lock
        self.aside = Aside(folder, REPLACED)
        self._again = lock is not None and _begins_again(folder, config, steps)
        self.resume = self._resumed()
        # Only the first rank decides, because others may arrive after it has started.
        if lock is not None and (self.resume is None or not _within(self.resume, folder)):
            self._check_free()

    def begin(self) -> None:
        """Set aside the run to replace, after everything else has been checked; nothing has been changed before."""
        if self.lock is None or (self.resume is not None and _within(self.resume, self.folder)):
            return
        if self.config.overwrite and (found := own_files(self.folder)):
            self.aside.put(found)
            log.info("the previous run is kept in %s until this one has a checkpoint", self.aside.place)
        elif self._again:
            (self.folder / "wandb" / "id.txt").unlink(missing_ok=True)  # it is a new run on W&B

    def tenant(self) -> pl.Callback:
        """Build the callback that stops the run if another process takes the folder, and deletes the replaced run."""
        return _Tenant(self)

    def _resumed(self) -> Path | None:
        folder, resume = self.folder, self.config.resume
        begun = checkpoints_in(folder)
        if begun and _queued_again():  # whatever its initial weights
            return newest_checkpoint(folder)
        if resume == "last":
            if begun:
                return newest_checkpoint(folder)
            if not _one_of_many():  # a continued sweep has jobs that have not started
                raise UserError(self._nothing_to_resume())
            return None
        if resume is not None:
            read_checkpoint(Path(resume))
            return Path(resume)
        return None

    def _check_free(self) -> None:
        """Raise UserError if a new run would replace anything without permission."""
        if (foreign := in_the_way(self.folder)) is not None:
            raise UserError(
                f"{foreign} is in the way, and is not known to be from a run of uda_seg: move it away or choose "
                "another folder with hydra.run.dir=..."
            )
        if self.config.overwrite or self._again or not holds_run(self.folder):
            return
        if checkpoints_in(self.folder):
            raise UserError(
                f"{self.folder} already holds a run: continue it with resume=last or replace it with overwrite=true"
            )
        raise UserError(
            f"{self.folder} already holds a run, without its checkpoints: restore them to continue it with "
            "resume=last, or replace it with overwrite=true"
        )

    def _nothing_to_resume(self) -> str:
        start = f"{self.folder} has no checkpoint to resume"
        if holds_run(self.folder) and not self._again:
            return f"{start}: bring its checkpoints back, or replace the run with overwrite=true"
        if (other := _elsewhere(self.folder, self.config)) is not None:
            return f"{start}; a run of these settings is in {other}: continue it with hydra.run.dir='{other}'"
        return f"{start}: start the run without resume=last"


class _Tenant(pl.Callback):
    """See `RunFolder.tenant`; must come after the checkpoint callbacks."""

    def __init__(self, place: RunFolder) -> None:
        self.place, self.replacing = place, place.aside.state == "aside"

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check that this process still holds the folder (Lightning hook)."""
        if self.place.lock is not None:
            self.place.lock.raise_if_taken()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Delete the replaced run once there is a checkpoint (Lightning hook)."""
        self._drop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Delete the replaced run once there is a checkpoint (Lightning hook)."""
        self._drop()

    def _drop(self) -> None:
        if self.replacing and self.place.lock is not None and checkpoints_in(self.place.folder):
            settle(self.place.aside)
            self.replacing = False


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


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _queued_again() -> bool:
    """Return whether SLURM has requeued this job with the same command."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _one_of_many() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


# ---------------------------------------------------------------------- what is a run's


def checkpoints_in(folder: Path) -> list[Path]:
    """List the checkpoints of a run in order of preference, readable or not."""
    return [path for name in RESUMABLE if (path := folder / "checkpoints" / name).exists()]


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


def _begins_again(folder: Path, config: Config, steps: int) -> bool:
    """Return whether a run with the same settings was killed here before its first checkpoint, and can be repeated."""
    if checkpoints_in(folder) or (folder / "metrics.json").exists() or not same_run(folder, config):
        return False
    return _last_logged(folder / "metrics.csv") <= -(-steps // config.callbacks.checkpoints)


def _last_logged(log_file: Path) -> int:
    """Return the last step in a run's log; 0 without a log."""
    try:
        with log_file.open(newline="", errors="replace") as file:
            return max((int(row[0]) for row in csv.reader(file) if row and row[0].isdecimal()), default=0)
    except (OSError, csv.Error):
        return 0


def _elsewhere(folder: Path, config: Config) -> Path | None:
    """Find a sibling folder with the same settings except for data locations and hardware."""
    if not folder.name.startswith("seed"):  # not a folder named by settings
        return None
    beside = sorted(folder.parent.parent.glob(f"*/{folder.name}"))
    return next((path for path in beside if checkpoints_in(path) and same_run(path, config, moved=True)), None)
