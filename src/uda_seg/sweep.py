"""A multirun's summary: one table over its jobs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from uda_seg.command import is_multirun
from uda_seg.config import Config
from uda_seg.evaluation.tables import group_runs, runs_csv, runs_table
from uda_seg.runs import write_text

log = logging.getLogger(__name__)

METRICS = ("miou", "best", "pixel_accuracy")


class Sweep:
    """Remembers the jobs of this process and writes `table.md` and `table.csv` beside their folders."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.jobs: list[Path] = []

    def watch(self, work: Callable[[Config, Path], Any]) -> Callable[[Config, Path], Any]:
        """The same command, with its folders remembered."""

        def job(config: Config, folder: Path) -> Any:
            if is_multirun():
                self.folder = Path(HydraConfig.get().sweep.dir)
                self.jobs.append(folder)
            return work(config, folder)

        return job

    def write_table(self) -> None:
        """Write the table over the jobs that finished; nothing outside a multirun."""
        if self.folder is None:
            return
        found = [read_metrics(job) for job in self.jobs if (job / "metrics.json").exists()]
        if not found:
            return
        groups = group_runs(found, METRICS)
        table = runs_table(groups, "mIoU in %, last iterate; best is chosen on the target's labels")
        write_text(self.folder / "table.md", table.markdown())
        write_text(self.folder / "table.csv", runs_csv(groups))
        Console().print(table.rich())
        log.info("table: %s", self.folder / "table.md")


def read_metrics(folder: Path) -> dict[str, object]:
    """One run's row: its settings and its scores."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "run": folder.parent.name,
        "seed": metrics["seed"],
        "steps": metrics["step"],
        "source images": metrics["source_images"],
        "miou": metrics["miou"],
        "best": metrics["best"]["miou"],
        "pixel_accuracy": metrics["pixel_accuracy"],
    }
