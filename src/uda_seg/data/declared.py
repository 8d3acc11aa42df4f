"""What labels hold against what was declared of them: before anything is learnt or scored, and in `prepare`.

Commands that read labels look at some of them first, spread over the data set; `prepare` looks at all. Both judge by
the functions here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.labels import IGNORE
from uda_seg.data.specs import LabelEncoding
from uda_seg.errors import UserError

log = logging.getLogger(__name__)

FILES, PIXELS = 64, 2**25  # looked at before a run: so many labels, or fewer of so many pixels (0.3 s on one core)
LAST_TRAIN_ID = 18  # of Cityscapes' classes
MANY_LOW, SOME_LOW = 0.05, 2  # share and number of raw labels without higher ids from which they are suspicious (ours)
SPARSE = 0.05  # share of pixels of any class below which labels are suspicious (ours)
UNPACK = "unpack the labels again"


@dataclass
class Contents:
    """What some labels of a data set hold.

    Args:
        pixels: int64 [K], pixels of each class.
        ids: Raw id -> pixels.
        looked: How many labels these are.
        blank: Labels without a pixel of any class.
        low: Labels whose ids are all train ids of Cityscapes' classes.
    """

    pixels: NDArray[np.int64]
    ids: dict[int, int] = field(default_factory=dict)
    looked: int = 0
    blank: list[int] = field(default_factory=list)
    low: list[int] = field(default_factory=list)

    def add(self, dataset: SegmentationDataset, index: int, ids: Mapping[int, int]) -> NDArray[np.int64]:
        """Take in the label at `index`, raw id -> pixels, of ids that the encoding knows; its int64 [K]."""
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
    """The contents of at most `FILES` labels, spread evenly over the data set, of about `PIXELS` pixels together.

    Raises:
        UserError: a label that cannot be read, or has an unknown id.
    """
    found = Contents(np.zeros(len(dataset.classes), np.int64))
    first = dataset.label_ids(0)
    found.add(dataset, 0, first)
    count = min(len(dataset), FILES, max(4, PIXELS // max(1, sum(first.values()))))
    for index in sorted({int(place) for place in np.linspace(0, len(dataset) - 1, count)} - {0}):
        found.add(dataset, index, dataset.label_ids(index))
    return found


def check_labels(dataset: SegmentationDataset, option: str, wanted: Iterable[int] = ()) -> Contents:
    """Hold the first labels that are looked at against what was declared of them; warn of what is merely suspicious.

    Args:
        dataset: opened with labels.
        option: where it stands in the configuration, for messages.
        wanted: train ids that are evaluated.

    Raises:
        UserError: labels that are certainly not what was declared.
    """
    found = first_look(dataset)
    looked = f"{option}: of {dataset.spec.title}'s {len(dataset)} labels {found.looked} were looked at"
    wrong = contradiction(dataset, found)
    if len(found.low) > max(SOME_LOW, MANY_LOW * found.looked):
        wrong = wrong or converted(dataset.encoding, found)
    if wrong is not None:
        raise UserError(f"{looked}, the first is {dataset.label_path(0)}: {'; '.join(wrong)}")
    if names := ", ".join(dataset.classes.names[c] for c in unnamed_classes(dataset, wanted)):
        log.warning("%s: no id in its labels stands for %s, evaluated all the same", option, names)
    share = int(found.pixels.sum()) / max(1, sum(found.ids.values()))
    if share < SPARSE:
        log.warning("%s, and %.1f %% of their pixels are of a class, the rest is ignored", looked, 100 * share)
    elif 2 * len(found.blank) > found.looked:
        first = dataset.label_path(found.blank[0])
        log.warning("%s, and %d have no pixel of any class, the first is %s", looked, len(found.blank), first)
    return found


def contradiction(dataset: SegmentationDataset, found: Contents) -> tuple[str, str] | None:
    """What labels together show that no single one does, as (what, cure); None: nothing."""
    encoding, key = dataset.encoding, f"{dataset.option}.custom.label_map"
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


def converted(encoding: LabelEncoding, found: Contents) -> tuple[str, str] | None:
    """Labels that may hold train ids among raw ones, as (what, cure); None: there is none.

    Raw ids reach beyond the 19 train ids in nearly every street (sky, vegetation, cars): the more labels that do not,
    the less likely they are raw.
    """
    if not found.low or not _reaches_far(encoding):
        return None
    what = f"{len(found.low)} of {found.looked} labels have no id above {LAST_TRAIN_ID}"
    return what, f"if these are train ids among raw ones (a conversion in place that stopped), {UNPACK}"


def _reaches_far(encoding: LabelEncoding) -> bool:
    """Whether most classes of a public data set's encoding have ids that are no train ids."""
    ids = [raw for raw, train in encoding.table.items() if train != IGNORE]
    return not encoding.described and 2 * sum(raw > LAST_TRAIN_ID for raw in ids) > len(ids)


def unnamed_classes(dataset: SegmentationDataset, wanted: Iterable[int]) -> list[int]:
    """Those of the wanted classes that no id in the labels of a data set can stand for."""
    named = {dataset.train_id(raw) for raw in dataset.encoding.table}
    return [c for c in wanted if c not in named]


def warn_of_absent(
    dataset: SegmentationDataset, option: str, wanted: Iterable[int], pixels: NDArray[np.int64], looked: int, cure: str
) -> None:
    """Name the classes that are evaluated, but of which the labels that are learnt from show nothing.

    Args:
        dataset: what is learnt from.
        option: where it stands in the configuration.
        wanted: train ids that are evaluated.
        pixels: int64 [K], of each class in the labels that were looked at.
        looked: how many these were.
        cure: the command that looks at all.
    """
    wanted = list(wanted)
    unnamed = unnamed_classes(dataset, wanted)  # which were named before
    names = ", ".join(dataset.classes.names[c] for c in wanted if not pixels[c] and c not in unnamed)
    if names and looked == len(dataset):
        log.warning("%s: none of its %d labels has a pixel of %s: evaluated, but not learnt", option, looked, names)
    elif names:
        of = f"{looked} of its {len(dataset)} labels were looked at"
        log.warning("%s: %s, and none has a pixel of %s, evaluated; %s counts them all", option, of, names, cure)
