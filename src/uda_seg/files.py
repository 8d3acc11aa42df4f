"""Files written whole or not at all, and YAML that is read whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
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


LARGEST_YAML = 2**18  # bytes
MOST_NODES = 100_000  # of a YAML file, each alias counted as what it stands for
DEEPEST_YAML = 50


def read_yaml(path: Path, what: str = "") -> Any:
    """The content of a YAML file that a person wrote, in plain values.

    Args:
        path: of the file.
        what: the setting that names it, for messages.

    Raises:
        UserError: it cannot be opened, is no YAML in UTF-8, says a key twice, or grows out of all bounds through
            aliases of aliases.
    """
    name = f"{what}={path}" if what else str(path)
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise UserError(f"{name} is no configuration: it has more than {LARGEST_YAML} bytes")
        text = path.read_bytes().decode("utf-8-sig")
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and _count(node, {}, name, 0) > MOST_NODES:
            raise UserError(
                f"{name} grows to more than {MOST_NODES} values through its aliases: write out what is meant"
            )
        return yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{name} cannot be opened: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise UserError(f"{name} is no YAML in UTF-8: {reason}") from error


def _count(node: yaml.Node, known: dict[int, int], name: str, depth: int) -> int:
    """How many values a node stands for; every node is looked at once."""
    if depth > DEEPEST_YAML:
        raise UserError(f"{name} is nested more than {DEEPEST_YAML} deep, or in itself: write out what is meant")
    if id(node) not in known:
        if isinstance(node, yaml.MappingNode):
            keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := [value for (_, value), times in keys.items() if times > 1]:
                where = f"in the mapping that begins in line {node.start_mark.line + 1}"
                raise UserError(f"{name} says {twice[0]}: twice, {where}: leave one out")
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_count(part, known, name, depth + 1) for part in parts)
    return known[id(node)]
