"""What the framework adds to a training step: the module under Lightning beside a bare loop, step by step in turns."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from uda_seg.bench.baselines import BareLoop
from uda_seg.bench.measure import Pairs, Row, synchronize
from uda_seg.bench.session import DACS, SOURCE_ONLY, WARM_UP, prepare
from uda_seg.config import Config
from uda_seg.methods.base import UDAModule
from uda_seg.train import build_data

log = logging.getLogger(__name__)


def measure_overhead(config: Config) -> list[Row]:
    """A step of the module under Lightning, CSV log included, and of the bare loop, in turns on the same batches."""
    rows = []
    for name, method in (("source_only", SOURCE_ONLY), ("dacs", DACS)):
        turns = interleave(replace(config, method=method))
        log.info("overhead/%s: the two trained weights differ by at most %.1g", name, turns.difference)
        pairs, ratio = turns.pairs(), turns.pairs().a_over_b
        rows.append(
            Row(f"overhead/{name}", "Lightning", pairs.a_ms, "bare loop", pairs.b_ms, "ms", ratio, 1.05, "at most")
        )
    return rows


class Interleaved(pl.Callback):
    """Takes a step of the bare loop after every step of the trainer and times both.

    The trainer's step lasts from the end of one bare step to the beginning of the next: loading, transfer, hooks and
    logging are all in it.

    Args:
        make: builds the bare loop once the trainer knows its device.
        pairs: pairs of blocks.
        block: steps a block.

    Attributes:
        bare: the loop.
        seconds: of every trainer's and every bare step.
        difference: largest distance between a weight of the module and the loop's, at the end: that both sides of the
            ratio do the same work.
    """

    def __init__(self, make: Callable[[pl.Trainer], BareLoop], pairs: int, block: int) -> None:
        self.make, self.count, self.block = make, pairs, block
        self.bare: BareLoop | None = None
        self.seconds: list[tuple[float, float]] = []
        self.difference = 0.0
        self.began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build the loop from the untrained module."""
        self.bare = self.make(trainer)
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The bare loop's turn."""
        assert self.bare is not None
        synchronize()
        between = time.perf_counter()
        self.bare.step()
        synchronize()
        after = time.perf_counter()
        self.seconds.append((between - self.began, after - between))
        self.began = after

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare what the two have trained."""
        assert self.bare is not None
        assert isinstance(pl_module, UDAModule)
        both = zip(pl_module.segmentor.parameters(), self.bare.student.parameters(), strict=True)
        self.difference = max(float((mine - bare).detach().abs().max()) for mine, bare in both)

    def pairs(self) -> Pairs:
        """Seconds of a step, averaged over each block, without the warm-up."""
        timed = self.seconds[WARM_UP:]
        blocks = [timed[i * self.block : (i + 1) * self.block] for i in range(self.count)]
        mean = [tuple(sum(side) / self.block for side in zip(*block, strict=True)) for block in blocks]
        return Pairs([a for a, _ in mean], [b for _, b in mean])


def interleave(config: Config) -> Interleaved:
    """Train source-only or DACS and its bare loop step by step in turns, from the same weights on the same batches."""
    bench = config.bench
    config = replace(
        config,
        optimizer=replace(config.optimizer, accumulate=1),
        teacher=replace(config.teacher, update="start", batch_norm="eval"),
        logger=replace(config.logger, kind="csv", log_every=bench.steps),  # so that every block logs once
    )
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        session = prepare(config, Path(name), WARM_UP + bench.pairs * bench.steps)
        twin = copy.deepcopy(session.module)
        other = build_data(session.config)
        other.setup("fit")
        file = stack.enter_context((Path(name) / "bare.csv").open("w", newline=""))

        def make(trainer: pl.Trainer) -> BareLoop:
            device = trainer.strategy.root_device
            twin.to(device).train()
            return BareLoop(
                twin.segmentor,
                None if twin.teacher is None else twin.teacher.network,
                twin.configure_optimizers(),
                twin.plan,
                iter(other.train_dataloader()),
                device,
                torch.autocast(device.type, torch.bfloat16, enabled=trainer.precision == "bf16-mixed"),
                file,
            )

        turns = Interleaved(make, bench.pairs, bench.steps)
        session.trainer.callbacks.append(turns)  # type: ignore[attr-defined]
        session.fit()
    return turns
