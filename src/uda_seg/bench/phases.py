"""Time of a training step by phase."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler

from uda_seg.bench.kernels import matrix_ms
from uda_seg.bench.measure import synchronize
from uda_seg.bench.memory import saved_peak
from uda_seg.bench.session import WARM_UP, prepare
from uda_seg.config.commands import BenchConfig
from uda_seg.methods.base import Batch, Loss, UDAModule


@dataclass(frozen=True)
class StepProfile:
    """Time of a step by phase.

    Attributes:
        method: class of the configured method.
        precision: Lightning's precision.
        steps: number of timed steps, once without phase timing and once with it.
        step_ms: mean milliseconds per step, without phase timing.
        steps_per_s: steps/s, likewise.
        images_per_s: images/s of both domains, likewise.
        phases_ms: mean milliseconds per step and phase; time outside of all phases is `the rest`. Timing synchronises
            with the GPU at the start and end of a phase, so host and device never overlap: only the shares are
            meaningful.
        clocked_ms: sum of the phases.
        matrix_ms: milliseconds per step in matrix products, convolutions and attention.
        peak_saved_bytes: peak bytes of autograd's saved tensors.
        peak_device_bytes: peak bytes allocated on the GPU; None on a CPU.
    """

    method: str
    precision: str
    steps: int
    step_ms: float
    steps_per_s: float
    images_per_s: float
    phases_ms: dict[str, float]
    clocked_ms: float
    matrix_ms: float
    peak_saved_bytes: int
    peak_device_bytes: int | None


class PhaseClock(Profiler):
    """Seconds per phase; time in a nested phase counts only for the inner one.

    Lightning calls it around its own actions; `watch` wraps those of the method.
    """

    ACTIONS = (
        ("train_dataloader_next", "data"),
        ("batch_to_device", "transfer"),
        ("TeacherEMA.on_train_batch_start", "EMA"),
        ("TeacherEMA.on_train_batch_end", "EMA"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._open: list[list[float]] = []  # start time and seconds of nested phases, of every open phase

    def begin(self) -> None:
        """Open a phase, which is named when it ends."""
        synchronize()
        self._open.append([time.perf_counter(), 0.0])

    def end(self, phase: str) -> None:
        """Close the innermost phase."""
        synchronize()
        start, inner = self._open.pop()
        whole = time.perf_counter() - start
        self.seconds[phase] = self.seconds.get(phase, 0.0) + whole - inner
        if self._open:
            self._open[-1][1] += whole

    def start(self, action_name: str) -> None:
        """Open the action's phase (Lightning hook)."""
        if self._phase(action_name) is not None:
            self.begin()

    def stop(self, action_name: str) -> None:
        """Close the action's phase (Lightning hook)."""
        phase = self._phase(action_name)
        if phase is not None:
            self.end(phase)

    def _phase(self, action: str) -> str | None:
        return next((phase for end, phase in self.ACTIONS if action.endswith(end)), None)

    def timed(self, owner: Any, names: Sequence[str], phase: str) -> None:
        """Wrap the named methods of `owner`, where they exist, with timing."""
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, self._wrapped(getattr(owner, name), phase))

    def _wrapped(self, work: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.begin()
            try:
                return work(*args, **kwargs)
            finally:
                self.end(phase)

        return call

    def watch(self, module: UDAModule) -> None:
        """Wrap the parts of a module's step with timing: each term's forward and backward by name."""
        losses, backward, current = module.losses, module.manual_backward, [""]

        def timed_losses(batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
            terms = losses(batch)
            while True:
                self.begin()
                item = next(terms, None)
                current[0] = (
                    "" if item is None else " + ".join(t.name for t in (item if isinstance(item, tuple) else (item,)))
                )
                self.end(f"forward {current[0]}" if item is not None else "the rest")
                if item is None:
                    return
                yield item

        def timed_backward(*args: Any, **kwargs: Any) -> None:
            self.begin()
            backward(*args, **kwargs)
            self.end(f"backward {current[0]}")

        module.losses = timed_losses  # type: ignore[method-assign]
        module.manual_backward = timed_backward  # type: ignore[method-assign]
        self.timed(module, ("label_target",), "teacher")
        self.timed(module, ("mix", "augment", "mask"), "mix + augment")
        self.timed(module, ("clip_gradient_norm",), "gradient norm")
        self.timed(module, ("record",), "logging")


class TimedSteps(pl.Callback):
    """Seconds of `steps` steps after the warm-up; synchronises with the GPU only before the first and after the last.

    Args:
        steps: number of steps.
        clock: phase clock, reset and read together with this one; None for timing without phases.
    """

    def __init__(self, steps: int, clock: PhaseClock | None = None) -> None:
        self.clock, self.steps = clock, steps
        self.began = self.seconds = 0.0
        self.phases: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wrap the optimiser, which exists only now (Lightning hook)."""
        if self.clock is not None:
            for optimizer in trainer.optimizers:
                self.clock.timed(optimizer, ("step",), "optimiser")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin and end timing between two steps (Lightning hook)."""
        if trainer.global_step == WARM_UP:
            synchronize()
            if self.clock is not None:
                self.clock.seconds.clear()
            self.began = time.perf_counter()
        if trainer.global_step == WARM_UP + self.steps:
            synchronize()
            self.seconds = time.perf_counter() - self.began
            self.phases = dict(self.clock.seconds) if self.clock is not None else {}


def profile_step(config: BenchConfig) -> StepProfile:
    """Time the configured method's step, and its phases in a second training, for as many steps as A of a ratio."""
    steps = config.bench.pairs * config.bench.steps
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    plain, clocked = TimedSteps(steps), TimedSteps(steps, PhaseClock())
    method, precision, images = _take(config, plain)
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    _take(config, clocked)
    phases = {name: 1e3 * seconds / steps for name, seconds in clocked.phases.items()}
    whole, unwatched = (1e3 * timed.seconds / steps for timed in (clocked, plain))
    phases["the rest"] = phases.get("the rest", 0.0) + whole - sum(phases.values())
    return StepProfile(
        method=method,
        precision=precision,
        steps=steps,
        step_ms=unwatched,
        steps_per_s=1e3 / unwatched,
        images_per_s=1e3 * images / unwatched,
        phases_ms=dict(sorted(phases.items(), key=lambda item: -item[1])),
        clocked_ms=whole,
        matrix_ms=matrix_ms(config),
        peak_saved_bytes=saved_peak(config),
        peak_device_bytes=device,
    )


def _take(config: BenchConfig, timed: TimedSteps) -> tuple[str, str, int]:
    """Run the timed steps; return the method's class, Lightning's precision and the images per step."""
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, Path(folder), WARM_UP + timed.steps)
        session.trainer.callbacks.append(timed)  # type: ignore[attr-defined]
        if timed.clock is not None:
            session.trainer.profiler = timed.clock  # type: ignore[attr-defined]
            timed.clock.watch(session.module)
        session.fit()
    return type(session.module).__name__, str(session.trainer.precision), session.data.images_per_step
