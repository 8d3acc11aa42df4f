"""The files of custom data sets: what tells one person's photographs from another's, wherever they lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from uda_seg.data.checksums import check_sums
from uda_seg.data.custom import classes_of
from uda_seg.data.declared import check_labels
from uda_seg.data.domains import open_domain
from uda_seg.data.images import HEAD, decode, kind_of, read_bytes
from uda_seg.data.labelled import LabelledImages
from uda_seg.data.parts import Part, labeled_parts, target_parts, validation_parts
from uda_seg.data.settings import DataSettings


def digest_of_own_files(settings: DataSettings, seed: int = 0, *, target_labels: bool = False) -> str:
    """Compute a digest of names and contents of all images and labels of custom data sets; empty without any.

    Labels are looked at as before a training, and all files are checked for what can be found without decoding them.

    Args:
        settings: the `data` node.
        seed: seed of the run, which chooses the labelled images of a target (`labelled`).
        target_labels: the method trains on the targets' labels instead of the sources (the oracle).

    Raises:
        UserError: a data set cannot be opened, its labels are not as described, or a file is damaged; names the key
            or the file.
    """
    trained = labeled_parts(settings, LabelledImages(seed), target_labels=target_labels)
    unlabelled = [] if target_labels else target_parts(settings)
    parts = [*trained, *unlabelled, *validation_parts(settings).values()]
    found = {part.key: _files_of(part, settings) for part in parts if part.domain.dataset == "custom"}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] if found else ""


def _files_of(part: Part, settings: DataSettings) -> list[tuple[str, str, str]]:
    classes = classes_of(settings)
    data = open_domain(part.domain, settings, classes, part.option, labeled=part.labeled, choose=part.choose)
    if part.labeled:
        check_labels(data, part.option)
    return [
        (name, _digest(data.image_path(i)), _digest(data.label_path(i)) if part.labeled else "")
        for i, name in enumerate(data.names)
    ]


def _digest(path: Path) -> str:
    """Compute the digest of an image's or a label's content; raises UserError naming a file that is damaged.

    Its size would not do: in formats without compression another label has the same.
    """
    content = read_bytes(path)
    check_sums(content, str(path))
    if kind_of(content[:HEAD]) is None:
        decode(content, str(path))  # tells what it is instead
    return hashlib.sha256(content).hexdigest()
