"""A quirk of the released DACS, CorDA and BiCL: most of the encoder is updated three or four times per step.

Their parameter generator walks nested modules and yields every descendant at each level; PyTorch then updates a tensor
once per listing, with momentum and weight decay, from the same gradient. Duplicates are undefined behaviour in today's
fused optimisers, so the repetition is explicit here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from uda_seg.errors import UserError
from uda_seg.methods.sgd import SteadySGD
from uda_seg.methods.step import StepModule

IN_A_STAGE = re.compile(r"(segmentor\.encoder\.layer\d|source_stem\.stage\.\d)\.\d+\.(conv|bn|downsample)")


class RepeatedSGD(SteadySGD):
    """SGD that updates each group `repeats` times per step."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, fused=True)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all groups once, then again those with more repetitions."""
        groups = self.param_groups
        loss: float | None = super().step(closure)
        for done in range(1, max(group["repeats"] for group in groups)):
            self.param_groups = [group for group in groups if group["repeats"] > done]
            super().step()
        self.param_groups = groups
        return loss


def repeating_optimizer(module: StepModule) -> RepeatedSGD:
    """Build the configured SGD with the released codes' repetitions.

    Raises:
        UserError: another optimiser is configured, or an encoder without such stages.
    """
    settings = module.plan.optimizer
    if settings.name != "sgd":
        raise UserError("method.encoder_updates=released needs optimizer.name=sgd")
    groups = repeated_groups(module)
    if all(group["repeats"] == 1 for group in groups):
        raise UserError(
            "method.encoder_updates=released is of the released codes' ResNet-101, model=deeplabv2_r101: with another "
            "encoder nothing would be repeated; say method.encoder_updates=once"
        )
    return RepeatedSGD(groups, lr=settings.lr, momentum=settings.momentum)


def repeated_groups(module: StepModule) -> list[dict[str, Any]]:
    """Split the module's parameter groups by how often the released code lists each tensor."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    split: list[dict[str, Any]] = []
    for group in module.parameter_groups():
        members: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            members.setdefault(repeats_of(names[id(parameter)]), []).append(parameter)
        split += [{**group, "params": found, "repeats": times} for times, found in members.items()]
    return split


def repeats_of(name: str) -> int:
    """Count how often a parameter is listed: 4 times in a block's shortcut, 3 times elsewhere in a stage, else once."""
    if IN_A_STAGE.match(name) is None:
        return 1
    return 4 if ".downsample." in name else 3
