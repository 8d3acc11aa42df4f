"""Jobs of a benchmark: what each is called, whether it is finished, and the small JSON files that are kept of them.

A benchmark is a multirun of hours. Its finished runs are kept as `results/<benchmark>/<setting>/<row>/seed<k>.json`,
which are committed, so that another machine goes on where this one stopped.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uda_seg.config.naming import changes_results, variant
from uda_seg.config.schema import Config, key_of, resolved
from uda_seg.errors import Damaged, UserError
from uda_seg.evaluation.tables import ABSENT, Spread, Table
from uda_seg.results.choosing import LABEL_FREE
from uda_seg.runs.checkpoint import settings_of
from uda_seg.runs.contents import RECORD, record_of, same_run
from uda_seg.runs.record import depth_maps, digests_of_files
from uda_seg.runs.result import movable
from uda_seg.storage.files import read_json, write_text
from uda_seg.sweeps.table import finished

log = logging.getLogger(__name__)

# Raised by whoever changes what training computes: results of another number are not taken for finished.
NUMBERS = 1
KEY = "benchmark"  # of what is added to a run's result
_OF_SETTING = re.compile(r"^data\.(name|merge|class_set|classes|eval_classes)$|^data\..*\.(dataset|custom)(\.|$)")
# How a network is executed, which names of rows do not tell: runs count as the same as with the defaults.
_EXECUTION = {"model.compile": False, "model.compile_backend": "inductor", "model.channels_last": False}


@dataclass(frozen=True, eq=False)
class Job:
    """A run of a benchmark.

    Attributes:
        overrides: overrides of the command line.
        config: its configuration.
        folder: folder of the run.
        stored: the JSON file that is kept of it.
        files: digest of the files of custom data sets; empty without any.
    """

    overrides: tuple[str, ...]
    config: Config
    folder: Path
    stored: Path
    files: str = ""

    @property
    def name(self) -> str:
        """Name in messages: setting, row and seed."""
        return "/".join((*self.stored.parts[-3:-1], self.stored.stem))

    @cached_property
    def digest(self) -> str:
        """Digest of what the result depends on: settings, contents of files, places of depth maps, and `NUMBERS`."""
        files = digests_of_files(self.config)
        settings = settings_of(resolved(self.config), moved=True) | depth_maps(self.config)
        known = {key: files.get(key, _EXECUTION.get(key, value)) for key, value in settings.items()}
        content = json.dumps([NUMBERS, known], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """Tell this job's run from those of other settings, versions and photographs."""
        return {"digest": self.digest, "numbers": NUMBERS, **({"files": self.files} if self.files else {})}

    @property
    def marker(self) -> Path:
        """File beside the folder with the identity of the run in it."""
        return self.folder.with_name(f"{self.folder.name}.job")


def row_of(method: str, overrides: Sequence[str], fixed: Iterable[str], custom: bool = False) -> str:
    """Name a row by its method and the overrides that change results, except `fixed` ones, which all rows share.

    Hardware and locations of data are left out, and of absolute paths only the last part is named, so that rows of
    several machines have the same names. Options of the method are named without `method.`. What describes `custom`
    data is left out, as all rows of a setting share it.
    """
    fixed = {*fixed, "data.name"}  # the folder of the setting
    own = [o for o in overrides if key_of(o) not in fixed and not (custom and _OF_SETTING.search(key_of(o)))]
    named = [o if "=/" not in o else f"{key_of(o)}={Path(o).name}" for o in own if changes_results(key_of(o))]
    network = [f",{o}" for o in own if key_of(o) == "model"]
    row = [o.lstrip("+").removeprefix("method.") for o in named]
    return method + "".join(network) + variant(row, [key_of(o) for o in row])


def is_finished(job: Job) -> bool:
    """Return whether a job needs no more training; keeps the result of a run that finished without being kept."""
    if os.path.lexists(job.stored):
        try:
            kept = read_stored(job.stored)
        except Damaged as error:
            log.warning("%s; it is made again", error)
        else:
            if _is_of(kept, job):
                return True
            what = "images or labels" if _of_other_files(kept, job) else "settings or of another version"
            log.warning("%s is of other %s: it will be replaced", job.stored, what)
    if (same := _kept_elsewhere(job)) is not None:
        log.info("%s: the same run as %s", job.name, same)
        _write(job.stored, _as_of(job, read_stored(same)))
        return True
    if not is_in_folder(job) or not finished(job.folder, job.config) or not (job.folder / "result.json").is_file():
        return False
    try:
        keep(job)
    except Damaged as error:
        log.warning("%s; it is made again", error)
        return False
    return True


def without_scores(jobs: Sequence[Job]) -> dict[str, int]:
    """Count the kept results that lack a score without labels which their job asks for, by its name."""
    missing: Counter[str] = Counter()
    for job in jobs:
        with contextlib.suppress(Damaged, UserError, TypeError, AttributeError, KeyError, IndexError):
            last = read_stored(job.stored)["validations"][-1]["targets"].values()
            scored = {key for scores in last for key in scores}
            missing.update(score for score in job.config.evaluator.label_free if f"{LABEL_FREE}{score}" not in scored)
    return dict(missing)


def is_kept(job: Job) -> bool:
    """Return whether a job's result is kept by now, which another process may have done."""
    with contextlib.suppress(Damaged, UserError):
        return _is_of(read_stored(job.stored), job)
    return False


def begin(job: Job) -> None:
    """Note beside the folder which run will be in it, before it is there, and which others it is to replace.

    Earlier notes stay: a run that ends before its first checkpoint gives the folder back to the one before it.
    """
    known = {"record": _changed(job), "run": _noted(job)} if record_of(job.folder) else None
    others = {other["record"]: other for other in (*_replaced(job), *([known] if known else []))}
    replaces = [other for other in others.values() if other["run"] != job.identity]
    write_text(job.marker, json.dumps({"run": job.identity, "replaces": replaces}) + "\n")


def is_in_folder(job: Job) -> bool:
    """Return whether the run in the folder is this job's, as far as is noted.

    Its record alone knows neither versions of what is computed nor the files of custom data sets. Without a note, as of
    earlier versions, it is another one's if the kept result is.
    """
    if os.path.lexists(job.marker):
        return bool(_noted(job) == job.identity)
    with contextlib.suppress(Damaged, UserError):
        kept = read_stored(job.stored)
        return kept[KEY].get("numbers") == NUMBERS and not _of_other_files(kept, job)
    return True


def _noted(job: Job) -> Any:
    """Read which run is in the folder; None if that is not known.

    It is the noted one, or, where the record is still that of a run that was to be replaced, that one.
    """
    with contextlib.suppress(Damaged, UserError, TypeError, KeyError):
        found = (other["run"] for other in _replaced(job) if other["record"] == _changed(job))
        return next(found, read_json(job.marker, "")["run"])
    return None


def _replaced(job: Job) -> list[dict[str, Any]]:
    """Read the runs that those noted for the folder were to replace, with the times of their records."""
    with contextlib.suppress(Damaged, UserError, TypeError, KeyError):
        replaced = read_json(job.marker, "")["replaces"] or []
        return [{"record": other["record"], "run": other["run"]} for other in replaced]
    return []


def _changed(job: Job) -> int | None:
    """Return when the record in the folder was written, in nanoseconds; None without one."""
    with contextlib.suppress(OSError):
        return (job.folder / RECORD).stat().st_mtime_ns
    return None


def _is_of(kept: Mapping[str, Any], job: Job) -> bool:
    return bool(kept[KEY].get("digest") == job.digest and kept[KEY].get("files", "") == job.files)


def _of_other_files(kept: Mapping[str, Any], job: Job) -> bool:
    return bool(kept[KEY].get("digest") == job.digest and kept[KEY].get("files", "") != job.files)


def _kept_elsewhere(job: Job) -> Path | None:
    """Find the result of the same run under another row or sweep: an ablation's base is a row of the benchmark."""
    setting, seed = job.stored.parts[-3], job.stored.name
    for path in sorted(job.stored.parents[3].glob(f"*/{glob.escape(setting)}/*/{seed}")):
        try:
            if _is_of(read_stored(path), job):
                return path
        except (Damaged, UserError):
            continue  # whoever reads its own sweep is told
    return None


def keep(job: Job) -> dict[str, Any]:
    """Copy the result of a finished run to its place among the results, and return it.

    Raises:
        Damaged: the run has no result that can be read, or is of other settings.
    """
    path = job.folder / "result.json"
    content = read_json(path, "the same command makes it again")
    if not isinstance(content, dict) or not isinstance(content.get("miou"), int | float | None):
        raise Damaged(f"{path} holds no result of a run")
    if record_of(job.folder) and not same_run(job.folder, job.config):
        raise Damaged(f"{path} is of other settings than this job's")
    content[KEY] = job.identity
    _write(job.stored, content)
    return content


def _as_of(job: Job, content: dict[str, Any]) -> dict[str, Any]:
    """Return the result of the same run as this job's: it is of the job's sweep, and named by its overrides."""
    overrides = [movable(o) for o in job.overrides if not o.startswith("hydra.")]
    choices = {key: value for key, _, value in (o.partition("=") for o in overrides) if key == "sweep"}
    return content | {"overrides": overrides, "choices": {**content.get("choices", {}), **choices}}


def _write(place: Path, content: Mapping[str, Any]) -> None:
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    write_text(place, "{\n" + ",\n".join(lines) + "\n}\n")


def read_stored(path: Path) -> dict[str, Any]:
    """Read a kept result.

    Raises:
        Damaged: it cannot be read, or is none.
    """
    content = read_json(path, "delete it, or take it from the history again")
    if not isinstance(content, dict) or not isinstance(content.get(KEY), Mapping):
        raise Damaged(f"{path} is no kept result of a benchmark: delete it, or take it from the history again")
    return content


def seconds_of(job: Job) -> float | None:
    """Return the seconds that a run took on this machine; None if it ran elsewhere."""
    try:
        found = read_json(job.folder / "metrics.json", "")["wall_s"]
    except (Damaged, UserError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) else None


def expected(left: Sequence[Job], took: Mapping[Job, float]) -> float | None:
    """Estimate the seconds that jobs take one after the other, from those that ran here; None without any.

    A job is expected to take as long as others of its row, or else of its setting, or else as the mean of all.
    """
    if not took:
        return None

    def of(job: Job) -> float:
        for level in (job.stored.parent, job.stored.parent.parent):
            if same := [s for other, s in took.items() if other.stored.is_relative_to(level)]:
                return statistics.mean(same)
        return statistics.mean(took.values())

    return sum(map(of, left))


def duration(seconds: float) -> str:
    """Write seconds as a person would."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(jobs: Sequence[Job]) -> Table:
    """Build the table of what is finished, with a column for every setting: mIoU, mean and standard deviation."""
    scores: dict[str, dict[str, list[float]]] = {}
    for job in filter(is_kept, jobs):
        miou = read_stored(job.stored).get("miou")
        if isinstance(miou, float) and math.isfinite(miou):
            setting, row = job.stored.parts[-3:-1]
            scores.setdefault(row, {}).setdefault(setting, []).append(miou)
    settings = list(dict.fromkeys(job.stored.parts[-3] for job in jobs))
    cells = {row: {s: f"{Spread.of(v)} ({len(v)})" for s, v in found.items()} for row, found in scores.items()}
    rows = [(row, *(own.get(setting, ABSENT) for setting in settings)) for row, own in cells.items()]
    return Table(("run", *settings), tuple(rows), "mIoU in %, last iterate, mean over validation sets (runs)")
