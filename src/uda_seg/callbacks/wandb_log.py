"""Weights & Biases as a dashboard: curves, pictures with switchable masks, tables, checkpoints, alerts.

Training is worth more than its dashboard: without login or network the run is written into its folder instead, from
where `wandb sync` sends it, and if W&B fails later, the run goes on without it. Both are said in one line.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.callbacks.dashboards import Ending, Picture, Table
from uda_seg.data.labels import IGNORE
from uda_seg.errors import UserError

log = logging.getLogger(__name__)

STEP = "trainer/global_step"  # Lightning's name of the number of completed optimiser steps
FINISH_S = 600.0  # at most, for uploads at the end of a run (ours); `wandb sync` sends what is left
PATIENCE = 3  # failures in a row after which W&B is left alone (ours)
Mode = Literal["online", "offline"]


class WandbLog(WandbLogger):
    """Lightning's logger, which also shows pictures, tables and bars, and survives the loss of W&B.

    Args:
        folder: folder of the run; W&B writes into its `wandb`.
        mode: `online` or `offline`; online becomes offline without login or network.
        artifacts: checkpoint that W&B keeps at the end: `last`, `best`, or `none`.
        run: further arguments of `wandb.init`: name, id, project, group, ...
    """

    def __init__(self, folder: Path, mode: Mode, artifacts: str = "none", **run: Any) -> None:
        super().__init__(save_dir=folder, **run)
        self.folder = folder
        self.mode: Mode = mode
        self.artifacts = artifacts
        self.failures = 0
        self.defined: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, started when it is first asked for."""
        if self._experiment is None:
            self._experiment = self._start()
            self._experiment.define_metric(STEP)
            self._experiment.define_metric("*", step_metric=STEP, step_sync=True)
        return self._experiment

    def _start(self) -> Any:
        import wandb

        try:
            if self.mode != "offline":
                _require_login()
            return self._init(self.mode)
        except Exception as error:  # no login, no network, a refusal, ...
            if self.mode == "offline":
                raise
            log.warning(
                "W&B: %s; the run is written to %s alone, and `wandb sync` sends it later. Run `wandb login` or set "
                "WANDB_API_KEY; logger.mode=offline chooses this without a warning",
                " ".join(str(error).split()),
                self.folder / "wandb",
            )
            self.mode = "offline"
            wandb.teardown()  # its service would say that the run's id is in use
            return self._init(self.mode)

    def _init(self, mode: Mode) -> Any:
        import wandb

        given = {key: value for key, value in self._wandb_init.items() if value is not None}
        if mode == "offline":
            del given["resume"]  # W&B's own: there is nobody to ask, and the same id is enough
        if "finish_timeout" in wandb.Settings.model_fields and "WANDB_FINISH_TIMEOUT" not in os.environ:
            given["settings"] = wandb.Settings(finish_timeout=FINISH_S)
        return wandb.init(**given, mode=mode)

    def send(self, what: Callable[[Any], object]) -> None:
        """Do something with W&B's run; a failure is said once, and after several in a row W&B is left alone."""
        if self.failures >= PATIENCE:
            return
        try:
            what(self.experiment)
        except Exception as error:  # whatever it is, training goes on
            self.failures += 1
            said = f"W&B: {type(error).__name__}: {' '.join(str(error).split())}"
            kept = "metrics.csv and the panels are written as before"
            if self.failures == PATIENCE:
                log.warning("%s, %d times in a row; the run goes on without it, %s", said, PATIENCE, kept)
            elif self.failures == 1:
                log.warning("%s; the run goes on, %s", said, kept)
        else:
            self.failures = 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers at a number of optimiser steps."""
        self._log(lambda: dict(metrics), step)

    @rank_zero_only
    def show_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Show pictures with masks that can be switched on and off."""
        self._log(lambda: {name: [as_image(picture) for picture in pictures]}, step)

    @rank_zero_only
    def show_table(self, name: str, table: Table, step: int) -> None:
        """Show a table that can be sorted and filtered by any column."""
        self._log(lambda: {name: as_table(table)}, step)

    @rank_zero_only
    def show_bars(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Show a bar chart."""
        import wandb

        table = Table(["name", "value"], [*values.items()])
        self._log(lambda: {name: wandb.plot.bar(as_table(table), "name", "value", title=name)}, step)

    @rank_zero_only
    def alert(self, title: str, text: str, step: int) -> None:
        """Let W&B send a message to whoever has asked for it there."""
        self.send(lambda run: run.alert(title=title[:63], text=text, level="ERROR"))

    def close(self, ending: Ending) -> None:
        """Log the result, keep the chosen checkpoint, and end the run: the next one in this process gets its own.

        A sweep of W&B takes the best of all values that it finds of its metric, so the last iterate's mIoU needs a name
        under which there is no other.
        """
        if self._experiment is None:
            return
        if not ending.failed and ending.scores:
            self._log(lambda: {f"result/{name}": value for name, value in ending.scores.items()}, None)
        if not ending.failed and self.artifacts not in ("none", *ending.checkpoints):
            log.warning("logger.artifacts=%s: the run has no such checkpoint, W&B keeps none", self.artifacts)
        elif not ending.failed and self.artifacts != "none":
            self.send(lambda run: self._keep(run, *ending.checkpoints[self.artifacts], ending.scores))
        self.failures = 0  # whatever happened before, try
        self.send(lambda run: run.finish(exit_code=int(ending.failed)))

    def _keep(self, run: Any, file: Path, step: int, scores: Mapping[str, float]) -> None:
        import wandb

        kind = self.artifacts
        chosen_on = "target labels" if kind == "best" else "nothing: the last iterate"
        score = scores.get("best" if kind == "best" else "miou")
        metadata = {"step": step, "miou": score, "chosen on": chosen_on, "file": file.name}
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata=metadata)
        artifact.add_file(str(file.resolve()))
        run.log_artifact(artifact, aliases=[kind, f"step-{step}"])

    def _log(self, make: Callable[[], dict[str, Any]], step: int | None) -> None:
        """Log the values that `make` builds, which may already fail, e.g. on a full disk."""

        def send(run: Any) -> None:
            values = make()
            for name in values.keys() - self.defined:
                run.define_metric(name, step_metric=STEP, step_sync=True, summary=summary_of(name))
                self.defined.add(name)
            run.log(values if step is None else {**values, STEP: step})

        self.send(send)


def _require_login() -> None:
    """Raise UserError without a login, about which W&B would ask in a terminal while the training waits."""
    import wandb

    asked = inspect.signature(wandb.login).parameters
    if "prompt" in asked and not wandb.login(prompt=False, verify=False):  # earlier versions cannot be kept from asking
        raise UserError("there is no login")


def summary_of(name: str) -> str | None:
    """Return what W&B keeps of a curve: best and last of a score, least and last of a loss; None: its default."""
    place, last = name.partition("/")[0], name.rpartition("/")[2]
    if place == "val" and (last.endswith("miou") or last == "pixel_accuracy" or "/iou/" in name):
        return "max,last"
    if place == "train" and last not in ("lr", "gradient_norm"):
        return "min,last"
    return None


def as_image(picture: Picture) -> Any:
    """Build W&B's image, with one mask per label map and the names of the classes."""
    import wandb

    names = dict(enumerate(picture.classes.names)) | {IGNORE: "none"} if picture.classes else {}
    masks = {key: {"mask_data": mask, "class_labels": names} for key, mask in picture.masks.items()}
    return wandb.Image(picture.image, caption=picture.caption or None, masks=masks or None)


def as_table(table: Table) -> Any:
    """Build W&B's table."""
    import wandb

    return wandb.Table(columns=list(table.columns), data=[[_cell(value) for value in row] for row in table.rows])


def _cell(value: str | float | Picture) -> Any:
    if isinstance(value, Picture):
        return as_image(value)
    return None if isinstance(value, float) and math.isnan(value) else value
