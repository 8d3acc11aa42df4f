"""The training step of the original repositories, for any method: the baseline of `baseline=classic`.

The same network, losses, draws and optimiser as ours, in float32 and in a plain loop, with four habits of the released
codes of DACS, DAFormer, HRDA and MIC: a backward pass per loss, even if several share a forward; a teacher averaged
tensor by tensor; colour jitter and blur image by image; and a value read back from the device after every pass. Each is
a switch (`bench.habits`), as is TF32 on a GPU (`bench.tf32`). Other slow parts of those codes (classes pasted one by
one, 51 x 51 taps of blur, `unique` of every label) are not included.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from uda_seg.bench.baselines import augment_each, move_each
from uda_seg.data.batch import DomainBatch
from uda_seg.data.datamodule import UDADataModule
from uda_seg.methods.base import UDAModule
from uda_seg.methods.labelled import Labelled
from uda_seg.methods.step import Loss, fold
from uda_seg.ops.ema import ema_decay

HABITS = ("backward", "ema", "augment", "item")


class _FullPrecision:
    def forward_context(self) -> AbstractContextManager[None]:
        return nullcontext()


class _OneProcess:
    def barrier(self) -> None:
        pass

    def broadcast(self, value: bool) -> bool:
        return value


@dataclass
class PlainTrainer:
    """Stand-in for the trainer attributes that methods use: a single process in float32.

    Attributes:
        default_root_dir: folder for the labels of BiCL's rounds.
        max_steps: length of the run.
        datamodule: data module that reads the whole target for the rounds.
        global_step: number of completed optimiser steps.
    """

    default_root_dir: Path
    max_steps: int
    datamodule: UDADataModule | None = None
    global_step: int = 0
    global_rank: int = 0
    world_size: int = 1
    is_global_zero: bool = True
    ckpt_path: None = None
    precision_plugin = _FullPrecision()
    strategy = _OneProcess()


class ClassicLoop:
    """Trains any method in a plain loop.

    Args:
        module: the untrained method; its network is trained in place.
        trainer: stand-in for the trainer.
        batches: batches of the training loader, or similar ones.
        device: device to train on.
        log: open CSV file.
        habits: subset of HABITS to apply.
    """

    def __init__(
        self,
        module: UDAModule,
        trainer: PlainTrainer,
        batches: Iterator[dict[str, DomainBatch]],
        device: torch.device,
        log: TextIO,
        habits: Collection[str] = HABITS,
    ) -> None:
        self.module, self.trainer, self.batches = module, trainer, batches
        self.device, self.log, self.habits = device, log, habits
        self.writer = csv.writer(log)
        module.trainer = cast(pl.Trainer, trainer)
        module.setup("fit")
        module.to(device).train()
        self.optimizer = module.configure_optimizers()
        if "augment" in habits:
            module.apply_draw = augment_each  # type: ignore[method-assign]
        if "item" in habits and hasattr(module, "label_target"):
            module.label_target = self._read_quality(module.label_target)
        module.on_train_start()
        self.callbacks = list(cast(Iterable[pl.Callback], module.configure_callbacks()))
        for callback in self.callbacks:
            callback.on_train_start(module.trainer, module)

    def step(self) -> None:
        """Run one optimiser step."""
        module, step, update = self.module, self.trainer.global_step, self.module.plan.teacher.update
        batch = next(self.batches)
        if self.trainer.datamodule is not None:
            batch = self.trainer.datamodule.on_before_batch_transfer(batch, 0)
        batch = {name: domain.to(self.device) for name, domain in batch.items()}
        if update == "start":
            self._average()
        torch.manual_seed(fold(module.plan.seed, step, 0))
        module.set_learning_rate(self.optimizer, step)
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Tensor | float] = {}
        for terms in module.losses(batch):
            values |= self._backward((terms,) if isinstance(terms, Loss) else terms)
        values["gradient_norm"] = module.clip_gradient_norm(self.optimizer)
        self.optimizer.step()
        self.trainer.global_step += 1
        module.finish_step()
        if module.logs_at(step + 1):
            self.writer.writerows((step, name, float(value)) for name, value in values.items())
            self.log.flush()
        if update == "end":
            self._average()
        module.diagnostics.clear()
        for callback in self.callbacks:
            callback.on_train_batch_end(module.trainer, module, None, batch, step)

    def _backward(self, terms: tuple[Loss, ...]) -> dict[str, Tensor | float]:
        """Run the backward pass or passes of terms that share a forward; return their values, optionally read back."""
        weighted = [term.value * term.weight for term in terms]
        if "backward" in self.habits:
            for i, value in enumerate(weighted):
                torch.autograd.backward(value, retain_graph=i + 1 < len(weighted))
        else:
            torch.autograd.backward(torch.stack(weighted).sum())
        read = "item" in self.habits
        return {term.name: term.value.item() if read else term.value.detach() for term in terms}

    @torch.no_grad()
    def _average(self) -> None:
        teacher, student = self.module.teacher, self.module.segmentor
        if teacher is None:
            return
        if "ema" not in self.habits:
            return teacher.update(student)
        decay = ema_decay(teacher.updates, teacher.alpha)
        move_each(teacher.network.parameters(), student.parameters(), decay)
        if teacher.batch_norm == "eval":
            mine, theirs = ((b for b in n.buffers() if b.is_floating_point()) for n in (teacher.network, student))
            move_each(mine, theirs, decay)
        teacher.updates += 1
        return None

    def _read_quality(self, label_target: Any) -> Any:
        """Wrap the teacher's pass to read the share of confident pixels back to the host."""

        def read(*args: Any, **kwargs: Any) -> Labelled:
            found: Labelled = label_target(*args, **kwargs)
            assert found.weight is not None
            found.weight.max().item()
            return found

        return read
