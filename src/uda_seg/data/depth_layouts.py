"""Location and encoding of a data set's depth maps."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uda_seg.data.dataset_files import splits_of
from uda_seg.data.depth import ENCODINGS, DepthFiles, encoding_choices
from uda_seg.data.folders import fixed, without_end
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.specs import SPECS
from uda_seg.errors import UserError
from uda_seg.storage.files import read_json

log = logging.getLogger(__name__)

DESCRIPTION = "depth.json"  # written by `python -m uda_seg.depth` next to the exported maps


@dataclass(frozen=True)
class DepthLayout:
    """Location of a data set's depth: `folder` under its root, with {split}, and the suffix of file names."""

    folder: str
    suffix: str
    encoding: str


LAYOUTS: dict[str, tuple[DepthLayout, ...]] = {
    "streets": (DepthLayout("depth", ".png", "metres"),),
    "synthia": (
        DepthLayout("Depth/Depth", ".png", "centimetres"),
        DepthLayout("Depth", ".png", "centimetres"),
    ),
    "gta": (DepthLayout("disparity", ".png", "disparity"),),
    "cityscapes": (
        DepthLayout("depth/{split}", "_depth_stereoscopic.mat", "sfsu"),
        # CorDA's maps; the official package of this name contains other values in other files.
        DepthLayout("disparity/{split}", "_leftImg8bit.png", "disparity"),
    ),
}


def find_depth(
    domain: DomainSettings,
    settings: DataSettings,
    root: Path,
    names: Sequence[str],
    image_suffix: str,
    option: str,
) -> DepthFiles:
    """Find the depth of the images `names` in the data set's own layout, or in the folder `domain.depth`.

    In that folder files have the images' sub-folders, and `depth.json` tells encoding and origin; without it
    `domain.depth_encoding` must name the encoding of PNGs, because training would not notice a wrong one.

    Args:
        domain: Settings of the domain.
        settings: The whole `data` node, for messages.
        root: The data set's folder.
        names: The images, relative to their folder.
        image_suffix: Suffix of their names.
        option: Key of the domain in the configuration, e.g. ``data.source``.

    Raises:
        UserError: unknown location or encoding of the data set's depth, missing files (the first is named), or a wrong
            scale.
    """
    encoding = domain.depth_encoding
    if encoding is not None and encoding not in ENCODINGS:
        raise UserError(f"{option}.depth_encoding={encoding} is unknown: use one of {', '.join(ENCODINGS)}")
    cure = _cure(domain, settings, option)
    stems = [without_end(name, image_suffix) for name in names]
    if domain.depth is None:
        candidates = _own(domain, root, stems)
    else:
        candidates = _exported(domain.depth, stems, image_suffix, option)
    if not candidates:
        raise UserError(f"{option}: {domain.dataset} has no depth of its own; {cure}")
    layout, paths = _most_complete(candidates, option, cure)
    encoding = encoding or layout.encoding
    if not encoding:
        raise UserError(
            f"{domain.depth} has no {DESCRIPTION} to say how its files hold depth: set {option}.depth_encoding to one "
            f"of {encoding_choices()}"
        )
    return DepthFiles(paths, encoding, f"{option}.depth")


_Candidate = tuple[DepthLayout, list[Path]]  # with the depth files of all images


def _exported(folder: str, stems: Sequence[str], image_suffix: str, option: str) -> list[_Candidate]:
    """List the layouts that a folder of depth maps may have, and log what its maps were learnt from."""
    place = Path(folder).expanduser()
    said = described(place)
    if "learnt_from" in said:
        log.info("%s: the depth in %s was learnt from %s", option, place, said["learnt_from"])
    suffixes = (".png", f"{Path(image_suffix).stem}.png")
    layouts = [DepthLayout("", suffix, said.get("encoding", "")) for suffix in suffixes]
    layouts.append(DepthLayout("", "_depth_stereoscopic.mat", "sfsu"))
    return [(layout, [place / (stem + layout.suffix) for stem in stems]) for layout in layouts]


def _own(domain: DomainSettings, root: Path, stems: Sequence[str]) -> list[_Candidate]:
    """List the locations of a data set's own depth, those of the wanted encoding if there are any."""
    layouts = LAYOUTS.get(domain.dataset, ())
    # Cityscapes has two kinds of depth.
    layouts = tuple(layout for layout in layouts if layout.encoding == domain.depth_encoding) or layouts
    parts = [_of_split(stem, domain) for stem in stems]
    return [
        (layout, [root / layout.folder.format(split=split) / (stem + layout.suffix) for split, stem in parts])
        for layout in layouts
    ]


def _of_split(stem: str, domain: DomainSettings) -> tuple[str, str]:
    """Return an image's split and its name there; of joined splits, names begin with the folder of their split."""
    splits = splits_of(domain.split)
    for split in splits if len(splits) > 1 else ():
        for images, _ in SPECS[domain.dataset].places(split):
            prefix = f"{fixed(images)[0]}/"
            if stem.startswith(prefix):
                return split, stem.removeprefix(prefix)
    return domain.split, stem


def _most_complete(candidates: Sequence[_Candidate], option: str, cure: str) -> _Candidate:
    """Find the candidate that lacks the fewest images; raises UserError if it lacks any."""
    missing = [[path for path in paths if not path.is_file()] for _, paths in candidates]
    best = min(range(len(candidates)), key=lambda i: len(missing[i]))
    if missing[best]:
        images = len(candidates[best][1])
        if len(missing[best]) < images:
            cure = f"unpack or export the others again, or {cure}"
        raise UserError(
            f"{option}: {len(missing[best])} of {images} images have no depth, the first misses "
            f"{missing[best][0]}; {cure}"
        )
    return candidates[best]


def _cure(domain: DomainSettings, settings: DataSettings, option: str) -> str:
    """Suggest the commands that predict depth for images without any."""
    root = "" if domain.root is None else f" {option}.root={domain.root}"
    return (
        "learn depth with python -m uda_seg.depth data=streets, write maps with python -m uda_seg.depth "
        f"checkpoint=<run>/checkpoints/last.ckpt data={settings.name}{root} export=true, then set "
        f"{option}.depth=<run>/maps/{maps_name(settings, option, domain)}"
    )


def maps_name(settings: DataSettings, option: str, domain: DomainSettings) -> str:
    """Name the folder of a domain's exported maps; domains of one kind, whose images may share names, have their own.

    Args:
        settings: the data.
        option: key of the domain, such as `data.target` or `data.more_sources.<name>`.
        domain: its settings.
    """
    before = []
    for other, each in (settings.sources | settings.targets).items():
        if other == option:
            break
        before.append(each.domain or each.dataset)
    name = domain.domain or domain.dataset
    group, _, own = option.removeprefix("data.").partition(".")
    return f"{name}_{own or group}" if name in before else name


def described(folder: Path) -> Mapping[str, str]:
    """Read a folder's `depth.json`; empty if there is none; raises UserError if it is damaged."""
    file, cure = folder / DESCRIPTION, "export the depth maps again with overwrite=true"
    if not os.path.lexists(file):
        return {}
    try:
        said = {str(key): str(value) for key, value in read_json(file, cure).items()}
        encoding = said["encoding"]
    except (KeyError, AttributeError) as error:
        raise UserError(f"{file} does not say what the maps are: {cure}") from error
    if encoding not in ENCODINGS:
        raise UserError(
            f"{file} names the unknown encoding {encoding}: export the depth maps again with overwrite=true"
        )
    return said
