"""Data sets on disk: one class for every `DatasetSpec`.

To add a data set, add an entry to `uda_seg.data.specs.SPECS` and a YAML to `conf/data/`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from uda_seg.data.batch import Array, Sample
from uda_seg.data.counting import present_ids
from uda_seg.data.depth import DepthFiles, find_depth
from uda_seg.data.folders import (
    ends_in,
    files_below,
    fixed,
    holds,
    kinds_of,
    nearby_root,
    packed_files,
    twins,
    without_end,
)
from uda_seg.data.images import (
    decode,
    eight_bits,
    frames,
    orientation_of,
    read_bytes,
    read_image,
    spread,
    stored_size,
    upright,
    used_bits,
)
from uda_seg.data.labels import ClassSet, class_map, lookup_table
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.specs import CUSTOM, SPECS, DatasetSpec, LabelEncoding, custom_spec
from uda_seg.errors import UserError

log = logging.getLogger(__name__)

Read = TypeVar("Read")
_UNKNOWN = 254  # marks a raw id that is not in the encoding


class SegmentationDataset:
    """Images of one split in the order of their names, with labels mapped to the wanted classes.

    Args:
        spec: The data set.
        root: Its folder.
        split: One of `spec.splits`.
        classes: The classes that labels are mapped to.
        labeled: Read labels; if false, label files are not searched, opened or required.
        depth: Finds depth files from the split's image names with `find_depth`; None: depth is not read.
        count: Use the first `count` images; None: all.
        bits: Used bits per channel of 16-bit images; None: determined from a sample.
        option: The setting that `root` comes from, for messages.
        prepare: The command that prepares the data, for messages; empty if there is none.

    Attributes:
        left_out: Files next to the images that are not images, relative to their folder.
        restore: Creates missing files again; None if the files are not generated.

    Raises:
        UserError: no folder, no images, or images without a label; `read` reports defects of single files.
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
        bits: int | None = None,
        option: str = "data.source",
        prepare: str = "",
    ) -> None:
        if split not in spec.splits:
            raise UserError(f"{option}.split={split}: {spec.title} has {' and '.join(spec.splits)} only")
        self.restore: Callable[[], object] | None = None
        self.spec, self.root, self.split, self.classes, self.option = spec, root, split, classes, option
        then = f", then run {prepare}" if prepare else ""
        # An unlabelled target can still be adapted to.
        then += f"; to train without scores: '~{option}'" if option.startswith("data.validation.") else ""
        cure = f"set {option}.root to the folder that holds {spec.layout(split)}{then}"
        if labeled and not spec.encodings:
            cure = f"describe them in {option}.custom.labels" if spec.title == CUSTOM else "take another data set"
            raise UserError(f"{option}: {spec.title} has no supported labels: {cure}{then}")
        images, labels = self._place(labeled)
        (image_root, self._within), (label_root, _) = fixed(images), fixed(labels)
        self.image_root, self.label_root = root / image_root, root / label_root
        for folder in (self.image_root, self.label_root) if labeled else (self.image_root,):
            if not folder.is_dir():
                right = nearby_root(spec, root, split, labeled)
                if right is not None:
                    cure = f"set {option}.root={right}, which holds {images}{then}"
                raise UserError(f"{spec.title}: no folder {folder}: {packed_files(root, prepare) or cure}")
        self._spelled: dict[str, str] = {}
        self._bits = bits
        found, self.left_out = self._images_and_others()
        self.names = found[:count]
        if not self.names:
            where = "/".join((str(self.image_root), *self._within))
            there = f", but {kinds_of(self.left_out)}" if self.left_out else ""
            raise UserError(f"{spec.title}: no image {where}/**/*{spec.image_suffix}{there}: {cure}")
        if labeled and (pair := twins(self.names, spec.image_suffix)):
            raise UserError(f"{self.image_root}: {pair[0]} and {pair[1]} would share one label: rename one of them")
        self.depth = None if depth is None else depth(self.names)
        self._encoding: LabelEncoding | None = None
        if labeled:
            self.read_labels_as(self._find_encoding(found, cure))

    def __len__(self) -> int:
        return len(self.names)

    def _place(self, labeled: bool) -> tuple[str, str]:
        """Return the first existing pair of folder patterns, preferably with labels, as pairs may share images."""
        places = list(self.spec.places(self.split))
        whole = [place for place in places if holds(self.root, place, labeled=True)]
        images = [place for place in places if not labeled and holds(self.root, place, labeled=False)]
        return next(iter([*whole, *images, *places]))

    @property
    def labeled(self) -> bool:
        """True if samples have labels."""
        return self._encoding is not None

    @property
    def encoding(self) -> LabelEncoding:
        """Encoding of the label files that are read."""
        if self._encoding is None:
            raise ValueError(f"the labels of {self.root} were not asked for")
        return self._encoding

    def read_labels_as(self, encoding: LabelEncoding) -> None:
        """Switch to labels of this encoding, whether or not every image has one."""
        mapped = class_map(self.spec.classes, self.classes)
        self._encoding = encoding
        missing = _UNKNOWN if encoding.rest is None else mapped[encoding.rest]
        table = lookup_table({raw: mapped[train] for raw, train in encoding.table.items()}, missing)
        self._table = np.append(table, np.uint8(missing))  # larger ids are clipped to the last entry

    def train_id(self, raw: int) -> int:
        """Map a raw id to its train id in the wanted classes; 255 = ignore."""
        return int(self._table[min(raw, len(self._table) - 1)])

    def image_path(self, index: int) -> Path:
        """Return the image file at `index`."""
        return self.image_root / self.names[index]

    def label_path(self, index: int) -> Path:
        """Return the label file of the image at `index`."""
        return self.label_root / self.label_name(self.names[index], self.encoding)

    def read(self, index: int) -> Sample:
        """Decode the image at `index`, and its label and depth if configured, at the size on disk, upright."""
        return self._repaired(self._read, index)

    def _read(self, index: int) -> Sample:
        path = self.image_path(index)
        content = read_bytes(path)
        orientation = orientation_of(content)
        image = eight_bits(upright(decode(content, str(path)), orientation), self.bits, str(path))
        size = (image.shape[0], image.shape[1])
        depth = None if self.depth is None else self.depth.read(index, size)
        label = self._upright(self.read_label(index), index, size, orientation) if self.labeled else None
        return Sample(image, label, depth=depth)

    def read_image(self, index: int) -> Array:
        """Decode only the image at `index`."""
        return read_image(self.image_path(index), self.bits)

    def read_upright_label(self, index: int) -> Array:
        """Decode only the label at `index`, aligned with `read_image`."""
        label = self.read_label(index)
        content = read_bytes(self.image_path(index))
        orientation = orientation_of(content)
        if orientation == 1:
            return label
        height, width = decode(content, str(self.image_path(index))).shape[:2]
        return self._upright(label, index, stored_size((height, width), orientation), orientation)

    @cached_property
    def bits(self) -> int | None:
        """Used bits per channel of 16-bit images; None for 8-bit images."""
        if self._bits is not None:
            return self._bits
        sample = [partial(read_bytes, self.image_path(index)) for index in spread(range(len(self)))]
        return used_bits(sample, f"{self.option}.bits")

    def _upright(self, label: Array, index: int, shown: tuple[int, int], orientation: int) -> Array:
        """Align a label, which was drawn on the displayed or on the stored pixels, with its image as displayed (H, W).

        Its size tells which; for square, flipped or 180-degree rotated images `stored_labels` does.

        Raises:
            UserError: it has neither size.
        """
        size, stored = (label.shape[0], label.shape[1]), stored_size(shown, orientation)
        if size == shown and (orientation == 1 or size != stored or not self.stored_labels):
            return label
        if size == stored and orientation != 1:
            return upright(label, orientation)
        turned = "" if shown == stored else f", stored as {stored[0]}x{stored[1]} (EXIF orientation {orientation})"
        raise UserError(
            f"{self.label_path(index)} is {size[0]}x{size[1]} but its image "
            f"{self.image_path(index)} is {shown[0]}x{shown[1]}{turned} (height x width)"
        )

    @cached_property
    def stored_labels(self) -> bool:
        """True if labels are aligned with stored instead of displayed pixels, for photographs where size does not tell.

        Decided by a sample of labels whose orientation swaps height and width; false without any.
        """
        said = set()
        for index in spread(range(len(self))):
            content = read_bytes(self.image_path(index))
            if (orientation := orientation_of(content)) == 1:
                continue
            height, width = decode(content, str(self.image_path(index))).shape[:2]
            if stored_size((height, width), orientation) != (height, width):
                said.add(self.encoding.decode(self.label_path(index)).shape == (height, width))
        if len(said) != 1:
            log.warning(
                "%s: photographs are turned by their EXIF orientation, and no size tells whether labels lie on the "
                "stored or on the shown pixels: the shown ones are taken (turn the files themselves to be sure)",
                self.option,
            )
        return said == {True}

    def read_label(self, index: int) -> Array:
        """Read the label at `index` as uint8 [H, W], train ids of the wanted classes, 255 = ignore."""
        path = self.label_path(index)
        raw = self.encoding.decode(path)
        if raw.dtype == np.uint8 or raw.max() < 256:  # OpenCV's look-up is faster
            label = np.asarray(cv2.LUT(raw.astype(np.uint8, copy=False), self._table[:256]), np.uint8)
        else:
            label = self._table.take(raw, mode="clip")
        unknown = label == _UNKNOWN
        if unknown.any():
            raise self._unknown(path, int(raw[unknown][0]))
        return label

    def label_ids(self, index: int) -> dict[int, int]:
        """Count the pixels of each raw id in the label at `index`; raises UserError for an unknown id."""
        return self._repaired(self._label_ids, index)

    def _label_ids(self, index: int) -> dict[int, int]:
        path = self.label_path(index)
        ids = present_ids(self.encoding.decode(path))
        for raw in ids:
            if not self.encoding.knows(raw):
                raise self._unknown(path, raw)
        return ids

    def _repaired(self, read: Callable[[int], Read], index: int) -> Read:
        """Read from the files at `index`; if that fails, restore them first if possible."""
        try:
            return read(index)
        except UserError as error:
            if self.restore is None:
                raise
            log.warning("%s; rendered again", str(error).rpartition(": ")[0])
        labels = [self.label_path(index)] if self.labeled else []
        depth = [] if self.depth is None else [self.depth.paths[index]]
        for path in (self.image_path(index), *labels, *depth):
            path.unlink(missing_ok=True)
        self.restore()
        return read(index)

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
        """Return the name of an image's label in this encoding, relative to the labels' folder."""
        name = without_end(image_name, self.spec.image_suffix) + encoding.suffix
        return self._spelled.get(name, name)

    def image_files(self) -> list[str]:
        """List all images of the split on disk, relative to `image_root`, sorted."""
        return self._images_and_others()[0]

    def _images_and_others(self) -> tuple[list[str], list[str]]:
        """List the images under `image_root` and the other files there, labels excluded."""
        found, suffix = files_below(self.image_root, self._within), self.spec.image_suffix
        if self.label_root == self.image_root:
            ends = [e.suffix for e in self.spec.encodings if e.suffix.lower() != suffix.lower()]
            found = [name for name in found if not any(ends_in(name, end) for end in ends)]
        elif self.label_root.is_relative_to(self.image_root):
            below = f"{self.label_root.relative_to(self.image_root).as_posix()}/"
            found = [name for name in found if not name.startswith(below)]
        images = [name for name in found if ends_in(name, suffix)]
        return images, [name for name in found if not ends_in(name, suffix)] if len(images) < len(found) else []

    def label_files(self, suffix: str) -> list[str]:
        """List all files of the split under `label_root` with this suffix, relative to it, sorted."""
        found = [name for name in files_below(self.label_root, self._within) if ends_in(name, suffix)]
        self._note_spelling(found)
        return found

    def _note_spelling(self, labels: list[str]) -> None:
        """Remember label names whose suffix differs in case from `label_name`."""
        ends = [encoding.suffix for encoding in self.spec.encodings]
        present: set[str] | None = None
        for name in labels:
            for end in ends:
                if ends_in(name, end) and not name.endswith(end):
                    present = set(labels) if present is None else present
                    plain = without_end(name, end) + end
                    if plain not in present:
                        self._spelled[plain] = name

    def _find_encoding(self, images: list[str], cure: str) -> LabelEncoding:
        """Find the encoding whose label files cover the most images.

        Raises:
            UserError: there are no labels, or an image without a label, or a label without an image.
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
            others = sorted(set(self.label_files("")) - set(self.names)) if self.label_root.is_dir() else []
            there = f" ({kinds_of(others)} lie there)" if others and len(missing[best]) == len(self) else ""
            label = self.label_root / self.label_name(first, kinds[best])
            raise UserError(
                f"{self.spec.title}: {len(missing[best])} of {len(self)} images have no label, the first is "
                f"{self.image_root / first} without {label}{there}: {cure}"
            )
        if self.spec is not SPECS["streets"]:  # it may still be rendering, labels first
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
    """Open the data set of `domain`; streets without a root is first rendered into the cache.

    Args:
        domain: Settings of the domain.
        settings: The whole `data` node, for the world's seed and for messages.
        classes: The classes that labels are mapped to.
        option: Key of `domain` in the configuration, e.g. ``data.source``.
        labeled: Read labels.
        depth: Read depth.

    Raises:
        UserError: an unknown data set, no root, or invalid folders.
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
    data = SegmentationDataset(
        spec,
        root,
        domain.split,
        classes,
        labeled=labeled,
        depth=_depth_finder(domain, settings, spec, root, option) if depth else None,
        count=domain.count,
        bits=domain.bits,
        option=option,
        prepare="" if domain.dataset == "streets" else prepare,
    )
    if domain.root is None:
        data.restore = partial(_render, domain, settings, option)
    if data.left_out:
        log.warning(
            "%s: left out of %s, whose images end in %s: %s",
            option,
            data.image_root,
            spec.image_suffix,
            kinds_of(data.left_out),
        )
    say_frames(data)
    return data


def say_frames(data: SegmentationDataset) -> None:
    """Log that files of a sample contain several frames, of which only the first is read."""
    paths = [data.image_path(index) for index in spread(range(len(data)))]
    paths = [path for path in paths if path.suffix.lower() in (".gif", ".webp", ".tif", ".tiff", ".avif")]
    several = [path for path in paths if frames(read_bytes(path)) > 1]
    if several:
        log.warning("%s: %s and others contain several frames each: only the first is read", data.option, several[0])


def _refuse_shards(domain: DomainSettings, settings: DataSettings, spec: DatasetSpec, root: Path, option: str) -> None:
    """Raise UserError if a validation set's root is that of the target's shards, which cannot be validated on."""
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
    from uda_seg.data.streets.cache import ensure_rendered  # only needed for streets

    if domain.domain is None or domain.count is None or domain.size is None:
        raise UserError(f"streets needs {option}.domain, {option}.count and {option}.size=[H,W]")
    height, width = domain.size
    return ensure_rendered(settings.world_seed, domain.domain, domain.split, domain.count, (height, width))
