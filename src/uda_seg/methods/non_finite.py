"""Detection of NaN and infinite losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uda_seg.errors import UserError


class NotFinite(UserError):
    """A loss or the gradient's norm is NaN or infinite."""


class NonFinite:
    """Detection of NaN and infinite loss terms without device synchronisation.

    The first bad (step, term) is kept in a tensor on the device; `raise_if_any` reads it where a synchronisation
    happens anyway: when values are logged and before weights are saved.
    """

    TERMS = 64

    def __init__(self) -> None:
        self.names: list[str] = []
        self.first: Tensor | None = None

    def watch(self, step: int, name: str, value: Tensor) -> None:
        """Record (step, name) if `value`, 0-dim, is not finite and nothing was recorded before."""
        if name not in self.names:
            self.names.append(name)
        if self.first is None:
            self.first = torch.full((), -1, dtype=torch.int64, device=value.device)
        code = step * self.TERMS + self.names.index(name)
        bad = ~torch.isfinite(value.detach()) & (self.first < 0)
        self.first = torch.where(bad, code, self.first)

    def agree(self, smallest: Callable[[Tensor], Tensor]) -> None:
        """Share the first bad value among ranks, so that all skip the same steps and stop together.

        All ranks have the same terms in the same order.

        Args:
            smallest: reduces a 0-dim tensor to its minimum over ranks.
        """
        if self.first is not None:
            never = torch.iinfo(torch.int64).max
            first = smallest(torch.where(self.first < 0, never, self.first))
            self.first = torch.where(first == never, -1, first)

    def found(self) -> Tensor:
        """Return a 0-dim float, 1 if a bad value was seen: the `found_inf` flag of fused optimisers."""
        if self.first is None:
            raise RuntimeError("no loss was watched before the optimiser step")
        return (self.first >= 0).float()

    def raise_if_any(self) -> None:
        """Raise NotFinite with the step and the term if any value was bad; synchronises with the device."""
        code = -1 if self.first is None else int(self.first)
        if code >= 0:
            step, term = divmod(code, self.TERMS)
            raise NotFinite(
                f"{self.names[term]} is not finite at step {step}: training stopped, the last good weights are kept; "
                "lower optimizer.lr, set optimizer.clip_norm=1 or continue from the last checkpoint with resume=last"
            )
