"""Journal of findings, keyed by a file's name, size and time."""

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

VERSION = 4  # version of checks and format; findings of other versions are ignored


@dataclass(frozen=True)
class Finding:
    """Result of reading a file.

    Args:
        shape: (H, W) of an intact file.
        ids: Raw ids of a label, with their pixels.
        error: Defect of the file itself.
        broken: True if it cannot be read at all, false for a label in another encoding.
    """

    shape: tuple[int, int] | None = None
    ids: Mapping[int, int] = field(default_factory=dict)
    error: str = ""
    broken: bool = False


class Journal:
    """Findings of earlier checks: lines of JSON with a checksum, appended one by one.

    A truncated or damaged line, as after a kill, is dropped, and its file is read again.

    Args:
        file: Path of the journal.
        subject: Settings of the check; findings with other settings are ignored.
    """

    def __init__(self, file: Path, subject: str) -> None:
        self.file, self._header = file, json.dumps({"checks": VERSION, "of": subject})
        self._lines: dict[str, str] = {}
        self._open: TextIO | None = None
        for line in _lines_of(file, self._header):
            content, _, checksum = line.rpartition("\t")
            if checksum == _checksum(content):  # intact, as written by `note`
                self._lines[json.loads(content)["file"]] = line
        write_text(file, "\n".join([self._header, *self._lines.values(), ""]), cure=CACHE)

    def recall(self, name: str, path: Path) -> Finding | None:
        """Return the finding of a file, if it has not changed since."""
        line = self._lines.pop(name, None)  # each is requested once
        if line is None:
            return None
        entry = json.loads(line.rpartition("\t")[0])
        if entry["stamp"] != stamp_of(path):
            return None
        shape = None if entry["shape"] is None else (entry["shape"][0], entry["shape"][1])
        ids = {int(raw): count for raw, count in entry["ids"].items()}
        return Finding(shape, ids, entry["error"], entry["broken"])

    def note(self, name: str, stamp: Sequence[int], finding: Finding) -> None:
        """Append the finding of a file that had `stamp` before it was read."""
        line = json.dumps({"file": name, "stamp": stamp, **finding.__dict__})
        try:
            self._open = self._open or self.file.open("a")
            self._open.write(f"{line}\t{_checksum(line)}\n")
            self._open.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror or error}; {CACHE}") from error

    def close(self) -> None:
        """Close the file."""
        if self._open is not None:
            self._open.close()


def _lines_of(file: Path, header: str) -> list[str]:
    """Read the lines after a matching header; empty if the file is missing or has another header."""
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
    """Return size in bytes and modification time in nanoseconds of a file; [] if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
