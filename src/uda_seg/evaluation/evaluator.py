"""Mean intersection over union, exact over any number of batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from uda_seg.errors import UserError
from uda_seg.ops import IGNORE


class ImageCounts(NamedTuple):
    """Confusion matrices of single images, whose sum is that of the validation set.

    Attributes:
        ids: N indices of the images in their data set, ascending.
        confusion: int64 [N, C, C] pixel counts; row = label, column = prediction.
    """

    ids: tuple[int, ...]
    confusion: Tensor


class Scores(NamedTuple):
    """Scores of a segmentation, all in [0, 1].

    Attributes:
        miou: mean IoU over `classes`, skipping classes that occur neither in labels nor in predictions.
        per_class: IoU of every class of the class set, NaN if it occurs in neither.
        pixel_accuracy: share of correct pixels among the labelled pixels of all classes.
        mean_accuracy: mean over `classes` of the share of correct pixels of the class.
        classes: names of the classes in `miou` and `mean_accuracy`.
        confusion: int64 [C, C] pixel counts on the CPU; row = label, column = prediction.
        means: mIoU over every subset that papers report, by name, e.g. 19, 16 and 13.
        images: counts per image, if `update` was told which images it counts; on the CPU.
    """

    miou: float
    per_class: dict[str, float]
    pixel_accuracy: float
    mean_accuracy: float
    classes: tuple[str, ...]
    confusion: Tensor
    means: dict[str, float]
    images: ImageCounts | None = None

    @property
    def converted(self) -> float | None:
        """SYNTHIA's mIoU 16 as the released codes convert it, mIoU 19 times 19/16; None for other classes.

        It equals the mean of the 16 classes (`means["16"]`) if terrain, truck and train have an IoU of exactly 0, which
        holds if the network never predicts them; it is larger if the network predicts them correctly, and wrong if one
        is absent.
        """
        return self.means["19"] * 19 / 16 if {"19", "16"} <= set(self.means) else None


def confusion_counts(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count every pair of (label, prediction), and values that are not classes.

    Args:
        prediction: integer, class ids.
        label: integer, same shape, class ids or 255 = ignore.
        num_classes: C.

    Returns:
        int64 [C * C + 3]: the flat confusion matrix (row = label), then the numbers of ignored pixels, of invalid
        labels, and of invalid predictions (at labelled pixels); nothing is checked here.
    """
    return counts_per_image(prediction.reshape(1, -1), label.reshape(1, -1), num_classes)[0]


def counts_per_image(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count like `confusion_counts` for each image [B, ...] of a batch: int64 [B, C * C + 3]."""
    # One histogram with an extra row and column on each side for invalid values, and one such table per image. Passes
    # over the pixels dominate the time, so sums over the tables replace comparisons of pixels, and copies are changed
    # in place.
    images, columns = len(label), num_classes + 2
    bins_per_image = (IGNORE + 3) * columns
    row = label.reshape(images, -1).to(torch.int32, copy=True).clamp_(-1, IGNORE + 1)
    column = prediction.reshape(images, -1).to(torch.int32, copy=True).clamp_(-1, num_classes)
    first = torch.arange(images, device=row.device, dtype=torch.int32) * bins_per_image + columns + 1
    bins = column.add_(row, alpha=columns).add_(first[:, None])
    table = torch.bincount(bins.flatten(), minlength=images * bins_per_image).view(images, -1, columns)
    labelled, ignored = table[:, 1 : num_classes + 1], table[:, IGNORE + 1].sum(-1)
    confusion = labelled[..., 1:-1]
    bad_label = table.sum((1, 2)) - labelled.sum((1, 2)) - ignored
    bad_prediction = labelled.sum((1, 2)) - confusion.sum((1, 2))
    return torch.cat([confusion.flatten(1), torch.stack([ignored, bad_label, bad_prediction], 1)], 1)


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count pixels, int64 [C, C], row = label, column = prediction; invalid values are skipped."""
    counts = confusion_counts(prediction, label, num_classes)
    return counts[: num_classes * num_classes].view(num_classes, num_classes)


def iou(confusion: Tensor) -> Tensor:
    """Compute intersection over union per class, float64 [C] from int64 [C, C]; NaN if the union is empty."""
    hit = confusion.diagonal().double()
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)


class SegmentationEvaluator(Metric):
    """Accumulates a confusion matrix in int64, so that results do not depend on order or number of ranks.

    Args:
        num_classes: C, the network's classes. Predictions are never restricted to the subset.
        names: the C class names.
        subset: class ids of `miou` and `mean_accuracy`, e.g. the 16 or 13 classes of SYNTHIA.
        subsets: further subsets by name, for `Scores.means`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor
    image_counts: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        names: Sequence[str],
        subset: Sequence[int],
        subsets: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        for chosen in (subset, *(subsets or {}).values()):
            if len(names) != num_classes or not set(chosen) <= set(range(num_classes)):
                raise ValueError(f"{num_classes} classes do not fit {len(names)} names and the subset {tuple(chosen)}")
        self.num_classes = num_classes
        self.names = tuple(names)
        self.subset = tuple(subset)
        self.subsets = {name: list(chosen) for name, chosen in (subsets or {}).items()}
        self.add_state("counts", torch.zeros(num_classes * num_classes + 3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("image_counts", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, label: Tensor, index: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            prediction: logits [B, C, H, W] or class ids [B, H, W].
            label: [B, H, W], class ids, 255 = ignore.
            index: int64 [B], the images' indices in their data set, to keep counts per image; negative ones are not
                kept.
        """
        if prediction.ndim == label.ndim + 1:
            prediction = prediction.argmax(1)
        if prediction.shape != label.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} does not fit label {tuple(label.shape)}")
        if index is None:
            self.counts += confusion_counts(prediction, label, self.num_classes)
            return
        counts = counts_per_image(prediction, label, self.num_classes)
        self.counts += counts.sum(0)
        self.image_counts.append(torch.cat([index[:, None].to(counts), counts[:, :-3]], 1))

    def compute(self) -> Scores:
        """Compute scores of all batches so far; raises UserError on invalid labels or predictions."""
        counts, (_, bad_labels, bad_predictions) = self.counts[:-3].cpu(), self.counts[-3:].tolist()
        if bad_labels:
            raise UserError(
                f"{bad_labels} pixels have a label that is none of {self.num_classes} classes nor {IGNORE} "
                f"(ignore): the labels do not fit data.classes; `python -m uda_seg.prepare` counts them"
            )
        if bad_predictions:
            raise UserError(
                f"{bad_predictions} predicted pixels are none of the {self.num_classes} classes: the "
                f"predictions come from another class set; evaluate with the data.classes they were made for"
            )
        confusion = counts.view(self.num_classes, self.num_classes)
        return self._scores(confusion)._replace(images=self._images())

    def _images(self) -> ImageCounts | None:
        """Return the counts per image in the data set's order, whichever rank has counted them."""
        rows = self.image_counts
        found = (torch.cat(rows) if isinstance(rows, list) else rows).cpu() if len(rows) else None
        if found is None:
            return None
        found = found[found[:, 0] >= 0]
        found = found[found[:, 0].argsort()]
        return ImageCounts(tuple(found[:, 0].tolist()), found[:, 1:].view(-1, self.num_classes, self.num_classes))

    def _scores(self, confusion: Tensor) -> Scores:
        chosen = list(self.subset)
        per_class, hit = iou(confusion), confusion.diagonal().double()
        recall = hit / confusion.sum(1)
        return Scores(
            miou=per_class[chosen].nanmean().item(),
            per_class=dict(zip(self.names, per_class.tolist(), strict=True)),
            pixel_accuracy=(hit.sum() / confusion.sum()).item(),
            mean_accuracy=recall[chosen].nanmean().item(),
            classes=tuple(self.names[i] for i in chosen),
            confusion=confusion,
            means={name: per_class[ids].nanmean().item() for name, ids in self.subsets.items()},
        )


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Average every score over targets, with equal weights regardless of their numbers of images.

    A class is averaged over the targets that contain it (its IoU is NaN in others); confusion matrices are summed.
    """
    first = scores[0]
    return Scores(
        miou=fmean(s.miou for s in scores),
        per_class={name: _known_mean([s.per_class[name] for s in scores]) for name in first.per_class},
        pixel_accuracy=fmean(s.pixel_accuracy for s in scores),
        mean_accuracy=fmean(s.mean_accuracy for s in scores),
        classes=first.classes,
        confusion=torch.stack([s.confusion for s in scores]).sum(0),
        means={name: fmean(s.means[name] for s in scores) for name in first.means},
    )


def _known_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
