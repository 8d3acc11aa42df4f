"""Contrast between pixels and class prototypes, and between pixels and sampled pixels.

No similarity matrix is pixels x pixels: all are pixels x classes, or between two samples of fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.ops.losses import IGNORE

Absent = Literal["masked", "opposite", "farthest"]  # what becomes of a class without a prototype

OUT = -1e4  # a logit whose softmax is exactly 0 in float32; finite, so that no gradient becomes NaN


def similarity(
    features: Tensor,
    prototypes: Tensor,
    present: Tensor,
    temperature: float,
    absent: Absent = "masked",
) -> Tensor:
    """Compute cosine similarity / temperature of every pixel with its image's prototypes (BiCL, Lee et al. 2022).

    Args:
        features: [B, D, h, w].
        prototypes: [B, K, D].
        present: bool [B, K], which prototypes exist.
        temperature: tau.
        absent: logit of a class without a prototype: "masked" removes the class from the softmax, "opposite" sets the
            cosine to -1 as the released code does, "farthest" to that of the image's least similar prototype.

    Returns:
        float32 logits [B, K, h, w].
    """
    with torch.autocast(features.device.type, enabled=False):  # bfloat16 would be off by 0.03 at this scale
        pixels = F.normalize(features.float(), dim=1)
        logits = torch.einsum("bdhw,bkd->bkhw", pixels, F.normalize(prototypes.float(), dim=2)) / temperature
    there = present[:, :, None, None]
    if absent == "farthest":
        return torch.where(there, logits, logits.masked_fill(~there, -OUT).amin(1, keepdim=True))
    return logits.masked_fill(~there, OUT if absent == "masked" else -1.0 / temperature)


def prototype_contrast(logits: Tensor, label: Tensor, shared: Tensor) -> Tensor:
    """Pull every pixel to the prototype of its class and push it from the others (BiCL's FCL and BCL).

    Args:
        logits: [B, K, h, w] of `similarity`.
        label: uint8 [B, h, w], 255 = ignore.
        shared: bool [B, K], the classes C* present in both images of a pair; pixels of other classes are skipped.

    Returns:
        float32 [B], per image the mean of -log softmax over its counted pixels; 0 where there are none.
    """
    loss = F.cross_entropy(logits, label.long(), ignore_index=IGNORE, reduction="none")
    table = F.pad(shared, (0, IGNORE + 1 - shared.shape[1]))
    counts = table.gather(1, label.flatten(1).long()).view_as(label)
    return (loss * counts).sum((1, 2)) / counts.sum((1, 2)).clamp_min(1)


@torch.no_grad()
def transfer_labels(logits: Tensor, threshold: float) -> Tensor:
    """Label every pixel by its nearest prototype where the softmax exceeds T (BiCL's dynamic labels y_D).

    Args:
        logits: [B, K, h, w] of `similarity`; with absent="masked" an image of a single class labels all of its pixels
            with it; with "farthest" it labels none, provided T >= 1/K.
        threshold: T; pixels whose largest softmax value is at most T stay unlabelled.

    Returns:
        uint8 [B, h, w], 255 where unsure.
    """
    probability, label = logits.softmax(1).max(1)
    return label.masked_fill(probability <= threshold, IGNORE).to(torch.uint8)


@dataclass(frozen=True)
class ByClass:
    """Pixels of every image, sorted by class.

    Attributes:
        order: int64 [B, N], pixel positions by class, in random order within a class, unlabelled pixels last.
        start: int64 [B, K], index into `order` of each class's first pixel.
        count: int64 [B, K], number of pixels per class.
    """

    order: Tensor
    start: Tensor
    count: Tensor


def group_by_class(label: Tensor, num_classes: int, generator: torch.Generator | None = None) -> ByClass:
    """Sort the pixels of labels uint8 [B, h, w] by class; labels >= `num_classes` belong to none."""
    classes = label.flatten(1).clamp(max=num_classes).long()
    # Noise below 0.5: in float32, label + noise close to 1 could round up to the next class.
    noise = 0.5 * torch.rand(classes.shape, generator=generator, device=label.device)
    count = torch.zeros(len(classes), num_classes + 1, dtype=torch.int64, device=label.device)
    count = count.scatter_add(1, classes, torch.ones_like(classes))[:, :num_classes]
    return ByClass((classes + noise).argsort(1), count.cumsum(1) - count, count)


def draw_of_class(pixels: ByClass, number: int) -> Tensor:
    """Draw random pixels of each class, int64 positions [B, K, number], without repetition while enough exist.

    For a class without pixels (`pixels.count` is 0) the positions are arbitrary.
    """
    turn = torch.arange(number, device=pixels.order.device)
    place = pixels.start.unsqueeze(2) + turn % pixels.count.clamp_min(1).unsqueeze(2)
    return _at(pixels, place)


def draw_of_others(pixels: ByClass, number: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw pixels uniformly, with replacement, from all *other* classes: int64 positions [B, K, number].

    For an image without other classes the positions are arbitrary.
    """
    others = pixels.count.sum(1, keepdim=True) - pixels.count
    shape = (*others.shape, number)
    uniform = torch.rand(shape, generator=generator, device=others.device)
    others, start, count = others.unsqueeze(2), pixels.start.unsqueeze(2), pixels.count.unsqueeze(2)
    place = torch.minimum((uniform * others).long(), (others - 1).clamp_min(0))
    return _at(pixels, place + count * (place >= start))  # skip the class itself


def _at(pixels: ByClass, place: Tensor) -> Tensor:
    place = place.clamp(max=pixels.order.shape[1] - 1)
    return pixels.order.gather(1, place.flatten(1)).view_as(place)


def take(features: Tensor, position: Tensor) -> Tensor:
    """Gather features [B, D, N] at positions [B, K, n] into [B, K, n, D]."""
    pixels = features.transpose(1, 2)
    index = position.flatten(1).unsqueeze(2).expand(-1, -1, pixels.shape[2])
    return pixels.gather(1, index).view(*position.shape, -1)


def draw_equal_negatives(
    own: ByClass, other: ByClass | None, number: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw negatives for every class of an image, half from its own pixels and half from another image's (T2S-DA).

    Args:
        own: pixels of the first images, [B, N].
        other: pixels of the second images, [B, N']; None draws all negatives from the first.
        number: m per class, the first half from the first image. If one side has no pixels of other classes, all
            negatives come from the other side.
        generator: of the device.

    Returns:
        Positions int64 [B, K, m] into the first image's pixels followed by the second's; bool [B, K], true where
        negatives exist; and bool [B, K], true where all come from one side.
    """
    mine = draw_of_others(own, number, generator)
    has_mine = own.count.sum(1, keepdim=True) > own.count
    if other is None:
        return mine, has_mine, torch.zeros_like(has_mine)
    theirs = draw_of_others(other, number, generator) + own.order.shape[1]
    has_theirs = other.count.sum(1, keepdim=True) > other.count
    first_half = torch.arange(number, device=mine.device) < number // 2
    from_own = has_mine.unsqueeze(2) & (first_half | ~has_theirs.unsqueeze(2))
    return torch.where(from_own, mine, theirs), has_mine | has_theirs, has_mine ^ has_theirs


def info_nce(query: Tensor, positive: Tensor, negative: Tensor, usable: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE with one positive per class and sampled negatives (T2S-DA, Wang et al.).

    -log( e^{q.z/tau} / (e^{q.z/tau} + sum_k e^{q.k/tau}) ), all vectors of unit length.

    Args:
        query: [B, K, n, D].
        positive: [K, D], the prototypes z.
        negative: [B, K, m, D], shared by the queries of a class.
        usable: bool [B, K], true where negatives exist; the loss is 0 elsewhere.
        temperature: tau.

    Returns:
        float32 [B, K], the mean over the queries.
    """
    with torch.autocast(query.device.type, enabled=False):
        pull = torch.einsum("bknd,kd->bkn", query.float(), positive.float()) / temperature
        push = torch.einsum("bknd,bkmd->bknm", query.float(), negative.float()) / temperature
        push = push.logsumexp(3).masked_fill(~usable.unsqueeze(2), OUT)
        return F.softplus(push - pull).mean(2)
