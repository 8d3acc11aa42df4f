"""Atomic writing and checked reading of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from uda_seg.errors import Damaged, UserError
from uda_seg.storage.owner import born, machine

# Cure if a file cannot be written.
RUN = "make room or choose another folder with hydra.run.dir=..."
CACHE = "make room or set UDA_SEG_CACHE to another folder"

CHUNK = 2**20  # bytes processed at a time
LARGEST = 2**28  # limit in bytes of text files, larger than the statistics of a million images
LARGEST_YAML = 2**18  # limit in bytes of YAML files
MOST_NODES = 100_000  # limit of nodes of a YAML file, with aliases expanded
DEEPEST_YAML = 50
DIGEST = "sha256"

Picture = NDArray[np.uint8] | NDArray[np.uint16]


# ---------------------------------------------------------------------- writing


def write_whole(path: Path, content: bytes, cure: str = RUN) -> None:
    """Write to a temporary file next to `path` and rename it, so that readers see either the old file or the new one.

    Folders are created as needed; if several processes write the same file, the last one wins.

    Raises:
        UserError: it cannot be written; names the file and `cure`.
    """
    with written_whole(path, cure) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def written_whole(path: Path, cure: str) -> Iterator[Path]:
    """Yield the temporary path to write to; afterwards rename it, or remove it on failure."""
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {cure}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


# File systems limit names to 255 bytes.
_PART = re.compile(r"\.(?P<name>.+?)(?:\.(?P<machine>[0-9a-f]{8}))?(?:\.(?P<pid>\d+))?\.tmp", re.DOTALL)
_LONGEST = 220
ABANDONED_S = 3600.0  # longer than writing any file takes


def part_of(path: Path) -> Path:
    """Build the temporary path next to `path`, which contains process and machine."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.{machine()}.{os.getpid()}.tmp")


def remove_parts(paths: Iterable[Path], alone: bool = False) -> None:
    """Delete temporary files of killed processes among `paths`.

    Args:
        paths: files; those with other names are kept.
        alone: no other process writes any of them, as in a locked folder.
    """
    for path in paths:
        found = _PART.fullmatch(path.name)
        if found is not None and (alone or _is_left(path, found["machine"], found["pid"])):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_left(path: Path, where: str | None, pid: str | None) -> bool:
    """Return whether a temporary file's process is dead; for another machine, judged by the file's age."""
    if where is None or pid is None:
        return False
    if where == machine():
        return born(int(pid)) is None
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > ABANDONED_S
    return False


def part_name(path: Path) -> str | None:
    """Return the final name of a temporary file; None if it is not one of ours."""
    found = _PART.fullmatch(path.name)
    return None if found is None else found["name"]


def write_text(path: Path, text: str, cure: str = RUN) -> None:
    """Write text in UTF-8 like `write_whole`; invalid bytes from file names are escaped."""
    write_whole(path, text.encode(errors="backslashreplace"), cure)


def save_png(path: Path, image: Picture, cure: str = RUN) -> None:
    """Write an RGB image uint8 [H, W, 3], or a plane [H, W] of uint8 or uint16, like `write_whole`."""
    stored = image if image.ndim == 2 else image[..., ::-1]  # OpenCV expects BGR
    write_whole(path, cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes(), cure)


def write_zip(path: Path, members: Mapping[str, Path], cure: str = RUN) -> None:
    """Write a ZIP of files, name inside -> file, like `write_whole`; equal files give equal archives.

    Files are stored uncompressed: made for PNGs, which are compressed already.
    """
    with written_whole(path, cure) as part, zipfile.ZipFile(part, "w") as archive:
        for name, file in members.items():
            with archive.open(zipfile.ZipInfo(name), "w") as stored, file.open("rb") as content:
                shutil.copyfileobj(content, stored)


def spare_name(path: Path, word: str) -> Path:
    """Return an unused path: `path.word`, `path.word2`, ..."""
    spare, number = path.with_name(f"{path.name}.{word}"), 1
    while os.path.lexists(spare):
        number += 1
        spare = path.with_name(f"{path.name}.{word}{number}")
    return spare


# ---------------------------------------------------------------------- reading


def open_file(path: Path) -> BufferedReader:
    """Open a file for binary reading.

    Raises:
        OSError: it does not exist, or is a folder, a pipe or a device, on which reading may block or never end.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return file


def read_bytes(path: Path, cure: str, most: int = LARGEST) -> bytes:
    """Read a whole file.

    Args:
        path: the file.
        cure: cure if it cannot be read.
        most: maximum size in bytes.

    Raises:
        Damaged: it cannot be opened, or is larger.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise Damaged(f"{path} has {size / 1e6:.0f} MB, far more than a file of its kind: {cure}")
            return file.read()
    except OSError as error:
        raise Damaged(f"{path} cannot be opened: {error.strerror or error}; {cure}") from error


def read_text(path: Path, cure: str, most: int = LARGEST) -> str:
    """Read text in UTF-8; see `read_bytes`."""
    try:
        return read_bytes(path, cure, most).decode()
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is no text: {error.reason} at byte {error.start}; {cure}") from error


def read_json(path: Path, cure: str, most: int = LARGEST) -> Any:
    """Read a JSON file; see `read_bytes`."""
    text = read_text(path, cure, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} cannot be read as JSON: {first_line(error)}; {cure}") from error


def read_yaml(path: Path, what: str = "") -> Any:
    """Read a user's YAML file as plain values.

    Args:
        path: the file.
        what: the setting that names it, for messages.

    Raises:
        UserError: it cannot be opened, is not YAML in UTF-8, has a duplicate key, or expands beyond all limits through
            nested aliases.
    """
    name = f"{what}={path}" if what else str(path)
    try:
        with open_file(path) as file:
            content = file.read(LARGEST_YAML + 1)
        if len(content) > LARGEST_YAML:
            raise UserError(f"{name} is no configuration: it has more than {LARGEST_YAML} bytes")
        text = content.decode("utf-8-sig")
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        if _count(node, {}, name, 0) > MOST_NODES:
            raise UserError(
                f"{name} grows to more than {MOST_NODES} values through its aliases: write out what is meant"
            )
        return yaml.SafeLoader("").construct_document(node)
    except OSError as error:
        raise UserError(f"{name} cannot be opened: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # a malformed date, number or nesting can raise anything
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise UserError(f"{name} is no YAML in UTF-8: {reason}") from error


def _count(node: yaml.Node, known: dict[int, int], name: str, depth: int) -> int:
    """Count the values of a node with aliases expanded, visiting every node once."""
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


def first_line(error: BaseException) -> str:
    """Return the message of an error in one line."""
    return (str(error).splitlines() or [""])[0].rstrip(". ") or type(error).__name__


# ---------------------------------------------------------------------- checksums


def write_sealed(path: Path, content: Mapping[str, Any], cure: str) -> None:
    """Write JSON with its own digest like `write_whole`, because text has no checksum to detect damage."""
    write_text(path, json.dumps({**content, DIGEST: _digest(content)}), cure)


def read_sealed(path: Path, keys: frozenset[str], cure: str) -> dict[str, Any]:
    """Read a file of `write_sealed`; files of earlier versions have no digest.

    Args:
        path: the file.
        keys: its exact set of keys.
        cure: cure if it cannot be read.

    Raises:
        Damaged: it is not such a file, or has changed since it was written.
    """
    return unsealed(read_json(path, cure), keys, path, cure)


def unsealed(content: Any, keys: frozenset[str], name: str | Path, cure: str) -> dict[str, Any]:
    """Check parsed JSON like `read_sealed`."""
    if not isinstance(content, dict):
        raise Damaged(f"{name} holds a {type(content).__name__}, no {', '.join(sorted(keys))}; {cure}")
    digest = content.pop(DIGEST, None)
    if content.keys() != keys or (digest is not None and digest != _digest(content)):
        raise Damaged(f"{name} is damaged, it is not as it was written; {cure}")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_zip(file: BinaryIO, name: str | Path, cure: str, most: int) -> bool:
    """Verify the checksums of all members of a ZIP archive, reading piece by piece.

    Takes 53 ms per 100 MB, which PyTorch takes 97 ms to read, and only the memory of a piece.

    Args:
        file: the archive, rewound afterwards.
        name: for messages.
        cure: cure for a damaged archive.
        most: maximum unpacked bytes of all members together.

    Returns:
        Whether there are checksums, as PyTorch can be configured to write zeros instead.

    Raises:
        Damaged: a wrong checksum, or not a ZIP.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > most:
                raise Damaged(f"{name} is damaged: its parts would be {unpacked / 1e6:.0f} MB; {cure}")
            summed = any(member.CRC for member in archive.infolist())
            for member in archive.infolist() if summed else ():
                with archive.open(member) as part:
                    while part.read(CHUNK):
                        pass
    except Damaged:
        raise
    except Exception as error:  # a damaged central directory can raise anything
        raise Damaged(f"{name} is damaged: {first_line(error)}; {cure}") from error
    file.seek(0)
    return summed


def checksum(path: Path, cure: str) -> str:
    """Compute the CRC-32 of a file piece by piece, in eight hexadecimal digits.

    Raises:
        Damaged: it cannot be read.
    """
    value = 0
    try:
        with open_file(path) as file:
            while piece := file.read(CHUNK):
                value = zlib.crc32(piece, value)
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror or error}; {cure}") from error
    return f"{value:08x}"
