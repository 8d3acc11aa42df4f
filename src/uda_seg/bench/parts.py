"""Benchmarks of components against the implementations they replace."""

from __future__ import annotations

import copy
import time

import cv2
import torch
from torch import Tensor
from torchmetrics import JaccardIndex

from uda_seg.bench.baselines import average_each, blend_classes, draw_half, paste_classes
from uda_seg.bench.measure import Pairs, Row, alternate
from uda_seg.config.commands import BenchConfig
from uda_seg.data.labels import CITYSCAPES, IGNORE
from uda_seg.evaluation.evaluator import SegmentationEvaluator
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.ops.ema import ema_update
from uda_seg.ops.mixing import class_mask, class_mix, draw_classes

CLASSES = len(CITYSCAPES)
RENDERED = (256, 512)


def measure_evaluator(config: BenchConfig, size: tuple[int, int] = (1024, 2048)) -> list[Row]:
    """Compare updates of the evaluator with torchmetrics' JaccardIndex, on an int64 prediction and label."""
    generator = torch.Generator().manual_seed(0)
    label = block_labels(1, size, generator).long()
    label[:, : size[0] // 10] = IGNORE
    noise = torch.randint(0, CLASSES, label.shape, generator=generator)
    prediction = torch.where((torch.rand(label.shape, generator=generator) < 0.2) | (label == IGNORE), noise, label)
    ours = SegmentationEvaluator(CLASSES, CITYSCAPES.names, range(CLASSES))
    theirs = JaccardIndex(task="multiclass", num_classes=CLASSES, ignore_index=IGNORE)
    pairs = alternate(
        lambda: ours.update(prediction, label), lambda: theirs.update(prediction, label), config.bench.pairs
    )
    return [faster("evaluator", "ours", "torchmetrics", pairs, 20.0)]


def measure_mixing(config: BenchConfig, size: tuple[int, int] = (512, 512)) -> list[Row]:
    """Compare drawing classes of two source images and pasting them, image and label, over two target images."""
    generator = torch.Generator().manual_seed(0)
    label, other_label = block_labels(2, size, generator), block_labels(2, size, generator)
    source, target = torch.rand(2, 2, 3, *size, generator=generator)

    def table() -> tuple[Tensor, Tensor]:
        keep = class_mask(label, draw_classes(label, CLASSES))
        return class_mix(source, target, keep), class_mix(label[:, None], other_label[:, None], keep)

    def paste() -> tuple[Tensor, Tensor]:
        chosen = draw_half(label, CLASSES)
        labels = paste_classes(label[:, None], other_label[:, None], label, chosen)
        return paste_classes(source, target, label, chosen), labels

    def blend() -> tuple[Tensor, Tensor]:
        chosen = draw_half(label, CLASSES)
        labels = blend_classes(label[:, None], other_label[:, None], label, chosen)
        return blend_classes(source, target, label, chosen), labels

    return [
        faster("mixing", "table", "paste per class", alternate(table, paste, config.bench.pairs), 5.0),
        faster("mixing/one_blend", "table", "mask per class", alternate(table, blend, config.bench.pairs)),
    ]


def measure_ema(config: BenchConfig, variant: str = "b0") -> list[Row]:
    """Compare the fused EMA update of a MiT encoder with a loop over parameters."""
    student = MixVisionTransformer(variant=variant)
    teacher = copy.deepcopy(student).requires_grad_(False)
    pairs = alternate(
        lambda: ema_update(teacher.parameters(), student.parameters(), 0.999),
        lambda: average_each(teacher, student, 0.999),
        config.bench.pairs,
    )
    return [faster("ema", "foreach", "per tensor", pairs)]


def measure_render(config: BenchConfig, size: tuple[int, int] = RENDERED) -> list[Row]:
    """Measure images/s per core: image, label and depth of the first `bench.scenes` scenes of each domain.

    A counts all scenes and the drawing of their textures; B only the second half of the scenes, when most textures
    exist. Measured in processor time, which other processes do not affect.
    """
    from uda_seg.data.streets import DOMAINS, render

    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    rows = []
    for domain in DOMAINS:
        ends = [time.process_time()]
        for index in range(config.bench.scenes):
            render(config.data.world_seed, domain, index, size)
            ends.append(time.process_time())
        half = config.bench.scenes // 2
        rate = config.bench.scenes / (ends[-1] - ends[0])
        later = (config.bench.scenes - half) / (ends[-1] - ends[half])
        rows.append(Row(f"render/{domain}", "all", rate, "second half", later, "images/s/core", rate, 15.0))
    cv2.setNumThreads(threads)
    return rows


def block_labels(batch: int, size: tuple[int, int], generator: torch.Generator, block: int = 32) -> Tensor:
    """Sample labels uint8 [B, H, W] in blocks, so that an image contains most classes."""
    grid = torch.randint(0, CLASSES, (batch, -(-size[0] // block), -(-size[1] // block)), generator=generator)
    label = grid.to(torch.uint8).repeat_interleave(block, 1).repeat_interleave(block, 2)
    return label[:, : size[0], : size[1]].contiguous()


def faster(name: str, a: str, b: str, pairs: Pairs, limit: float | None = None) -> Row:
    """Build a row with the speed-up of A."""
    return Row(name, a, pairs.a_ms, b, pairs.b_ms, "ms", pairs.b_over_a, limit)
