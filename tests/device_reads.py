"""Finds, on a CPU, where a step would make the host wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result's size, or whose result for the host, depends on what a tensor holds.
WAITING = {
    *("_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "unique_dim", "_unique", "_unique2"),
    *("unique_consecutive", "is_nonzero", "equal", "bincount", "histogram"),
}
READING = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__)


class Waits(RuntimeError):
    """The host would have waited."""


class NoDeviceReads:
    """Within the block, raises `Waits` where the value of a tensor that would be on a GPU is asked for.

    On a CPU all tensors look alike. So those are followed that a GPU would hold: the given ones, whatever is computed
    with one of them, and whatever is made with a `device`. What the host draws for itself it may read.

    Args:
        tensors: of the module and the batch.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.storages: dict[int, StorageWeakRef] = {}
        self.modes = (_Calls(self), _Operators(self))
        self.mark(list(tensors))

    def __enter__(self) -> None:
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def mark(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage)

    def has(self, values: Any) -> bool:
        found = (v.untyped_storage()._cdata for v in tree_leaves(values) if isinstance(v, Tensor))
        return any(c in self.storages and not self.storages[c].expired() for c in found)


class _Calls(TorchFunctionMode):
    """Python's calls: they alone tell whether a device was named, and `tolist` reaches no operator."""

    def __init__(self, device: NoDeviceReads) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in READING and self.device.has(args):
            raise Waits(func.__name__)
        result = func(*args, **kwargs)
        named = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.device)]
        if named or isinstance(kwargs.get("device"), str):
            self.device.mark(result)
        return result


class _Operators(TorchDispatchMode):
    """What the calls come down to, those of the backward pass too."""

    def __init__(self, device: NoDeviceReads) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        followed = self.device.has((args, kwargs))
        name = func.overloadpacket.__name__
        if followed and (name in WAITING or (name.startswith("index") and _by_mask(args)) or _unsized(func, kwargs)):
            raise Waits(str(func))
        result = func(*args, **kwargs)
        if followed:
            self.device.mark(result)
        return result


def _by_mask(args: Any) -> bool:
    """Whether one of the indices is a mask: how many it picks is on the device."""
    masks = (torch.bool, torch.uint8)
    return len(args) > 1 and isinstance(args[1], list | tuple) and any(
        isinstance(index, Tensor) and index.dtype in masks for index in args[1]
    )  # fmt: skip


def _unsized(func: Any, kwargs: Any) -> bool:
    return str(func).startswith("aten.repeat_interleave.Tensor") and kwargs.get("output_size") is None
