"""Every validation on the dashboards: images with label maps, a table of them, IoU per class, confusions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from uda_seg.callbacks.dashboards import RGB, Labels, Picture, Table, dashboards
from uda_seg.data.batch import DomainBatch
from uda_seg.data.labels import ClassSet
from uda_seg.evaluation.evaluator import Scores, confusion_counts, iou
from uda_seg.methods.base import UDAModule
from uda_seg.visualize.pictures import confusion_heat, mistakes

LONGEST = 1024  # pixels of a shown image's longer side (ours); its numbers are of the full size


@dataclass(frozen=True)
class Example:
    """A validation image with its label and predictions, at the size that is shown, and its own scores.

    Attributes:
        number: index of the image in its data set.
        image: RGB, uint8 [H, W, 3].
        masks: class ids uint8 [H, W] by name, `prediction` and `label` among them.
        per_class: IoU by class, NaN for classes in neither label nor prediction.
        miou: mean of those that count.
        wrong: share of wrong pixels among the labelled ones; NaN without any.
    """

    number: int
    image: RGB
    masks: Mapping[str, Labels]
    per_class: Mapping[str, float]
    miou: float
    wrong: float


class ValidationBoard(pl.Callback):
    """Shows each target's validation to all dashboards of the run.

    In distributed training the images are those of the first rank; curves, bars and confusions are of all images.

    Args:
        classes: names and colours.
        pictures: number of images to show of each target, evenly spread over its data set.
    """

    def __init__(self, classes: ClassSet, pictures: int) -> None:
        self.classes = classes
        self.pictures = pictures
        self.wanted: list[set[int]] = []
        self.kept: list[list[Example]] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the images to show, the same in every validation (Lightning hook)."""
        loaders = (trainer.val_dataloaders or {}).values() if trainer.is_global_zero else []
        self.wanted = [spread(range(0, len(loader.dataset), trainer.world_size), self.pictures) for loader in loaders]
        self.kept = [[] for _ in self.wanted]

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: DomainBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the chosen images of a batch with their predictions (Lightning hook)."""
        if not self.wanted:
            return
        assert isinstance(pl_module, UDAModule)
        for place, number in enumerate(batch.index.tolist()):
            if number in self.wanted[dataloader_idx]:
                found = {name: labels[place] for name, labels in outputs.items()}
                self.kept[dataloader_idx].append(self.example(pl_module, batch, place, found))

    def example(self, module: UDAModule, batch: DomainBatch, place: int, found: Mapping[str, Tensor]) -> Example:
        """Build what is shown of one image of a batch from its predictions, class ids [H, W] by network."""
        assert batch.label is not None
        label, predicted = batch.label[place], found["prediction"]
        count = len(self.classes)
        confusion = confusion_counts(predicted, label, count)[:-3].view(count, count).cpu()
        per_class = iou(confusion)
        size = shown_size(*label.shape)
        image = batch.image[place].permute(1, 2, 0).cpu().numpy()
        masks = {"prediction": predicted, "label": label, **found}
        return Example(
            number=int(batch.index[place]),
            image=cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8),
            masks={name: _nearest(mask, size) for name, mask in masks.items()},
            per_class=dict(zip(self.classes.names, per_class.tolist(), strict=True)),
            miou=per_class[list(module.plan.eval_classes)].nanmean().item(),
            wrong=1 - (confusion.diagonal().sum() / confusion.sum()).item(),
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show each target (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        for (name, scores), examples in zip(pl_module.scores.items(), self.kept, strict=False):
            self.show(trainer, f"val/{name}", scores, sorted(examples, key=lambda e: e.number))
        self.wanted, self.kept = [], []

    def show(self, trainer: pl.Trainer, place: str, scores: Scores, examples: list[Example]) -> None:
        """Show one target's scores and images under the names `<place>/...`."""
        step = trainer.global_step
        known = {f"{place}/iou/{name}": v for name, v in scores.per_class.items() if v == v}
        confusion = scores.confusion.numpy()
        for dashboard in dashboards(trainer):
            dashboard.log_metrics(known, step)
            dashboard.show_bars(f"{place}/per_class", scores.per_class, step)
            heat = Picture(confusion_heat(confusion, self.classes.names))
            dashboard.show_pictures(f"{place}/confusion", [heat], step)
            dashboard.show_table(f"{place}/confusions", Table(CONFUSED, [*confusions(confusion, self.classes)]), step)
            if examples:
                dashboard.show_pictures(f"{place}/images", [self.picture(e) for e in examples], step)
                dashboard.show_table(f"{place}/table", self.table(examples), step)

    def picture(self, example: Example) -> Picture:
        """Caption an image by its scores."""
        caption = f"{example.number}: mIoU {100 * example.miou:.1f}, {100 * example.wrong:.1f} % of the pixels wrong"
        return Picture(example.image, caption, example.masks, self.classes)

    def table(self, examples: list[Example]) -> Table:
        """Tabulate the images with their scores in [0, 1], of each class, too, and their mistakes in red."""
        columns = ["image", "mistakes", "number", "mIoU", "wrong", *self.classes.names]
        rows: list[list[str | float | Picture]] = []
        for e in examples:
            red = Picture(mistakes(e.image, e.masks["prediction"], e.masks["label"]))
            rows.append([self.picture(e), red, e.number, e.miou, e.wrong, *e.per_class.values()])
        return Table(columns, rows)


CONFUSED = ("label", "predicted", "share of the label", "pixels")


def confusions(confusion: np.ndarray[Any, np.dtype[np.int64]], classes: ClassSet) -> Iterator[list[str | float]]:
    """Yield the rows of a table of all confusions that occur, from pixel counts [C, C], row = label."""
    totals = confusion.sum(1)
    for i, j in zip(*np.nonzero(confusion), strict=True):
        if i != j:
            pixels = int(confusion[i, j])
            yield [classes.names[i], classes.names[j], pixels / int(totals[i]), pixels]


def spread(numbers: range, count: int) -> set[int]:
    """Choose `count` of the numbers, or all if there are fewer, evenly spread from the first to the last."""
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers)))
    return {numbers[round(place)] for place in places}


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Return the width and height at which an image is shown."""
    scale = min(1.0, LONGEST / max(height, width))
    return max(1, round(scale * width)), max(1, round(scale * height))


def _nearest(mask: Tensor, size: tuple[int, int]) -> Labels:
    ids = mask.to(torch.uint8).cpu().numpy()
    return np.asarray(cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST), np.uint8)
