"""Integrity checks of image files, because decoders accept damage: OpenCV silently reads truncated PNGs."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from uda_seg.data.checksums import CURE, JPEG, LARGEST, PNG, Flaw, chunks_of, has_end, rows_of
from uda_seg.data.images import RAW, decode, kind_of, orientation_of, stored_size, wrong_with
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import first_line, read_bytes


def check_image_file(path: Path) -> tuple[int, int]:
    """Read an image file completely and return its displayed (height, width); see `check_image`.

    Raises:
        Damaged: names the file and the defect.
    """
    return check_image(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """Read a file; raises Damaged if it cannot be opened."""
    return read_bytes(path, CURE, LARGEST)


def check_image(content: bytes, name: str) -> tuple[int, int]:
    """Check the whole content of an image called `name` and return its displayed (height, width).

    A PNG is intact if every chunk's checksum is correct, the end chunk is present, and its pixels inflate to as many
    bytes, with as many valid row filters, as its header requires (PNG specification, sections 5, 7.2 and 9). A JPEG has
    no checksums: it must decode and have its end marker. Other formats must decode, by PIL if it supports them, because
    it refuses truncated files.

    Raises:
        Damaged: names the file and the defect.
    """
    try:
        if content.startswith(PNG):
            size = _check_png(memoryview(content))
        elif content.startswith(JPEG):
            size = _check_jpeg(content)
        else:
            size = _check_other(content, name)
    except Flaw as flaw:
        raise Damaged(f"{name} {flaw}: {flaw.cure}") from flaw
    return stored_size(size, orientation_of(content))


def _check_jpeg(content: bytes) -> tuple[int, int]:
    if not has_end(content):
        raise Flaw("is cut off: it has no end marker")
    return _decoded_size(content)


def _check_other(content: bytes, name: str) -> tuple[int, int]:
    if kind_of(content) is None or name.lower().endswith(RAW):
        what, _, cure = wrong_with(content, name).rpartition(": ")
        raise Flaw(what, cure)
    try:
        with Image.open(io.BytesIO(content)) as file:
            file.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        pass  # such as 16-bit colour TIFF, which only OpenCV reads
    except Exception as error:  # PIL's plugins raise any exception on damaged files
        raise Flaw(f"is damaged ({first_line(error)})") from error
    return _decoded_size(content)


def _decoded_size(content: bytes) -> tuple[int, int]:
    try:
        image = decode(content, "")
    except UserError as error:
        what, _, cure = str(error).strip().rpartition(": ")
        raise Flaw(what, cure) from error
    return image.shape[0], image.shape[1]


def _check_png(content: memoryview) -> tuple[int, int]:
    """Inflate the pixels and compare their number with the header."""
    header, packed = chunks_of(content)
    size, rows = rows_of(header, packed)
    promised = sum(count * stride for count, stride in rows)
    inflate = zlib.decompressobj()
    try:
        pixels = inflate.decompress(b"".join(packed), promised)
    except zlib.error as error:
        raise Flaw(f"is damaged: its pixels cannot be inflated ({error})") from error
    if len(pixels) < promised:
        raise Flaw(f"is cut off: it has {len(pixels)} of {promised} bytes of pixels")
    start, data = 0, np.frombuffer(pixels, np.uint8)
    for count, stride in rows:
        if data[start : start + count * stride : stride].max(initial=0) > 4:
            raise Flaw("is damaged: it has rows with an unknown filter")
        start += count * stride
    return size
