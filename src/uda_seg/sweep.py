"""A multirun's summary: one table over its jobs."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig

from uda_seg.command import is_multirun
from uda_seg.config import Config
from uda_seg.evaluation.tables import group_runs, runs_csv, runs_table
from uda_seg.files import write_text

log = logging.getLogger(__name__)

METRICS = ("miou", "best", "pixel_accuracy")


class Sweep:
    """Remembers the jobs of this process and writes `table.md` and `table.csv` beside their folders."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.jobs: list[Path] = []

    def watch(self, work: Callable[[Config, Path], Any]) -> Callable[[Config, Path], Any]:
        """The same command, with the folders of the jobs that succeeded remembered.

        A multirun that is started again, or widened, takes a run that an earlier one finished as it is.
        """

        @functools.wraps(work)
        def job(config: Config, folder: Path) -> Any:
            if not is_multirun():
                return work(config, folder)
            if not config.overwrite and finished(folder, config):
                log.info("%s holds this very run, finished: its row is taken", folder)
                result = json.loads((folder / "metrics.json").read_text())["miou"]
            else:
                result = work(config, folder)
            self.folder = Path(HydraConfig.get().sweep.dir)
            self.jobs.append(folder)
            return result

        return job

    def write_table(self) -> None:
        """Write the table over the jobs that succeeded; nothing outside a multirun."""
        if self.folder is None:
            return
        groups = group_runs([read_metrics(job, self.folder) for job in self.jobs], METRICS)
        table = runs_table(groups, "mIoU in %, last iterate; best is chosen on the target's labels")
        write_text(self.folder / "table.md", table.markdown())
        write_text(self.folder / "table.csv", runs_csv(groups))
        table.show()
        log.info("table: %s", self.folder / "table.md")


def finished(folder: Path, config: Config) -> bool:
    """Whether `folder` holds a run of this configuration that reached its last step."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        recorded = yaml.safe_load((folder / "run.yaml").read_text())["config"]
    except OSError:
        return False
    wanted = asdict(config)
    # How it was started, and what it ran on, do not make it another run.
    same = all(recorded.get(key) == wanted[key] for key in wanted if key not in ("resume", "overwrite", "trainer"))
    return same and bool(metrics["step"] == config.steps)


def read_metrics(folder: Path, sweep: Path) -> dict[str, object]:
    """One run's row: its settings and its scores; the run is called as its folder in the sweep's."""
    metrics = json.loads((folder / "metrics.json").read_text())
    parts = folder.resolve().relative_to(sweep.resolve()).parts
    return {
        "run": "/".join(part for part in parts if part != f"seed{metrics['seed']}"),
        "seed": metrics["seed"],
        "steps": metrics["step"],
        "source images": metrics["source_images"],
        "miou": metrics["miou"],
        "best": metrics["best"]["miou"],
        "pixel_accuracy": metrics["pixel_accuracy"],
    }
