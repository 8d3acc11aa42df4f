"""Memory that a training step saves for its backward passes."""

from __future__ import annotations

import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from uda_seg.bench.measure import Row
from uda_seg.bench.session import MIC, SOURCE_ONLY, prepare
from uda_seg.config.commands import BenchConfig


def measure_memory(config: BenchConfig) -> list[Row]:
    """Compare the peak of autograd's saved tensors in a step of MIC and of source-only training, on equal crops."""
    peaks = [saved_peak(replace(config, method=method)) / 2**20 for method in (MIC, SOURCE_ONLY)]
    ratio = peaks[0] / peaks[1]
    return [Row("memory", "mic", peaks[0], "source_only", peaks[1], "MiB", ratio, 1.1, "at most")]


class SavedPeak(pl.Callback):
    """Tracks autograd's saved tensors in every step, or only in the first `steps`; `peak` is the maximum in bytes."""

    def __init__(self, steps: int | None = None) -> None:
        self.peak = 0
        self.steps = steps
        self.counter = SavedBytes()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start counting (Lightning hook)."""
        if self.steps is not None and trainer.global_step >= self.steps:
            return
        self.counter = SavedBytes([*pl_module.parameters(), *pl_module.buffers()])
        self.counter.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop counting (Lightning hook)."""
        if self.steps is not None and trainer.global_step > self.steps:
            return
        self.counter.__exit__(None, None, None)
        self.peak = max(self.peak, self.counter.peak)


def saved_peak(config: BenchConfig, steps: int = 2) -> int:
    """Measure the peak bytes of autograd's saved tensors over some steps of the configured method."""
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, Path(folder), steps)
        peak = SavedPeak()
        session.trainer.callbacks.append(peak)  # type: ignore[attr-defined]
        session.fit()
    return peak.peak


class _Saved:
    """Placeholder of a saved tensor in the graph, freed together with it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """Context that counts the bytes of storages that autograd saves for backward passes, each storage once.

    Exact and identical on every machine, unlike allocator statistics. Memory that no backward needs is not counted.

    Args:
        ignore: tensors that exist anyway: parameters and buffers.

    Attributes:
        live: bytes saved at present.
        peak: maximum of `live`.
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        self.live = self.peak = 0
        self._ignored = {tensor.untyped_storage().data_ptr() for tensor in ignore}
        self._holders: Counter[int] = Counter()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved, storage = _Saved(tensor), tensor.untyped_storage()
        where, size = storage.data_ptr(), storage.nbytes()
        if where not in self._ignored:
            self._holders[where] += 1
            if self._holders[where] == 1:
                self.live += size
                self.peak = max(self.peak, self.live)
            weakref.finalize(saved, self._release, where, size)
        return saved

    def _unpack(self, saved: _Saved) -> Tensor:
        return saved.tensor

    def _release(self, where: int, size: int) -> None:
        self._holders[where] -= 1
        if self._holders[where] == 0:
            del self._holders[where]
            self.live -= size
