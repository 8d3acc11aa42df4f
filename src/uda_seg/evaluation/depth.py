"""Standard depth metrics (Eigen et al., NeurIPS 2014)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchmetrics
from torch import Tensor


class DepthScores(NamedTuple):
    """Metrics averaged over known pixels within each image, then over images; distances in metres.

    Attributes:
        abs_rel: |d - d*| / d*.
        sq_rel: (d - d*)^2 / d*.
        rmse: root of the mean of (d - d*)^2.
        rmse_log: the same for log d - log d*.
        delta1: share of pixels with max(d / d*, d* / d) < 1.25.
        delta2: the same for 1.25^2.
        delta3: the same for 1.25^3.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    delta1: float
    delta2: float
    delta3: float


class DepthEvaluator(torchmetrics.Metric):
    """Accumulates depth metrics image by image.

    Args:
        median_scaling: first multiply each prediction by the ratio of the medians, for depth of unknown scale.
        nearest: lower limit in metres: exact depths below are skipped, predictions are clipped.
        farthest: upper limit in metres, likewise.
    """

    sums: Tensor
    images: Tensor

    def __init__(self, median_scaling: bool, nearest: float = 1e-3, farthest: float = 80.0) -> None:
        super().__init__()
        self.median_scaling, self.nearest, self.farthest = median_scaling, nearest, farthest
        self.add_state("sums", torch.zeros(len(DepthScores._fields), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, exact: Tensor) -> None:
        """Add predicted and exact depth [B, 1, H, W] in metres; exact 0 = unknown.

        Images without a known pixel are skipped.
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
        """Compute the means; NaN if no image had known depth."""
        return DepthScores(*(self.sums / self.images).tolist())
