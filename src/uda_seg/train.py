"""`python -m uda_seg.train`: train one method on one pair of domains and leave a folder a person can look at."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from pytorch_lightning.loggers import CSVLogger, Logger

from uda_seg.callbacks.checkpoint import AtomicCheckpointIO, Checkpoints
from uda_seg.callbacks.ema import TeacherEMA
from uda_seg.callbacks.panels import Panels
from uda_seg.callbacks.progress import ProgressBar
from uda_seg.command import run
from uda_seg.config import Config
from uda_seg.data.datamodule import UDADataModule
from uda_seg.errors import UserError
from uda_seg.methods.base import Plan, UDAModule
from uda_seg.runs import describe, load_weights, prepare_folder, write_json, write_record
from uda_seg.sweep import Sweep

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    sweep = Sweep()
    run("config", sweep.watch(train))
    sweep.write_table()


def train(config: Config, folder: Path) -> float:
    """Train and evaluate one run; returns the mIoU of the last iterate, in [0, 1]."""
    started = time.perf_counter()
    resume = prepare_folder(folder, config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    data.prepare_data()
    data.setup()
    module = build_module(config, data)
    if config.init is not None:
        log.info("init: %s", load_weights(module, Path(config.init)))
    write_record(folder, config)
    trainer = build_trainer(config, folder, data, module)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
    checkpoints.save_last(trainer)
    metrics = collect(module, data, trainer, checkpoints, time.perf_counter() - started)
    if trainer.is_global_zero:
        write_json(folder / "metrics.json", metrics)
        log.info("mIoU %.1f %% (last iterate, step %d) in %s", 100 * module.miou, trainer.global_step, folder)
    return module.miou


def build_data(config: Config) -> UDADataModule:
    """The paired loaders, as the method wants them."""
    method = get_class(config.method["_target_"])
    return UDADataModule(
        config.data,
        steps=config.steps,
        seed=config.seed,
        needs_target=method.needs_target,
        target_labels=method.supervised_target,
    )


def build_module(config: Config, data: UDADataModule) -> UDAModule:
    """The method with its network, untrained."""
    classes = data.classes
    plan = Plan(
        steps=config.steps,
        seed=config.seed,
        classes=classes,
        eval_classes=data.eval_classes,
        crop=(config.data.crop[0], config.data.crop[1]),
        targets=tuple(data.validation_names),
        log_every=config.logger.log_every,
        optimizer=config.optimizer,
        schedule=config.schedule,
        teacher=config.teacher,
    )
    segmentor = instantiate(config.model, num_classes=len(classes))
    module: UDAModule = instantiate(config.method, segmentor=segmentor, plan=plan)
    return module


def build_trainer(config: Config, folder: Path, data: UDADataModule, module: UDAModule) -> pl.Trainer:
    """Lightning's trainer with our callbacks; validation counts optimiser steps."""
    settings = config.trainer
    last = min(config.steps, settings.max_steps or config.steps)
    callbacks: list[pl.Callback] = [
        TeacherEMA(),
        Checkpoints(folder / "checkpoints", max(1, config.steps // config.callbacks.checkpoints), describe(config)),
    ]
    if config.callbacks.panels:
        callbacks.append(Panels(folder / "panels", max(1, last // config.callbacks.panels), data.classes))
    if config.callbacks.progress:
        callbacks.append(ProgressBar(data.images_per_step))
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=precision(settings.precision),
        sync_batchnorm=settings.sync_batchnorm,
        deterministic=settings.deterministic,
        profiler=settings.profiler,
        max_steps=last,
        max_epochs=1,
        val_check_interval=max(1, last // config.evaluator.times),
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        overfit_batches=1 if settings.overfit else 0.0,
        logger=build_loggers(config, folder),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )
