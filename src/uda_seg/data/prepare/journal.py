"""What was found in files, kept beside the caches by the file's name, size and time."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from uda_seg.errors import UserError
from uda_seg.storage.files import CACHE, write_text

VERSION = 4  # of the checks, and of these lines: findings of another version are not used


@dataclass(frozen=True)
class Finding:
    """What reading a file showed.

    Args:
        shape: (H, W) of an intact file.
        ids: The raw ids of a label, with their pixels.
        error: What is wrong with the file alone.
        broken: Whether it cannot be read at all, rather than being a label of another kind.
    """

    shape: tuple[int, int] | None = None
    ids: Mapping[int, int] = field(default_factory=dict)
    error: str = ""
    broken: bool = False


class Journal:
    """Findings of earlier checks, a line of JSON and its checksum each, appended as they are made.

    A line that is torn, where a check was killed, or damaged is dropped, and its file is read again.

    Args:
        file: Where it lies.
        subject: How files were looked at; findings of another subject are not used.
    """

    def __init__(self, file: Path, subject: str) -> None:
        self.file, self._header = file, json.dumps({"checks": VERSION, "of": subject})
        self._lines: dict[str, str] = {}
        self._open: TextIO | None = None
        for line in _lines_of(file, self._header):
            content, _, checksum = line.rpartition("\t")
            if checksum == _checksum(content):  # then it is as `note` wrote it
                self._lines[json.loads(content)["file"]] = line
        write_text(file, "\n".join([self._header, *self._lines.values(), ""]), cure=CACHE)

    def recall(self, name: str, path: Path) -> Finding | None:
        """What was found in a file, if it has not changed since."""
        line = self._lines.pop(name, None)  # it is asked for once
        if line is None:
            return None
        entry = json.loads(line.rpartition("\t")[0])
        if entry["stamp"] != stamp_of(path):
            return None
        shape = None if entry["shape"] is None else (entry["shape"][0], entry["shape"][1])
        ids = {int(raw): count for raw, count in entry["ids"].items()}
        return Finding(shape, ids, entry["error"], entry["broken"])

    def note(self, name: str, stamp: Sequence[int], finding: Finding) -> None:
        """Keep what was found in a file that had `stamp` before it was read."""
        line = json.dumps({"file": name, "stamp": stamp, **finding.__dict__})
        try:
            self._open = self._open or self.file.open("a")
            self._open.write(f"{line}\t{_checksum(line)}\n")
            self._open.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror or error}; {CACHE}") from error

    def close(self) -> None:
        """Nothing more will be noted."""
        if self._open is not None:
            self._open.close()


def _lines_of(file: Path, header: str) -> list[str]:
    """The lines below a header; none of a file with another one, or of none."""
    if not file.is_file():
        return []
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if lines[:1] == [header] else []


def _checksum(line: str) -> str:
    return f"{zlib.crc32(line.encode()):08x}"


def stamp_of(path: Path) -> list[int]:
    """Size in bytes and time of change in nanoseconds of a file; [] where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
