"""What disks, transfers and people do to files, drawn from a seed, and how a reader is asked to bear it."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import shutil
import signal
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uda_seg.errors import UserError

LIMIT = 20.0  # seconds that a reader may take; none takes one
ANEW = "made anew"  # what `read` gives where the reader itself says that it starts over


@dataclass(frozen=True)
class Reader:
    """A kind of file, and what reads it.

    Args:
        make: Writes a folder of good files and returns the one that is damaged.
        read: What a command does with that file, or the folder around it; plain values and arrays.
        summed: Whether the format has checksums: then damage is never another result.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    summed: bool


@dataclass
class Tally:
    """What became of a reader's cases."""

    counts: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        order = ("refused", "equal", "unnoticed", "silent", "traceback")
        return f"{self.counts.total():5d} cases: " + ", ".join(f"{self.counts[kind]} {kind}" for kind in order)


# ---------------------------------------------------------------------- damages of bytes


def cut(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.choice([1, 4, 8, 100, len(content) - 1, draw.randrange(len(content))])]


def flip(draw: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 3])):
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def zero(draw: random.Random, content: bytes) -> bytes:
    start, length = draw.randrange(len(content)), draw.choice([1, 16, 512])
    return (content[:start] + bytes(length) + content[start + length :])[: len(content)]


def noise(draw: random.Random, content: bytes) -> bytes:
    start, length = draw.randrange(len(content)), draw.choice([1, 4, 64])
    return content[:start] + draw.randbytes(length) + content[start + length :]


def longer(draw: random.Random, content: bytes) -> bytes:
    return content + draw.choice([bytes(512), b"x", content, draw.randbytes(99)])


def twice(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start : start + 40] + content[start:]


def huge(draw: random.Random, content: bytes) -> bytes:
    """Four or eight bytes of ones, as lengths of what is not there."""
    start = draw.randrange(len(content))
    ones = draw.choice([b"\xff\xff\xff\x7f", b"\xff" * 8, b"9" * 12])
    return content[:start] + ones + content[start + len(ones) :]


def other(draw: random.Random, content: bytes) -> bytes:
    """Another file under this name."""
    return draw.choice(OTHERS)


def _bomb() -> bytes:
    """A ZIP of 100 kB that would unpack to 100 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", bytes(100_000_000))
    return file.getvalue()


def _nested() -> bytes:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("a.npy", b"x" * 99)
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as packed:
        packed.writestr("vectors.npy", inner.getvalue())
    return outer.getvalue()


OTHERS = [
    b"",
    b"\0" * 4096,
    b"not what you expect\n",
    b"caf\xe9\n",
    b"null",
    b"[]",
    b'{"a": NaN}',
    b"[" * 100_000,
    b'{"shards": [{"name": "../x.tar", "images": 1e999, "bytes": -1}]}',
    b"a: &a [1, 1]\nb: &b [*a, *a]\n" + b"".join(b"k%d: &k%d [*b, *b]\n" % (i, i) for i in range(9)),
    b"a: &a [*a]\n",
    b"1: 2020-99-99\n? {}\n: 1\n",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x93NUMPY\x01\0\x46\0{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }  ",
    b"\x80\x02cos\nsystem\nq\0.",
    _bomb(),
    _nested(),
]
DAMAGES: Sequence[Callable[[random.Random, bytes], bytes]] = (cut, flip, flip, zero, noise, longer, twice, huge, other)


# ---------------------------------------------------------------------- damages of names


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


KINDS: Sequence[Callable[[Path], None]] = (folder, pipe, device, dangling, loop)


@contextmanager
def unreadable(path: Path, patch: Any) -> Iterator[None]:
    """As a file is that the person may not read; root, who may run the tests, reads all."""
    opened = os.open

    def refuse(name: Any, *arguments: Any, **options: Any) -> int:
        if os.fspath(name) == os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return opened(name, *arguments, **options)

    with patch.context() as inner:
        inner.setattr(os, "open", refuse)
        yield


# ---------------------------------------------------------------------- cases


def canonical(found: Any) -> Any:
    """Plain values that compare by what they hold, bit for bit."""
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    if isinstance(found, torch.Tensor):
        found = found.detach().numpy()
    if isinstance(found, np.ndarray):
        return str(found.dtype), found.shape, np.ascontiguousarray(found).tobytes()
    if isinstance(found, Mapping):
        return {str(key): canonical(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [canonical(value) for value in found]
    return repr(found)


def outcome(reader: Reader, path: Path, whole: Any, tally: Tally, what: str) -> str:
    """What becomes of one case: a UserError must be one line and name the file, or a folder that it lies in."""
    try:
        with time_limit(LIMIT):
            found = reader.read(path)
        kind = "refused" if isinstance(found, str) and found == ANEW else "equal"
        if kind == "equal" and canonical(found) != whole:
            kind = "silent" if reader.summed else "unnoticed"
    except UserError as error:
        line = str(error)
        named = any(part in line for part in (path.name, path.stem, path.parent.name))
        kind = "refused" if "\n" not in line and named else "traceback"
        what += f": {line[:300]!r}"
    except BaseException as error:
        kind = "traceback"
        what += f": {type(error).__name__}: {error}"
    tally.counts[kind] += 1
    if kind in ("silent", "traceback"):
        tally.details.append(f"{kind}: {what}")
    return kind


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_out(reader: Reader, root: Path, seeds: range, patch: Any) -> Tally:
    """Damage a reader's file once a seed, and once in every way of `KINDS`."""
    tally, good = Tally(), root / "good"
    good.mkdir()
    inside = reader.make(good).relative_to(good)
    whole = canonical(reader.read(good / inside))
    content = (good / inside).read_bytes()
    for seed in seeds:
        draw = random.Random(seed)
        damage = DAMAGES[seed % len(DAMAGES)]
        damaged = damage(draw, content)
        with copied(good, root / f"case{seed}") as case:
            (case / inside).write_bytes(damaged)
            outcome(reader, case / inside, whole, tally, f"seed {seed}, {damage.__name__}")
    for change in KINDS:
        with copied(good, root / change.__name__) as case:
            (case / inside).unlink()
            change(case / inside)
            outcome(reader, case / inside, whole, tally, change.__name__)
    with copied(good, root / "unreadable") as case, unreadable(case / inside, patch):
        outcome(reader, case / inside, whole, tally, "unreadable")
    return tally


@contextmanager
def copied(folder: Path, case: Path) -> Iterator[Path]:
    shutil.copytree(folder, case)
    try:
        yield case
    finally:
        shutil.rmtree(case)
