"""How much of a step is spent in matrix products, convolutions and attention."""

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
from uda_seg.config.schema import Config
from uda_seg.launch.ranks import on_gpu

MATRIX = ("linear", "convolution", "conv", "conv2d", "attention")  # in names of operators, beside mm, addmm, bmm ...
TEMPLATE = "triton_tem"  # begins the names of the kernels that Inductor makes of such operators


class _Profiled(pl.Callback):
    """Records `steps` steps after the warm-up, of a GPU also its kernels."""

    def __init__(self, steps: int, gpu: bool) -> None:
        self.steps = steps
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
        self.recorder = profile(activities=activities)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin and end between two steps."""
        synchronize()
        if trainer.global_step == WARM_UP:
            self.recorder.start()
        if trainer.global_step == WARM_UP + self.steps:
            self.recorder.stop()


def matrix_ms(config: Config, steps: int = 2) -> float:
    """Milliseconds a step in matrix kernels of the configured method, on the device it runs on."""
    gpu = on_gpu(config.trainer)
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, Path(folder), WARM_UP + steps)
        profiled = _Profiled(steps, gpu)
        session.trainer.callbacks.append(profiled)  # type: ignore[attr-defined]
        session.fit()
    return matrix_us(profiled.recorder.key_averages(), gpu) / (1e3 * steps)


def matrix_us(rows: Sequence[FunctionEventAvg], gpu: bool) -> float:
    """Microseconds in matrix kernels, every kernel once.

    The profiler has a row of an operator, whose own device time is that of the kernels it started itself, and one more
    of every kernel. The names of kernels are their libraries' (`nvjet_...`, `...gemm...`) and say little, so operators
    are what counts. Inductor's templates have no operator: their launch, which not every wrapper records, and the
    kernel have one name, and are one time.
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
    """Whether an operator of this name multiplies matrices: a part of the name, between underscores, says so.

    Inductor names its other kernels too by all that is fused in them, `triton_poi_fused_addmm_gelu_3`: what is left of
    the product there is its bias. Operators have a namespace.
    """
    words = name.lower().replace("::", "_").split("_")
    return name.startswith(TEMPLATE) or ("::" in name and any(w in MATRIX or w.endswith("mm") for w in words))
