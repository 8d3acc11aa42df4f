"""A quirk of CorDA's released GTA script: at first, the classifier on the encoder labels the target."""

from __future__ import annotations

from uda_seg.errors import UserError
from uda_seg.methods.options.corda import CorDAOptions


class InitialLabels:
    """Choice of the teacher's head that labels the target: the main one in the first steps, then the evaluated one.

    Args:
        options: of CorDA; `label_by_initial` is the fraction of the run.
        steps: length of the run.

    Raises:
        UserError: the main head is not trained.
    """

    def __init__(self, options: CorDAOptions, steps: int) -> None:
        if options.label_by_initial > 0 and options.initial != "main":
            raise UserError("method.label_by_initial needs method.initial=main: other initial heads cannot label alone")
        self.steps = round(options.label_by_initial * steps)

    def head(self, step: int) -> str | None:
        """Return the head of a step; None for the one that is evaluated."""
        return "main" if step < self.steps else None
