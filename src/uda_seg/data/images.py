"""Photographs: one rule by which every reader decodes them, upright, RGB, 8 bits a channel.

What a file is, its content says, not its name. A camera that was held on its side says so in EXIF: images are turned
as every viewer shows them. Of files with 16 bits a channel many cameras fill 10, 12 or 14; how many, the set as a
whole says, so that all of its images are scaled alike.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from uda_seg.data.checksums import check_sums
from uda_seg.errors import UserError
from uda_seg.storage.files import open_file

log = logging.getLogger(__name__)

Pixels = NDArray[Any]  # uint8 or uint16
Item = TypeVar("Item")

# Every kind that is read, as files are called; content decides what one is.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif"),
    *(".tiff", ".webp"),
)
# Raw photographs: TIFF by their content, of which a decoder gives a thumbnail.
RAW = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
SAMPLES = 32  # files of a set that are looked at before the first one is used
DEPTHS = (8, 10, 12, 14, 16)  # bits that files of 16 bits a channel may use
_DEEP = ("PNG", "TIFF", "PNM")  # kinds that do not say how many of 16 bits are used; of others the decoder knows
_ORIENTATION = 274  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width
HEAD = 64  # bytes that tell a kind
_EARLY = 2**18  # bytes of a JPEG within which its EXIF begins
_LARGEST = 2**30  # pixels that OpenCV decodes

# Beginnings of files, and what they are; the first that fits.
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    *((begin, "TIFF") for begin in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((begin, "JPEG 2000") for begin in (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
)
_PNM = re.compile(rb"P[1-6]\s+[#\d]")
_BMPHEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes; by two letters alone, texts would be pictures
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "raw"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
)
_STRANGE = (
    *((begin, "video") for begin in (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV", b"OggS", b"0&\xb2u")),
    *((begin, "archive") for begin in (b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")),
    (b"version https://git-lfs", "pointer"),
    (b"%PDF", "pdf"),
    *((begin, "page") for begin in (b"<!doctype html", b"<html", b"<!DOCTYPE html", b"<!DOCTYPE HTML", b"<HTML")),
    *((begin, "drawing") for begin in (b"<svg", b"<?xml")),
    *((begin, "high dynamic range") for begin in (b"#?RADIANCE", b"#?RGBE", b"v/1\1")),
)
_SAID = {
    "video": "is a video, not an image: extract its frames first (ffmpeg -i VIDEO frames/%06d.png)",
    "HEIC": "is a HEIC photograph, which is not read: convert it to JPEG or PNG",
    "raw": "is a raw photograph, which is not read: develop it to a 16-bit TIFF or PNG, or to JPEG",
    "archive": "is an archive, not an image: unpack it",
    "pointer": "is a pointer of Git LFS, not the file itself: run git lfs pull",
    "pdf": "is a PDF, not an image: save its pages as PNG",
    "page": "is a web page, not an image: the download failed, fetch it again",
    "drawing": "is a drawing of lines (SVG or XML), not an image: save it as PNG",
    "high dynamic range": "is a high-dynamic-range image of floating-point values: save it with 8 or 16 bits a channel",
}
UNREADABLE = "cannot be read as an image: copy or unpack the file again"


def kind_of(head: bytes) -> str | None:
    """The kind of image that a file with this beginning is; None: it is none that is read."""
    for begin, kind in _KINDS:
        if head.startswith(begin):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMPHEADERS:
        return "BMP"
    if _PNM.match(head):
        return "PNM"
    return "AVIF" if _brand(head) == "AVIF" else None


def _brand(head: bytes) -> str | None:
    """What the brand of an ISO media file says it is: AVIF, HEIC, raw or a video; None: it is no such file."""
    return _BRANDS.get(head[8:12], "video") if head[4:8] == b"ftyp" else None


def wrong_with(content: bytes) -> str:
    """Why a content that is no readable image is none, as the words after its name, and what to do about it."""
    if not content:
        return "is empty: copy or unpack the file again"
    head = content[:HEAD].lstrip(b"\xef\xbb\xbf \r\n\t")
    found = _brand(content) or ("video" if content[:4] == b"RIFF" and content[8:11] == b"AVI" else None)
    found = found or next((what for begin, what in _STRANGE if head.startswith(begin)), None)
    if found in _SAID:
        return _SAID[found]
    return "has more pixels than can be decoded: cut it into tiles" if _is_too_large(content) else UNREADABLE


def _is_too_large(content: bytes) -> bool:
    try:
        with _quiet(), Image.open(io.BytesIO(content)) as file:
            return file.height * file.width > _LARGEST
    except Image.DecompressionBombError:
        return True
    except Exception:  # PIL's plugins raise whatever they like on damaged headers
        return False


def _quiet() -> warnings.catch_warnings[None]:
    """PIL warns of large images and odd metadata; what matters of it is an error here."""
    return warnings.catch_warnings(action="ignore")


def read_bytes(path: Path, count: int = -1) -> bytes:
    """The first `count` bytes of a file, -1 for all; one that cannot be opened is a UserError that names it."""
    try:
        with open_file(path) as file:
            return file.read(count)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from error


def read_image(path: Path, bits: int | None = None) -> NDArray[np.uint8]:
    """An image file as it is shown: RGB, uint8 [H, W, 3].

    Args:
        path: Of any kind in `SUFFIXES`, whatever its name.
        bits: How many of 16 bits a channel are used in this set of images (`used_bits`); None: it has none of 16 bits.

    Raises:
        UserError: names the file, what is wrong with it and what to do.
    """
    return image_of(read_bytes(path), bits, str(path))


def image_of(content: bytes, bits: int | None, name: str) -> NDArray[np.uint8]:
    """The same of the content of a file called `name`."""
    return eight_bits(upright(decode(content, name), orientation_of(content)), bits, name)


def decode(content: bytes, name: str) -> Pixels:
    """The pixels of an image as they are stored, RGB [H, W, 3], of 8 or 16 bits; of several frames the first.

    Grey images and palettes become RGB, CMYK is converted, an alpha channel is dropped.
    """
    if name.lower().endswith(RAW):
        raise UserError(f"{name} {_SAID['raw']}")
    check_sums(content, name)
    kind = kind_of(content[:HEAD])
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_ANYDEPTH if kind in _DEEP else 0)
    image = None
    if content and kind != "GIF":  # OpenCV knows it from 4.11 on
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:
            image = None
    if image is None:
        return _decode_by_pil(content, name)
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name} holds {image.dtype} values: save it with 8 or 16 bits a channel")
    return np.ascontiguousarray(image[..., ::-1])


def _decode_by_pil(content: bytes, name: str) -> NDArray[np.uint8]:
    """What OpenCV, or this build of it, does not decode."""
    if kind_of(content[:HEAD]) is None:
        raise UserError(f"{name} {wrong_with(content)}")
    try:
        with _quiet(), Image.open(io.BytesIO(content)) as file:
            return np.array(file.convert("RGB"), np.uint8)
    except Exception as error:  # PIL's plugins raise whatever they like on damaged files
        raise UserError(f"{name} {wrong_with(content)}") from error


# ---------------------------------------------------------------------- how a camera was held


def orientation_of(content: bytes) -> int:
    """EXIF's orientation, 1 to 8: how the stored pixels are to be turned; 1, upright, where nothing is said."""
    exif = _exif(content)
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        with _quiet():
            tags.load(exif)
            found = tags.get(_ORIENTATION, 1)
    except Exception:  # damaged metadata say nothing
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _exif(content: bytes) -> bytes:
    """The EXIF block of a file, empty where there is none; OpenCV itself turns TIFF and AVIF, whatever it is asked."""
    kind = kind_of(content[:HEAD])
    if kind == "PNG":
        return _png_exif(content)
    if (kind == "JPEG" and content.find(b"Exif", 0, _EARLY) > 0) or (kind == "WebP" and b"EXIF" in content):
        try:
            with _quiet(), Image.open(io.BytesIO(content)) as file:
                return bytes(file.info.get("exif", b""))
        except Exception:  # PIL's plugins raise whatever they like on damaged files
            return b""
    return b""


def _png_exif(content: bytes) -> bytes:
    at = 8
    while at < len(content) - 8:
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if kind == b"eXIf":
            return b"Exif\0\0" + content[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def upright(stored: Pixels, orientation: int) -> Pixels:
    """Pixels [H, W, ...] turned and mirrored as EXIF's orientation wants them to be shown."""
    turned = stored.swapaxes(0, 1) if orientation in _TURNED else stored
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def stored_size(shown: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) of the stored pixels of an image that is shown with (H, W); the same rule both ways."""
    return (shown[1], shown[0]) if orientation in _TURNED else shown


# ---------------------------------------------------------------------- how many bits are used


def eight_bits(pixels: Pixels, bits: int | None, name: str) -> NDArray[np.uint8]:
    """Pixels of 8 bits as they are, of 16 by the 8 highest of the `bits` that are used.

    Raises:
        UserError: nobody said how many are used, or a value needs more.
    """
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    if bits is None:
        raise UserError(
            f"{name} has 16 bits a channel, unlike the images that were looked at first: say how many of them its set "
            "uses with the domain's bits=16 (or 14, 12, 10), or convert it to 8"
        )
    if bits < 16 and (largest := int(pixels.max(initial=0))) >> bits:
        raise UserError(
            f"{name} has values up to {largest}, more than the {bits} bits that its set is read with: set the domain's "
            f"bits={used_by(largest)}"
        )
    return (pixels >> (bits - 8)).astype(np.uint8)


def used_by(largest: int) -> int:
    """The least of `DEPTHS` that holds a value."""
    return next(bits for bits in DEPTHS if largest >> bits == 0)


def used_bits(files: Iterable[Callable[[int], bytes]], option: str) -> int | None:
    """How many of 16 bits a channel a set of images uses, by the largest value in a sample of it; said in the log.

    Args:
        files: The sample, each file as a function that reads its first bytes, all of them for -1.
        option: The setting that decides otherwise, for the log.

    Returns:
        8, 10, 12, 14 or 16; None where no sampled image has 16 bits a channel. What cannot be read is passed over: it
        is told where it is used.
    """
    largest, deep = -1, 0
    for read in files:
        try:
            if not may_be_deep(read(HEAD)) or (pixels := decode(read(-1), "")).dtype != np.uint16:
                continue
        except UserError:
            continue
        largest, deep = max(largest, int(pixels.max(initial=0))), deep + 1
    if not deep:
        return None
    bits = used_by(largest)
    log.info(
        "%s=%d: images have 16 bits a channel, the largest value in %d of them is %d: all are scaled as %d-bit ones",
        *(option, bits, deep, largest, bits),
    )
    return bits


def may_be_deep(head: bytes) -> bool:
    """Whether a file that begins so can have 16 bits a channel without saying how many of them are used."""
    kind = kind_of(head)
    return kind in _DEEP and (kind != "PNG" or head[24:25] == b"\x10")  # the bit depth in its header


def spread(items: Sequence[Item], count: int = SAMPLES) -> list[Item]:
    """At most `count` of the items, evenly spread, the first and the last among them."""
    places = sorted({int(place) for place in np.linspace(0, len(items) - 1, count)}) if items else []
    return [items[place] for place in places]


def frames(content: bytes) -> int:
    """How many pictures a file holds; those after the first are not read."""
    if kind_of(content[:HEAD]) not in ("GIF", "WebP", "TIFF", "PNG", "AVIF"):
        return 1
    try:
        with _quiet(), Image.open(io.BytesIO(content)) as file:
            return int(getattr(file, "n_frames", 1))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return 1
