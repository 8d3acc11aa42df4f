"""What an offline run of W&B has written, read with W&B's own messages."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    """A `run-*.wandb` file: the run's description, its configuration, rows of history, and all that comes with them."""

    file: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    alerts: list[Any] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows that have a value of this name."""
        return [row for row in self.history if name in row]

    def table(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        """A table of a row of history."""
        return json.loads((self.file.parent / "files" / row[name]["path"]).read_text())


def offline_runs(folder: Path, patience: float = 60.0) -> list[OfflineRun]:
    """The ended runs in a run's folder, the oldest first; W&B's own process may still be writing the last one."""
    until = time.monotonic() + patience
    while True:
        folders = sorted((folder / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
        found = [read_offline(file) for path in folders for file in path.glob("run-*.wandb")]
        if folders and len(found) == len(folders) and all(run.exit_code is not None for run in found):
            return found
        assert time.monotonic() < until, f"{folder}: no ended run of W&B"
        time.sleep(0.1)


def read_offline(file: Path) -> OfflineRun:
    """All that a file holds so far."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = OfflineRun(file)
    for data in logged_records(file.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        content = getattr(record, kind)
        if kind == "run":
            found.run = content
            _update(found.config, content.config.update)
        elif kind == "config":
            _update(found.config, content.update)
        elif kind == "history":
            found.history.append({})
            _update(found.history[-1], content.item)
        elif kind == "summary":
            _update(found.summary, content.update)
        elif kind == "metric":
            found.metrics[content.name or content.glob_name] = content
        elif kind == "alert":
            found.alerts.append(content)
        elif kind == "artifact":
            found.artifacts.append(content)
        elif kind == "exit":
            found.exit_code = content.exit_code
    return found


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = values
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)


def logged_records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB of (checksum, length, kind, part of a record), 7 bytes ahead."""
    block, header = 2**15, struct.Struct("<IHB")
    assert content[:4] in (b":W&B", b"")
    at, parts = 7, b""
    while at + header.size <= len(content):
        if block - at % block < header.size:
            at += block - at % block
        _, length, kind = header.unpack_from(content, at)
        at += header.size + length
        parts += content[at - length : at]
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
