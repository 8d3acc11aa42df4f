"""Class taxonomies: names, train ids, raw-id tables, palettes and the class subsets that papers report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from uda_seg.errors import UserError
from uda_seg.ops import IGNORE as IGNORE


@dataclass(frozen=True)
class ClassSet:
    """A list of classes; the train id of a class is its index.

    Args:
        name: Name of the set in the settings, e.g. ``"cityscapes"``.
        names: Class names, one per train id.
        palette: RGB colours 0-255, one per train id.
        things: Train ids of countable classes, which DAFormer's feature distance is restricted to.
        words: Names in a language model's prompt (LC-MSM renames four of them).
        subsets: Train ids of each reported mean; the first subset is the default.
        merged: Class set -> the train id here, or 255, of each of its train ids (`data.merge`).
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    things: tuple[int, ...]
    words: tuple[str, ...]
    subsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    merged: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, name: str) -> tuple[int, ...]:
        """Return the train ids of the subset called `name`; raises UserError listing the valid names."""
        if name not in self.subsets:
            raise UserError(
                f"data.eval_classes={name} is unknown for the classes of {self.name}; "
                f"choose one of {', '.join(self.subsets)}"
            )
        return self.subsets[name]


# Order and palette: Cityscapes (Cordts et al. 2016); 16 and 13: the classes of SYNTHIA results.
CITYSCAPES = ClassSet(
    name="cityscapes",
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
        "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
        (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    things=(6, 7, 11, 12, 13, 14, 15, 16, 17, 18),
    words=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "pedestrian", "driver", "car", "truck", "bus", "train",
        "motorbike", "bike",
    ),
    subsets={
        "19": tuple(range(19)),
        "16": tuple(c for c in range(19) if c not in (9, 14, 16)),
        "13": tuple(c for c in range(19) if c not in (3, 4, 5, 9, 14, 16)),
    },
)  # fmt: skip

# The 11-class form of CamVid (Brostow et al. 2009) that was published with SegNet.
CAMVID = ClassSet(
    name="camvid",
    names=(
        "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian",
        "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    things=(6, 8, 9, 10),
    words=(
        "sky", "building", "pole", "road", "pavement", "tree", "traffic sign", "fence", "car", "pedestrian",
        "cyclist",
    ),
    subsets={"11": tuple(range(11))},
)  # fmt: skip

CLASS_SETS: dict[str, ClassSet] = {classes.name: classes for classes in (CITYSCAPES, CAMVID)}

# Raw id -> train id. A table lists every valid id; any other id indicates another encoding or damage.
_UNLABELLED = {IGNORE: IGNORE}
CITYSCAPES_RAW: dict[int, int] = dict.fromkeys(range(35), IGNORE) | {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
    27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
} | _UNLABELLED  # fmt: skip
SYNTHIA_RAW: dict[int, int] = dict.fromkeys(range(23), IGNORE) | {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14,
    19: 15, 20: 16, 12: 17, 11: 18,
}  # fmt: skip
# Mapillary Vistas 1.2 numbers its 66 classes from 0; this is the mapping for domain generalisation (Choi et al. 2021,
# used for HRDA's and later results): curbs count as sidewalk, lane markings other than crosswalks and manholes as road,
# all riders as rider, utility poles as pole, rail vehicles as train.
MAPILLARY_RAW: dict[int, int] = dict.fromkeys(range(66), IGNORE) | {
    13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8, 29: 9, 27: 10, 19: 11,
    20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18,
} | _UNLABELLED  # fmt: skip
CITYSCAPES_TRAIN: dict[int, int] = {c: c for c in range(19)} | _UNLABELLED
URBANSYN_RAW: dict[int, int] = CITYSCAPES_TRAIN | {19: IGNORE}  # some loaders' tools write 255 over the 19
CAMVID_RAW: dict[int, int] = {c: c for c in range(11)} | {11: IGNORE} | _UNLABELLED

# wall -> building, terrain -> tree, traffic light -> sign, truck / bus / train -> car,
# rider / motorcycle / bicycle -> bicyclist
CITYSCAPES_TO_CAMVID: dict[int, int] = {
    0: 3, 1: 4, 2: 1, 3: 1, 4: 7, 5: 2, 6: 6, 7: 6, 8: 5, 9: 5, 10: 0, 11: 9, 12: 10, 13: 8, 14: 8, 15: 8,
    16: 8, 17: 10, 18: 10,
}  # fmt: skip
CLASS_MAPS: dict[tuple[str, str], dict[int, int]] = {("cityscapes", "camvid"): CITYSCAPES_TO_CAMVID}


def lookup_table(mapping: Mapping[int, int], missing: int = IGNORE) -> NDArray[np.uint8]:
    """Build a table uint8 [N], N >= 256, from a mapping; ids that it does not contain become `missing`."""
    table = np.full(max(256, max(mapping, default=0) + 1), missing, np.uint8)
    table[list(mapping)] = list(mapping.values())
    return table


def class_set(name: str) -> ClassSet:
    """Return the class set called `name`; raises UserError listing the valid names."""
    if name not in CLASS_SETS:
        raise UserError(f"data.classes={name} is unknown; choose one of {', '.join(CLASS_SETS)}")
    return CLASS_SETS[name]


def class_map(source: ClassSet, wanted: ClassSet) -> dict[int, int]:
    """Map train ids of `source` to those of `wanted`, keeping 255; raises UserError if the sets cannot be matched."""
    if source.name == wanted.name:
        return {c: c for c in range(len(source))} | _UNLABELLED
    if source.name in wanted.merged:
        return {**wanted.merged[source.name]} | _UNLABELLED
    if (source.name, wanted.name) not in CLASS_MAPS:
        cure = f": say in data.merge which class each of {source.name} becomes" if wanted.name == "custom" else ""
        raise UserError(f"labels with the classes of {source.name} cannot be read as data.classes={wanted.name}{cure}")
    return CLASS_MAPS[source.name, wanted.name] | _UNLABELLED
