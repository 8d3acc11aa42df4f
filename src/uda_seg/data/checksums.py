"""What an image file's own checksums and markers say, which no decoder looks at and training can afford to."""

from __future__ import annotations

import struct
import zlib

from uda_seg.errors import Damaged

PNG, JPEG, JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd9"
CURE = "copy or unpack the file again"
LARGEST = 2**31  # bytes of a file, or of its pixels: no camera's
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_TIGHTEST = 1032  # bytes that one packed by DEFLATE can stand for at most
_ALONE = (0x01, *range(0xD0, 0xD9))  # JPEG's markers without a length


class Flaw(Exception):
    """What is wrong with a file, as the words after its name, and what to do about it."""

    def __init__(self, what: str, cure: str = CURE) -> None:
        super().__init__(what)
        self.cure = cure


def check_sums(content: bytes, name: str) -> None:
    """Check of an image file called `name` what is cheap beside decoding it.

    All checksums of a PNG, that it has its end, and that so many pixels can be in it; that a JPEG has its end. Other
    kinds pass. Measured: 1.2 ms for a PNG of 3.9 MB that takes 77 ms to decode.

    Raises:
        Damaged: names the file and what is wrong with it.
    """
    try:
        if content.startswith(PNG):
            rows_of(*chunks_of(memoryview(content)))
        elif content.startswith(JPEG) and not has_end(content):
            raise Flaw("is cut off: it has no end marker")
    except Flaw as flaw:
        raise Damaged(f"{name} {flaw}: {flaw.cure}") from flaw


def has_end(content: bytes) -> bool:
    """Whether the end marker comes after the beginning of a JPEG's pixels: one before is that of its thumbnail.

    Cameras add things after it, be it a whole video.
    """
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] == 0xDA:  # the pixels begin
            return content.find(JPEG_END, at) >= 0
        # Fill bytes and markers without content stand alone, others say how long they are.
        alone = content[at + 1] in _ALONE
        at += 1 if content[at + 1] == 0xFF else 2 if alone else 2 + int.from_bytes(content[at + 2 : at + 4])
    return JPEG_END in content  # decoders pass over bytes between markers


def chunks_of(content: memoryview) -> tuple[bytes, list[memoryview]]:
    """The header and the packed pixels of a PNG whose checksums are all right; else a Flaw."""
    header, packed = b"", []
    at = len(PNG)
    while True:
        if at + 12 > len(content):
            raise Flaw(f"is cut off after {len(content)} bytes")
        (length,), kind = struct.unpack(">I", content[at : at + 4]), bytes(content[at + 4 : at + 8])
        end = at + 12 + length
        if end > len(content):
            raise Flaw(f"is cut off after {len(content)} bytes")
        (checksum,) = struct.unpack(">I", content[end - 4 : end])
        if zlib.crc32(content[at + 4 : end - 4]) != checksum:
            raise Flaw(f"is damaged: a wrong checksum at byte {at}")
        if kind == b"IHDR":
            header = bytes(content[at + 8 : end - 4])
        elif kind == b"IDAT":
            packed.append(content[at + 8 : end - 4])
        elif kind == b"IEND":
            return header, packed
        at = end


def rows_of(header: bytes, packed: list[memoryview]) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """What a PNG's header says: (height, width), and (rows, bytes of a row with its filter byte) of its passes.

    A Flaw where so many pixels cannot be in so few bytes.
    """
    if len(header) != 13:
        raise Flaw("is damaged: it has no header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = _CHANNELS.get(colour, 0) * depth
    parts = [(width, height)]
    if interlaced:
        parts = [(-(-max(0, width - x) // dx), -(-max(0, height - y) // dy)) for x, y, dx, dy in _ADAM7]
    rows = [(h, 1 + -(-w * bits // 8)) for w, h in parts if w and h]
    promised = sum(count * stride for count, stride in rows)
    if not 0 < promised <= min(LARGEST, _TIGHTEST * sum(map(len, packed))):
        raise Flaw(f"is damaged: its header says {height} x {width} pixels of {bits} bits")
    return (height, width), rows
