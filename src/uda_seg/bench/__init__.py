"""`python -m uda_seg.bench`: speed and memory, each as the ratio of two things measured in turns in one process.

A missed target is reported, never an error: a figure depends on the machine, and on what else runs on it.

bench.what=[NAME,...]      what is measured: overhead, methods, evaluator, mixing, memory, render, ema, reading,
                           busy, classic, precision, phases, against; all (the default): all of them but against
against.KEY=VALUE          compare with the configuration that these overrides change, e.g. against.method=dacs
baseline=classic           compare with the training step of the original repositories
bench.pairs=N              A/B pairs, of which a ratio is the median
bench.steps=N              training steps in each half of a pair
bench.output=FILE          results as JSON
"""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from uda_seg import WAITING
from uda_seg.bench.against import measure_against, split
from uda_seg.bench.busy import measure_busy
from uda_seg.bench.measure import Row
from uda_seg.bench.memory import measure_memory
from uda_seg.bench.original import measure_classic
from uda_seg.bench.overhead import measure_methods, measure_overhead
from uda_seg.bench.parts import measure_ema, measure_evaluator, measure_mixing, measure_render
from uda_seg.bench.phases import StepProfile, profile_step
from uda_seg.bench.precision import measure_precision
from uda_seg.bench.reading import measure_reading
from uda_seg.bench.tf32 import arithmetic
from uda_seg.cli.command import run
from uda_seg.config.commands import BenchConfig
from uda_seg.config.schema import key_of
from uda_seg.errors import UserError
from uda_seg.evaluation.tables import Table
from uda_seg.options.validate import nearest
from uda_seg.runs.build import quiet_lightning
from uda_seg.runs.record import PACKAGES, write_json
from uda_seg.storage.files import spare_name

log = logging.getLogger(__name__)

PHASES, AGAINST = "phases", "against"
MEASUREMENTS: dict[str, Callable[[BenchConfig], Sequence[Row]]] = {
    "overhead": measure_overhead,
    "methods": measure_methods,
    "evaluator": measure_evaluator,
    "mixing": measure_mixing,
    "memory": measure_memory,
    "render": measure_render,
    "ema": measure_ema,
    "reading": measure_reading,
    "busy": measure_busy,
    "classic": measure_classic,
    "precision": measure_precision,
    AGAINST: measure_against,
}


BASELINES = {"classic": "classic"}  # choices of `baseline=` and the measurement each selects


def main() -> None:
    """Run the command."""
    run(BenchConfig, bench, expand=expand)


def expand(given: Sequence[str]) -> list[str]:
    """Translate `against.KEY=VALUE` and `baseline=` into settings of the bench, and return the overrides to compose.

    Raises:
        UserError: an invalid override after `against.`, an unknown baseline, or one that `bench.what` leaves out.
    """
    baselines = [o.partition("=")[2] for o in given if key_of(o) == "baseline"]
    for name in baselines:
        if name not in BASELINES:
            raise UserError(f"baseline={name} is none; {nearest(name, BASELINES)}")
    own, against = split([o for o in given if key_of(o) != "baseline"])
    what = [*([AGAINST] if against else []), *(BASELINES[name] for name in baselines)]
    said = next((o.partition("=")[2] for o in own if key_of(o) == "bench.what"), None)
    if said is None:
        own += [f"bench.what=[{','.join(what)}]"] if what else []
    elif left := [name for name in what if name not in choose(re.findall(r"\w+", said))]:
        raise UserError(f"bench.what={said} leaves out {left[0]}, for which other options are given: name it as well")
    if against:
        own.append(f"bench.against=[{','.join(quoted(o) for o in against)}]")
    return ["hydra.run.dir=outputs/bench", "hydra.output_subdir=null", *own]


def quoted(text: str) -> str:
    """Quote a text for Hydra's override grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def bench(config: BenchConfig, folder: Path) -> None:
    """Run the measurements in `bench.what`, print the results and write `bench.output`."""
    quiet_lightning()
    chosen, path = choose(config.bench.what), Path(config.bench.output)
    if path.is_dir():
        raise UserError(f"bench.output={path} is a folder: name a file in it")
    rows: list[Row] = []
    profile = None
    try:
        for name in chosen:
            if name in MEASUREMENTS:
                log.info("measuring %s", name)
                rows += MEASUREMENTS[name](config)
        profile = profile_step(config) if PHASES in chosen else None
    finally:  # what has been measured outlives what fails
        if rows or profile is not None:
            write(config, path, rows, profile)


def write(config: BenchConfig, path: Path, rows: Sequence[Row], profile: StepProfile | None) -> None:
    """Print the results and write them as JSON; an earlier file is kept under another name."""
    if rows:
        rows_table(rows).show()
    if profile is not None:
        profile_table(profile).show()
    if path.exists():
        earlier = spare_name(path, "earlier")
        os.rename(path, earlier)
        log.info("the earlier results are kept in %s", earlier)
    setting = {"classic_tf32": config.bench.tf32}
    write_json(
        path, machine() | setting | {"rows": [row.record() for row in rows], "step": profile and asdict(profile)}
    )
    log.info("written: %s", path)


def choose(wanted: Sequence[str]) -> list[str]:
    """Resolve `bench.what` to measurements, in the order in which they run.

    Raises:
        UserError: an unknown name, with the nearest valid one.
    """
    known = [*MEASUREMENTS, PHASES]
    for name in wanted:
        if name not in (*known, "all"):
            raise UserError(f"bench.what={name} is no measurement; {nearest(name, [*known, 'all'])}")
    # `against` needs a second configuration.
    return [name for name in known if name in wanted or ("all" in wanted and name != AGAINST)]


def machine() -> dict[str, Any]:
    """Describe the machine: date, versions, processor, threads and their wait policy, a GPU's float32 arithmetic."""
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "waiting": {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", *WAITING)},
        "float32": arithmetic(),
    }


def cpu_name() -> str:
    """Return the processor's name from Linux, elsewhere from Python."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rows_table(rows: Sequence[Row]) -> Table:
    """Tabulate one line per ratio."""
    return Table(("name", "A", "B", "ratio", "target", ""), tuple(_cells(row) for row in rows), "Medians of A/B pairs")


def _cells(row: Row) -> tuple[str, ...]:
    a = f"{row.a}: {row.a_value:.4g} {row.unit}"
    b = f"{row.b}: {row.b_value:.4g} {row.unit}"
    verdict = "" if row.met is None else "met" if row.met else "missed"
    return row.name, a, b, f"{row.ratio:.3g}", row.target or "", verdict


def profile_table(profile: StepProfile) -> Table:
    """Tabulate one line per phase of a step, their sum, the step without phase timing, and derived figures."""
    clocked, step = profile.clocked_ms, profile.step_ms
    cells = [(name, f"{ms:.2f}", f"{100 * ms / clocked:.1f} %") for name, ms in profile.phases_ms.items()]
    cells.append(("all phases, with their clock", f"{clocked:.2f}", ""))
    cells.append(("step", f"{step:.2f}", f"{profile.steps_per_s:.2f} it/s, {profile.images_per_s:.1f} images/s"))
    cells.append(("in matrix kernels", f"{profile.matrix_ms:.2f}", f"{100 * profile.matrix_ms / step:.1f} %"))
    cells.append(("peak of saved activations", f"{profile.peak_saved_bytes / 2**20:.1f} MiB", ""))
    if profile.peak_device_bytes is not None:
        cells.append(("peak of device memory", f"{profile.peak_device_bytes / 2**20:.1f} MiB", ""))
    return Table(("phase", "ms", "share"), tuple(cells), f"A step of {profile.method}, {profile.precision}")
