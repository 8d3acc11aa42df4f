"""The training step shared by all modules: back-propagate each loss of a generator, then step the optimiser once.

Sub-classes only yield losses; order of execution, precision, clipping, schedule and logging are here. Peak memory is
that of the largest single forward, because each loss is back-propagated before the next one is computed.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uda_seg.errors import UserError
from uda_seg.methods.non_finite import NonFinite
from uda_seg.methods.reduction import RankModule, with_gradient
from uda_seg.methods.resume import check_optimizer, check_progress
from uda_seg.methods.settings import StepPlan
from uda_seg.methods.sgd import SteadySGD
from uda_seg.models.norm import batch_norms
from uda_seg.ops.schedule import cosine_to_zero, warmup_poly
from uda_seg.options.validate import shown


@dataclass(frozen=True)
class Loss:
    """A named loss term: a differentiable 0-dim tensor and its weight in the objective."""

    name: str
    value: Tensor
    weight: float = 1.0


def fold(*numbers: int) -> int:
    """Mix integers into one 63-bit seed (splitmix64), so that no two (seed, step, rank) share a random stream."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


def _kind(group: Mapping[str, Any]) -> tuple[int, bool]:
    """Return what must match for a parameter group to load another's state: number of parameters, and optimiser."""
    return len(group["params"]), "betas" in group


class StepModule(RankModule):
    """Base module with manual optimisation, independent of task and batch type.

    Sub-classes implement `losses`, `part` for gradient accumulation, and `rate_and_decay` for parameter groups.

    Args:
        plan: length, seed, optimiser and schedule of the run.

    Attributes:
        recorded: the last logged values, by name.
        diagnostics: this step's diagnostics, by name.
    """

    def __init__(self, plan: StepPlan) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.plan = plan
        self.watcher = NonFinite()
        self.recorded: dict[str, float] = {}
        self.diagnostics: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ what a sub-class says

    @abstractmethod
    def losses(self, batch: Any) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield the loss terms of one batch; terms that share a forward come as one tuple and share one backward."""

    @abstractmethod
    def part(self, batch: Any, index: int, parts: int) -> Any:
        """Return the `index`-th of `parts` equal micro-batches, for `optimizer.accumulate`."""

    def rate_and_decay(self, name: str) -> tuple[float, float]:
        """Return the learning rate relative to `optimizer.lr`, and the weight decay, of a parameter by dotted name."""
        return 1.0, self.plan.optimizer.weight_decay

    def finish_step(self) -> None:
        """Update state that changes once per batch, right after the optimiser; a hook, empty here."""

    def log_diagnostics(self, **values: Tensor) -> None:
        """Keep 0-dim diagnostics of this step, logged as `diagnostic/<name>` together with the losses."""
        self.diagnostics |= {name: value.detach() for name, value in values.items()}

    # ------------------------------------------------------------------ the step

    def on_train_start(self) -> None:
        """Collect batch-norm layers once, after any conversion to synchronised ones (Lightning hook)."""
        self.norms = batch_norms(self)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Run one optimiser step on one batch (Lightning hook)."""
        step = self.trainer.global_step
        torch.manual_seed(fold(self.plan.seed, step, self.global_rank))
        optimizer: Any = self.optimizers()
        self.set_learning_rate(optimizer, step)
        optimizer.zero_grad(set_to_none=True)
        logged = self.accumulate_gradients(batch, step)
        self.reduce_gradients(optimizer)
        logged["gradient_norm"] = self.clip_gradient_norm(optimizer)
        self.watcher.watch(step, "gradient_norm", logged["gradient_norm"])
        self.watcher.agree(lambda code: -self.max_over_ranks(-code))
        optimizer.optimizer.found_inf = self.watcher.found()
        optimizer.step()
        self.finish_step()
        if self.logs_at(step + 1):
            self.watcher.raise_if_any()
            values = {f"train/{name}": value for name, value in logged.items()}
            values |= {f"diagnostic/{name}": value for name, value in self.diagnostics.items()}
            self.record({**self.mean_of_known(values), "train/lr": optimizer.param_groups[0]["lr"]})
        self.diagnostics.clear()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Apply the current settings to a resumed run (Lightning hook).

        A finished run continues if it now has more steps: the checkpoint marks its batch as the last, on which
        Lightning would stop at once. Learning rates and decays in the optimiser's state are replaced by the current
        ones.

        Raises:
            UserError: the state belongs to another optimiser or other parameter groups, or is damaged.
        """
        check_progress(checkpoint, self.trainer.fit_loop.state_dict())
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        for state in checkpoint["optimizer_states"]:
            optimizer = self.configure_optimizers()
            saved, given = state["param_groups"], optimizer.state_dict()["param_groups"]
            if [_kind(group) for group in saved] != [_kind(group) for group in given]:
                sizes = [[len(group["params"]) for group in groups] for groups in (saved, given)]
                raise UserError(
                    "the checkpoint's optimiser has other groups of parameters: resume with the same optimizer.name, "
                    "optimizer.head_lr_multiplier, optimizer.layer_decay, optimizer.weight_decay, "
                    "model.encoder.freeze, model.encoder.lora and method.encoder_updates, or start a new run with "
                    f"init= (numbers of parameters per group: {shown(sizes[0])} there, {shown(sizes[1])} here)"
                )
            check_optimizer(state, optimizer)
            for before, now in zip(saved, given, strict=True):
                before.update({name: value for name, value in now.items() if name not in ("params", "lr")})

    def logs_at(self, done: int) -> bool:
        """Return whether to log the values of the step that completes `done` steps."""
        return done == 1 or done % self.plan.log_every == 0

    def record(self, values: Mapping[str, Tensor | float]) -> None:
        """Log values at once, at the number of completed optimiser steps; synchronises with the device.

        Lightning's `log` writes them only after the callbacks, one of which saves a checkpoint: if the run were killed
        in between, that step would never be logged.
        """
        self.recorded = {name: float(value) for name, value in values.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(self.recorded, self.trainer.global_step)
            logger.save()
        # For callbacks that monitor a value, on the host, where it has been read to: nothing waits for the device.
        self.log_dict({name: torch.tensor(value) for name, value in self.recorded.items()}, logger=False, batch_size=1)

    def accumulate_gradients(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Back-propagate every yielded term into `.grad` and return the detached values by name."""
        parts = self.plan.optimizer.accumulate
        logged: dict[str, Tensor] = {}
        with self._without_ddp_sync():
            for part in range(parts):
                for terms in self.losses(self.part(batch, part, parts) if parts > 1 else batch):
                    terms = (terms,) if isinstance(terms, Loss) else terms
                    total = sum((t.value * (t.weight / parts) for t in terms), torch.zeros((), device=self.device))
                    with self._without_autocast():
                        self.manual_backward(total)
                    for term in terms:
                        value = term.value.detach()
                        self.watcher.watch(step, term.name, value)
                        logged[term.name] = logged.get(term.name, torch.zeros_like(value)) + value / parts
        return logged

    def _without_ddp_sync(self) -> contextlib.AbstractContextManager[None]:
        model = self.trainer.model
        no_sync = getattr(model, "no_sync", None)
        return no_sync() if no_sync is not None else contextlib.nullcontext()

    def _without_autocast(self) -> contextlib.AbstractContextManager[object]:
        """Disable autocast for backward passes, which use the types of the forward anyway (as PyTorch recommends).

        Lightning's autocast block covers the whole step: gradients of float32 computations would be in bfloat16.
        """
        return torch.autocast(self.device.type, enabled=False)

    def clip_gradient_norm(self, optimizer: Any) -> Tensor:
        """Clip the gradient to `clip_norm` and return its L2 norm before clipping, 0-dim."""
        trained = with_gradient(optimizer)
        limit = self.plan.optimizer.clip_norm
        if limit is not None:
            return nn.utils.clip_grad_norm_(trained, limit)
        return nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])

    # ------------------------------------------------------------------ optimiser and schedule

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimiser (Lightning hook), fused so that a flag on the device can skip a step."""
        settings = self.plan.optimizer
        groups = self.parameter_groups()
        if settings.name == "adamw":
            betas = (settings.betas[0], settings.betas[1])
            return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, fused=True)
        if settings.name == "sgd":
            return SteadySGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
        raise UserError(f"optimizer.name={settings.name} is unknown: use adamw or sgd")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group trainable parameters by equal `rate_and_decay`."""
        settings = self.plan.optimizer
        rate = settings.lr * (self.trainer.world_size if settings.scale_lr else 1)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self.rate_and_decay(name), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": rate * scale,
                "base_lr": rate * scale,
                "weight_decay": decay,
                "base_weight_decay": decay,
            }
            for (scale, decay), parameters in groups.items()
        ]

    def set_learning_rate(self, optimizer: Any, step: int) -> None:
        """Set every group's learning rate for 0-based `step`: warm-up times polynomial decay; and its weight decay."""
        schedule = self.plan.schedule
        warmup_steps = round(schedule.warmup * self.plan.steps)
        factor = warmup_poly(step, self.plan.steps, warmup_steps, schedule.power)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            if schedule.weight_decay == "cosine":
                group["weight_decay"] = group["base_weight_decay"] * cosine_to_zero(step, self.plan.steps)
