"""Schema of the configuration's `data` node, in plain values that OmegaConf can check."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Annotated, Any

from uda_seg.data.labels import CLASS_SETS
from uda_seg.options.constraints import (
    BitDepth,
    Count,
    CountOrZero,
    FilePath,
    Interval,
    Length,
    Name,
    OneOf,
    PixelSize,
    Positive,
    PositiveFraction,
    Size,
    Temperature,
    Text,
)

Batch = Annotated[int, Interval(1, 2**16)]
Margins = Annotated[list[CountOrZero], Length(4, 4)]


@dataclass
class DomainSettings:
    """Images of one domain.

    Args:
        dataset: A name in `uda_seg.data.specs.SPECS`, or custom, described by `custom`.
        root: The data set's folder; None renders streets into the cache, all others need it.
        domain: streets only: game, camera, night_rain, or another style of streets.
        split: train or val.
        size: [H, W]; images are resized to fit inside it, keeping their aspect ratio; streets renders at it. None: as
            on disk.
        keep_ratio: False stretches images to the whole `size`, as some of the papers' codes do. (Depth is trained and
            exported with the aspect ratio kept.)
        image_resize: Interpolation of images: `bilinear` by OpenCV (as in DAFormer), or the antialiased `pil_bilinear`
            and `pil_bicubic` (as in DACS, CorDA and BiCL).
        count: Use the first `count` images; streets: number of images to render.
        bits: Used bits per channel of 16-bit images: a camera's 12 bits, read as 16, would be nearly black. None:
            determined from a sample, and logged. Without effect on 8-bit images.
        margins: [top, bottom, left, right] pixels of the image on disk in which pseudo-labels are ignored (MIC's second
        version: 30, 240, 30, 30 on Cityscapes). Used for the target only.
        depth: Folder of depth maps, named like the images and with their sub-folders; None: the data set's own
            location. Read for methods that use depth.
        depth_encoding: Encoding of the maps, a name in `uda_seg.data.depth.ENCODINGS`; None: from the folder's
            `depth.json` or the data set's layout. Required for PNGs in a folder without that file.
        depth_resize: Interpolation of inverse depth: nearest, or bilinear, which blends in invalid pixels.
        custom: With `dataset=custom`: `uda_seg.data.custom.CustomData` as a mapping, or a YAML file with it; or
            `{_target_: package.module.Class}` with its options, a `uda_seg.data.specs.DatasetSpec`.
    """

    dataset: Text = "streets"
    root: FilePath | None = None
    domain: Text | None = None
    split: Text = "train"
    size: Size | None = None
    keep_ratio: bool = True
    image_resize: Annotated[str, OneOf(("bilinear", "pil_bilinear", "pil_bicubic"))] = "bilinear"
    count: Count | None = None
    bits: BitDepth | None = None
    margins: Margins | None = None
    depth: FilePath | None = None
    depth_encoding: Text | None = None
    depth_resize: Annotated[str, OneOf(("nearest", "bilinear"))] = "nearest"
    custom: Any = None


@dataclass
class RareClassSettings:
    """Rare-class sampling of the source (DAFormer, Hoyer et al. 2022, section 3.3).

    Args:
        enabled: Draw a class first, then an image with it; otherwise every image once per pass.
        temperature: T of P(c) = softmax((1 - f_c) / T); smaller values favour rare classes more.
        min_pixels: Minimum pixels of a class, on disk, for an image to count for it. None: 3000 at GTA's 1914 x 1052,
            scaled by the label's area.
        min_crop_pixels: Minimum pixels of the class in a crop. None: 1500 at 512 x 512, scaled by the crop's area.
        tries: Number of further crops from the same image if there are fewer; the last one is kept.
    """

    enabled: bool = False
    temperature: Temperature = 0.01
    min_pixels: CountOrZero | None = None
    min_crop_pixels: CountOrZero | None = None
    tries: Annotated[int, Interval(1, 1000)] = 10


@dataclass
class ShardSettings:
    """Settings of `data.reader=shards` for the unlabelled target.

    Args:
        window: number of a rank's shards whose images are shuffled together.
        cache_gb: maximum size of fetched shards on a machine's disk, in 10^9 bytes, for a remote root; at least the
            windows of its ranks.
    """

    window: Count = 8
    cache_gb: Positive = 200.0


@dataclass
class PackSettings:
    """Packing of the target's images into shards by `prepare`.

    Attributes:
        out: folder of the shards; null: no packing.
        images: images per shard.
    """

    out: FilePath | None = None
    images: Count = 1000


@dataclass
class DataSettings:
    """Training and validation data.

    Args:
        name: Name of the `data=` file, for messages.
        classes: A class set of `uda_seg.data.labels`, or custom; every domain's labels are mapped to it.
        class_set: With `classes=custom`: `uda_seg.data.custom.CustomClasses` as a mapping, or a YAML file with it.
        eval_classes: Subset of classes for the reported mean.
        world_seed: Seed of the rendered world (streets), independent of the seed of training.
        crop: [H, W] of a training crop.
        crop_max_ratio: Redraw source crops while one class covers this share or more of the labelled pixels; 1.0
            switches the rule off.
        crop_tries: Maximum number of crops drawn under that rule; the last is kept unconditionally. (DAFormer's code
        base: 11, an eleventh after ten failures.)
        flip: Flip crops horizontally with probability 0.5.
        source_batch: Source images per step and rank.
        target_batch: Target images per step and rank; None: as many as source images.
        val_batch: Images per step of validation.
        source: The labelled domain.
        target: The unlabelled domain; None for domain generalisation.
        validation: Name -> labelled images for evaluation.
        rare_class: Sampling of source images.
        workers: Number of loader processes, at most two per core; None: chosen by
            `uda_seg.data.loading.choose_workers`.
        cache: "memory": keep decoded images (small sets); "none": decode each time; "disk": crop from the resized
            images written by `python -m uda_seg.prepare ... data.cache=disk`; "auto": these if they exist, else memory
            for a domain of at most 512 MiB.
        reader: Storage of the target's unlabelled images: "files", or "shards", tars in the folder or at the address
            `target.root` (`uda_seg.data.storage.shards`).
        shards: Settings of the shards.
    """

    name: Name = "streets"
    classes: Annotated[str, OneOf((*CLASS_SETS, "custom"))] = "cityscapes"
    class_set: Any = None
    eval_classes: Text = "19"
    world_seed: CountOrZero = 0
    crop: Size = field(default_factory=lambda: [512, 512])
    crop_max_ratio: PositiveFraction = 0.75
    crop_tries: Annotated[int, Interval(1, 1000)] = 10
    flip: bool = True
    source_batch: Batch = 2
    target_batch: Batch | None = None
    val_batch: Batch = 1
    source: DomainSettings = field(default_factory=DomainSettings)
    target: DomainSettings | None = None
    validation: dict[Name, DomainSettings] = field(default_factory=dict)
    rare_class: RareClassSettings = field(default_factory=RareClassSettings)
    workers: CountOrZero | None = None
    cache: Annotated[str, OneOf(("auto", "memory", "disk", "none"))] = "auto"
    reader: Annotated[str, OneOf(("files", "shards"))] = "files"
    shards: ShardSettings = field(default_factory=ShardSettings)


@dataclass
class StreetsSettings:
    """Export by `python -m uda_seg.prepare data=streets streets.export=NAME streets.out=FOLDER`.

    Attributes:
        export: the data set whose layout to write: gta, synthia, cityscapes, acdc, darkzurich, bdd100k, mapillary,
            viper or synthia_seqs; null: no export.
        out: root of the tree; an existing one must be an export with the same settings, which is completed.
        size: `small`, a quarter of the official height and width; `official`; or [height, width].
        train: number of training scenes.
        val: number of validation scenes, for data sets with them.
        views: also write stereo partners and neighbouring frames if the data set has them: four renderings per scene.
        domain: domain of streets to render; null: one that suits the data set.
        workers: number of processes, at most two per core; null: one per core.
    """

    export: Text | None = None
    out: FilePath | None = None
    size: Annotated[Any, PixelSize(("small", "official"))] = "small"
    train: Count = 40
    val: Count = 10
    views: bool = True
    domain: Text | None = None
    workers: Count | None = None


def prepare_command(settings: DataSettings) -> str:
    """Build the command that prepares this data, leaving out roots that follow from others."""
    roots = [("data.source", settings.source), ("data.target", settings.target)]
    roots += [(f"data.validation.{name}", domain) for name, domain in settings.validation.items()]
    words = [f"python -m uda_seg.prepare data={settings.name}"]
    seen: set[str] = set()
    for option, domain in roots:
        if domain is not None and domain.root is not None and domain.root not in seen:
            words.append(f"{option}.root={shlex.quote(domain.root)}")
            seen.add(domain.root)
    return " ".join(words)
