"""Data sets on disk: one class reads all that a `DatasetSpec` describes.

A new data set is one entry of `uda_seg.data.specs.SPECS` and one YAML in `conf/data/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from uda_seg.data.batch import Array, Sample
from uda_seg.data.counting import present_ids
from uda_seg.data.decoding import read_image
from uda_seg.data.depth import DepthFiles, find_depth
from uda_seg.data.folders import fixed, holds, nearby_root, packed_files, scan
from uda_seg.data.labels import ClassSet, class_map, lookup_table
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.specs import CUSTOM, SPECS, DatasetSpec, LabelEncoding, custom_spec
from uda_seg.errors import UserError

_UNKNOWN = 254  # stands for a raw id that the encoding does not know


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
        (image_root, self._within), (label_root, _) = fixed(images), fixed(labels)
        self.image_root, self.label_root = root / image_root, root / label_root
        for folder in (self.image_root, self.label_root) if labeled else (self.image_root,):
            if not folder.is_dir():
                right = nearby_root(spec, root, split, labeled)
                if right is not None:
                    cure = f"set {option}.root={right}, which holds {images}{then}"
                raise UserError(f"{spec.title}: no folder {folder}: {packed_files(root, prepare) or cure}")
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
        missing = _UNKNOWN if encoding.rest is None else mapped[encoding.rest]
        table = lookup_table({raw: mapped[train] for raw, train in encoding.table.items()}, missing)
        self._table = np.append(table, np.uint8(missing))  # larger ids are clipped to its end

    def train_id(self, raw: int) -> int:
        """The train id of the wanted classes that a raw id stands for; 255 = ignore."""
        return int(self._table[min(raw, len(self._table) - 1)])

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
        if raw.dtype == np.uint8 or raw.max() < 256:  # OpenCV's look-up is the faster one
            label = np.asarray(cv2.LUT(raw.astype(np.uint8, copy=False), self._table[:256]), np.uint8)
        else:
            label = self._table.take(raw, mode="clip")
        unknown = label == _UNKNOWN
        if unknown.any():
            raise self._unknown(path, int(raw[unknown][0]))
        return label

    def label_ids(self, index: int) -> dict[int, int]:
        """The raw ids of the label at `index`, each with its pixels; an unknown one is a UserError."""
        path = self.label_path(index)
        ids = present_ids(self.encoding.decode(path))
        for raw in ids:
            if not self.encoding.knows(raw):
                raise self._unknown(path, raw)
        return ids

    def _unknown(self, path: Path, identity: int) -> UserError:
        what = f"{path} has the unknown label id {self.encoding.spelled(identity)}"
        if self.spec.title != CUSTOM:
            return UserError(f"{what}: is it of {self.spec.title}? Unpack the labels again")
        cure = f"name it in {self.option}.custom.label_map, a class or ignore, or set unlisted=ignore for all such ids"
        if self.encoding.mapped:
            return UserError(f"{what}: {cure}")
        hold = "the colours of the classes" if self.encoding.is_color else "train ids"
        return UserError(f"{what}: without a label_map files hold {hold}; {cure}")

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

    Raises:
        UserError: An unknown data set, no root, or whatever is wrong with its folders.
    """
    spec = custom_spec(domain, classes, option) if domain.dataset == "custom" else SPECS.get(domain.dataset)
    if spec is None:
        names = ", ".join((*SPECS, "custom"))
        raise UserError(f"{option}.dataset={domain.dataset} is unknown; choose one of {names}")
    prepare = prepare_command(settings)
    if domain.root is not None:
        root = Path(domain.root).expanduser()
        _refuse_shards(domain, settings, spec, root, option)
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


def _refuse_shards(domain: DomainSettings, settings: DataSettings, spec: DatasetSpec, root: Path, option: str) -> None:
    """Say that shards are no validation images, where the root of these is still that of the target."""
    shards = settings.target.root if settings.target is not None and settings.reader == "shards" else None
    if shards != domain.root or not option.startswith("data.validation."):
        return
    if not any(holds(root, place, labeled=False) for place in spec.places(domain.split)):
        raise UserError(
            f"data.target.root={shards} holds shards; validation images are files: set {option}.root=FOLDER of "
            f"{spec.title}, which holds {spec.layout(domain.split)}"
        )


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
