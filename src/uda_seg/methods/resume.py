"""Checks of a checkpoint's training state, because Lightning and PyTorch fail obscurely on damaged states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from uda_seg.errors import Damaged
from uda_seg.models.weights import is_finite


def check_progress(checkpoint: Mapping[str, Any], loop: Mapping[str, Any]) -> None:
    """Check the form of Lightning's counters, and of the states of optimisers and callbacks.

    Args:
        checkpoint: a Lightning checkpoint.
        loop: state of a fresh training loop.

    Raises:
        Damaged: the first difference in form.
    """
    optimizers = checkpoint.get("optimizer_states")
    if not isinstance(optimizers, list) or not all(_is_optimizer_state(state) for state in optimizers):
        raise _damaged("optimizer_states")
    callbacks = checkpoint.get("callbacks")
    if not isinstance(callbacks, Mapping) or not all(isinstance(state, Mapping) for state in callbacks.values()):
        raise _damaged("callbacks")
    if (wrong := _difference(checkpoint.get("loops"), {"fit_loop": loop}, "loops")) is not None:
        raise _damaged(wrong)


def check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Check that every value of an optimiser's state fits its parameter and is finite.

    Raises:
        Damaged: the first value that does not.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = [place for group in state["param_groups"] for place in group["params"]]
    names = ("step", "exp_avg", "exp_avg_sq") if "betas" in optimizer.defaults else ("momentum_buffer",)
    for place, parameter in zip(places, parameters, strict=True):
        kept = state["state"].get(place, {})  # parameters that never had a gradient have no state
        for name in names if kept else ():
            if not _fits(kept.get(name), parameter, name):
                raise _damaged(f"optimizer_states: {name} of parameter {place}")


def _fits(value: object, parameter: Tensor, name: str) -> bool:
    if value is None:
        return name == "momentum_buffer"  # before the first step
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return False
    shape = torch.Size() if name == "step" else parameter.shape
    return value.shape == shape and not value.is_meta and is_finite(value)


def _is_optimizer_state(state: object) -> bool:
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return False
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        return False
    places = [group.get("params") for group in groups]
    return all(isinstance(p, list) for p in places) and all(isinstance(v, Mapping) for v in state["state"].values())


def _difference(found: object, wanted: object, where: str) -> str | None:
    """Find the first place where two trees of plain values differ in form; None if they match."""
    if not isinstance(wanted, Mapping):
        return None if type(found) is type(wanted) or found is None or wanted is None else where
    if not isinstance(found, Mapping):
        return where
    parts = (_difference(found.get(key, _ABSENT), value, f"{where}.{key}") for key, value in wanted.items())
    return next((part for part in parts if part is not None), None)


_ABSENT = object()


def _damaged(what: str) -> Damaged:
    return Damaged(f"the checkpoint is damaged, {what} is missing or nonsense: resume from another one, or use init=")
