"""Difference of losses between bf16-mixed and float32."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from timm.layers.drop import DropPath
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from uda_seg.bench.measure import Row
from uda_seg.bench.session import prepare
from uda_seg.config.commands import BenchConfig


def measure_precision(config: BenchConfig) -> list[Row]:
    """Compare every loss in bf16-mixed and float32, from the same weights, batches and draws.

    At the first step the difference is due to arithmetic only; later the trainings also drift apart. The ratio is the
    median over steps of bf16-mixed / float32.
    """
    mixed, full = (losses(config, precision) for precision in ("bf16-mixed", "32-true"))
    rows = []
    for name in full[0]:
        a, b = ([step[name] for step in side] for side in (mixed, full))
        ratios = [x / y for x, y in zip(a, b, strict=True) if y != 0]
        if ratios:
            away = [100 * abs(ratio - 1) for ratio in ratios]
            labels = ("apart, first step", f"at most, {len(away)} steps")
            rows.append(
                Row(f"precision/{name}", labels[0], away[0], labels[1], max(away), "%", statistics.median(ratios))
            )
    return rows


class _Values(pl.Callback):
    """Collects the losses of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the logged values of the step (Lightning hook)."""
        recorded: dict[str, float] = pl_module.recorded  # type: ignore[assignment]
        self.steps.append({k.partition("/")[2]: v for k, v in recorded.items() if k.startswith("train/")})


def losses(config: BenchConfig, precision: str) -> list[dict[str, float]]:
    """Compute losses and gradient norm of the first `bench.steps` steps of a training.

    Dropout and stochastic depth are off, because some of their kernels draw differently in another precision.
    """
    config = replace(
        config,
        trainer=replace(config.trainer, precision=precision),
        logger=replace(config.logger, kind="csv", log_every=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, Path(folder), config.bench.steps)
        without_dropout(session.module)
        values = _Values()
        session.trainer.callbacks.append(values)  # type: ignore[attr-defined]
        session.fit()
    return [{name: value for name, value in step.items() if name != "lr"} for step in values.steps]


def without_dropout(network: nn.Module) -> None:
    """Switch off dropout and stochastic depth permanently."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
