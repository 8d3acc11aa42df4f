"""Outcomes of the jobs of a multirun, on whatever process or machine a launcher ran them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from uda_seg.errors import Damaged, UserError
from uda_seg.launch.rendezvous import this_rank
from uda_seg.storage.files import read_json, write_text

DISTINCT = (
    "they differ in nothing that it is named by; tell them apart, e.g. with hydra.sweep.subdir='${hydra:job.num}'"
)
SILENT = "ended without a word: killed, or still running"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Attributes:
        folder: folder of its run.
        sweep: folder of the sweep.
        result: result of the command; None if it failed.
        error: error line; None if it succeeded.
    """

    folder: str
    sweep: str
    result: float | None
    error: str | None

    @property
    def name(self) -> str:
        """Name of the run in the summary."""
        return "/".join(Path(self.folder).parts[-2:])


class Jobs:
    """Collects the outcomes of jobs.

    A launcher such as submitit pickles the command and runs the copy elsewhere. A copy leaves its outcomes in a folder
    known here, which must be on a shared disk, like the runs' folders.

    Attributes:
        told_elsewhere: true if another machine, with the first ranks, reports the jobs of both.
    """

    def __init__(self) -> None:
        self.notes = Path.cwd() / f".jobs-{uuid.uuid4().hex[:8]}"
        self.here: list[Outcome] | None = []
        self.taken: dict[str, int] = {}
        self.told_elsewhere = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the state that a copy needs."""
        return {"notes": self.notes, "here": None, "taken": {}, "told_elsewhere": False}

    def take(self, folder: Path, cure: str = DISTINCT) -> None:
        """Claim a folder for the running job among the jobs of the multirun.

        Args:
            folder: a folder, or a file, that the job writes.
            cure: how to give each job its own.

        Raises:
            UserError: another job has claimed it.
        """
        job, name = int(HydraConfig.get().job.num), str(folder.resolve())
        if self.here is not None:
            first = self.taken.setdefault(name, job)
        else:
            file = self.notes / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.folder"
            file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError), file.open("x") as made:
                made.write(str(job))
            first = int(file.read_text() or job)
        if first != job:
            raise UserError(f"{folder} is the folder of another job of this multirun too: {cure}")

    def note(self, folder: Path, result: object = None, error: str | None = None) -> None:
        """Record the outcome of the running job; before it starts, a copy records `SILENT`."""
        hydra = HydraConfig.get()
        value = float(result) if isinstance(result, int | float) else None
        outcome = Outcome(str(folder.resolve()), str(Path(hydra.sweep.dir).resolve()), value, error)
        if self.here is not None:
            if error != SILENT:
                self.here.append(outcome)
        elif (rank := this_rank()) == 0 or error not in (None, SILENT):
            write_text(self.notes / f"{hydra.job.num:06d}.{rank}.json", json.dumps(asdict(outcome)))

    def outcomes(self) -> list[Outcome]:
        """List the outcomes of all jobs in order; of several ranks' outcomes, the first rank's or the failed one."""
        if self.here is None or not self.notes.is_dir():
            return self.here or []
        told: dict[str, Outcome] = {}
        for note in sorted(self.notes.glob("*.json")):
            outcome = _read(note)
            job = note.name.partition(".")[0]
            fine = (None, SILENT)
            if job not in told or (told[job].error in fine and outcome.error not in fine):
                told[job] = outcome
        return [*self.here, *told.values()]

    def forget(self) -> None:
        """Delete the records of copies."""
        shutil.rmtree(self.notes, ignore_errors=True)


def _read(note: Path) -> Outcome:
    """Read a copy's outcome; a damaged record becomes an error."""
    try:
        found = Outcome(**read_json(note, "see the log of the job"))
        kinds = (
            found.result is None or isinstance(found.result, float),
            found.error is None or isinstance(found.error, str),
        )
        if isinstance(found.folder, str) and isinstance(found.sweep, str) and all(kinds):
            return found
        said = f"{note} is damaged: see the log of the job"
    except (Damaged, TypeError) as error:
        said = str(error)
    return Outcome(str(note), str(note.parent), None, said)
