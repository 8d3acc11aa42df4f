"""Repair of defects found by a check. Nothing is ever deleted: replaced or unusable files are renamed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from uda_seg.data.class_files import find_class_files, mend_back_slashes, read_class_file, uses_back_slashes
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.folders import ends_in, without_end
from uda_seg.data.integrity import check_image_file
from uda_seg.data.labels import lookup_table
from uda_seg.data.prepare.archives import Member, find_archives, folders_of, list_members, unpack
from uda_seg.data.prepare.check import Problem, Report
from uda_seg.data.specs import LabelEncoding
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import save_png, spare_name

log = logging.getLogger(__name__)

SET_ASIDE = "damaged"  # added to the name of a file that cannot be repaired
FEW = 0.05  # maximum share of images to set aside, but at least 3; more indicates a failed copy (ours)


def can_be_mended(problem: Problem) -> bool:
    """Return whether `repair` or `set_aside` can fix a problem."""
    return problem.kind in ("extra", "mixed") or (problem.index is not None and problem.kind != "bits")


def repair(report: Report, name: str) -> list[str]:
    """Repair what is possible and return a line per repair; `set_aside` handles the rest.

    1. Damaged and missing files in the root's ZIPs are unpacked again; damaged ones are renamed first. 2. Missing or
    damaged train-id labels are converted from the official ones, if these exist. 3. Back-slashes in statistics files
    are replaced; the original is kept.

    Args:
        report: result of a preceding check.
        name: the data set's name in the configuration.
    """
    data = report.dataset
    done = _unpack_again(report, name)
    if data.labeled:
        done += _convert(report)
    for file in find_class_files(data.root):
        if _readable_back_slashes(file):
            done.append(f"{file}: back-slashes replaced, the original is {mend_back_slashes(file).name}")
    return done


def _readable_back_slashes(file: Path) -> bool:
    try:
        return uses_back_slashes(read_class_file(file))
    except UserError:
        return False


def _is_whole(path: Path) -> bool:
    try:
        check_image_file(path)
    except Damaged:
        return False
    return True


def _rename(path: Path) -> Path:
    """Set a file aside and return its new name."""
    spare = spare_name(path, SET_ASIDE)
    try:
        os.replace(path, spare)
    except OSError as error:
        raise UserError(f"cannot rename {path}: {error.strerror or error}; make its folder writable") from error
    return spare


def _wanted(report: Report) -> set[Path]:
    """Collect files that are missing or cannot be read."""
    data, found = report.dataset, set()
    for problem in report.problems:
        if problem.kind in ("unreadable", "depth"):
            found.add(Path(problem.file))
        elif problem.kind == "missing" and problem.index is not None:
            image = data.names[problem.index]
            found |= {data.label_root / data.label_name(image, encoding) for encoding in data.spec.encodings}
        elif problem.kind == "extra":
            found |= {data.image_root / image for image in _images_of(data, Path(problem.file))}
    return found


def _images_of(data: SegmentationDataset, label: Path) -> list[str]:
    """Return possible image names of a label without an image, relative to the images' folder."""
    relative = label.relative_to(data.label_root).as_posix()
    suffixes = [encoding.suffix for encoding in data.spec.encodings if ends_in(relative, encoding.suffix)]
    return [without_end(relative, suffix) + data.spec.image_suffix for suffix in suffixes]


def _unpack_again(report: Report, name: str) -> list[str]:
    data, wanted = report.dataset, _wanted(report)
    archives = find_archives(data.root)
    if not wanted or not archives:
        return []
    members = [m for m in list_members(archives, folders_of(data.spec, name)) if data.root / m.target in wanted]
    kept = [_rename(data.root / m.target) for m in members if (data.root / m.target).exists()]
    _unpack_each(members, data.root)
    if not members:
        return []
    aside = f", {len(kept)} damaged ones renamed to *.{SET_ASIDE}" if kept else ""
    return [f"{data.root}: {len(members)} files unpacked again, the first is {members[0].target}{aside}"]


def _unpack_each(members: list[Member], root: Path) -> None:
    if members:
        unpack(members, root)


def _convert(report: Report) -> list[str]:
    """Write missing or damaged train-id labels from labels in another encoding."""
    data = report.dataset
    goal = next((e for e in data.spec.encodings if all(raw == train for raw, train in e.table.items())), None)
    lacking = [p.index for p in report.problems if p.kind in ("missing", "unreadable") and p.index is not None]
    lacking = [index for index in lacking if not _is_whole(data.label_path(index))]  # others were unpacked again
    if goal is None or not lacking:
        return []
    indices: Iterable[int] = lacking
    if data.encoding is not goal:
        # A single encoding is read: if images without this one got the new one, all others need it too.
        if not all(_is_whole(_label(data, index, goal)) for index in lacking):
            return []
        indices = range(len(data))
    written = [index for index in indices if _convert_one(data, index, goal)]
    return [f"{data.label_root}: {len(written)} labels converted to *{goal.suffix}"] if written else []


def _label(data: SegmentationDataset, index: int, encoding: LabelEncoding) -> Path:
    return data.label_root / data.label_name(data.names[index], encoding)


def _convert_one(data: SegmentationDataset, index: int, goal: LabelEncoding) -> bool:
    target = _label(data, index, goal)
    if _is_whole(target):
        return False
    for encoding in data.spec.encodings:
        path = _label(data, index, encoding)
        if encoding is goal or not _is_whole(path):
            continue
        raw = np.asarray(encoding.decode(path))
        if not set(np.unique(raw).tolist()) <= set(encoding.table):
            return False
        if target.exists():
            _rename(target)
        save_png(target, lookup_table(encoding.table)[raw], cure="make room or make the folder writable")
        return True
    return False


def set_aside(report: Report) -> list[str]:
    """Rename files that are still damaged after `repair`, if these are few, so that the rest can be trained on.

    An image is renamed together with its labels of all encodings; a label without an image alone. Folders, depth, which
    few methods read, and images that need `bits=` are kept.

    Args:
        report: result of a check after the repair.
    """
    data = report.dataset
    damage = [problem for problem in report.problems if problem.damage and problem.kind not in ("depth", "bits")]
    bad = sorted({problem.index for problem in damage if problem.index is not None})
    lonely = [Path(problem.file) for problem in damage if problem.kind == "extra"]
    if not bad and not lonely:
        return []
    if len(bad) + len(lonely) > min(max(3, FEW * len(data)), len(data) / 2):
        log.warning("%s: %d files are damaged or alone, too many to set aside", data.root, len(bad) + len(lonely))
        return []
    for path in [*(path for index in bad for path in _files_of(data, index)), *lonely]:
        _rename(path)
    first = data.names[bad[0]] if bad else lonely[0].name
    what = f"{len(bad)} images with their labels, and {len(lonely)} labels without an image"
    return [f"{data.root}: {what}, set aside as *.{SET_ASIDE}, the first is {first}"]


def _files_of(data: SegmentationDataset, index: int) -> list[Path]:
    """List the existing files of an image: itself and its labels of all encodings."""
    labels = [_label(data, index, encoding) for encoding in data.spec.encodings] if data.labeled else []
    return [path for path in (data.image_path(index), *labels) if os.path.lexists(path)]
