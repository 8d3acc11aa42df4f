"""Data sets on disk: one class for every `DatasetSpec`.

To add a data set, add an entry to `uda_seg.data.specs.SPECS` and a YAML to `conf/data/`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from uda_seg.data.batch import Array, Sample
from uda_seg.data.counting import present_ids
from uda_seg.data.dataset_files import DatasetFiles
from uda_seg.data.depth import DepthFiles, same_shape
from uda_seg.data.images import (
    decode,
    eight_bits,
    height_and_width,
    orientation_of,
    read_bytes,
    read_image,
    spread,
    stored_size,
    upright,
    used_bits,
)
from uda_seg.data.labels import ClassSet, class_map, lookup_table
from uda_seg.data.specs import CUSTOM, DatasetSpec, LabelEncoding
from uda_seg.errors import UserError

log = logging.getLogger(__name__)

Read = TypeVar("Read")
_UNKNOWN = 254  # marks a raw id that is not in the encoding


class SegmentationDataset(DatasetFiles):
    """Images of one split in the order of their names, with labels mapped to the wanted classes.

    Args:
        spec: The data set.
        root: Its folder.
        split: One of `spec.splits`, or several joined by `+`.
        classes: The classes that labels are mapped to.
        labeled: Read labels; if false, label files are not searched, opened or required.
        depth: Finds depth files from the split's image names with `find_depth`; None: depth is not read.
        include: Patterns of the images to use; empty: all.
        exclude: Patterns of images to leave out.
        count: Use the first `count` of these images; None: all.
        choose: Chooses the images to use among their names; None: all of them.
        bits: Used bits per channel of 16-bit images; None: determined from a sample.
        option: The setting that `root` comes from, for messages.
        prepare: The command that prepares the data, for messages; empty if there is none.

    Attributes:
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
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        count: int | None = None,
        choose: Callable[[list[str]], list[str]] | None = None,
        bits: int | None = None,
        option: str = "data.source",
        prepare: str = "",
    ) -> None:
        super().__init__(
            spec,
            root,
            split,
            labeled=labeled,
            include=include,
            exclude=exclude,
            count=count,
            choose=choose,
            option=option,
            prepare=prepare,
        )
        self.restore: Callable[[], object] | None = None
        self.classes, self._bits = classes, bits
        self._told_of_resized = False
        self.depth = None if depth is None else depth(self.names)
        self._encoding: LabelEncoding | None = None
        if self.found_encoding is not None:
            self.read_labels_as(self.found_encoding)

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
        try:
            mapped = class_map(self.spec.classes, self.classes)
        except UserError as error:
            raise UserError(f"{self.option}: {error}, which all domains must share") from error
        self._encoding = encoding
        missing = _UNKNOWN if encoding.rest is None else mapped[encoding.rest]
        table = lookup_table({raw: mapped[train] for raw, train in encoding.table.items()}, missing)
        self._table = np.append(table, np.uint8(missing))  # larger ids are clipped to the last entry

    def train_id(self, raw: int) -> int:
        """Map a raw id to its train id in the wanted classes; 255 = ignore."""
        return int(self._table[min(raw, len(self._table) - 1)])

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

    def file_name(self, index: int) -> str:
        """Return the image file at `index`, for messages."""
        return str(self.image_path(index))

    def image_content(self, index: int) -> bytes:
        """Read the file of the image at `index`; raises UserError if it cannot be opened."""
        return read_bytes(self.image_path(index))

    def read_image(self, index: int) -> Array:
        """Decode only the image at `index`."""
        return read_image(self.image_path(index), self.bits)

    def read_upright_label(self, index: int) -> Array:
        """Decode only the label at `index`, aligned with `read_image`."""
        label = self.read_label(index)
        content = read_bytes(self.image_path(index))
        orientation = orientation_of(content)
        if orientation == 1 and label.shape == height_and_width(BytesIO(content)):
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

    def resizes(self, label: tuple[int, int], shown: tuple[int, int], orientation: int) -> bool:
        """Return whether a label of another size (H, W) than its image as displayed is resized to it.

        Official GTA has a few such pairs. In folders of one's own and in what was rendered they are mistakes.
        """
        own = self.spec.title == CUSTOM or self.restore is not None
        return not own and orientation == 1 and same_shape(label, shown)

    def _upright(self, label: Array, index: int, shown: tuple[int, int], orientation: int) -> Array:
        """Align a label, which was drawn on the displayed or on the stored pixels, with its image as displayed (H, W).

        Its size tells which; for square, flipped or 180-degree rotated images `stored_labels` does.

        Raises:
            UserError: it has neither size, and is not one that `resizes`.
        """
        size, stored = (label.shape[0], label.shape[1]), stored_size(shown, orientation)
        if size == shown and (orientation == 1 or size != stored or not self.stored_labels):
            return label
        if size == stored and orientation != 1:
            return upright(label, orientation)
        turned = "" if shown == stored else f", stored as {stored[0]}x{stored[1]} (EXIF orientation {orientation})"
        unlike = (
            f"{self.label_path(index)} is {size[0]}x{size[1]} but its image "
            f"{self.image_path(index)} is {shown[0]}x{shown[1]}{turned} (height x width)"
        )
        if not self.resizes(size, shown, orientation):
            cure = "export the label again, " if self.spec.title == CUSTOM else ""
            aside = f", or set such pairs aside with {self._prepare} fix=true" if self._prepare else ""
            leave = f"leave the pair out with '{self.option}.exclude=[\"{self.names[index]}\"]'"
            raise UserError(f"{unlike}: {cure}{leave}{aside}")
        if not self._told_of_resized:
            log.warning("%s: %s: such labels are resized to their image", self.option, unlike)
            self._told_of_resized = True
        return np.asarray(cv2.resize(label, shown[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)

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
        cure = f"name it in {self.spec.key}.label_map, a class or ignore, or set unlisted=ignore for all such ids"
        if self.encoding.mapped:
            return UserError(f"{what}: {cure}")
        hold = "the colours of the classes" if self.encoding.is_color else "train ids"
        return UserError(f"{what}: without a label_map files hold {hold}; {cure}")
