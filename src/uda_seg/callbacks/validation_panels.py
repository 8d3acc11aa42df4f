"""Pictures of the network's state, drawn at validations on rank 0: they read the training and change nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.callbacks.dashboards import Picture, show
from uda_seg.data.batch import DomainBatch
from uda_seg.data.datamodule import UDADataModule
from uda_seg.methods.base import UDAModule
from uda_seg.methods.bicl import BiCL
from uda_seg.methods.scoring import evaluating
from uda_seg.models.compilation import as_written
from uda_seg.models.pixel_features import select_feature
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.image import to_float
from uda_seg.ops.losses import IGNORE
from uda_seg.ops.prototypes import class_sums, nearest
from uda_seg.storage.files import save_png
from uda_seg.visualize.charts import Confidence, PixelFeatures, confidence_chart, feature_map, prototype_chart
from uda_seg.visualize.maps import draw_maps
from uda_seg.visualize.pictures import RGB

SHOWN = 3  # images of the disagreement
IMAGES = 8  # of each domain, for prototypes, features and confidences
BINS = 20  # of confidence
PIXELS = 25  # of each class and domain in the map of features
ORACLE = "An oracle's view: it reads target labels, which no training sees"


class ValidationPanels(pl.Callback):
    """Writes `<name>_<step>.png` at every validation, and shows the pictures on the run's dashboards.

    Args:
        names: among `PANELS`; one that a method has nothing for is left out.
        folder: folder of the panels.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.names, self.folder = tuple(names), folder

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        network = pl_module.segmentor
        # HRDA draws its window with the random numbers of the training, which must not notice.
        kept = torch.random.fork_rng(devices=())
        with kept, evaluating(network), trainer.precision_plugin.val_step_context(), as_written(network):
            for name in self.names:
                picture = PANELS[name](pl_module, data)
                if picture is not None:
                    save_png(self.folder / f"{name}_{trainer.global_step:06d}.png", picture)
                    show(trainer, f"panels/{name}", Picture(picture))


def disagreement(module: UDAModule, data: UDADataModule) -> RGB | None:
    """Draw images, labels, the student's and the teacher's predictions, and where these differ; None without both."""
    batches = data.validation_sample(SHOWN)
    if module.teacher is None or not batches:
        return None
    rows = []
    for batch in batches:
        assert batch.label is not None
        image = to_float(batch.image.to(module.device))
        size = (image.shape[-2], image.shape[-1])
        student, teacher = (module.infer.single().label(n, image, size)[0].cpu() for n in _networks(module))
        differ = student != teacher
        rows.append(
            {
                "image": batch.image[0].float() / 255,
                "label": nearest(batch.label, size)[0],
                "student": student,
                "teacher": teacher,
                f"differ on {100 * differ.float().mean():.1f} %": differ,
            }
        )
    return np.array(draw_maps(*rows, classes=module.plan.classes).convert("RGB"))


def _networks(module: UDAModule) -> list[Segmentor]:
    return [module.segmentor, *([] if module.teacher is None else [module.teacher.network])]


def prototypes(module: UDAModule, data: UDADataModule) -> RGB | None:
    """Draw cosines of BiCL's source prototypes, plain and calibrated, with the target's; None for other methods.

    Those of the target are of pixels as the network predicts them: no target label is read.
    """
    targets = data.validation_sample(IMAGES)
    if not isinstance(module, BiCL) or not targets:
        return None
    source, target = (
        _domain(module, part, own) for part, own in ((data.source_sample(IMAGES), True), (targets, False))
    )
    shown = torch.nonzero(source.present & target.present).flatten().tolist()
    if not shown:
        return None
    rho_s, rho_t = source.mean, target.mean
    calibrated = rho_s + module.calibration.value.cpu()
    before, after = (F.normalize(rho, dim=1) @ F.normalize(rho_t, dim=1).T for rho in (rho_s, calibrated))
    title = "Cosine of source prototypes (rows) with target prototypes (columns)"
    return prototype_chart(before.numpy(), after.numpy(), module.plan.classes, shown, title)


def features(module: UDAModule, data: UDADataModule) -> RGB | None:
    """Draw maps of pixel features of both domains by class, with prototypes; None without a validation set."""
    targets = data.validation_sample(IMAGES)
    if not targets:
        return None
    source, target = (_domain(module, seen, True).drawn() for seen in (data.source_sample(IMAGES), targets))
    if not len(source.values) or not len(target.values):
        return None
    return feature_map(source, target, module.plan.classes, f"Features of labelled pixels. {ORACLE}")


class _Domain:
    """Features of a domain's pixels, [N, D] and on the CPU, with a class each, and their sums by class."""

    def __init__(self, values: Tensor, labels: Tensor, classes: int) -> None:
        self.values, self.labels = values, labels
        sums = class_sums(values.T[None, :, :, None], labels[None, :, None], classes)
        self.mean, self.present = sums.mean[0], sums.present[0]

    def drawn(self) -> PixelFeatures:
        """Select at most PIXELS pixels of each class, which are always the same."""
        generator = torch.Generator().manual_seed(0)
        chosen = []
        for c in range(len(self.mean)):
            own = torch.nonzero(self.labels == c).flatten()
            chosen.append(own[torch.randperm(len(own), generator=generator)[:PIXELS]])
        places = torch.cat(chosen)
        labels = self.labels[places].numpy()
        return PixelFeatures(self.values[places].numpy(), labels, self.mean.numpy(), self.present.numpy())


def _domain(module: UDAModule, batches: Sequence[DomainBatch], own: bool) -> _Domain:
    """Compute the features of whole images: BiCL's own feature, of other methods what the classifier reads.

    Args:
        module: of the network.
        batches: labelled images.
        own: take classes from the labels; false: from the network's predictions.
    """
    feature = module.options.feature if isinstance(module, BiCL) else "fused"
    values, labels = [], []
    for batch in batches:
        assert batch.label is not None
        image, label = to_float(batch.image.to(module.device)), batch.label.to(module.device)
        result = module.segmentor.supervise(image, label)
        found = select_feature(module.segmentor, feature, result)
        chosen = label if own else result.logits.argmax(1).to(torch.uint8)
        values.append(found[0].float().flatten(1).T.cpu())
        labels.append(nearest(chosen, found.shape[-2:]).flatten().cpu())
    return _Domain(torch.cat(values), torch.cat(labels), len(module.plan.classes))


def confidence(module: UDAModule, data: UDADataModule) -> RGB | None:
    """Draw the confidence of pseudo-labels by class, and how often they are right; None without a validation set."""
    targets, classes = data.validation_sample(IMAGES), len(module.plan.classes)
    if not targets:
        return None
    counts = torch.zeros(2, classes, BINS, dtype=torch.int64)
    for batch in targets:
        assert batch.label is not None
        size = (batch.label.shape[-2], batch.label.shape[-1])
        logits = module.infer.single()(_networks(module)[-1], to_float(batch.image.to(module.device)), size)
        top, predicted = logits.float().softmax(1).max(1)
        label = batch.label.to(module.device)
        bins = (top * BINS).long().clamp_(max=BINS - 1) + BINS * predicted
        for part, chosen in zip(counts, (label != IGNORE, label == predicted), strict=True):
            part += torch.bincount(bins[chosen], minlength=classes * BINS).view(classes, BINS).cpu()
    who = "student" if module.teacher is None else "teacher"
    threshold = None if module.teacher is None else module.plan.teacher.threshold
    title = f"Confidence of the {who}'s labels (bars) and their accuracy (dots). {ORACLE}"
    counted = Confidence(counts[0].numpy(), counts[1].numpy())
    return confidence_chart(counted, module.plan.classes, threshold, title)


PANELS: dict[str, Callable[[UDAModule, UDADataModule], RGB | None]] = {
    "disagreement": disagreement,
    "prototypes": prototypes,
    "features": features,
    "confidence": confidence,
}
