"""Overhead of the framework and of each method, measured step by step against a bare loop."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
import torch

from uda_seg.bench.baselines import BareLoop
from uda_seg.bench.measure import Pairs, Row, synchronize
from uda_seg.bench.session import BICL, CORDA, DACS, SOURCE_ONLY, T2SDA, WARM_UP, prepare
from uda_seg.config.commands import BenchConfig
from uda_seg.data.datamodule import UDADataModule
from uda_seg.methods.base import UDAModule
from uda_seg.runs.build import build_data, build_module

log = logging.getLogger(__name__)


def measure_overhead(config: BenchConfig) -> list[Row]:
    """Time a step of the module under Lightning, including the CSV log, against the bare loop on the same batches."""
    rows = []
    for name, method in (("source_only", SOURCE_ONLY), ("dacs", DACS)):
        turns = interleave(replace(config, method=method))
        log.info("overhead/%s: the two trained weights differ by at most %.1g", name, turns.difference)
        pairs, ratio = turns.pairs(), turns.pairs().a_over_b
        rows.append(
            Row(f"overhead/{name}", "Lightning", pairs.a_ms, "bare loop", pairs.b_ms, "ms", ratio, 1.05, "at most")
        )
    return rows


def measure_methods(config: BenchConfig) -> list[Row]:
    """Time a step of each method under Lightning against DACS in a bare loop, which `overhead/dacs` calibrates."""
    rows = []
    for name, method in (("bicl", BICL), ("t2sda", T2SDA), ("corda", CORDA)):
        pairs = interleave(replace(config, method=method), DACS).pairs()
        ratio = pairs.a_over_b
        rows.append(Row(f"methods/{name}", name, pairs.a_ms, "dacs", pairs.b_ms, "ms", ratio, 2.0, "at most"))
    return rows


class Interleaved(pl.Callback):
    """Runs a step of the bare loop after every step of the trainer and times both.

    The trainer's step lasts from the end of one bare step to the start of the next, so it includes loading, transfer,
    hooks and logging.

    Args:
        make: builds the bare loop once the trainer knows its device.
        pairs: number of pairs of blocks.
        block: steps per block.

    Attributes:
        bare: the loop.
        seconds: seconds of every step of the trainer and of the bare loop.
        difference: largest absolute difference between the weights of the two networks at the end; 0 confirms that both
            sides did the same work.
    """

    def __init__(self, make: Callable[[pl.Trainer], BareLoop], pairs: int, block: int) -> None:
        self.make, self.count, self.block = make, pairs, block
        self.bare: BareLoop | None = None
        self.seconds: list[tuple[float, float]] = []
        self.difference = 0.0
        self.began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build the loop from the untrained module (Lightning hook)."""
        self.bare = self.make(trainer)
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Run a step of the bare loop (Lightning hook)."""
        assert self.bare is not None
        synchronize()
        between = time.perf_counter()
        self.bare.step()
        synchronize()
        after = time.perf_counter()
        self.seconds.append((between - self.began, after - between))
        self.began = after

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the two trained networks (Lightning hook)."""
        assert self.bare is not None
        assert isinstance(pl_module, UDAModule)
        mine = dict(pl_module.segmentor.named_parameters())
        both = [(mine[name], bare) for name, bare in self.bare.student.named_parameters()]
        self.difference = max(float((mine - bare).detach().abs().max()) for mine, bare in both)

    def pairs(self) -> Pairs:
        """Average the seconds per step over each block, without the warm-up."""
        timed = self.seconds[WARM_UP:]
        blocks = [timed[i * self.block : (i + 1) * self.block] for i in range(self.count)]
        mean = [tuple(sum(side) / self.block for side in zip(*block, strict=True)) for block in blocks]
        return Pairs([a for a, _ in mean], [b for _, b in mean])


def interleave(config: BenchConfig, beside: dict[str, Any] | None = None) -> Interleaved:
    """Train a method and a bare loop alternately, step by step, on the same batches.

    Args:
        config: configuration of the method.
        beside: the bare loop's method, source-only or DACS; None: that of `config`, from the same weights.
    """
    bench = config.bench
    config = replace(
        config,
        optimizer=replace(config.optimizer, accumulate=1),
        teacher=replace(config.teacher, update="start", batch_norm="eval"),
        logger=replace(config.logger, kind="csv", log_every=bench.steps),  # one log call per block
    )
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        session = prepare(config, Path(name), WARM_UP + bench.pairs * bench.steps)
        other = build_data(session.config if beside is None else replace(session.config, method=beside))
        other.setup("fit")
        twin = (
            copy.deepcopy(session.module)
            if beside is None
            else build_module(replace(session.config, method=beside), other)
        )
        file = stack.enter_context((Path(name) / "bare.csv").open("w", newline=""))

        def make(trainer: pl.Trainer) -> BareLoop:
            return bare_loop(twin, other, trainer.strategy.root_device, trainer.precision == "bf16-mixed", file)

        turns = Interleaved(make, bench.pairs, bench.steps)
        session.trainer.callbacks.append(turns)  # type: ignore[attr-defined]
        session.fit()
    return turns


def bare_loop(module: UDAModule, data: UDADataModule, device: torch.device, mixed: bool, log: TextIO) -> BareLoop:
    """Build a plain loop over a module's network and teacher: source-only training or DACS.

    Args:
        module: module to train in place.
        data: data module after `setup`.
        device: device to train on.
        mixed: train in bf16-mixed instead of float32.
        log: open CSV file.
    """
    module.to(device).train()
    return BareLoop(
        module.segmentor,
        None if module.teacher is None else module.teacher.network,
        module.configure_optimizers(),
        module.plan,
        iter(data.train_dataloader()),
        device,
        torch.autocast(device.type, torch.bfloat16, enabled=mixed),
        log,
    )
