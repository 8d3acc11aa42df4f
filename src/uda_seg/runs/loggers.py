"""Construction of a run's loggers: the CSV file, which is always written, and a dashboard."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning.loggers import Logger

from uda_seg.callbacks.checkpoint import Checkpoints
from uda_seg.callbacks.csv_log import CSVLog
from uda_seg.callbacks.dashboards import Ending, dashboards
from uda_seg.callbacks.tensorboard_log import TensorBoardLog
from uda_seg.callbacks.wandb_log import Mode, WandbLog
from uda_seg.config.replay import method_name
from uda_seg.config.schema import Config, Origin, resolved
from uda_seg.errors import UserError
from uda_seg.launch.rendezvous import this_rank
from uda_seg.methods.base import UDAModule
from uda_seg.options.validate import leaves
from uda_seg.runs.record import git_state, overrides, versions
from uda_seg.storage.files import read_text, write_text


def build_loggers(config: Config, folder: Path) -> list[Logger]:
    """Build the CSV logger and the configured dashboard."""
    csv_log, kind = CSVLog(folder / "metrics.csv"), config.logger.kind
    if kind == "wandb" and (mode := wandb_mode(config)) is not None:
        return [csv_log, WandbLog(folder, mode, config.logger.artifacts, **about(config, folder))]
    if kind == "tensorboard":
        try:
            return [csv_log, TensorBoardLog(folder, {k: plain(v) for k, v in leaves(resolved(config))})]
        except ModuleNotFoundError as error:
            cure = "pip install '.[tensorboard]' in the checkout"
            raise UserError(f"logger=tensorboard needs tensorboard: {cure}") from error
    return [csv_log]


def wandb_mode(config: Config) -> Mode | None:
    """Return how W&B is written: by the settings, else by WANDB_MODE, else online; None: not at all."""
    settings = config.logger
    if settings.offline and settings.mode in ("online", "disabled"):
        raise UserError(f"logger.offline=true and logger.mode={settings.mode} contradict each other: leave one out")
    chosen = "offline" if settings.offline else settings.mode or os.environ.get("WANDB_MODE", "online")
    if chosen == "disabled":
        return None
    return "offline" if chosen in ("offline", "dryrun") else "online"


def about(config: Config, folder: Path) -> dict[str, Any]:
    """Return how W&B names and groups the run, and what it knows about it."""
    settings, chosen = config.logger, choices(config)
    sweep = chosen.get("sweep")
    group = chosen.get("experiment") or "/".join([config.data.name, *([sweep] if sweep else [])])
    return {
        "name": "/".join(folder.parts[-3:]),
        "id": wandb_id(folder) if this_rank() == 0 else None,
        "project": settings.project,
        "entity": settings.entity,
        "group": settings.group or group,
        "job_type": chosen.get("method") or method_name(config),
        "tags": list(dict.fromkeys([config.data.name, *settings.tags])),
        "config": resolved(config) | {"git": git_state(), "versions": versions(), "overrides": overrides()},
    }


def choices(config: Config) -> Mapping[str, str]:
    """Return the choice in each group of the configuration; empty where it was not composed."""
    if config.origin is not None:
        return config.origin.choices
    return Origin.of(HydraConfig.get()).choices if HydraConfig.initialized() else {}


def wandb_id(folder: Path) -> str:
    """Return the W&B id stored in the run's folder: a resumed run continues there, a new run gets its own."""
    file = folder / "wandb" / "id.txt"
    if not file.exists():
        write_text(file, uuid.uuid4().hex[:16])
    return read_text(file, "delete it: the run gets a new id there").strip()


def plain(value: Any) -> Any:
    """Return a setting as TensorBoard's table takes it: a number or a truth value as such, all else as text."""
    return value if isinstance(value, bool | int | float) else str(value)


def close_loggers(trainer: pl.Trainer, failed: bool) -> None:
    """End what the dashboards write, because the next job of a sweep would write to it."""
    for dashboard in dashboards(trainer):
        dashboard.close(ending(trainer, failed))


def ending(trainer: pl.Trainer, failed: bool) -> Ending:
    """Describe how a run ended, by its network and its checkpoints."""
    module, saved = trainer.lightning_module, [c for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
    if not saved or not isinstance(module, UDAModule):
        return Ending(failed)
    steps = {"last": saved[0].saved_step, "best": saved[0].best_step}
    files = {name: (saved[0].folder / f"{name}.ckpt", step) for name, step in steps.items() if step >= 0}
    scores = {"miou": module.miou, "best": saved[0].best_miou} if module.scores else {}
    return Ending(failed, scores, {name: found for name, found in files.items() if found[0].is_file()})
