"""Baselines for comparison: the same computations in plain code."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TextIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uda_seg.data.batch import DomainBatch
from uda_seg.methods.base import Plan
from uda_seg.methods.step import fold
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.augment import StrongDraw, draw_strong, strong_augment
from uda_seg.ops.ema import ema_decay
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import cross_entropy
from uda_seg.ops.mixing import class_mask, class_mix, draw_classes
from uda_seg.ops.pseudo_label import pseudo_label
from uda_seg.ops.schedule import warmup_poly


def paste_classes(source: Tensor, target: Tensor, label: Tensor, chosen: list[Tensor]) -> Tensor:
    """Paste class by class and image by image, like the formula of class mixing.

    Args:
        source: [B, C, H, W].
        target: [B, C, H, W], same dtype.
        label: uint8 [B, H, W], of the source.
        chosen: the classes to paste, one 1-dim tensor per image.
    """
    mixed = target.clone()
    for b, classes in enumerate(chosen):
        for c in classes:
            mask = (label[b] == c).to(source.dtype)
            mixed[b] = mask * source[b] + (1 - mask) * mixed[b]
    return mixed


def blend_classes(source: Tensor, target: Tensor, label: Tensor, chosen: list[Tensor]) -> Tensor:
    """Build the mask class by class, then blend once: the stronger baseline. Arguments as `paste_classes`."""
    mixed = torch.empty_like(target)
    for b, classes in enumerate(chosen):
        mask = torch.zeros_like(label[b], dtype=torch.bool)
        for c in classes:
            mask |= label[b] == c
        mixed[b] = torch.where(mask, source[b], target[b])
    return mixed


def draw_half(label: Tensor, num_classes: int) -> list[Tensor]:
    """Draw half of each image's classes, rounded up, in a loop over images; label uint8 [B, H, W]."""
    chosen = []
    for image in label:
        present = image.unique()
        present = present[present < num_classes]
        chosen.append(present[torch.randperm(len(present))[: (len(present) + 1) // 2]])
    return chosen


def augment_each(image: Tensor, draw: StrongDraw) -> Tensor:
    """Apply a draw to images [B, 3, H, W] one by one."""
    return torch.cat([strong_augment(image[i : i + 1], draw.of(i)) for i in range(len(image))])


@torch.no_grad()
def average_each(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Update the teacher's parameters one by one: teacher = decay * teacher + (1 - decay) * student."""
    move_each(teacher.parameters(), student.parameters(), decay)


@torch.no_grad()
def move_each(teacher: Iterable[Tensor], student: Iterable[Tensor], decay: float) -> None:
    """Update tensors towards others of the same order, one by one."""
    for mine, theirs in zip(teacher, student, strict=True):
        mine.copy_(decay * mine + (1 - decay) * theirs)


class BareLoop:
    """Source-only training or, with a teacher, DACS, as a plain PyTorch loop.

    It runs the same operations as the module, on the same batches and draws. Only the framework's additions are absent:
    hooks, the generator of losses, the NaN check.

    Args:
        student: the network.
        teacher: its frozen copy in eval mode; None for source-only training.
        optimizer: optimiser of the student's parameters; its groups contain `base_lr`.
        plan: the module's plan, with `teacher.update=start` and `teacher.batch_norm=eval`.
        batches: batches of the training loader.
        device: device to train on.
        autocast: context around every forward.
        log: open CSV file.
    """

    def __init__(
        self,
        student: Segmentor,
        teacher: Segmentor | None,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        batches: Iterator[dict[str, DomainBatch]],
        device: torch.device,
        autocast: AbstractContextManager[object],
        log: TextIO,
    ) -> None:
        self.student, self.teacher, self.optimizer, self.plan = student, teacher, optimizer, plan
        self.batches, self.device, self.autocast, self.log = batches, device, autocast, log
        self.writer = csv.writer(log)
        self.steps = 0

    def step(self) -> None:
        """Run one optimiser step."""
        plan, step = self.plan, self.steps
        batch = {name: domain.to(self.device) for name, domain in next(self.batches).items()}
        if self.teacher is not None:
            self._average()
        torch.manual_seed(fold(plan.seed, step, 0))
        factor = warmup_poly(step, plan.steps, round(plan.schedule.warmup * plan.steps), plan.schedule.power)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        image, label = to_float(batch["source"].image), batch["source"].label
        assert label is not None, "the source has labels"
        values = {"source/ce": self._backward(image, label, None)}
        if self.teacher is not None:
            values["mix/ce"] = self._backward(*self._mixture(image, label, batch["target"]))
        # In the module's order: the norm's rounding depends on it, and Adam amplifies differences in tiny gradients.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = plan.optimizer.clip_norm
        values["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        self.optimizer.step()
        if (step + 1) % plan.log_every == 0 or step == 0:
            self.writer.writerows((step, name, float(value)) for name, value in values.items())
            self.log.flush()
        self.steps += 1

    def _backward(self, image: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        with self.autocast:
            loss = cross_entropy(self._logits(self.student, image), label, weight)
        torch.autograd.backward(loss)
        return loss.detach()

    def _logits(self, network: Segmentor, image: Tensor) -> Tensor:
        logits = network.heads["main"](network.encoder((image - network.mean) / network.std))
        return F.interpolate(logits.float(), image.shape[-2:], mode="bilinear", align_corners=False)

    @torch.no_grad()
    def _average(self) -> None:
        assert self.teacher is not None
        mine = [*self.teacher.parameters(), *(b for b in self.teacher.buffers() if b.is_floating_point())]
        theirs = [*self.student.parameters(), *(b for b in self.student.buffers() if b.is_floating_point())]
        torch._foreach_lerp_(mine, theirs, 1 - ema_decay(self.steps, self.plan.teacher.alpha))

    def _mixture(self, image: Tensor, label: Tensor, target: DomainBatch) -> tuple[Tensor, Tensor, Tensor]:
        assert self.teacher is not None
        other = to_float(target.image)
        with torch.no_grad(), self.autocast:
            pseudo = pseudo_label(self._logits(self.teacher, other), self.plan.teacher.threshold)
        weight = pseudo.quality * target.valid
        keep = class_mask(label, draw_classes(label, len(self.plan.classes)))
        mixed = strong_augment(class_mix(image, other, keep), draw_strong(len(image), device=image.device))
        labels = torch.where(keep[:, 0], label, pseudo.label)
        return mixed, labels, torch.where(keep[:, 0], torch.ones_like(weight), weight)
