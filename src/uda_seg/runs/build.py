"""Construction of data module, method and trainer from a configuration."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import Checkpoint, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy, Strategy

from uda_seg.callbacks.alarms import Alarms
from uda_seg.callbacks.checkpoint import AtomicCheckpointIO, Checkpoints
from uda_seg.callbacks.dashboards import Dashboard
from uda_seg.callbacks.ema import TeacherEMA
from uda_seg.callbacks.label_free import LabelFree
from uda_seg.callbacks.panels import Panels
from uda_seg.callbacks.progress import ProgressBar
from uda_seg.callbacks.stop import Stop
from uda_seg.callbacks.validation_board import ValidationBoard
from uda_seg.callbacks.validation_panels import ValidationPanels
from uda_seg.config.replay import describe
from uda_seg.config.settings import Config, TrainerSettings
from uda_seg.data.datamodule import UDADataModule
from uda_seg.errors import UserError
from uda_seg.launch.devices import devices, local_ranks
from uda_seg.methods.base import Plan, UDAModule
from uda_seg.methods.options.base import options_of
from uda_seg.methods.scoring import label_free_name
from uda_seg.models.inference import Inference
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.trial import trained, try_out
from uda_seg.options.validate import nearest, shown
from uda_seg.runs.checkpoint import device_precision
from uda_seg.runs.loggers import build_loggers


def check_crop(config: Config, network: Segmentor) -> None:
    """Raise UserError if training crops are smaller than a cell of the network's coarsest map."""
    cell = max(network.smallest, *network.encoder.strides)
    if min(config.data.crop) < cell:
        raise UserError(
            f"data.crop={config.data.crop} is smaller than what one cell of the network's coarsest map sees, {cell} x "
            f"{cell} pixels: make the crop larger"
        )


def try_sizes(config: Config, module: UDAModule, data: UDADataModule) -> None:
    """Raise UserError if the network cannot train on crops, or predict images, of the configured sizes."""
    network, evaluator = module.segmentor, config.evaluator
    batches = (config.data.source_batch, data.target_batch or config.data.source_batch)
    try_out(network, trained, min(batches) // config.optimizer.accumulate, config.data.crop)
    window = evaluator.window if evaluator.inference == "slide" else None
    for height, width in sorted(set(data.validation_sizes)):
        view = (height, width) if window is None else (min(window[0], height), min(window[1], width))
        try_out(network, Segmentor.predict, 2, view)


def quiet_lightning() -> None:
    """Suppress Lightning's tips, and warnings about intended behaviour."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start.*",
        ".*does not have many workers.*",
        ".*isinstance.treespec.*",
        ".*smaller than the logging interval.*",
        ".*sync_dist=True.*",  # what is logged for callbacks is the same on all ranks
        ".*predict returned None.*",  # predictions are written, not returned
        ".*across ranks is zero.*",  # sequences without exact depth are not scored
        ".*broadcast_buffers. is deprecated.*",  # only the newest supported PyTorch has the new name
    ):
        warnings.filterwarnings("ignore", message)


def method_class(config: Config) -> type[UDAModule]:
    """Return the method's class, a sub-class of UDAModule."""
    found: type[UDAModule] = get_class(config.method["_target_"])
    return found


def build_data(config: Config, resume: Path | None = None) -> UDADataModule:
    """Build the data module with the data that the method requires; `resume` is the checkpoint of a resumed run."""
    method = method_class(config)
    return UDADataModule(
        config.data,
        steps=config.steps,
        seed=config.seed,
        needs_target=method.needs_target and not (method.target_optional and config.data.target is None),
        target_in_step=method.target_in_step,
        needs_depth=method.needs_depth,
        margins=config.teacher.margins,
        target_labels=method.supervised_target,
        overfit=config.trainer.overfit,
        resumed=None if resume is None else resume.resolve().parent.parent,
        sample=config.evaluator.label_free_images if config.evaluator.label_free else 0,
    )


def build_module(config: Config, data: UDADataModule) -> UDAModule:
    """Build the untrained method with its network."""
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
        running_statistics=config.running_statistics,
        statistics_batches=config.statistics_batches,
    )
    return instantiate_module(config, plan)


def instantiate_module(config: Config, plan: Plan) -> UDAModule:
    """Instantiate the configured method on the configured network."""
    segmentor: Segmentor = instantiate(config.model, num_classes=len(plan.classes))
    if config.evaluator.inference == "slide" and min(config.evaluator.window) < segmentor.smallest:
        raise UserError(
            f"evaluator.window={config.evaluator.window}: the network needs at least {segmentor.smallest} pixels per "
            "side: make the window larger"
        )
    method = method_class(config)
    options = options_of(method)(**{key: value for key, value in config.method.items() if key != "_target_"})
    # Not through `instantiate`, which would convert the plan to a configuration.
    module = method(segmentor, plan, options)
    module.evaluate_teacher = config.evaluator.teacher
    module.infer = inference(config)
    return module


def inference(config: Config) -> Inference:
    """Build the inference settings."""
    settings = config.evaluator
    return Inference(
        window=(settings.window[0], settings.window[1]) if settings.inference == "slide" else None,
        stride=(settings.stride[0], settings.stride[1]),
        windows=settings.windows_per_batch,
        scales=tuple(settings.scales),
        flip=settings.flip,
        average="logits" if settings.average == "logits" else "probabilities",
    )


def build_trainer(config: Config, folder: Path, data: UDADataModule, seen: int = 0, *more: pl.Callback) -> pl.Trainer:
    """Build Lightning's trainer with all callbacks; a batch is a step, so validation counts optimiser steps."""
    quiet_lightning()
    scores = ["val/miou", *(f"val/{name}/{score}" for name in data.validation_names for score in SCORED)]
    scores += [label_free_name(name) for name in config.evaluator.label_free]
    often = config.callbacks
    checkpoints = Checkpoints(
        folder / "checkpoints",
        interval(config.steps, often.checkpoints),
        describe(config),
        seen,
        config.evaluator.chooser,
    )
    callbacks: list[pl.Callback] = [TeacherEMA(), *label_free(config, folder), checkpoints, Alarms(checkpoints)]
    loggers = build_loggers(config, folder)
    if any(isinstance(logger, Dashboard) for logger in loggers):
        callbacks.append(ValidationBoard(data.classes, config.logger.pictures))
    if often.panels:
        callbacks.append(Panels(folder / "panels", interval(config.steps, often.panels), data.classes))
        callbacks.append(ValidationPanels(often.validation_panels, folder / "panels"))
    if often.progress:
        callbacks.append(ProgressBar())
    callbacks += [*more, *own_callbacks(config, folder, scores), Stop(checkpoints)]
    return new_trainer(config, folder, config.steps, loggers, callbacks)


def label_free(config: Config, folder: Path) -> list[pl.Callback]:
    """Build the callback of the label-free scores, if there are any; it comes before that of the checkpoints."""
    names = config.evaluator.label_free
    return [LabelFree(names, folder, interval(config.steps, config.evaluator.times))] if names else []


def own_callbacks(config: Config, folder: Path, scores: Sequence[str] = ()) -> list[pl.Callback]:
    """Build the Lightning callbacks among `callbacks`.

    Args:
        config: of the run.
        folder: of the run; a ModelCheckpoint that names no `dirpath` writes into its `model_checkpoints`.
        scores: names of what validation gives; none where they are not known yet.

    Raises:
        UserError: a callback that cannot be built, monitors a missing score, or writes unreadable checkpoints.
    """
    built = []
    for name, node in config.callbacks.others.items():
        options = dict(node)
        if issubclass(get_class(node["_target_"]), ModelCheckpoint):
            options = {"dirpath": str(folder / "model_checkpoints"), **options}
            if options.get("save_weights_only"):
                raise UserError(
                    f"callbacks.{name}.save_weights_only=true leaves out what builds the network: leave it out"
                )
        try:
            callback: pl.Callback = instantiate(options)
        except HydraException as error:
            cause = " ".join(str(error.__cause__ or error).split())
            raise UserError(f"callbacks.{name}: {shown(cause)}") from error
        _check_monitored(callback, name, scores)
        built.append(callback)
    return built


def may_stop(config: Config) -> list[str]:
    """Return the names of the configured callbacks that could end a run: all but those that only save or log."""
    harmless = (Checkpoint, LearningRateMonitor)
    return [n for n, node in config.callbacks.others.items() if not issubclass(get_class(node["_target_"]), harmless)]


SCORED = ("miou", "pixel_accuracy", "teacher_miou")  # of each target


def _check_monitored(callback: pl.Callback, name: str, known: Sequence[str]) -> None:
    """Refuse a misspelt score before training, not at the first validation."""
    monitored = getattr(callback, "monitor", None)
    if known and isinstance(monitored, str) and re.match(r"val(idation)?[/_]", monitored) and monitored not in known:
        raise UserError(
            f"callbacks.{name}.monitor={shown(monitored)} is no score of this run; {nearest(monitored, known)}"
        )


def new_trainer(
    config: Config, folder: Path, steps: int, loggers: list[Logger], callbacks: list[pl.Callback]
) -> pl.Trainer:
    """Build Lightning's trainer on the configured hardware for `steps` optimiser steps, one per batch."""
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # srun may run torchrun
        plugins.append(SLURMEnvironment(auto_requeue=False))  # `Stop` does it
    settings = config.trainer
    trainer = pl.Trainer(
        accelerator=settings.accelerator,
        devices=devices(settings),
        num_nodes=settings.num_nodes,
        strategy=strategy(settings),
        precision=device_precision(settings.precision, settings.accelerator),  # type: ignore[arg-type]
        sync_batchnorm=settings.sync_batchnorm,
        deterministic=settings.deterministic,
        benchmark=settings.benchmark,
        profiler=build_profiler(settings.profiler, folder / "profile"),
        max_steps=min(steps, settings.max_steps or steps),
        max_epochs=1,
        val_check_interval=interval(steps, config.evaluator.times),
        check_val_every_n_epoch=None,
        log_every_n_steps=config.logger.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        logger=loggers,
        callbacks=callbacks,
        plugins=plugins,
        default_root_dir=folder,
    )
    trainer.fit_loop.epoch_loop = SteadyLoop(trainer, max_steps=trainer.max_steps)
    return trainer


class SteadyLoop(_TrainingEpochLoop):
    """Lightning's loop without its broadcast and barrier per batch for SIGTERM, which `Stop` handles."""

    def _broadcast_sigterm_tensor(self) -> None:
        pass


def strategy(settings: TrainerSettings) -> Strategy | str:
    """Return plain data-parallel training if there is more than one rank.

    The step averages gradients and buffers itself (`StepModule.reduce_gradients`), so nothing is broadcast.
    """
    if settings.strategy != "ddp" and local_ranks(settings) * settings.num_nodes == 1:
        return "auto"
    return DDPStrategy(broadcast_buffers=False, timeout=timedelta(seconds=settings.timeout))


def interval(steps: int, times: int) -> int:
    """Compute the steps between at most `times` events in a whole run, whether or not it stops early."""
    return -(-steps // times)


def build_profiler(kind: str | None, folder: Path) -> Profiler | None:
    """Build the profiler of Lightning's hooks, which writes its table to the folder."""
    if kind is None:
        return None
    return (SimpleProfiler if kind == "simple" else AdvancedProfiler)(dirpath=folder, filename=kind)
