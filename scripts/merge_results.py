"""Bring the results of a benchmark that another machine made into this checkout: file by file, nothing overwritten.

    python scripts/merge_results.py FOLDER [results]

A result that is here already stays as it is; where the other machine's is another one, the first such pair is named.
"""

from __future__ import annotations

import filecmp
import sys
from pathlib import Path

from uda_seg.errors import UserError
from uda_seg.errors.ending import fail
from uda_seg.storage.files import write_whole
from uda_seg.sweeps.benchmark import read_stored


def merge(theirs: Path, ours: Path) -> tuple[int, int]:
    """Copy the results that are not here yet, and return their number, and how many were here already.

    Raises:
        UserError: no results there, one that cannot be read, or one that differs from the one here.
    """
    found = {path: ours / path.relative_to(theirs) for path in sorted(theirs.glob("*/*/*/seed*.json"))}
    if not found:
        raise UserError(f"{theirs} holds no results: give the folder that is called results there")
    for path in found:
        read_stored(path)
    other = [(p, place) for p, place in found.items() if place.exists() and not filecmp.cmp(p, place, shallow=False)]
    new = {path: place for path, place in found.items() if not place.exists()}
    for path, place in new.items():
        write_whole(place, path.read_bytes(), "make room")
    if other:
        raise UserError(
            f"{len(new)} new results copied, but {len(other)} are here with another content, the first is "
            f"{other[0][0]}, here {other[0][1]}: compare them, and delete the one that is not to stay"
        )
    return len(new), len(found) - len(new)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        fail(UserError("give the folder of results to bring here, and, if it is not results, this checkout's"))
    try:
        copied, known = merge(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else "results"))
    except UserError as error:
        fail(error)
    print(f"{copied} new results, {known} were here already")
