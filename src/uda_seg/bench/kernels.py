"""Time of a step in matrix products, convolutions and attention."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import DeviceType, ProfilerActivity, profile

from uda_seg.bench.measure import synchronize
from uda_seg.bench.session import WARM_UP, prepare
from uda_seg.config.commands import BenchConfig
from uda_seg.launch.devices import on_gpu

MATRIX = ("linear", "convolution", "conv", "conv2d", "attention")  # in names of operators, besides mm, addmm, bmm ...
TEMPLATE = "triton_tem"  # prefix of Inductor's kernels for such operators


class _Profiled(pl.Callback):
    """Profiles `steps` steps after the warm-up, including GPU kernels."""

    def __init__(self, steps: int, gpu: bool) -> None:
        self.steps = steps
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
        self.recorder = profile(activities=activities)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin and end profiling between two steps (Lightning hook)."""
        synchronize()
        if trainer.global_step == WARM_UP:
            self.recorder.start()
        if trainer.global_step == WARM_UP + self.steps:
            self.recorder.stop()


def matrix_ms(config: BenchConfig, steps: int = 2) -> float:
    """Measure milliseconds per step in matrix kernels of the configured method, on its device."""
    gpu = on_gpu(config.trainer)
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, Path(folder), WARM_UP + steps)
        profiled = _Profiled(steps, gpu)
        session.trainer.callbacks.append(profiled)  # type: ignore[attr-defined]
        session.fit()
    return matrix_us(profiled.recorder.key_averages(), gpu) / (1e3 * steps)


def matrix_us(rows: Sequence[FunctionEventAvg], gpu: bool) -> float:
    """Sum microseconds in matrix kernels, counting every kernel once.

    The profiler has a row per operator, whose own device time is that of the kernels it launched, and another row per
    kernel. Names of kernels depend on their library (`nvjet_...`, `...gemm...`), so operators are counted. Inductor's
    templates have no operator: their launch, which not every wrapper records, and the kernel share a name and are
    counted once.
    """
    named = [(row.key or "", row) for row in rows]
    operators = [(name, row) for name, row in named if row.device_type == DeviceType.CPU and is_matrix(name)]
    if not gpu:
        return float(sum(row.self_cpu_time_total for _, row in operators))
    templates: dict[str, float] = {}
    for name, row in named:
        if name.startswith(TEMPLATE):
            templates[name] = max(templates.get(name, 0.0), row.self_device_time_total)
    started = [row.self_device_time_total for name, row in operators if name not in templates]
    return float(sum(started)) + sum(templates.values())


def is_matrix(name: str) -> bool:
    """Return whether an operator is a matrix operation, by the parts of its name between underscores.

    Inductor's other kernels also name all fused operators, such as `triton_poi_fused_addmm_gelu_3`, which only adds the
    bias of the product. Operators have a namespace.
    """
    words = name.lower().replace("::", "_").split("_")
    return name.startswith(TEMPLATE) or ("::" in name and any(w in MATRIX or w.endswith("mm") for w in words))
