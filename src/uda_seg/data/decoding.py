"""Image and label files, decoded; a file that is not what it should be is a UserError that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image

from uda_seg.data.batch import Array
from uda_seg.errors import UserError

Decoder = Callable[[Path], NDArray[np.uint8] | NDArray[np.uint16]]
_COLOURED = "either it is a picture of colours, or a program saved it anew: unpack the labels again"


def read_image(path: Path) -> Array:
    """An image file as RGB, uint8 [H, W, 3]; an unreadable one is a UserError that names it."""
    return np.ascontiguousarray(_decode(path, cv2.IMREAD_COLOR)[..., ::-1], np.uint8)


def read_gray(path: Path) -> NDArray[np.uint8]:
    """An 8-bit single-channel label, [H, W]."""
    label = _decode(path, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise UserError(f"{path} is not an 8-bit single-channel label but {label.dtype} {label.shape}: {_COLOURED}")
    return label.astype(np.uint8, copy=False)


def read_palette(path: Path) -> NDArray[np.uint8]:
    """The indices of a palette PNG, [H, W] (OpenCV would give the colours); plain 8-bit files too."""
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L"):
                raise UserError(f"{path} is not a label with 8-bit ids: its colour mode is {file.mode}: {_COLOURED}")
            return np.array(file, np.uint8)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image: copy or unpack the file again") from error


def read_red(path: Path) -> NDArray[np.uint16]:
    """SYNTHIA's class ids, [H, W]: the red channel of a 16-bit colour PNG (PIL would cut it to 8 bits)."""
    label = _decode(path, cv2.IMREAD_UNCHANGED)
    if label.ndim != 3 or label.shape[2] < 3:
        raise UserError(f"{path} is not a SYNTHIA label: it has the shape {label.shape}, not three channels")
    if label.dtype != np.uint16:
        raise UserError(
            f"{path} is not a SYNTHIA label: it is {label.dtype}, not 16-bit. Either it is a picture of GT/COLOR, or a "
            "program that cannot write 16-bit colour (PIL) saved it without its ids: unpack GT/LABELS again"
        )
    return label[..., 2].astype(np.uint16)  # OpenCV's order is blue, green, red


def _decode(path: Path, flags: int) -> MatLike:
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        image = cv2.imdecode(content, flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path} cannot be read as an image: copy or unpack the file again")
    return image
