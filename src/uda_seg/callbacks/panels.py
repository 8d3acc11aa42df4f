"""Image panels of training steps, written to the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from uda_seg.callbacks.dashboards import Picture, dashboards, show
from uda_seg.data.labels import ClassSet
from uda_seg.methods.base import UDAModule
from uda_seg.storage.files import save_png
from uda_seg.visualize.pictures import Captioned, Row, colorize, heat, panel_grid

RGB = NDArray[np.uint8]

# One row of the panel per line: names of tensors that a method may show.
ROWS = (
    ("source", ("source_image", "source_label", "source_prediction", "source_attention", "translated_image")),
    ("target", ("target_image", "pseudo_label", "hybrid_label", "pseudo_confidence")),
    ("mixed", ("mixed_image", "mixed_label", "mixed_weight", "mixed_prediction", "mixed_attention")),
    ("masked", ("masked_image", "masked_prediction", "masked_attention")),
    (
        "depth",
        ("source_depth", "source_depth_estimate", "mixed_depth", "mixed_depth_estimate", "adaptation_difficulty"),
    ),
)
# Images that dashboards show one by one, with label maps to switch on and off: by their names there.
MASKED: dict[str, dict[str, str]] = {
    "source_image": {"label": "source_label", "prediction": "source_prediction"},
    "target_image": {"pseudo-label": "pseudo_label", "hybrid label": "hybrid_label"},
    "mixed_image": {"pseudo-label": "mixed_label", "prediction": "mixed_prediction"},
    "masked_image": {"prediction": "masked_prediction"},
}
TEXT_MAPS = 4  # maximum number of class-text maps: those of the most frequent classes


class Panels(pl.Callback):
    """Writes `step_<n>.png`: the first sample of a training batch with the method's intermediate results.

    Args:
        folder: folder of the panels.
        every: steps between two panels.
        classes: for the palette.
    """

    def __init__(self, folder: Path, every: int, classes: ClassSet) -> None:
        self.folder = folder
        self.every = every
        self.classes = classes

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Request images from the step if a panel is due (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        step = trainer.global_step + 1
        # A run that `trainer.max_steps` ends before its first panel shows its last step.
        due = step % self.every == 0 or step == trainer.max_steps < self.every
        pl_module.panel = {} if due and trainer.is_global_zero else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the panel (Lightning hook)."""
        assert isinstance(pl_module, UDAModule)
        if pl_module.panel:
            picture = self.draw(pl_module.panel)
            save_png(self.folder / f"step_{trainer.global_step:06d}.png", picture)
            show(trainer, "panels/step", Picture(picture))
            if dashboards(trainer):
                show(trainer, "panels/images", *self.masked(pl_module.panel))
        pl_module.panel = None

    def draw(self, kept: dict[str, Tensor]) -> RGB:
        """Arrange all kept tensors, each [1, C, H, W] or [1, H, W], in one picture."""
        size = kept["source_image"].shape[-2:]
        rows = [
            Row(title, [self._captioned(name, kept, size) for name in names if name in kept]) for title, names in ROWS
        ]
        maps = [f"correlation_{name}" for name in self._most_frequent(kept.get("mixed_label"))]
        rows.append(Row("text", [self._captioned(name, kept, size) for name in maps if name in kept]))
        return panel_grid([row for row in rows if row.images])

    def masked(self, kept: dict[str, Tensor]) -> list[Picture]:
        """Return the images among the kept tensors with their label maps."""
        size = kept["source_image"].shape[-2:]
        return [
            Picture(
                self._paint(image, kept[image], size),
                image.replace("_", " "),
                {shown: self._ids(name, kept[name], size) for shown, name in masks.items() if name in kept},
                self.classes,
            )
            for image, masks in MASKED.items()
            if image in kept
        ]

    def _ids(self, name: str, tensor: Tensor, size: Any) -> NDArray[np.uint8]:
        """Return class ids [H, W] of a label map, or of logits at any size."""
        if name.endswith("_prediction"):
            tensor = interpolate(tensor, size, mode="bilinear", align_corners=False).argmax(1)
        return tensor[0].numpy().astype(np.uint8)

    def _most_frequent(self, label: Tensor | None) -> list[str]:
        if label is None:
            return []
        counts = np.bincount(label.numpy().astype(np.uint8).ravel(), minlength=256)[: len(self.classes.names)]
        return [self.classes.names[i] for i in np.argsort(-counts, kind="stable")[:TEXT_MAPS]]

    def _captioned(self, name: str, kept: dict[str, Tensor], size: Any) -> Captioned:
        return Captioned(name.replace("_", " "), self._paint(name, kept[name], size))

    def _paint(self, name: str, tensor: Tensor, size: Any) -> RGB:
        if name.endswith(("_label", "_prediction")):
            return colorize(self._ids(name, tensor, size), self.classes.palette)
        if name.endswith("_image"):
            pixels: RGB = (tensor[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            return pixels
        plane = tensor if tensor.dim() == 4 else tensor[:, None]
        values = interpolate(plane, size, mode="bilinear", align_corners=False)[0, 0]
        return heat(values.numpy())
