"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.errors import UserError

# What to do where a disk does not take a file.
RUN = "make room or choose another folder with hydra.run.dir=..."
CACHE = "make room or set UDA_SEG_CACHE to another folder"

Picture = NDArray[np.uint8] | NDArray[np.uint16]


def write_whole(path: Path, content: bytes, cure: str = RUN) -> None:
    """Write under a temporary name beside `path`, then rename: whoever looks finds the old file or the new one.

    Folders are made as needed; of several processes that write one file, the last wins.

    Raises:
        UserError: the disk does not take it; names the file and `cure`.
    """
    with written_whole(path, cure) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def written_whole(path: Path, cure: str) -> Iterator[Path]:
    """The temporary name to write under; at the end it is renamed, or removed where something went wrong."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {cure}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str, cure: str = RUN) -> None:
    """Write text in UTF-8, as `write_whole` does."""
    write_whole(path, text.encode(), cure)


def save_png(path: Path, image: Picture, cure: str = RUN) -> None:
    """Write an RGB picture uint8 [H, W, 3], or one plane [H, W] of uint8 or uint16, as `write_whole` does."""
    stored = image if image.ndim == 2 else image[..., ::-1]  # OpenCV writes BGR
    write_whole(path, cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes(), cure)


def write_zip(path: Path, members: Mapping[str, Path], cure: str = RUN) -> None:
    """Write an archive of files, name inside -> file, as `write_whole` does; equal files give equal archives.

    They are stored as they are: made for PNGs, which are compressed already.
    """
    with written_whole(path, cure) as part, zipfile.ZipFile(part, "w") as archive:
        for name, file in members.items():
            with archive.open(zipfile.ZipInfo(name), "w") as stored, file.open("rb") as content:
                shutil.copyfileobj(content, stored)
