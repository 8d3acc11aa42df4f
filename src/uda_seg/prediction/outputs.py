"""Files that are written of a prediction: pictures, label files, arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uda_seg.data.labels import ClassSet
from uda_seg.evaluation.label_values import LabelValues
from uda_seg.storage.files import save_png, write_whole
from uda_seg.visualize.pictures import colorize, heat, overlay

Pixels = NDArray[np.uint8]

FOLDERS: Mapping[str, str] = {"ids": "labelIds"}  # kind of output -> its folder, if it is not called like it
PROBABILITIES = "npz with probabilities"
ROOM = "make room or choose another folder with output=..."


@dataclass(frozen=True)
class Segmented:
    """The prediction of an image.

    Attributes:
        ids: classes, uint8 [H, W].
        confidence: largest probability, float32 [H, W] in [0, 1].
        probabilities: of all classes, float16 [K, H, W]; None if nothing needs them.
    """

    ids: Pixels
    confidence: NDArray[np.float32]
    probabilities: NDArray[np.float16] | None = None

    @classmethod
    def of(cls, logits: Tensor, probabilities: bool = False) -> Segmented:
        """Compute it from logits [K, H, W]."""
        ids = logits.argmax(0)
        shares = logits.softmax(0)
        kept = shares.half().cpu().numpy() if probabilities else None
        return cls(ids.cpu().numpy().astype(np.uint8), shares.amax(0).cpu().numpy(), kept)


@dataclass(frozen=True)
class Outputs:
    """The kinds of files to write, and how.

    Attributes:
        folder: folder of the results.
        kinds: kinds to write: `colour`, `overlay`, `ids`, `confidence`, `npz`.
        classes: predicted classes.
        values: encoding of `ids`.
        probabilities: `npz` holds all probabilities.
    """

    folder: Path
    kinds: Sequence[str]
    classes: ClassSet
    values: LabelValues
    probabilities: bool = False

    @property
    def contents(self) -> list[str]:
        """Names of what is written, for the journal: `npz` with and without probabilities differ."""
        return [PROBABILITIES if kind == "npz" and self.probabilities else kind for kind in self.kinds]

    @property
    def needs_probabilities(self) -> bool:
        """Whether all probabilities are written."""
        return self.probabilities and "npz" in self.kinds

    def file(self, kind: str, name: Path) -> Path:
        """Return the file of a kind for an image with the picture name `name`."""
        place = self.folder / FOLDERS.get(kind, kind) / name
        return place.with_name(f"{place.name.removesuffix('.png')}.npz") if kind == "npz" else place

    def files(self, name: Path) -> list[Path]:
        """List all files of an image."""
        return [self.file(kind, name) for kind in self.kinds]

    def write(self, name: Path, image: Pixels, found: Segmented) -> None:
        """Write the files of an image uint8 [H, W, 3].

        Raises:
            UserError: one cannot be written.
        """
        colour = colorize(found.ids, self.classes.palette)
        for kind in self.kinds:
            file = self.file(kind, name)
            match kind:
                case "colour":
                    save_png(file, colour, ROOM)
                case "overlay":
                    save_png(file, overlay(image, colour), ROOM)
                case "ids":
                    save_png(file, self.values.table[found.ids], ROOM)
                case "confidence":
                    save_png(file, heat(found.confidence), ROOM)
                case _:
                    write_whole(file, packed(found, self.classes.names), ROOM)


def packed(found: Segmented, names: Sequence[str]) -> bytes:
    """Pack a prediction as a compressed NPZ, which NumPy reads without pickle."""
    arrays: dict[str, Any] = {
        "ids": found.ids,
        "confidence": found.confidence.astype(np.float16),
        "classes": np.array(names),
    }
    if found.probabilities is not None:
        arrays["probabilities"] = found.probabilities
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()
