"""Folder of a run: locked by one process, never losing a run, and never touching other files."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from uda_seg.config.schema import Config
from uda_seg.errors import UserError
from uda_seg.launch.rendezvous import this_rank
from uda_seg.runs.checkpoint import read_checkpoint
from uda_seg.runs.contents import checkpoints_in, holds_run, in_the_way, newest_checkpoint, own_files, same_run
from uda_seg.storage.aside import Aside
from uda_seg.storage.files import part_name, remove_parts, write_text
from uda_seg.storage.lock import FolderLock
from uda_seg.storage.owner import Owner
from uda_seg.storage.slurm import slurm_job

log = logging.getLogger(__name__)

REPLACED = "replaced_run"
REPLACING = ".replaced_by"  # the SLURM job that replaces a run here, until it has a checkpoint
ELSEWHERE = "choose another folder with hydra.run.dir=..."
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
            (aside.folder / REPLACING).unlink(missing_ok=True)
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
            self._say_replacing()
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
        if begun and _queued_again() and not self._replaces():  # whatever its initial weights
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

    def _say_replacing(self) -> None:
        """Note that this job replaces a run, for the case that it is requeued after that run has been restored."""
        if (job := slurm_job()) is not None:
            write_text(self.folder / REPLACING, job)

    def _replaces(self) -> bool:
        """Return whether this job was requeued before the run that replaces the one here had a checkpoint."""
        try:
            return self.config.overwrite and (self.folder / REPLACING).read_text() == slurm_job()
        except (OSError, ValueError):
            return False

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
        return (
            f"{start}: start the run without resume=last, or, to continue one with other settings, name its folder, "
            "hydra.run.dir=FOLDER"
        )


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


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _queued_again() -> bool:
    """Return whether SLURM has requeued this job with the same command."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _one_of_many() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


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
