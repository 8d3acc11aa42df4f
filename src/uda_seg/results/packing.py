"""Confusion matrices of single images as a few kilobytes of text, exactly."""

from __future__ import annotations

import base64
import binascii
import json
import lzma
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
MOST_IMAGES, MOST_CLASSES = 100_000, 1000  # what a damaged file may claim
LARGEST = 2**30  # bytes that a packed text may expand to
# A small dictionary: that of xz's presets takes up to 674 MB while it writes these few kB.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**20}]


@dataclass(frozen=True)
class PackedImages:
    """Names and confusion matrices of a validation set's images, as they are written to JSON.

    Both texts are xz in base64. `names` is a JSON list. `counts` holds [C * C, N] numbers (a pair of classes after the
    other: equal things are neighbours and compress well): a bit for each that is not 0, most significant bit first,
    padded to a byte; then the lowest bytes of those numbers, then the next ones, four in all.
    """

    images: int
    classes: int
    names: str
    counts: str


@dataclass(frozen=True)
class ImageConfusions:
    """Confusion matrices of a validation set's images.

    Attributes:
        names: N names, as in the data set.
        counts: int64 [N, C, C], pixels; row = label, column = prediction.
    """

    names: tuple[str, ...]
    counts: Counts


def pack(images: ImageConfusions) -> PackedImages:
    """Pack confusion matrices; counts are below 2^32, pixels of one image."""
    number, classes = len(images.names), images.counts.shape[-1]
    flat = np.ascontiguousarray(images.counts.reshape(number, -1).T).reshape(-1)
    values = flat[flat > 0].astype("<u4")
    body = np.packbits(flat > 0).tobytes() + values.view(np.uint8).reshape(-1, 4).T.tobytes()
    names = json.dumps(list(images.names), separators=(",", ":")).encode()
    return PackedImages(number, classes, _text(names), _text(body))


def unpack(packed: PackedImages) -> ImageConfusions:
    """Unpack confusion matrices.

    Raises:
        ValueError: the text is damaged; says how.
    """
    number, classes = packed.images, packed.classes
    if not (0 < number <= MOST_IMAGES and 0 < classes <= MOST_CLASSES):
        raise ValueError(f"{number} images of {classes} classes")
    names = json.loads(_bytes(packed.names))
    if not isinstance(names, list) or len(names) != number or not all(isinstance(name, str) for name in names):
        raise ValueError(f"no {number} names of images")
    body, cells = np.frombuffer(_bytes(packed.counts), np.uint8), number * classes * classes
    known = np.unpackbits(body[: -(-cells // 8)], count=cells).astype(bool)
    rest = body[-(-cells // 8) :]
    if len(rest) != 4 * known.sum():
        raise ValueError(f"{len(rest)} bytes of counts where {4 * known.sum()} are due")
    flat = np.zeros(cells, np.int64)
    flat[known] = np.ascontiguousarray(rest.reshape(4, -1).T).view("<u4").reshape(-1)
    return ImageConfusions(tuple(names), flat.reshape(-1, number).T.reshape(number, classes, classes))


def _text(content: bytes) -> str:
    return base64.b64encode(lzma.compress(content, filters=_FILTERS)).decode()


def _bytes(text: str) -> bytes:
    reader = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=LARGEST)
    try:
        content = reader.decompress(base64.b64decode(text, validate=True), LARGEST)
    except (lzma.LZMAError, binascii.Error) as error:
        raise ValueError(str(error)) from error
    if not reader.eof:
        raise ValueError("the packed text is cut off")
    return content
