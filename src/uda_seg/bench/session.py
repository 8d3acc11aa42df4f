"""A method about to be trained for a few steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl

from uda_seg.config.schema import Config
from uda_seg.data.datamodule import UDADataModule
from uda_seg.methods.base import UDAModule
from uda_seg.runs.build import build_data, build_module, build_trainer

WARM_UP = 3  # steps before anything is timed

# The methods that the ratios are about, by what tells them from the class's defaults.
SOURCE_ONLY = {"_target_": "uda_seg.methods.source_only.SourceOnly"}
DACS = {"_target_": "uda_seg.methods.self_training.SelfTraining"}
MIC = DACS | {"mask_weight": 1.0, "feature_distance": 0.005}
BICL = {"_target_": "uda_seg.methods.bicl.BiCL", "warmup": 0.0}
T2SDA = {"_target_": "uda_seg.methods.t2sda.T2SDA"}
CORDA = {"_target_": "uda_seg.methods.corda.CorDA"}


@dataclass
class Session:
    """A method about to be trained for some steps, as `train` would, without validation, pictures and checkpoints."""

    config: Config
    data: UDADataModule
    module: UDAModule
    trainer: pl.Trainer

    def fit(self) -> None:
        """Take the steps."""
        self.trainer.fit(self.module, datamodule=self.data)


def prepare(config: Config, folder: Path, steps: int) -> Session:
    """Build data, method and trainer for `steps` steps on one device; what the trainer writes goes into `folder`."""
    config = shortened(config, steps)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    module = build_module(config, data)
    trainer = build_trainer(config, folder, data)
    trainer.limit_val_batches = 0
    return Session(config, data, module, trainer)


def shortened(config: Config, steps: int) -> Config:
    """The first `steps` steps of a run, on one device, and nothing but steps."""
    return replace(
        config,
        steps=max(config.steps, steps + 1),  # the run's last step would be saved and validated
        trainer=replace(config.trainer, devices=1, num_nodes=1, strategy="auto", max_steps=steps, overfit=False),
        callbacks=replace(config.callbacks, progress=False, panels=0, checkpoints=1),
    )


def steps_of(config: Config) -> int:
    """Steps of a training that is timed in turns, and one more, so that its end is in no block."""
    return WARM_UP + config.bench.pairs * config.bench.steps + 1
