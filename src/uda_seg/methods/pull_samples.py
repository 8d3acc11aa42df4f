"""Pixels that T2S-DA contrasts: their features, and the draws of queries and negatives among them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.data.batch import DomainBatch
from uda_seg.methods.settings import TeacherSettings
from uda_seg.models.projection import project
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.contrast import draw_equal_negatives, draw_of_class, group_by_class, take
from uda_seg.ops.losses import IGNORE
from uda_seg.ops.prototypes import class_sums, nearest
from uda_seg.ops.pseudo_label import pseudo_label

Keys = Literal["confident", "all"]


class Pixels(NamedTuple):
    """Unit vectors [B, D, h, w] of an image's pixels with their labels uint8 [B, h, w]."""

    features: Tensor
    label: Tensor


class Samples(NamedTuple):
    """Drawn pixels, per pair of images and class.

    Attributes:
        queries: unit vectors of the student.
        negatives: unit vectors of the teacher, of other classes than the query's.
        usable: which of the negatives exist.
        one_sided: whether all of a class's negatives had to be taken from one domain.
        present: bool [B, K], whether the image contains the class.
    """

    queries: Tensor
    negatives: Tensor
    usable: Tensor
    one_sided: Tensor
    present: Tensor


def draw_samples(
    query: Tensor, own: Pixels, other: Pixels | None, classes: int, queries: int, negatives: int
) -> Samples:
    """Draw queries and negatives.

    Args:
        query: the student's unit vectors of the translated images, [B, D, h, w], labelled as `own`.
        own: the teacher's pixels of the source.
        other: the teacher's pixels of the paired target images.
        classes: number of classes K.
        queries: number to draw per class and image.
        negatives: number to draw per class and pair, half of them from each domain.
    """
    pixels = group_by_class(own.label, classes)
    others = None if other is None else group_by_class(other.label, classes)
    position, usable, one_sided = draw_equal_negatives(pixels, others, negatives)
    keys = own.features.flatten(2)
    if other is not None:
        keys = torch.cat([keys, other.features.flatten(2)], dim=2)
    drawn = take(query.flatten(2), draw_of_class(pixels, queries))
    return Samples(drawn, take(keys, position), usable, one_sided, pixels.count > 0)


def key_labels(logits: Tensor, target: DomainBatch, teacher: TeacherSettings, which: Keys) -> Tensor:
    """Select the labels of target keys, uint8 [B, h, w], from the teacher's logits: of all pixels or `confident` ones.

    Those are above the teacher's threshold, and valid.
    """
    pseudo = pseudo_label(logits, teacher.threshold)
    if which == "all":
        return pseudo.label
    valid = nearest(target.valid.to(torch.uint8), logits.shape[-2:]).bool()
    trusted = (pseudo.confidence >= teacher.threshold) & valid
    return pseudo.label.masked_fill(~trusted, IGNORE)


def alignment(positive: Tensor, present: Tensor, target: Pixels) -> Tensor:
    """Compute the cosine [K] of source prototype and target centroid, which should rise; NaN for absent classes."""
    sums = class_sums(target.features, target.label, len(positive))
    centroid, count = F.normalize(sums.total.sum(0), dim=1), sums.count.sum(0)
    return (positive * centroid).sum(1).masked_fill(~(present & (count > 0)), torch.nan)


def embed(network: Segmentor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute unit vectors g [B, D, h, w] and main-head logits [B, K, h, w] of images [B, 3, H, W] in [0, 1]."""
    logits, fused = network.decode(network.features(image))
    return unit_vectors(network, fused), logits


def unit_vectors(network: Segmentor, fused: Tensor) -> Tensor:
    """Compute the projection g of a fused map with unit length, float32 [B, D, h, w]."""
    return F.normalize(project(network, fused).float(), dim=1)
