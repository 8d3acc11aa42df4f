"""Short trainings for measurements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl

from uda_seg.config.commands import BenchConfig
from uda_seg.data.datamodule import UDADataModule
from uda_seg.methods.base import UDAModule
from uda_seg.runs.build import build_data, build_module, build_trainer

WARM_UP = 3  # untimed steps

# Methods of the ratios, by the options that differ from the class's defaults.
SOURCE_ONLY = {"_target_": "uda_seg.methods.source_only.SourceOnly"}
DACS = {"_target_": "uda_seg.methods.self_training.SelfTraining"}
MIC = DACS | {"mask_weight": 1.0, "feature_distance": 0.005}
BICL = {"_target_": "uda_seg.methods.bicl.BiCL", "warmup": 0.0}
T2SDA = {"_target_": "uda_seg.methods.t2sda.T2SDA", "feature_distance": 0.005}
CORDA = {"_target_": "uda_seg.methods.corda.CorDA"}


@dataclass
class Session:
    """A method set up for some training steps as in `train`, without validation, image panels and checkpoints."""

    config: BenchConfig
    data: UDADataModule
    module: UDAModule
    trainer: pl.Trainer

    def fit(self) -> None:
        """Run the steps."""
        self.trainer.fit(self.module, datamodule=self.data)


def prepare(config: BenchConfig, folder: Path, steps: int) -> Session:
    """Build data, method and trainer for `steps` steps on one device, with the trainer's output in `folder`."""
    config = shortened(config, steps)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    module = build_module(config, data)
    trainer = build_trainer(config, folder, data)
    trainer.limit_val_batches = 0
    return Session(config, data, module, trainer)


def shortened(config: BenchConfig, steps: int) -> BenchConfig:
    """Reduce a run to its first `steps` steps on one device, without validation."""
    return replace(
        config,
        steps=max(config.steps, steps + 1),  # the last step of a run is saved and validated
        trainer=replace(config.trainer, devices=1, num_nodes=1, strategy="auto", max_steps=steps, overfit=False),
        callbacks=replace(config.callbacks, progress=False, panels=0, checkpoints=1),
    )


def steps_of(config: BenchConfig) -> int:
    """Compute the steps of an interleaved training, plus one so that its end is outside of all blocks."""
    return WARM_UP + config.bench.pairs * config.bench.steps + 1
