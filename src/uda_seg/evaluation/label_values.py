"""Conversion of train ids back to the values in a data set's own label files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.labels import IGNORE, ClassSet
from uda_seg.data.settings import DataSettings
from uda_seg.data.specs import LabelEncoding, custom_spec
from uda_seg.evaluation.servers import raw_ids


@dataclass(frozen=True)
class LabelValues:
    """Values in label files.

    Args:
        table: id of each train id, [K] uint8 or uint16, or its RGB values, uint8 or uint16 [K, 3].
        notes: one line per choice where the conversion is ambiguous.
    """

    table: NDArray[np.uint8] | NDArray[np.uint16]
    notes: tuple[str, ...] = ()


def label_values(settings: DataSettings, classes: ClassSet) -> LabelValues:
    """Determine the values in the label files of the evaluated data, or else of the target or the source.

    For custom data sets this is the inverse of `label_map`; for public ones Cityscapes' label ids if they have its
    classes, otherwise train ids.
    """
    domains = {f"data.validation.{name}": domain for name, domain in settings.validation.items()}
    domains |= {"data.target": settings.target or settings.source, "data.source": settings.source}
    for option, domain in domains.items():
        if domain.dataset != "custom":
            break
        encodings = custom_spec(domain, classes, f"{option}.custom").encodings
        if encodings:
            return inverse(encodings[0], classes)
    return LabelValues(raw_ids(classes)[: len(classes)])


def inverse(encoding: LabelEncoding, classes: ClassSet) -> LabelValues:
    """Invert an encoding: each class gets the first id that the table maps to it.

    A class that the table does not contain gets the first ignored id; if there is none, the largest unused 8-bit id,
    the smallest unused id beyond them, or the smallest unused colour.
    """
    ids: dict[int, list[int]] = {}
    for raw, train in encoding.table.items():
        ids.setdefault(train, []).append(raw)
    candidates = range(0x1000000) if encoding.is_color else (*range(255, -1, -1), *range(256, 0x10000))
    spare = ids.get(IGNORE) or [next(raw for raw in candidates if raw not in encoding.table)]
    chosen = [ids.get(c, spare)[0] for c in range(len(classes))]
    notes = [
        f"{classes.names[c]} is written as {encoding.spelled(found[0])}, the first of its ids "
        f"{', '.join(map(encoding.spelled, found))}"
        for c, found in sorted(ids.items())
        if c != IGNORE and len(found) > 1
    ]
    if unnamed := [classes.names[c] for c in range(len(classes)) if c not in ids]:
        notes.append(f"no id stands for {', '.join(unnamed)}: written as {encoding.spelled(spare[0])}")
    return LabelValues(_stored(chosen, encoding), tuple(notes))


def _stored(ids: list[int], encoding: LabelEncoding) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if encoding.is_color:
        return np.array([list(raw.to_bytes(3, "big")) for raw in ids], np.uint8)
    if encoding.described == "red":
        return np.array([[raw, 0, 0] for raw in ids], np.uint16)
    return np.array(ids, np.uint8) if max(ids) < 256 else np.array(ids, np.uint16)
