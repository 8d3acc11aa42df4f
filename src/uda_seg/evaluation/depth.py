"""How far predicted depth is from exact depth: the standard measures (Eigen et al., NeurIPS 2014)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchmetrics
from torch import Tensor


class DepthScores(NamedTuple):
    """Means over images of each image's mean over its known pixels; distances in metres.

    Attributes:
        abs_rel: |d - d*| / d*.
        sq_rel: (d - d*)^2 / d*.
        rmse: root of the mean of (d - d*)^2.
        rmse_log: likewise of log d - log d*.
        delta1: share of pixels with max(d / d*, d* / d) < 1.25.
        delta2: likewise 1.25^2.
        delta3: likewise 1.25^3.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    delta1: float
    delta2: float
    delta3: float


class DepthEvaluator(torchmetrics.Metric):
    """Collects the measures image by image.

    Args:
        median_scaling: multiply each prediction by the ratio of the medians first: for depth without a scale.
        nearest: metres; predictions and exact depths below do not occur.
        farthest: metres; exact depths beyond do not count, predictions are cut there.
    """

    sums: Tensor
    images: Tensor

    def __init__(self, median_scaling: bool, nearest: float = 1e-3, farthest: float = 80.0) -> None:
        super().__init__()
        self.median_scaling, self.nearest, self.farthest = median_scaling, nearest, farthest
        self.add_state("sums", torch.zeros(len(DepthScores._fields), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, exact: Tensor) -> None:
        """Add predicted and exact depth [B, 1, H, W], metres; exact 0 = unknown.

        Images without a known pixel are left out.
        """
        for d, known in zip(prediction.double(), exact.double(), strict=True):
            here = (known > self.nearest) & (known < self.farthest)
            if not here.any():
                continue
            d, truth = d[here], known[here]
            if self.median_scaling:
                d = d * truth.median() / d.median()
            d = d.clamp(self.nearest, self.farthest)
            error, ratio = d - truth, torch.maximum(d / truth, truth / d)
            self.sums += torch.stack(
                [
                    (error.abs() / truth).mean(),
                    (error**2 / truth).mean(),
                    (error**2).mean().sqrt(),
                    ((d.log() - truth.log()) ** 2).mean().sqrt(),
                    *((ratio < 1.25**power).double().mean() for power in (1, 2, 3)),
                ]
            )
            self.images += 1

    def compute(self) -> DepthScores:
        """The means; nan where no image had known depth."""
        return DepthScores(*(self.sums / self.images).tolist())
