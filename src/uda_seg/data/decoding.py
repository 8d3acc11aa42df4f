"""Decoding of label files; raises UserError naming a file that does not match its format."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image

from uda_seg.data.checksums import check_sums
from uda_seg.data.counting import RawIds
from uda_seg.data.images import read_bytes, wrong_with
from uda_seg.errors import UserError

Decoder = Callable[[Path], RawIds]
_PNG = b"\x89PNG\r\n\x1a\n"


def read_gray(path: Path) -> NDArray[np.uint8]:
    """Read an 8-bit single-channel label, [H, W]."""
    label, content = _stored(path)
    if label.ndim != 2 or label.dtype != np.uint8:
        what = f"{path} is not an 8-bit single-channel label but {_kind(content, label)}"
        raise UserError(f"{what}: {_cure(content, label)}")
    return label.astype(np.uint8, copy=False)


def read_ids(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read a single-channel label of 8 or 16 bits, [H, W]."""
    label, content = _stored(path)
    if label.ndim != 2 or label.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path} is not a single-channel label but {_kind(content, label)}: {_own_cure(content, label)}"
        )
    return label.astype(np.uint8, copy=False) if label.dtype == np.uint8 else label.astype(np.uint16, copy=False)


def read_palette(path: Path) -> NDArray[np.uint8]:
    """Read the indices of a palette PNG, [H, W] (OpenCV would return colours); also plain 8-bit files."""
    content = read_bytes(path)
    check_sums(content, str(path))
    _refuse_lossy(content, path)
    try:
        with Image.open(io.BytesIO(content)) as file:
            mode = file.mode
            ids = np.array(file, np.uint8) if mode in ("P", "L", "1") else None
    except Exception as error:  # PIL's plugins raise any exception on damaged files
        raise UserError(f"{path} {wrong_with(content)}") from error
    if ids is None:
        label = _decoded(content, path)
        what = f"{_kind(content, label)} (its colour mode is {mode})"
        raise UserError(f"{path} is not a label with 8-bit ids but {what}: {_cure(content, label)}")
    return ids if mode == "1" else ids // np.uint8(_step(content))


def read_red(path: Path) -> NDArray[np.uint16]:
    """Read SYNTHIA's class ids, [H, W]: the red channel of a 16-bit colour PNG (PIL would reduce it to 8 bits)."""
    label, content = _stored(path)
    if label.ndim != 3 or label.shape[2] < 3:
        raise UserError(
            f"{path} is not a SYNTHIA label: it is {_kind(content, label)}, where ids are the red "
            "channel of a 16-bit colour PNG: take the files of GT/LABELS, or describe others (dataset=custom)"
        )
    if label.dtype != np.uint16:
        raise UserError(
            f"{path} is not a SYNTHIA label: it is {label.dtype}, not 16-bit. Either it is a picture of GT/COLOR, or a "
            "program that cannot write 16-bit colour (PIL) saved it without its ids: unpack GT/LABELS again"
        )
    return label[..., 2].astype(np.uint16)  # OpenCV's order is BGR


def read_own_red(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read ids in the red channel of a colour label of 8 or 16 bits, [H, W]; CARLA writes 8."""
    label, content = _stored(path)
    kind = _kind(content, label)
    if not kind.startswith("a picture of colours") or label.dtype not in (np.uint8, np.uint16):
        grey = label.ndim == 2 and label.dtype in (np.uint8, np.uint16)
        cure = "set label_format=gray to read these" if grey else _own_cure(content, label)
        raise UserError(f"{path} is not a label with ids in the red of its colours but {kind}: {cure}")
    red = label[..., 2]  # OpenCV's order is BGR
    return red.astype(np.uint8) if red.dtype == np.uint8 else red.astype(np.uint16)


def read_color(path: Path) -> NDArray[np.uint32]:
    """Read a colour label with 8 bits per channel as [H, W], 65536 R + 256 G + B; palettes are resolved."""
    label, content = _stored(path)
    if label.ndim != 3 or label.dtype != np.uint8:
        raise UserError(f"{path} is not a label of 8-bit colours but {_kind(content, label)}: {_cure(content, label)}")
    if label.shape[2] == 3:
        label = cv2.cvtColor(label, cv2.COLOR_BGR2BGRA)
    elif label[..., 3].min() < 255:
        raise UserError(f"{path} is partly transparent, so its colours are not certain: save it without transparency")
    codes = np.ascontiguousarray(label, np.uint8).view("<u4")[..., 0].astype(np.uint32, copy=False)
    return codes & np.uint32(0xFFFFFF)  # blue is in the lowest byte


def _stored(path: Path) -> tuple[MatLike, bytes]:
    """Read a label's stored samples and the file's bytes; raises UserError for a lossy format."""
    content = read_bytes(path)
    check_sums(content, str(path))
    _refuse_lossy(content, path)
    label = _decoded(content, path)
    step = _step(content)
    return (label if step == 1 else label // np.uint8(step)), content


def _step(content: bytes) -> int:
    """Return the factor by which decoders scale a grey PNG of 1, 2 or 4 bits to 255; 1 for all other files."""
    bits = content[24] if content[:8] == _PNG and len(content) > 25 and content[25] == 0 else 8
    return 255 // (2**bits - 1) if bits < 8 else 1


def _refuse_lossy(content: bytes, path: Path) -> None:
    """Raise UserError for a label in a lossy format, which blends neighbouring ids, whatever its suffix."""
    if (kind := _lossy(content)) is not None:
        raise UserError(
            f"{path} is {kind}, which is lossy and changes ids: export the labels again as PNG from where they "
            "were drawn (converting this file brings no id back)"
        )


def _lossy(content: bytes) -> str | None:
    if content.startswith(b"\xff\xd8\xff"):
        return "a JPEG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP" and b"VP8 " in content[12:4096]:
        return "a lossy WebP"
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1"):
        return "an AVIF or HEIC picture"
    if content[:4] in (b"II*\0", b"MM\0*"):
        with contextlib.suppress(Exception), Image.open(io.BytesIO(content)) as file:
            if file.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
                return "a TIFF with JPEG inside"
    return None


def _kind(content: bytes, label: MatLike) -> str:
    """Describe the kind of a label's samples."""
    bits = 8 * label.dtype.itemsize
    colour_type = content[25] if content[:8] == _PNG and len(content) > 25 else None
    if colour_type == 3:
        return "a palette PNG (its ids are indices into a colour table)"
    if colour_type == 4:  # OpenCV makes colours of it
        return f"grey of {bits} bits with transparency"
    channels = 1 if label.ndim == 2 else label.shape[2]
    return {1: f"grey of {bits} bits", 2: f"grey of {bits} bits with transparency"}.get(
        channels, f"a picture of colours of {bits} bits"
    )


def _cure(content: bytes, label: MatLike) -> str:
    """Suggest a cure for samples of another kind."""
    if "transparency" in _kind(content, label):
        return "save it without its alpha channel"
    if label.ndim == 2:
        return "instance ids or depth? Take the file of class ids; dataset=custom reads one's own (label_format=gray)"
    return (
        "take the file of class ids, or unpack it again if a program saved it anew; dataset=custom reads one's own "
        "(label_format=color, label_format=palette)"
    )


def _own_cure(content: bytes, label: MatLike) -> str:
    """Suggest a cure for samples of another kind than the description of a custom data set says."""
    kind = _kind(content, label)
    if label.dtype.itemsize > 2:
        return "save it with 8 or 16 bits"
    if "palette" in kind:
        return "set label_format=palette to read these, or label_format=color for a label_map of colours"
    if label.ndim == 3 and label.shape[2] == 3 and (label == label[..., :1]).all():
        return "its three channels are equal: save one of them alone"
    if label.ndim == 3 and "transparency" not in kind:
        return "set label_format=color, and give the colours in label_map"
    return _cure(content, label)


def _decoded(content: bytes, path: Path) -> MatLike:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path} {wrong_with(content)}")
    return image
