"""Record of one training step: what its functions were given and what they returned."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor, nn

from uda_seg.methods.base import UDAModule

Function = Callable[..., Any]


class Call(NamedTuple):
    """One call of a watched function; tensors are detached and on the CPU.

    Attributes:
        given: arguments by name.
        result: return value.
    """

    given: Mapping[str, Any]
    result: Any


class Watch(pl.Callback):
    """Records every call of the given functions during the last step of training: `watch[class_mix][0].result`.

    It shows a method's intermediate results as they are in its real step. Nothing is replaced or computed twice:
    Python's profiling hook reports the calls. Functions that `torch.compile` has compiled are not seen.

    Args:
        functions: functions and methods (`class_mix`, `BiCL.hybrid_labels`) to watch.

    Attributes:
        module: the trained method, set when training starts.
        logged: values that the module logged last, such as `train/mix/ce`; of the watched step if it logs
            (`logger.log_every`).
    """

    module: UDAModule

    def __init__(self, *functions: Function) -> None:
        self.functions = functions
        self.calls: dict[CodeType, list[Call]] = {_code(function): [] for function in functions}
        self.open: dict[FrameType, dict[str, Any]] = {}
        self.before: Any = None
        self.logged: dict[str, float] = {}

    def __getitem__(self, function: Function) -> list[Call]:
        """Return the calls of a watched function in the order in which they returned."""
        return self.calls[_code(function)]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start to record at the last step (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        self.module = pl_module
        if trainer.global_step + 1 == trainer.max_steps:
            self.before = sys.getprofile()
            sys.setprofile(self._observe)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop to record (Lightning hook)."""
        self._stop()
        self.logged = self.module.recorded

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop to record (Lightning hook)."""
        self._stop()

    def _stop(self) -> None:
        if sys.getprofile() == self._observe:
            sys.setprofile(self.before)
        self.open.clear()

    def _observe(self, frame: FrameType, event: str, result: Any) -> None:
        """Note arguments when a watched function is entered, as it may rebind them, and the result when it returns."""
        code = frame.f_code
        if code not in self.calls:
            return
        if event == "call":
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            self.open[frame] = {name: on_cpu(frame.f_locals[name]) for name in names if name != "self"}
        elif event == "return" and frame in self.open:
            self.calls[code].append(Call(self.open.pop(frame), on_cpu(result)))


def _code(function: Function) -> CodeType:
    """Return the code of a function, below decorators such as `torch.no_grad`."""
    code: CodeType = inspect.unwrap(function).__code__
    return code


def on_cpu(value: Any) -> Any:
    """Detach tensors and copy them to the CPU, also inside tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(on_cpu, value))
    if isinstance(value, list | tuple):
        return type(value)(map(on_cpu, value))
    if isinstance(value, dict):
        return {key: on_cpu(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type | nn.Module):
        return _replaced(value)
    return value


def _replaced(value: Any) -> Any:
    copied = object.__new__(type(value))
    for field in fields(value):
        object.__setattr__(copied, field.name, on_cpu(getattr(value, field.name)))
    return copied
