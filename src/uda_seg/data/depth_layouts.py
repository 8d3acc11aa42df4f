"""Location and encoding of a data set's depth maps."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uda_seg.data.depth import ENCODINGS, DepthFiles, encoding_choices
from uda_seg.data.folders import without_end
from uda_seg.data.settings import DataSettings, DomainSettings
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
    candidates = _own(domain, root) if domain.depth is None else _exported(domain.depth, image_suffix, option)
    if not candidates:
        raise UserError(f"{option}: {domain.dataset} has no depth of its own; {cure}")
    stems = [without_end(name, image_suffix) for name in names]
    place, layout, paths = _most_complete(candidates, stems, option, cure)
    encoding = encoding or layout.encoding
    if not encoding:
        raise UserError(
            f"{place} has no {DESCRIPTION} to say how its files hold depth: set {option}.depth_encoding to one of "
            f"{encoding_choices()}"
        )
    return DepthFiles(paths, encoding, f"{option}.depth")


def _exported(folder: str, image_suffix: str, option: str) -> list[tuple[Path, DepthLayout]]:
    """List the layouts that a folder of depth maps may have, and log what its maps were learnt from."""
    place = Path(folder).expanduser()
    said = described(place)
    if "learnt_from" in said:
        log.info("%s: the depth in %s was learnt from %s", option, place, said["learnt_from"])
    suffixes = (".png", f"{Path(image_suffix).stem}.png")
    layouts = [DepthLayout("", suffix, said.get("encoding", "")) for suffix in suffixes]
    return [(place, layout) for layout in (*layouts, DepthLayout("", "_depth_stereoscopic.mat", "sfsu"))]


def _own(domain: DomainSettings, root: Path) -> list[tuple[Path, DepthLayout]]:
    """List the locations of a data set's own depth, those of the wanted encoding if there are any."""
    layouts = LAYOUTS.get(domain.dataset, ())
    # Cityscapes has two kinds of depth.
    layouts = tuple(layout for layout in layouts if layout.encoding == domain.depth_encoding) or layouts
    return [(root / layout.folder.format(split=domain.split), layout) for layout in layouts]


def _most_complete(
    candidates: Sequence[tuple[Path, DepthLayout]], stems: Sequence[str], option: str, cure: str
) -> tuple[Path, DepthLayout, list[Path]]:
    """Find the candidate that lacks the fewest images; raises UserError if it lacks any."""
    found = [[place / (stem + layout.suffix) for stem in stems] for place, layout in candidates]
    missing = [[path for path in paths if not path.is_file()] for paths in found]
    best = min(range(len(found)), key=lambda i: len(missing[i]))
    if missing[best]:
        if len(missing[best]) < len(stems):
            cure = f"unpack or export the others again, or {cure}"
        raise UserError(
            f"{option}: {len(missing[best])} of {len(stems)} images have no depth, the first misses "
            f"{missing[best][0]}; {cure}"
        )
    return (*candidates[best], found[best])


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
