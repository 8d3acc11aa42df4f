"""Performance of the network on each class, by which T2S-DA weights its loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from uda_seg.methods.class_average import ClassAverage
from uda_seg.ops.reweight import confidence_by_class, overlap_by_class, share_by_class

Proxy = Literal["confidence", "source_iou", "frequency"]


class ClassPerformance(ClassAverage):
    """Moving averages of the performance r_c in [0, 1] of each class c, which start at 0.5.

    Args:
        classes: number of classes K.
        proxy: what measures the performance, see `T2SDAOptions`.
        momentum: weight of the old value.
    """

    def __init__(self, classes: int, proxy: Proxy, momentum: float) -> None:
        super().__init__([classes], momentum, start=0.5)
        self.proxy = proxy

    def observe_batch(self, teacher: Tensor, student: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            teacher: its logits [B, K, h, w] of the target, or of the source without one.
            student: its logits [B, K, h, w] of translated images.
            label: their labels uint8 [B, h, w].
        """
        classes = len(self.value)
        if self.proxy == "confidence":
            self.observe(*confidence_by_class(teacher, classes))
        elif self.proxy == "source_iou":
            self.observe(*overlap_by_class(student, label, classes))
        else:
            self.observe(*share_by_class(label, classes))
