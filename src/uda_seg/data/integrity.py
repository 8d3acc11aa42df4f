"""Whether an image file is whole. Decoders are no judge: OpenCV reads a truncated PNG in silence, its end black."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from uda_seg.data.images import decode, kind_of, orientation_of, stored_size, wrong_with
from uda_seg.errors import UserError

PNG, JPEG, JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd9"
CURE = "copy or unpack the file again"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_LARGEST = 2**31  # bytes of pixels: no camera's


class Damaged(UserError):
    """A file that is not what it was when it was made."""


def check_image_file(path: Path) -> tuple[int, int]:
    """Read an image file to its last byte and return the (height, width) it is shown with; see `check_image`.

    Raises:
        Damaged: names the file and what is wrong with it.
    """
    return check_image(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The content of a file; one that cannot be opened is a Damaged error."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} cannot be opened: {error.strerror}") from error


def check_image(content: bytes, name: str) -> tuple[int, int]:
    """Read the content of an image called `name` to its last byte; returns the (height, width) it is shown with.

    A PNG is whole if every chunk's checksum is right, the end chunk is there, and its pixels inflate to as many bytes,
    with as many valid row filters, as its header promises (PNG specification, sections 5, 7.2 and 9). A JPEG has no
    checksums: it must decode and have its end marker. Other kinds must decode, and by PIL, which refuses what is cut
    off, where PIL knows them.

    Raises:
        Damaged: names the file and what is wrong with it.
    """
    try:
        if content.startswith(PNG):
            size = _check_png(memoryview(content))
        elif content.startswith(JPEG):
            size = _check_jpeg(content)
        else:
            size = _check_other(content)
    except _Flaw as flaw:
        raise Damaged(f"{name} {flaw}: {flaw.cure}") from flaw
    return stored_size(size, orientation_of(content))


class _Flaw(Exception):
    """What is wrong, as the words after a file's name, and what to do about it."""

    def __init__(self, what: str, cure: str = CURE) -> None:
        super().__init__(what)
        self.cure = cure


def _check_jpeg(content: bytes) -> tuple[int, int]:
    if JPEG_END not in content[-1024:]:  # some cameras add a few bytes after it
        raise _Flaw("is cut off: it has no end marker")
    return _decoded_size(content)


def _check_other(content: bytes) -> tuple[int, int]:
    if kind_of(content) is None:
        what, _, cure = wrong_with(content).rpartition(": ")
        raise _Flaw(what, cure)
    try:
        with Image.open(io.BytesIO(content)) as file:
            file.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        pass  # 16-bit TIFF in colours is one that OpenCV alone reads
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _Flaw(f"is damaged ({error})") from error
    return _decoded_size(content)


def _decoded_size(content: bytes) -> tuple[int, int]:
    try:
        image = decode(content, "")
    except UserError as error:
        raise _Flaw("cannot be decoded") from error
    return image.shape[0], image.shape[1]


def _check_png(content: memoryview) -> tuple[int, int]:
    header, packed = b"", []
    at = len(PNG)
    while True:
        if at + 12 > len(content):
            raise _Flaw(f"is cut off after {len(content)} bytes")
        (length,), kind = struct.unpack(">I", content[at : at + 4]), bytes(content[at + 4 : at + 8])
        end = at + 12 + length
        if end > len(content):
            raise _Flaw(f"is cut off after {len(content)} bytes")
        (checksum,) = struct.unpack(">I", content[end - 4 : end])
        if zlib.crc32(content[at + 4 : end - 4]) != checksum:
            raise _Flaw(f"is damaged: a wrong checksum at byte {at}")
        if kind == b"IHDR":
            header = bytes(content[at + 8 : end - 4])
        elif kind == b"IDAT":
            packed.append(content[at + 8 : end - 4])
        elif kind == b"IEND":
            return _check_pixels(header, packed)
        at = end


def _check_pixels(header: bytes, packed: list[memoryview]) -> tuple[int, int]:
    """Inflate the pixels; they must be as many as the header says."""
    if len(header) != 13:
        raise _Flaw("is damaged: it has no header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = _CHANNELS.get(colour, 0) * depth
    rows = _rows(width, height, bits, bool(interlaced))
    promised = sum(count * stride for count, stride in rows)
    if not 0 < promised < _LARGEST:
        raise _Flaw(f"is damaged: its header says {height} x {width} pixels of {bits} bits")
    inflate = zlib.decompressobj()
    try:
        pixels = inflate.decompress(b"".join(packed), promised)
    except zlib.error as error:
        raise _Flaw(f"is damaged: its pixels cannot be inflated ({error})") from error
    if len(pixels) < promised:
        raise _Flaw(f"is cut off: it has {len(pixels)} of {promised} bytes of pixels")
    start, data = 0, np.frombuffer(pixels, np.uint8)
    for count, stride in rows:
        if data[start : start + count * stride : stride].max(initial=0) > 4:
            raise _Flaw("is damaged: it has rows with an unknown filter")
        start += count * stride
    return height, width


def _rows(width: int, height: int, bits: int, interlaced: bool) -> list[tuple[int, int]]:
    """(rows, bytes of a row with its filter byte) of the image, or of each of Adam7's seven."""
    parts = [(width, height)]
    if interlaced:
        parts = [(-(-max(0, width - x) // dx), -(-max(0, height - y) // dy)) for x, y, dx, dy in _ADAM7]
    return [(h, 1 + -(-w * bits // 8)) for w, h in parts if w and h]
