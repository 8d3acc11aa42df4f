"""Checks that labels match their declared encoding, before training or evaluation and in `prepare`.

Commands that read labels first check a sample spread over the data set; `prepare` checks all. Both use the functions
here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.images import height_and_width
from uda_seg.data.labels import IGNORE
from uda_seg.data.specs import CUSTOM, LabelEncoding
from uda_seg.errors import UserError

log = logging.getLogger(__name__)

FILES, PIXELS = 64, 2**25  # limits of the sample before a run: labels, and pixels (0.3 s on one core)
OWN = 2**29  # pixels of labels of one's own, which no one has checked, up to which all of them are looked at (5 s)
LAST_TRAIN_ID = 18  # last train id of Cityscapes' classes
MANY_LOW, SOME_LOW = 0.05, 2  # share and number of labels without higher raw ids from which they are suspicious (ours)
MANY_STRANGE = 16  # number of ids that no map names from which labels are suspicious (ours)
SPARSE = 0.05  # share of labelled pixels below which labels are suspicious (ours)
UNPACK = "unpack the labels again"


@dataclass
class Contents:
    """Contents of a sample of labels.

    Args:
        pixels: int64 [K], pixels of each class.
        ids: Raw id -> pixels.
        looked: Number of labels in the sample.
        blank: Number of labels without a pixel of any class.
        low: Number of labels whose ids are all train ids of Cityscapes' classes.
    """

    pixels: NDArray[np.int64]
    ids: dict[int, int] = field(default_factory=dict)
    looked: int = 0
    blank: list[int] = field(default_factory=list)
    low: list[int] = field(default_factory=list)

    def add(self, dataset: SegmentationDataset, index: int, ids: Mapping[int, int]) -> NDArray[np.int64]:
        """Add the label at `index`, raw id -> pixels, with ids of the encoding; returns its class counts, int64 [K]."""
        pixels = np.zeros_like(self.pixels)
        for raw, number in ids.items():
            self.ids[raw] = self.ids.get(raw, 0) + number
            train = dataset.train_id(raw)
            if train < len(pixels):
                pixels[train] += number
        self.pixels += pixels
        self.looked += 1
        if not pixels.any():
            self.blank.append(index)
        if max(ids.keys() - {IGNORE}, default=IGNORE) <= LAST_TRAIN_ID:
            self.low.append(index)
        return pixels


def first_look(dataset: SegmentationDataset) -> Contents:
    """Read at most `FILES` labels, spread evenly over the data set, of about `PIXELS` pixels in total.

    Of a custom data set all are read, or as many as have `OWN` pixels.

    Raises:
        UserError: a label that cannot be read, contains an unknown id, or is of another size than its image.
    """
    found = Contents(np.zeros(len(dataset.classes), np.int64))
    first = _look(dataset, 0)
    found.add(dataset, 0, first)
    files, pixels = (len(dataset), OWN) if dataset.spec.title == CUSTOM else (FILES, PIXELS)
    count = min(len(dataset), files, max(4, pixels // max(1, sum(first.values()))))
    for index in sorted({int(place) for place in np.linspace(0, len(dataset) - 1, count)} - {0}):
        found.add(dataset, index, _look(dataset, index))
    return found


def _look(dataset: SegmentationDataset, index: int) -> dict[int, int]:
    """Count the pixels of each raw id in a label, and compare its size with that of its image."""
    ids = dataset.label_ids(index)
    image, label = (height_and_width(path) for path in (dataset.image_path(index), dataset.label_path(index)))
    unlike = image != label if label is not None else image is not None and image[0] * image[1] != sum(ids.values())
    if image is not None and unlike:
        dataset.read(index)  # tells what is wrong; a photograph that its EXIF turns is right
    return ids


def check_labels(dataset: SegmentationDataset, option: str, wanted: Iterable[int] = ()) -> Contents:
    """Check a sample of labels against the declared encoding, and warn of what is merely suspicious.

    Args:
        dataset: data set opened with labels.
        option: its key in the configuration, for messages.
        wanted: evaluated train ids.

    Raises:
        UserError: labels that certainly do not match the declaration.
    """
    found = first_look(dataset)
    looked = f"{option}: of {dataset.spec.title}'s {len(dataset)} labels {found.looked} were looked at"
    wrong = contradiction(dataset, found)
    if len(found.low) > max(SOME_LOW, MANY_LOW * found.looked):
        wrong = wrong or converted(dataset.encoding, found)
    if wrong is not None:
        raise UserError(f"{looked}, the first is {dataset.label_path(0)}: {'; '.join(wrong)}")
    if names := ", ".join(dataset.classes.names[c] for c in unnamed_classes(dataset, wanted)):
        log.warning("%s: no id in its labels maps to %s, which is evaluated", option, names)
    if unlisted := left_to_ignore(dataset.encoding, found):
        log.warning("%s: %s", option, "; ".join(unlisted))
    share = int(found.pixels.sum()) / max(1, sum(found.ids.values()))
    if share < SPARSE:
        log.warning("%s, and %.1f %% of their pixels have a class, the rest is ignored", looked, 100 * share)
    elif 2 * len(found.blank) > found.looked:
        first = dataset.label_path(found.blank[0])
        log.warning("%s, and %d have no pixel of any class, the first is %s", looked, len(found.blank), first)
    return found


def contradiction(dataset: SegmentationDataset, found: Contents) -> tuple[str, str] | None:
    """Find a contradiction that only shows over many labels, as (what, cure); None if there is none."""
    encoding, key = dataset.encoding, f"{dataset.spec.key}.label_map"
    ids, names = sorted(found.ids), dataset.classes.names
    few = ", ".join(map(encoding.spelled, ids[:5])) + (", ..." if len(ids) > 5 else "")
    if ids == [0, IGNORE] and len(names) > 1 and found.pixels.any() and not (encoding.mapped or encoding.is_color):
        what = "no label has another id than 0 and 255, and 255 is read as ignore: masks of two classes?"
        means = f"say what they mean, e.g. {{0: {names[0]}, 255: {names[1]}}}, in"
        return what, f"{means} {key}" if encoding.described else f"{means} the label_map of a dataset=custom"
    if not found.pixels.any():
        what = f"no label has a pixel of any class, only the ids {few}: labels of another encoding"
        if encoding.mapped and not encoding.is_color and ids[-1] < len(names):
            return what, f"leave out {key} if they are train ids, or name them in it"
        return what, f"name them in {key}" if encoding.described else UNPACK
    if _reaches_far(encoding) and max(found.ids.keys() - {IGNORE}, default=0) <= LAST_TRAIN_ID:
        what = f"no *{encoding.suffix} has an id above {LAST_TRAIN_ID}: these are train ids under the name of raw ids"
        return what, f"{UNPACK}, or describe them (dataset=custom): without a label_map they are read as train ids"
    return None


def left_to_ignore(encoding: LabelEncoding, found: Contents) -> tuple[str, str] | None:
    """Find ids that the label map omits, if too many to be meant, as (what, cure); None if there are few.

    Lossy compression keeps ids within an area and creates others along its edges; so does anti-aliasing. Saved as PNG
    afterwards, such a label looks like any other.
    """
    strange = {raw: pixels for raw, pixels in found.ids.items() if raw not in encoding.table}
    if len(strange) < max(MANY_STRANGE, len(encoding.table)):
        return None
    most = ", ".join(map(encoding.spelled, sorted(strange, key=lambda raw: -strange[raw])[:5]))
    share = 100 * sum(strange.values()) / sum(found.ids.values())
    what = f"{len(strange)} ids that label_map does not name, {share:.1f} % of the pixels, are ignored: {most}, ..."
    return what, "export the labels again if they were ever saved as JPEG, scaled, or drawn with soft edges"


def converted(encoding: LabelEncoding, found: Contents) -> tuple[str, str] | None:
    """Find labels that may contain train ids among raw ones, as (what, cure); None if there are none.

    Raw ids exceed the 19 train ids in nearly every street scene (sky, vegetation, cars): the more labels do not, the
    less likely they are raw.
    """
    if not found.low or not _reaches_far(encoding):
        return None
    what = f"{len(found.low)} of {found.looked} labels have no id above {LAST_TRAIN_ID}"
    return what, f"if these are train ids among raw ones (a conversion in place that stopped), {UNPACK}"


def _reaches_far(encoding: LabelEncoding) -> bool:
    """Return whether most classes of a public data set's encoding have ids beyond the train ids."""
    ids = [raw for raw, train in encoding.table.items() if train != IGNORE]
    return not encoding.described and 2 * sum(raw > LAST_TRAIN_ID for raw in ids) > len(ids)


def unnamed_classes(dataset: SegmentationDataset, wanted: Iterable[int]) -> list[int]:
    """List the wanted classes that no id of the data set's encoding maps to."""
    named = {dataset.train_id(raw) for raw in dataset.encoding.table}
    return [c for c in wanted if c not in named]


def warn_of_absent(
    dataset: SegmentationDataset, option: str, wanted: Iterable[int], pixels: NDArray[np.int64], looked: int, cure: str
) -> None:
    """Warn of evaluated classes that do not occur in the labels for training.

    Args:
        dataset: data set for training.
        option: its key in the configuration.
        wanted: evaluated train ids.
        pixels: int64 [K], pixels of each class in the inspected labels.
        looked: number of inspected labels.
        cure: command that inspects all labels.
    """
    wanted = list(wanted)
    unnamed = unnamed_classes(dataset, wanted)  # already reported
    names = ", ".join(dataset.classes.names[c] for c in wanted if not pixels[c] and c not in unnamed)
    if names and looked == len(dataset):
        log.warning("%s: none of its %d labels has a pixel of %s: evaluated, but not trained on", option, looked, names)
    elif names:
        of = f"{looked} of its {len(dataset)} labels were looked at"
        log.warning("%s: %s, and none has a pixel of %s, evaluated; %s counts them all", option, of, names, cure)
