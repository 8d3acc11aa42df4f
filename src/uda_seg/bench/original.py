"""Comparison of our step with the original repositories', and of theirs without its habits with a bare loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch

from uda_seg.bench.classic import ClassicLoop, PlainTrainer
from uda_seg.bench.measure import Row
from uda_seg.bench.overhead import bare_loop
from uda_seg.bench.session import DACS, prepare, shortened, steps_of
from uda_seg.bench.tf32 import stepped
from uda_seg.bench.turns import Comparison, Looped, Side, Trained, Turns
from uda_seg.config.commands import BenchConfig
from uda_seg.data.datamodule import UDADataModule
from uda_seg.launch.devices import on_gpu
from uda_seg.methods.base import UDAModule
from uda_seg.runs.build import build_data, build_module

AIM = 3.0  # aimed-at speed-up on a GPU


def measure_classic(config: BenchConfig) -> list[Row]:
    """Compare the configured step with the classic one, and DACS's classic step without habits with the bare loop.

    Both loops follow `bench.tf32`; ours uses PyTorch's defaults.
    """
    bench = config.bench
    config = replace(
        config,
        optimizer=replace(config.optimizer, accumulate=1),
        logger=replace(config.logger, kind="csv", log_every=bench.steps),  # one log call per block
    )
    label = f"classic ({', '.join(bench.habits)})" if bench.habits else "classic without habits"
    rows = _timed(config, ("ours", f"{label}, {'TF32' if bench.tf32 else 'no TF32'}"), (_ours, _classic))
    plain = replace(
        config,
        method=DACS,
        teacher=replace(config.teacher, update="start", batch_norm="eval"),
        bench=replace(bench, habits=[]),
    )
    bare = _timed(plain, ("classic without habits", "bare loop"), (_classic, _bare))
    return [
        *rows.rows("classic", AIM if on_gpu(config.trainer) else None, faster=True),
        *bare.rows("classic/without_habits", 1.1),
    ]


def _timed(
    config: BenchConfig, labels: tuple[str, str], make: Sequence[Callable[[BenchConfig, Path], Side]]
) -> Comparison:
    with tempfile.TemporaryDirectory() as folder, Turns() as turns:
        for maker in make:
            turns.add(lambda maker=maker: maker(config, Path(folder)))  # type: ignore[misc]
        return turns.compare(labels, config.bench.pairs, config.bench.steps)


def _ours(config: BenchConfig, folder: Path) -> Side:
    return Trained(prepare(config, folder / "ours", steps_of(config)))


def _classic(config: BenchConfig, folder: Path) -> Side:
    module, data, device = _plain(config)
    log = (folder / "classic.csv").open("w", newline="")
    trainer = PlainTrainer(folder, steps_of(config), data)
    loop = ClassicLoop(module, trainer, iter(data.train_dataloader()), device, log, config.bench.habits)
    return Looped(stepped(loop.step, config.bench.tf32), module, data.images_per_step, log)


def _bare(config: BenchConfig, folder: Path) -> Side:
    module, data, device = _plain(config)
    log = (folder / "bare.csv").open("w", newline="")
    loop = bare_loop(module, data, device, False, log)
    return Looped(stepped(loop.step, config.bench.tf32), module, data.images_per_step, log)


def _plain(config: BenchConfig) -> tuple[UDAModule, UDADataModule, torch.device]:
    """Build the method without compilation, its data, and the device of a single process."""
    config = shortened(config, steps_of(config))
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    return build_module(config, data), data, torch.device("cuda" if on_gpu(config.trainer) else "cpu")
