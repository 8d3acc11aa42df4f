"""Several networks' predictions of one image, as a piece of a page that has all of its pictures in itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from uda_seg.errors import UserError
from uda_seg.prediction.batches import Batches
from uda_seg.prediction.outputs import Pixels, Segmented
from uda_seg.runs.trained import TrainedSegmentor
from uda_seg.visualize.pictures import colorize, heat

TEMPLATE = Path(__file__).with_name("comparison.html")
OPACITY = 0.6
LONGEST = 1600  # pixels of the longer side of a picture in the page


@dataclass(frozen=True)
class Prediction:
    """What a network predicts of an image: its name, its classes, and the prediction."""

    name: str
    model: TrainedSegmentor
    found: Segmented


def predictions(image: Pixels, networks: Mapping[str, TrainedSegmentor]) -> list[Prediction]:
    """Predict an image [H, W, 3] by each network, name -> network.

    Raises:
        UserError: memory is too small for it.
    """
    found = []
    for name, model in networks.items():
        [logits] = Batches(model, 1).logits([image])
        if isinstance(logits, UserError):
            raise logits
        found.append(Prediction(name, model, Segmented.of(logits)))
    return found


def page_of(image: Pixels, found: Sequence[Prediction]) -> str:
    """Build the HTML of predictions of an image [H, W, 3]: pictures, and the share of each class. Names are escaped."""
    import jinja2

    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    rows, absent = legend_of(found)
    return template.render(
        image=_embedded(_fitted(image), ".jpg"),
        height=image.shape[0],
        width=image.shape[1],
        columns=[_column(one) for one in found],
        rows=rows,
        absent=absent,
        opacity=OPACITY,
    )


def legend_of(found: Sequence[Prediction]) -> tuple[list[dict[str, Any]], list[str]]:
    """List the classes that any network found, the largest share first, and the names of the others.

    A class is told by name and colour; its share is None for a network that does not have it.
    """
    shares: dict[tuple[str, tuple[int, int, int]], list[float | None]] = {}
    for i, one in enumerate(found):
        classes = one.model.classes
        counts = np.bincount(one.found.ids.ravel(), minlength=len(classes)) / one.found.ids.size
        for name, colour, share in zip(classes.names, classes.palette, counts.tolist(), strict=True):
            shares.setdefault((name, colour), [None] * len(found))[i] = share
    rows = [
        {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour), "shares": each}
        for (name, colour), each in sorted(shares.items(), key=lambda item: -max(share or 0 for share in item[1]))
    ]
    return [row for row in rows if any(row["shares"])], [str(row["name"]) for row in rows if not any(row["shares"])]


def _column(one: Prediction) -> dict[str, Any]:
    colour = colorize(one.found.ids, one.model.classes.palette)
    return {
        "name": one.name,
        "confidence": float(one.found.confidence.mean()),
        "classes": _embedded(_fitted(colour, cv2.INTER_NEAREST), ".png"),
        "heat": _embedded(_fitted(heat(one.found.confidence)), ".jpg"),
    }


def _fitted(picture: Pixels, how: int = cv2.INTER_AREA) -> Pixels:
    """Shrink a picture to the size of the page."""
    height, width = picture.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)


def _embedded(picture: Pixels, suffix: str) -> str:
    """Encode a picture as an address that contains it."""
    content = cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()
    kind = "jpeg" if suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
