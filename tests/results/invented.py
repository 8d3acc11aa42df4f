"""Results of runs that never were, with known qualities."""

from __future__ import annotations

import numpy as np

from uda_seg.results.packing import ImageConfusions, pack
from uda_seg.results.result import Best, Cost, Result, Start, TargetScores, Validation

NAMES = ("road", "sidewalk", "person", "rider", "car")
PIXELS = 4000  # of an image
SCORED = {"evaluator.inference": "whole", "evaluator.scales": [1.0], "evaluator.flip": False}


def confusions(rng: np.random.Generator, hits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw int64 [N, C, C] counts: a share `hits` [N, C] of the pixels `labels` [N, C] right, the rest anywhere."""
    images, classes = labels.shape
    right = rng.binomial(labels, np.clip(hits, 0, 1))
    found = np.stack([[rng.multinomial(n, np.full(classes, 1 / classes)) for n in row] for row in labels - right])
    found[:, range(classes), range(classes)] += right
    return found.reshape(images, classes, classes)


def world(images: int = 12, classes: int = 5, seed: int = 0) -> np.ndarray:
    """Draw the labelled pixels of each class in each image, [N, C]; classes are absent from some images."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(classes), images) * (rng.random((images, classes)) > 0.25)
    return np.round(shares * PIXELS).astype(np.int64) + np.eye(classes, dtype=np.int64)[np.arange(images) % classes]


def iou_of(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, slowly: NaN without a pixel."""
    values = []
    for c in range(len(confusion)):
        union = confusion[c].sum() + confusion[:, c].sum() - confusion[c, c]
        values.append(confusion[c, c] / union if union else np.nan)
    return np.array(values)


def scores(counts: np.ndarray, names: tuple[str, ...] = NAMES, per_image: bool = True) -> TargetScores:
    """Score counts [N, C, C] over all classes."""
    total = counts.sum(0)
    per_class = iou_of(total)
    images = pack(ImageConfusions(tuple(f"val/{i:06d}.png" for i in range(len(counts))), counts))
    return TargetScores(
        miou=float(np.nanmean(per_class)),
        per_class=dict(zip(names, per_class.tolist(), strict=True)),
        classes=list(names),
        pixel_accuracy=float(np.trace(total) / total.sum()),
        mean_accuracy=float(np.nanmean(np.diag(total) / total.sum(1))),
        means={str(len(names)): float(np.nanmean(per_class))},
        confusion=total.tolist(),
        images=images if per_image else None,
    )


def invented(
    method: str,
    seed: int,
    quality: float,
    *,
    labels: np.ndarray | None = None,
    names: tuple[str, ...] = NAMES,
    **changes,
) -> Result:
    """Invent a run of a method that gets about the share `quality` of each class right.

    Args:
        changes: fields of the result that differ.
    """
    rng = np.random.default_rng([seed, *method.encode()])
    labels = world(classes=len(names)) if labels is None else labels
    hits = quality + 0.01 * rng.standard_normal() + 0.05 * rng.standard_normal(labels.shape)
    target = scores(confusions(rng, hits, labels), names)
    steps = (100, 200, 300, 400)
    rising = [target.miou * (1 - 0.5 / (i + 1)) for i in range(len(steps) - 1)] + [target.miou]
    validations = [
        Validation(step, miou, {"target": {"miou": miou, "label_free/entropy": miou + 0.02 * rng.standard_normal()}})
        for step, miou in zip(steps, rising, strict=True)
    ]
    told = {
        "run": f"streets/{method}_small/seed{seed}",
        "method": method,
        "data": "streets",
        "model": "small",
        "seed": seed,
        "step": 400,
        "steps": 400,
        "miou": target.miou,
        "targets": {"target": target},
        "best": Best(max(rising), 400),
        "validations": validations,
        "start": Start("builtin", digest=f"{seed:064x}"),
        "cost": Cost(60.0 + seed, 1, 1600, 1600, peak_memory=2**30, memory_of="process"),
        "settings": {
            "optimizer.lr": 1e-3,
            "data.name": "streets",
            "data.world_seed": 0,
            "data.source_batch": 4,
            **SCORED,
        },
        "choices": {"method": method, "data": "streets", "model": "small"},
        "overrides": [f"method={method}", f"seed={seed}"],
    }
    return Result(**(told | changes))
