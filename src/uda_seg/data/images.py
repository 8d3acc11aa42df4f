"""Decoding of images, the same for every reader: upright, RGB, 8 bits per channel.

The format is determined by a file's content, not its name. EXIF orientation is applied, as every viewer does. Many
cameras use only 10, 12 or 14 bits of 16-bit files; the number is determined for the data set as a whole, so that all of
its images are scaled equally.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

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

# Supported suffixes; the format is determined by the content.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif"),
    *(".tiff", ".webp"),
)
# Raw photographs, which look like TIFF, and of which a decoder would return a thumbnail.
RAW = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
VIDEOS = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm"),
    ".wmv",
)
SAMPLES = 32  # files of a set that are inspected for the number of used bits
DEPTHS = (8, 10, 12, 14, 16)  # numbers of used bits in 16-bit files
_DEEP = ("PNG", "TIFF", "PNM")  # formats that do not record the number of used bits; for others the decoder knows it
_ORIENTATION = 274  # EXIF tag
_TURNED = (5, 6, 7, 8)  # orientations that swap height and width
HEAD = 64  # bytes that determine the format
_EARLY = 2**18  # bytes of a JPEG within which its EXIF starts
_LARGEST = 2**30  # OpenCV's limit of pixels

# Magic numbers of formats; the first match counts.
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    *((begin, "TIFF") for begin in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((begin, "JPEG 2000") for begin in (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
)
_PNM = re.compile(rb"P[1-6]\s+[#\d]")
_BMPHEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes in bytes; the two letters alone could start a text
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
    "high dynamic range": "is a high-dynamic-range floating-point image: save it with 8 or 16 bits per channel",
}
UNREADABLE = "cannot be read as an image: copy or unpack the file again"


def kind_of(head: bytes) -> str | None:
    """Determine the image format from the start of a file; None if it is not supported."""
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
    """Determine the format from the brand of an ISO media file: AVIF, HEIC, raw or a video; None for other files."""
    return _BRANDS.get(head[8:12], "video") if head[4:8] == b"ftyp" else None


def wrong_with(content: bytes, name: str = "") -> str:
    """Explain why a file is not a readable image, as a phrase that follows its name, with the cure.

    Raw photographs are known by `name` alone: most begin like a TIFF.
    """
    if name.lower().endswith(RAW):
        return _SAID["raw"]
    if not content:
        return "is empty: copy or unpack the file again"
    found = _strange(content)
    if found is not None:
        return _SAID[found]
    return "has more pixels than can be decoded: cut it into tiles" if _is_too_large(content) else UNREADABLE


def _strange(content: bytes) -> str | None:
    """Determine what a content is that is no readable image; None if it is nothing known."""
    head = content[:HEAD].lstrip(b"\xef\xbb\xbf \r\n\t")
    found = _brand(content) or ("video" if content[:4] == b"RIFF" and content[8:11] == b"AVI" else None)
    found = found or next((what for begin, what in _STRANGE if head.startswith(begin)), None)
    return found if found in _SAID else None


def is_video(head: bytes, name: str) -> bool:
    """Return whether a file with this start is a video, or is called one without being an image."""
    return _strange(head) == "video" or (name.lower().endswith(VIDEOS) and kind_of(head) is None)


def is_heic(head: bytes, name: str) -> bool:
    """Return whether a file with this start is a HEIC photograph, or is called one."""
    return _strange(head) == "HEIC" or name.lower().endswith((".heic", ".heif"))


def _is_too_large(content: bytes) -> bool:
    try:
        with _quiet(), Image.open(io.BytesIO(content)) as file:
            return file.height * file.width > _LARGEST
    except Image.DecompressionBombError:
        return True
    except Exception:  # PIL's plugins raise any exception on damaged headers
        return False


def height_and_width(file: Path | BinaryIO) -> tuple[int, int] | None:
    """Read the stored (H, W) of an image from the start of its file; None if that cannot be, as of a damaged one."""
    try:
        with _quiet(), Image.open(file) as image:
            return image.height, image.width
    except Exception:  # PIL's plugins raise any exception on damaged headers
        return None


def shown_size(content: bytes) -> tuple[int, int] | None:
    """Read the displayed (H, W) of an image from its file's content, without decoding; None if that cannot be."""
    size = height_and_width(io.BytesIO(content))
    return None if size is None else stored_size(size, orientation_of(content))


def _quiet() -> warnings.catch_warnings[None]:
    """Suppress PIL's warnings of large images and odd metadata; relevant ones are errors here."""
    return warnings.catch_warnings(action="ignore")


def read_bytes(path: Path, count: int = -1) -> bytes:
    """Read the first `count` bytes of a file, -1 for all; raises UserError naming a file that cannot be opened."""
    try:
        with open_file(path) as file:
            return file.read(count)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from error


def read_image(path: Path, bits: int | None = None) -> NDArray[np.uint8]:
    """Read an image file as displayed: RGB, uint8 [H, W, 3].

    Args:
        path: A file of any format in `SUFFIXES`, whatever its name.
        bits: Used bits per channel of 16-bit images in this set (`used_bits`); None for a set without any.

    Raises:
        UserError: names the file, the defect and the cure.
    """
    return image_of(read_bytes(path), bits, str(path))


def image_of(content: bytes, bits: int | None, name: str) -> NDArray[np.uint8]:
    """Decode the content of a file called `name` as `read_image` does."""
    return eight_bits(upright(decode(content, name), orientation_of(content)), bits, name)


def decode(content: bytes, name: str) -> Pixels:
    """Decode the stored pixels of an image's first frame, RGB [H, W, 3], of 8 or 16 bits.

    Grey images, palettes and CMYK are converted to RGB, an alpha channel is dropped.
    """
    if name.lower().endswith(RAW):
        raise UserError(f"{name} {wrong_with(content, name)}")
    check_sums(content, name)
    kind = kind_of(content[:HEAD])
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_ANYDEPTH if kind in _DEEP else 0)
    image = None
    if content and kind != "GIF":  # OpenCV supports it only from 4.11 on
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:
            image = None
    if image is None:
        return _decode_by_pil(content, name)
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name} holds {image.dtype} values: save it with 8 or 16 bits per channel")
    return np.ascontiguousarray(image[..., ::-1])


def _decode_by_pil(content: bytes, name: str) -> Pixels:
    """Decode formats that OpenCV, or this build of it, does not support."""
    if kind_of(content[:HEAD]) is None:
        raise UserError(f"{name} {wrong_with(content)}")
    try:
        with _quiet(), Image.open(io.BytesIO(content)) as file:
            mode = file.mode
            if mode.startswith("I;16"):
                return np.repeat(np.array(file, np.uint16)[..., None], 3, axis=2)
            image = None if mode in ("F", "I") else np.array(file.convert("RGB"), np.uint8)
    except Exception as error:  # PIL's plugins raise any exception on damaged files
        raise UserError(f"{name} {wrong_with(content)}") from error
    if image is None:  # PIL would clip values at 255 and truncate fractions
        values = "floating-point" if mode == "F" else "32-bit"
        raise UserError(f"{name} holds {values} values: save it with 8 or 16 bits a channel")
    return image


# ---------------------------------------------------------------------- how a camera was held


def orientation_of(content: bytes) -> int:
    """Read EXIF's orientation, 1 to 8; 1 (upright) if missing."""
    exif = _exif(content)
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        with _quiet():
            tags.load(exif)
            found = tags.get(_ORIENTATION, 1)
    except Exception:  # ignore damaged metadata
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _exif(content: bytes) -> bytes:
    """Read the EXIF block of a file, empty if there is none; OpenCV always rotates TIFF itself.

    Of an AVIF, PIL writes into it how the container turns and mirrors the picture, which OpenCV leaves out.
    """
    kind = kind_of(content[:HEAD])
    if kind == "PNG":
        return _png_exif(content)
    said = {"JPEG": content.find(b"Exif", 0, _EARLY) > 0, "WebP": b"EXIF" in content}
    if said.get(kind or "", kind == "AVIF"):
        try:
            with _quiet(), Image.open(io.BytesIO(content)) as file:
                return bytes(file.info.get("exif", b""))
        except Exception:  # PIL's plugins raise any exception on damaged files
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
    """Rotate and flip pixels [H, W, ...] according to EXIF's orientation."""
    turned = stored.swapaxes(0, 1) if orientation in _TURNED else stored
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def stored_size(shown: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Convert the displayed size (H, W) of an image to its stored size, or vice versa."""
    return (shown[1], shown[0]) if orientation in _TURNED else shown


# ---------------------------------------------------------------------- how many bits are used


def eight_bits(pixels: Pixels, bits: int | None, name: str) -> NDArray[np.uint8]:
    """Convert 16-bit pixels to the 8 highest of the used `bits`; 8-bit pixels are unchanged.

    Raises:
        UserError: the number of used bits is unknown, or a value exceeds it.
    """
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    if bits is None:
        raise UserError(
            f"{name} has 16 bits per channel, unlike the images inspected first: say how many of them its set "
            "uses with the domain's bits=16 (or 14, 12, 10), or convert it to 8"
        )
    if bits < 16 and (largest := int(pixels.max(initial=0))) >> bits:
        raise UserError(
            f"{name} has values up to {largest}, more than the {bits} bits that its set is read with: set the domain's "
            f"bits={used_by(largest)}"
        )
    return (pixels >> (bits - 8)).astype(np.uint8)


def used_by(largest: int) -> int:
    """Return the smallest of `DEPTHS` that can represent a value."""
    return next(bits for bits in DEPTHS if largest >> bits == 0)


def used_bits(files: Iterable[Callable[[int], bytes]], option: str) -> int | None:
    """Determine and log the used bits per channel of a set of 16-bit images from the largest value in a sample.

    Args:
        files: The sample: functions that read the first bytes of a file, all of them for -1.
        option: The setting that overrides the result, for the log.

    Returns:
        8, 10, 12, 14 or 16; None if no image in the sample has 16 bits per channel. Unreadable files are skipped: they
        are reported when they are used.
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
        "%s=%d: images have 16 bits per channel, the largest value in %d of them is %d: all are scaled as %d-bit ones",
        *(option, bits, deep, largest, bits),
    )
    return bits


def may_be_deep(head: bytes) -> bool:
    """Return whether a file with this start can have 16 bits per channel without recording the number of used bits."""
    kind = kind_of(head)
    return kind in _DEEP and (kind != "PNG" or head[24:25] == b"\x10")  # bit depth in the header


def spread(items: Sequence[Item], count: int = SAMPLES) -> list[Item]:
    """Select at most `count` items, evenly spread, including the first and the last."""
    places = sorted({int(place) for place in np.linspace(0, len(items) - 1, count)}) if items else []
    return [items[place] for place in places]


def frames(content: bytes) -> int:
    """Count the frames of a file, of which only the first is read."""
    if kind_of(content[:HEAD]) not in ("GIF", "WebP", "TIFF", "PNG", "AVIF"):
        return 1
    try:
        with _quiet(), Image.open(io.BytesIO(content)) as file:
            return int(getattr(file, "n_frames", 1))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return 1
