"""Entropy minimisation on the target: the simplest adaptation method (MinEnt of ADVENT, Vu et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from uda_seg import Batch, Loss, MethodOptions, Plan, Segmentor, UDAModule
from uda_seg.ops.entropy import entropy
from uda_seg.ops.image import to_float
from uda_seg.options.constraints import Interval


@dataclass(frozen=True, kw_only=True)
class MinEntOptions(MethodOptions):
    """Options of MinEnt."""

    entropy_weight: Annotated[float, Interval(0, 100)] = 0.001
    """Weight of the entropy in nats, averaged over pixels."""


class MinEnt(UDAModule):
    """Cross-entropy on the source, and entropy of the prediction on the target.

    Args:
        segmentor: the network.
        plan: settings of the run.
        options: of the method.
    """

    options: MinEntOptions

    def __init__(self, segmentor: Segmentor, plan: Plan, options: MinEntOptions) -> None:
        super().__init__(segmentor, plan, options)

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield two terms, each with its own graph."""
        source, target = batch["source"], batch["target"]
        assert source.label is not None, "the source has labels"
        yield Loss("source/ce", self.segmentor.supervise(to_float(source.image), source.label).loss)
        uncertainty = entropy(self.segmentor.predict(to_float(target.image)))
        yield Loss("target/entropy", uncertainty, self.options.entropy_weight)
