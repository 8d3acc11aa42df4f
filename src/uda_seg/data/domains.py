"""Opening the data set that the settings of a domain name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from uda_seg.data.dataset_files import splits_of
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.depth import DepthFiles
from uda_seg.data.depth_layouts import find_depth
from uda_seg.data.folders import holds, kinds_of
from uda_seg.data.images import frames, read_bytes, spread
from uda_seg.data.labels import ClassSet
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.specs import SPECS, DatasetSpec, custom_spec
from uda_seg.errors import UserError

log = logging.getLogger(__name__)


def open_domain(
    domain: DomainSettings,
    settings: DataSettings,
    classes: ClassSet,
    option: str,
    *,
    labeled: bool,
    depth: bool = False,
    choose: Callable[[list[str]], list[str]] | None = None,
) -> SegmentationDataset:
    """Open the data set of `domain`; streets without a root is first rendered into the cache.

    Args:
        domain: Settings of the domain.
        settings: The whole `data` node, for the world's seed and for messages.
        classes: The classes that labels are mapped to.
        option: Key of `domain` in the configuration, e.g. ``data.source``.
        labeled: Read labels.
        depth: Read depth.
        choose: Chooses the images to use among their names; None: all of them.

    Raises:
        UserError: an unknown data set, no root, or invalid folders.
    """
    spec = _spec_of(domain, settings, classes, option)
    prepare = prepare_command(settings)
    root = _root_of(domain, settings, spec, option)
    data = SegmentationDataset(
        spec,
        root,
        domain.split,
        classes,
        labeled=labeled,
        depth=_depth_finder(domain, settings, spec, root, option) if depth else None,
        include=domain.include,
        exclude=domain.exclude,
        count=domain.count,
        choose=choose,
        bits=domain.bits,
        option=option,
        prepare="" if domain.dataset == "streets" else prepare,
    )
    if domain.root is None:
        data.restore = partial(_render, domain, settings, option)
    if data.left_out:
        ends = f"whose images end in {spec.image_suffix}"
        log.warning("%s: left out of %s, %s: %s", option, data.image_root, ends, kinds_of(data.left_out))
    say_frames(data)
    return data


def _spec_of(domain: DomainSettings, settings: DataSettings, classes: ClassSet, option: str) -> DatasetSpec:
    own = domain.dataset == "custom"
    spec = custom_spec(domain, classes, _description(domain, settings, option)) if own else SPECS.get(domain.dataset)
    if spec is None:
        names = ", ".join((*SPECS, "custom"))
        raise UserError(f"{option}.dataset={domain.dataset} is unknown; choose one of {names}")
    return spec


def _description(domain: DomainSettings, settings: DataSettings, option: str) -> str:
    """Return the key of a custom data set's description: of the first domain with it, from which others take it.

    Keys below those others cannot be set.
    """
    same = (key for key, other in settings.domains.items() if other.custom == domain.custom)
    return f"{next(same, option)}.custom"


def _root_of(domain: DomainSettings, settings: DataSettings, spec: DatasetSpec, option: str) -> Path:
    """Return the data set's folder; streets without one is rendered."""
    if domain.root is not None:
        root = Path(domain.root).expanduser()
        _refuse_shards(domain, settings, spec, root, option)
        return root
    if domain.dataset == "streets":
        return _render(domain, settings, option)
    raise UserError(
        f"{option}.root is not set: set {option}.root=FOLDER of {spec.title}, which holds "
        f"{spec.layout(splits_of(domain.split)[0])}, then run {prepare_command(settings)}"
    )


def say_frames(data: SegmentationDataset) -> None:
    """Log that files of a sample contain several frames, of which only the first is read."""
    paths = [data.image_path(index) for index in spread(range(len(data)))]
    paths = [path for path in paths if path.suffix.lower() in (".gif", ".webp", ".tif", ".tiff", ".avif")]
    several = [path for path in paths if frames(read_bytes(path)) > 1]
    if several:
        log.warning("%s: %s and others contain several frames each: only the first is read", data.option, several[0])


def _refuse_shards(domain: DomainSettings, settings: DataSettings, spec: DatasetSpec, root: Path, option: str) -> None:
    """Raise UserError if a validation set's root is that of the target's shards, which cannot be validated on."""
    shards = settings.target.root if settings.target is not None and settings.reader == "shards" else None
    if shards != domain.root or not option.startswith("data.validation."):
        return
    split = splits_of(domain.split)[0]
    if not any(holds(root, place, labeled=False) for place in spec.places(split)):
        raise UserError(
            f"data.target.root={shards} holds shards; validation images are files: set {option}.root=FOLDER of "
            f"{spec.title}, which holds {spec.layout(split)}"
        )


def _depth_finder(
    domain: DomainSettings, settings: DataSettings, spec: DatasetSpec, root: Path, option: str
) -> Callable[[list[str]], DepthFiles]:
    def find(names: list[str]) -> DepthFiles:
        return find_depth(domain, settings, root, names, spec.image_suffix, option)

    return find


def _render(domain: DomainSettings, settings: DataSettings, option: str) -> Path:
    from uda_seg.data.streets.cache import ensure_rendered  # only needed for streets

    if domain.domain is None or domain.count is None or domain.size is None:
        raise UserError(f"streets needs {option}.domain, {option}.count and {option}.size=[H,W]")
    if "+" in domain.split:
        raise UserError(f"{option}.split={domain.split}: streets is rendered one split at a time: give train or val")
    height, width = domain.size
    return ensure_rendered(settings.world_seed, domain.domain, domain.split, domain.count, (height, width))
