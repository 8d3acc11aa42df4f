"""The files of custom data sets: what tells one person's photographs from another's, wherever they lie."""

from __future__ import annotations

import hashlib
import json

from uda_seg.data.custom import classes_of
from uda_seg.data.declared import check_labels
from uda_seg.data.domains import open_domain
from uda_seg.data.parts import Part, target_parts, validation_parts
from uda_seg.data.settings import DataSettings


def digest_of_own_files(settings: DataSettings) -> str:
    """Compute a digest of names and sizes of all images and labels of custom data sets; empty without any.

    Of labels that are read, some are looked at, as before a training.

    Raises:
        UserError: a data set cannot be opened, or its labels are not as described; names the key.
    """
    sources = [Part(option, domain, labeled=True) for option, domain in settings.sources.items()]
    parts = [*sources, *target_parts(settings), *validation_parts(settings).values()]
    found = {part.option: _files_of(part, settings) for part in parts if part.domain.dataset == "custom"}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] if found else ""


def _files_of(part: Part, settings: DataSettings) -> list[tuple[str, int, int]]:
    data = open_domain(part.domain, settings, classes_of(settings), part.option, labeled=part.labeled)
    if part.labeled:
        check_labels(data, part.option)
    return [
        (name, data.image_path(i).stat().st_size, data.label_path(i).stat().st_size if part.labeled else 0)
        for i, name in enumerate(data.names)
    ]
