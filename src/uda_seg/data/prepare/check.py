"""Check of a data set on disk: reads every file once and lists all defects.

Findings are kept in a journal, so that an interrupted check can be continued, and a repeated one reads only what has
changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.counting import present_ids
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.declared import MANY_LOW, Contents, contradiction, converted, left_to_ignore
from uda_seg.data.depth import DepthFiles, same_shape
from uda_seg.data.folders import ends_in, twins
from uda_seg.data.images import HEAD, may_be_deep, orientation_of, read_bytes, read_image, stored_size
from uda_seg.data.integrity import check_image_file
from uda_seg.data.parallel import in_threads
from uda_seg.data.prepare.journal import Finding, Journal, stamp_of
from uda_seg.data.specs import CUSTOM, LabelEncoding
from uda_seg.data.statistics import ClassStatistics
from uda_seg.errors import Damaged, UserError

STRANGE = 16  # maximum number of unknown ids that are listed per label


@dataclass(frozen=True)
class Problem:
    """A defect of a file or folder.

    Args:
        file: Path of the file or folder.
        what: Description of the defect.
        cure: Suggested cure.
        kind: unreadable, bits, label, size, missing, extra, twins, mixed, depth, count or statistics.
        damage: True if training could not use the data or would learn something wrong; false for a mere note.
        index: Index of the image it belongs to.
    """

    file: str
    what: str
    cure: str
    kind: str
    damage: bool = True
    index: int | None = None


@dataclass
class Report:
    """Result of checking a domain.

    Args:
        option: Key of the domain in the configuration.
        dataset: The checked data set, reading the best label encoding found, if any.
        labels: Number of images with a label of that encoding; None if labels were not searched or there are none.
        shapes: int64 [N, 2], (H, W) of the images; 0 if unreadable.
        statistics: Pixels of each class in each label, 0 for unusable labels.
        problems: All defects.
    """

    option: str
    dataset: SegmentationDataset
    labels: int | None
    shapes: NDArray[np.int64]
    statistics: ClassStatistics | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """True if training cannot use the data as they are."""
        return any(problem.damage for problem in self.problems)

    @property
    def good(self) -> list[int]:
        """Indices of the images without defects."""
        bad = {problem.index for problem in self.problems}
        return [index for index in range(len(self.dataset)) if index not in bad]


def check_domain(dataset: SegmentationDataset, option: str, cache: Path, *, labels: str, whole: bool = True) -> Report:
    """Read every file of a domain and list all defects.

    Args:
        dataset: The domain, opened without labels.
        option: Its key in the configuration, for messages.
        cache: Root of all caches.
        labels: "needed"; "optional": labels may be missing, and their defects are not damage; or "none".
        whole: All images of the data set are used, so that their number can be checked.
    """
    place = hashlib.sha256(os.fsencode(dataset.image_root.absolute())).hexdigest()[:16]
    folder = cache / "checked" / f"{dataset.root.name}-{dataset.split}-{place}"
    report = Report(option, dataset, None, np.zeros((len(dataset), 2), np.int64))
    subject = "image" if dataset.bits is None else f"image of {dataset.bits} bits"
    _check_images(report, Journal(folder / "images.jsonl", subject))
    _check_sizes(report, whole)
    if labels != "none" and _survey_labels(report, needed=labels == "needed"):
        encoding = dataset.encoding
        subject = json.dumps([dataset.spec.title, encoding.suffix, encoding.identity])
        _check_labels(report, Journal(folder / "labels.jsonl", subject), needed=labels == "needed")
    if dataset.depth is not None:
        _check_depth(report, Journal(folder / "depth.jsonl", dataset.depth.encoding.title))
    report.problems.sort(key=lambda problem: -1 if problem.index is None else problem.index)
    return report


def _look(
    journal: Journal, files: Mapping[int, Path], look: Callable[[int], Finding], title: str
) -> Iterator[tuple[int, Finding]]:
    """Yield findings file by file: those in the journal first, then others, read on all cores."""
    unread = []
    for index, path in files.items():
        known = journal.recall(str(path), path)
        if known is None:
            unread.append(index)
        else:
            yield index, known

    def work(index: int) -> tuple[int, list[int], Finding]:
        stamp = stamp_of(files[index])  # before reading: a file that changes meanwhile is read again
        return index, stamp, look(index)

    try:
        for index, stamp, finding in in_threads(work, unread, title):
            journal.note(str(files[index]), stamp, finding)
            yield index, finding
    finally:
        journal.close()


def _look_at_image(path: Path, bits: int | None) -> Finding:
    try:
        found = Finding(check_image_file(path))
        if may_be_deep(read_bytes(path, HEAD)):
            read_image(path, bits)
        return found
    except UserError as error:
        return Finding(error=str(error).removeprefix(f"{path} "), broken=isinstance(error, Damaged))


def _check_images(report: Report, journal: Journal) -> None:
    data, bits = report.dataset, report.dataset.bits
    files = {index: data.image_path(index) for index in range(len(data))}
    for index, found in _look(journal, files, lambda i: _look_at_image(files[i], bits), f"checking {data.image_root}"):
        if found.shape is not None:
            report.shapes[index] = found.shape
        elif found.broken:
            report.problems.append(_unreadable(files[index], found, index))
        else:
            what, _, cure = found.error.rpartition(": ")
            report.problems.append(Problem(str(files[index]), what, cure, "bits", index=index))


def _unreadable(path: Path, found: Finding, index: int, damage: bool = True) -> Problem:
    if not found.broken:  # a sound file of another kind, with a cure of its own
        what, _, cure = found.error.rpartition(": ")
        return Problem(str(path), what, cure, "label", damage, index)
    what, _, _ = found.error.partition(": copy or unpack")
    cure = "copy or unpack it again, or fix=true"
    return Problem(str(path), what, cure, "unreadable", damage, index)


def _check_sizes(report: Report, whole: bool) -> None:
    data, title = report.dataset, report.dataset.spec.title
    official = data.spec.counts.get(data.split)
    if whole and official is not None and official != len(data):
        what = f"{len(data)} images, the official {title} has {official} in {data.split}"
        cure = "unpack it again, or unpack=all where its ZIPs are" if len(data) < official else "look for extra files"
        report.problems.append(Problem(str(data.image_root), what, cure, "count", damage=False))
    size = data.spec.size
    if size is None:
        return
    other = np.flatnonzero((report.shapes != size).any(axis=1) & report.shapes.any(axis=1))
    if len(other):
        height, width = report.shapes[other[0]]
        what = f"{len(other)} images are not {size[0]}x{size[1]} (height x width), the first is {height}x{width}"
        report.problems.append(
            Problem(str(data.image_path(int(other[0]))), what, "were they resized?", "size", damage=False)
        )


def _survey_labels(report: Report, *, needed: bool) -> bool:
    """Choose the encoding whose labels cover the most images; list images without labels and labels without images."""
    data = report.dataset
    if not data.spec.encodings:
        if needed:
            what = f"{data.spec.title} has no labels that are read"
            cure = "describe them in custom.labels, or take another data set"
            report.problems.append(Problem(str(data.root), what, cure, "missing"))
        return False
    present = set(data.label_files("")) if data.label_root.is_dir() else set()
    names = [[data.label_name(name, encoding) for name in data.names] for encoding in data.spec.encodings]
    having = [sum(label in present for label in labels) for labels in names]
    best = max(range(len(names)), key=lambda i: (having[i], -i))
    if not having[best] and not needed:
        return False
    report.labels = having[best]
    if not having[best]:
        what = f"none of {len(data)} images has a label there: {data.spec.layout(data.split)} is expected"
        cure = f"unpack the labels of {data.spec.title} again, or unpack=all where their ZIPs are"
        report.problems.append(Problem(str(data.label_root), what, cure, "missing"))
        return False
    data.read_labels_as(data.spec.encodings[best])
    for index, label in enumerate(names[best]):
        if label not in present:
            what = f"has no label {data.label_root / label}"
            cure = "unpack the labels again, or fix=true"
            report.problems.append(Problem(str(data.image_path(index)), what, cure, "missing", needed, index))
    if pair := twins(data.names, data.spec.image_suffix):
        what = f"{pair[0]} and {pair[1]} would share one label"
        report.problems.append(Problem(str(data.image_root), what, "rename one of them", "twins", needed))
    _find_extra(report, present, {label for labels in names for label in labels}, needed)
    for encoding, count in zip(data.spec.encodings, having, strict=True):
        if 0 < count < len(data) and sum(having) > count:
            what = f"{count} of {len(data)} images have a *{encoding.suffix}, others another: a conversion that stopped"
            read = f"*{data.encoding.suffix} are read" if having[best] == len(data) else "fix=true converts what it can"
            report.problems.append(Problem(str(data.label_root), what, read, "mixed", damage=False))
    return True


def _find_extra(report: Report, present: set[str], expected: set[str], needed: bool) -> None:
    data = report.dataset
    every = data.image_files()  # more than `data.names` if only the first images are used
    expected = expected | {data.label_name(name, e) for name in every for e in data.spec.encodings}
    suffixes = [encoding.suffix for encoding in data.spec.encodings]
    for label in sorted(present - expected):
        if any(ends_in(label, suffix) for suffix in suffixes):
            cure = f"unpack the images of {data.spec.title} again, or fix=true"
            # Only of the encoding in use, like training, which refuses a partly extracted data set.
            damage = needed and ends_in(label, data.encoding.suffix)
            problem = Problem(str(data.label_root / label), "belongs to no image", cure, "extra", damage)
            report.problems.append(problem)


def _look_at_label(path: Path, encoding: LabelEncoding) -> Finding:
    try:
        check_image_file(path)
        raw = encoding.decode(path)
    except UserError as error:
        return Finding(error=str(error).removeprefix(f"{path} "), broken=isinstance(error, Damaged))
    return Finding((raw.shape[0], raw.shape[1]), _bounded(present_ids(raw), encoding))


def _bounded(ids: dict[int, int], encoding: LabelEncoding) -> dict[int, int]:
    """Limit the ids kept in the journal: of many unknown ids, the last one represents the rest."""
    strange = [raw for raw in ids if raw not in encoding.table]
    for raw in strange[STRANGE:]:
        ids[strange[STRANGE - 1]] += ids.pop(raw)
    return ids


def _check_labels(report: Report, journal: Journal, *, needed: bool) -> None:
    data, count = report.dataset, len(report.dataset)
    without = {problem.index for problem in report.problems if problem.kind == "missing"}
    files = {index: data.label_path(index) for index in range(count) if index not in without}
    pixels, areas = np.zeros((count, len(data.classes)), np.int64), np.zeros(count, np.int64)
    contents, resized = Contents(np.zeros(len(data.classes), np.int64)), []
    title = f"checking {data.label_root}"
    for index, found in _look(journal, files, lambda i: _look_at_label(files[i], data.encoding), title):
        if problem := _label_problem(report, index, found, needed):
            report.problems.append(problem)
            continue
        resized += [index] if _is_resized(report, index, found) else []
        areas[index] = sum(found.ids.values())
        pixels[index] = contents.add(data, index, found.ids)
    report.statistics = ClassStatistics(pixels, areas)
    if resized:
        what = f"{len(resized)} labels are of another size than their image, such as that of {data.names[resized[0]]}"
        report.problems.append(Problem(str(data.label_root), what, "they are resized to it", "size", damage=False))
    if unlisted := left_to_ignore(data.encoding, contents):
        report.problems.append(Problem(str(data.label_root), *unlisted, "label", damage=False))
    if contents.looked and (wrong := contradiction(data, contents)):
        report.problems.append(Problem(str(data.label_root), *wrong, "label", needed))
    elif wrong := converted(data.encoding, contents):
        what, cure = f"{wrong[0]}, the first is {data.label_path(contents.low[0])}", wrong[1]
        damage = needed and len(contents.low) > MANY_LOW * contents.looked
        report.problems.append(Problem(str(data.label_root), what, cure, "mixed", damage))


def _label_problem(report: Report, index: int, found: Finding, needed: bool) -> Problem | None:
    data = report.dataset
    path, shape = data.label_path(index), tuple(report.shapes[index].tolist())
    if found.shape is None:
        return _unreadable(path, found, index, needed)
    unknown = sorted(raw for raw in found.ids if not data.encoding.knows(raw))
    if unknown:
        listed = ", ".join(map(data.encoding.spelled, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        what = f"has ids that {data.spec.title} does not know: {listed}"
        cure = f"a *{data.encoding.suffix} of another kind? unpack it again"
        cure = "name them in label_map, or set unlisted=ignore" if data.encoding.described else cure
        return Problem(str(path), what, cure, "label", needed, index)
    if not any(shape) or found.shape == shape or _lies_on_stored_pixels(data, index, found.shape, shape):
        return None
    if _is_resized(report, index, found):
        return None
    what = f"is {found.shape[0]}x{found.shape[1]} but its image {shape[0]}x{shape[1]} (height x width)"
    cure = f"leave the pair out with {data.option}.exclude, or set it aside with fix=true"
    cure = f"export the label again, {cure}" if data.spec.title == CUSTOM else cure
    return Problem(str(path), what, cure, "size", needed, index)


def _is_resized(report: Report, index: int, found: Finding) -> bool:
    """Return whether training resizes a label of another size than its image."""
    data, (height, width) = report.dataset, report.shapes[index].tolist()
    if found.shape is None or not height or found.shape == (height, width):
        return False
    return data.resizes(found.shape, (height, width), orientation_of(read_bytes(data.image_path(index))))


def _lies_on_stored_pixels(
    data: SegmentationDataset, index: int, label: tuple[int, int], shown: tuple[int, ...]
) -> bool:
    """Return whether a label has the size of its photograph's stored pixels, before EXIF rotation."""
    return label == shown[::-1] and stored_size(label, orientation_of(read_bytes(data.image_path(index)))) == shown


def _look_at_depth(path: Path, depth: DepthFiles) -> Finding:
    try:
        if path.suffix == ".png":
            check_image_file(path)
        z = depth.encoding.decode(path)
    except UserError as error:
        return Finding(error=str(error).removeprefix(f"{path} "), broken=isinstance(error, Damaged))
    return Finding((z.shape[0], z.shape[1]))


def _check_depth(report: Report, journal: Journal) -> None:
    depth = report.dataset.depth
    assert depth is not None
    files, cure = dict(enumerate(depth.paths)), "copy, unpack or export it again"
    for index, found in _look(journal, files, lambda i: _look_at_depth(files[i], depth), "checking depth"):
        height, width = report.shapes[index].tolist()
        if found.shape is None:
            what = found.error
        elif height and not same_shape(found.shape, (height, width)):
            what = (
                f"is {found.shape[0]}x{found.shape[1]} but its image {height}x{width} (height x width): another shape"
            )
        else:
            continue
        report.problems.append(Problem(str(files[index]), what, cure, "depth", index=index))


def to_text(problems: Sequence[Problem]) -> str:
    """Format all problems, one per line: damage or note, file, description, cure, separated by tabs."""
    lines = [f"{'damage' if p.damage else 'note'}\t{p.file}\t{p.what}\t{p.cure}" for p in problems]
    return "".join(line + "\n" for line in lines) or "no problems\n"


def summary(report: Report) -> dict[str, Any]:
    """Summarise a domain in numbers, for tables."""
    return {
        "images": len(report.dataset),
        "labels": report.labels,
        "damaged": sum(problem.damage for problem in report.problems),
        "notes": sum(not problem.damage for problem in report.problems),
    }
