"""SGD for networks some of whose parts begin to train later than others."""

from __future__ import annotations

from collections.abc import Callable

import torch


class SteadySGD(torch.optim.SGD):
    """PyTorch's fused SGD, also for parameters that get their first gradient after others of their group.

    PyTorch's expects the momentum of all or of none. A momentum that starts at zero leads to the same update as none.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Start the momentum of parameters that have a gradient for the first time, then update."""
        for group in self.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        loss: float | None = super().step(closure)
        return loss
