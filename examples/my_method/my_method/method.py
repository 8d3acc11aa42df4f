"""Entropy minimisation on the target: the simplest adaptation method (MinEnt of ADVENT, Vu et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from uda_seg import Batch, Loss, Plan, Segmentor, UDAModule
from uda_seg.ops.entropy import entropy
from uda_seg.ops.image import to_float
from uda_seg.options.constraints import Interval


class MinEnt(UDAModule):
    """Cross-entropy on the source, and entropy of the prediction on the target.

    Args:
        segmentor: the network.
        plan: settings of the run.
        entropy_weight: weight of the entropy in nats, averaged over pixels.
    """

    def __init__(
        self, segmentor: Segmentor, plan: Plan, *, entropy_weight: Annotated[float, Interval(0, 100)] = 0.001
    ) -> None:
        super().__init__(segmentor, plan)
        self.entropy_weight = entropy_weight

    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield two terms, each with its own graph."""
        source, target = batch["source"], batch["target"]
        assert source.label is not None, "the source has labels"
        yield Loss("source/ce", self.segmentor.supervise(to_float(source.image), source.label).loss)
        yield Loss("target/entropy", entropy(self.segmentor.predict(to_float(target.image))), self.entropy_weight)
