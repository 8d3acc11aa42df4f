"""The schema of the `data` node of the configuration: plain values, so that OmegaConf can check them."""

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
    """Where the images of one domain come from.

    Args:
        dataset: A name in `uda_seg.data.specs.SPECS`; custom: folders of one's own, described by `custom`.
        root: The data set's folder; streets renders into the cache when it is None, all others need it.
        domain: streets only: game, camera, night_rain, or another name that streets knows.
        split: train or val.
        size: [H, W]; images are resized to fit inside it, keeping their aspect ratio; streets renders at it.
            None: as on disk.
        keep_ratio: False: images are squeezed into all of `size`, as some of the papers' codes do. (Depth is learnt and
            exported with the ratio kept.)
        image_resize: How images follow the resize: `bilinear` by OpenCV (that of DAFormer), or `pil_bilinear`,
            `pil_bicubic`, which do not alias (those of DACS, CorDA and BiCL).
        count: Use the first `count` images; streets: how many to render.
        bits: How many of 16 bits a channel the images use: a camera's 12 bits, read as 16, would be nearly black. None:
            found in a sample of them, and said in the log. Images of 8 bits are what they are.
        margins: [top, bottom, left, right] pixels of the image on disk in which pseudo-labels are not trusted
            (MIC's second version: 30, 240, 30, 30 on Cityscapes). Used for the target only.
        depth: Folder of depth maps, named like the images and with their sub-folders; None: where the data set keeps
            its own. Read for methods that learn from depth.
        depth_encoding: How they hold depth, a name in `uda_seg.data.depth.ENCODINGS`; None: as the folder's
            `depth.json` or the data set's layout says. PNGs in a folder without that file need it.
        depth_resize: How inverse depth follows the resize: nearest, or bilinear, which blends in what is invalid.
        custom: With `dataset=custom`: `uda_seg.data.custom.CustomData` as a mapping, or the YAML file that holds it.
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
        enabled: Draw a class first, then an image that has it; otherwise every image once per pass.
        temperature: T of P(c) = softmax((1 - f_c) / T); the smaller, the more often the rarest classes.
        min_pixels: An image counts as having a class above this many pixels, on disk. None: 3000 at GTA's
            1914 x 1052, scaled by the label's area.
        min_crop_pixels: A crop should show more than this many pixels of the class. None: 1500 at 512 x 512,
            scaled by the crop's area.
        tries: How often a crop without them is drawn anew from the same image; the last one is kept.
    """

    enabled: bool = False
    temperature: Temperature = 0.01
    min_pixels: CountOrZero | None = None
    min_crop_pixels: CountOrZero | None = None
    tries: Annotated[int, Interval(1, 1000)] = 10


@dataclass
class ShardSettings:
    """How `data.reader=shards` reads the unlabelled target.

    Args:
        window: shards of a rank whose images are shuffled together.
        cache_gb: room for fetched shards on a machine's disk, in 10^9 bytes, where the root is an address; at least
            that of the windows that its ranks read.
    """

    window: Count = 8
    cache_gb: Positive = 200.0


@dataclass
class PackSettings:
    """How `prepare` packs the target's images into shards.

    Attributes:
        out: folder of the shards; null: nothing is packed.
        images: images a shard.
    """

    out: FilePath | None = None
    images: Count = 1000


@dataclass
class DataSettings:
    """What is trained on and what is evaluated.

    Args:
        name: The name of the `data=` file, said in messages.
        classes: A class set of `uda_seg.data.labels`, or custom; every domain's labels are mapped to it.
        class_set: With `classes=custom`: `uda_seg.data.custom.CustomClasses` as a mapping, or the YAML file that holds
            it.
        eval_classes: The subset of it over which the mean is reported.
        world_seed: The seed of the rendered world (streets); the seed of training is apart.
        crop: [H, W] of a training crop.
        crop_max_ratio: Source crops are drawn anew while one class covers this share or more of the labelled pixels;
            1.0 switches the rule off.
        crop_tries: How many crops are drawn under that rule at most; the last is kept, whatever it shows. (DAFormer's
            code base: 11, an eleventh where ten have failed.)
        flip: Mirror crops left-right with probability 0.5.
        source_batch: Source images per step and rank.
        target_batch: Target images per step and rank; None: as many as source images.
        val_batch: Images per step of validation.
        source: The labelled domain.
        target: The unlabelled domain; None: there is none (domain generalisation).
        validation: Name -> labelled images to evaluate on.
        rare_class: How source images are drawn.
        workers: Loader processes, as many as two a core at most; None: chosen by
            `uda_seg.data.datamodule.choose_workers`.
        cache: "memory": keep decoded images (small sets); "none": decode each time; "disk": crop from the file of
            resized images that `python -m uda_seg.prepare ... data.cache=disk` writes; "auto": that file where it is
            there, else memory for a domain of at most 512 MiB.
        reader: where the target's unlabelled images are: "files", or "shards", tars in the folder or at the address
            `target.root` (`uda_seg.data.storage.shards`).
        shards: how those are read.
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
    """How `python -m uda_seg.prepare data=streets streets.export=NAME streets.out=FOLDER` writes the built-in world.

    Attributes:
        export: the data set whose layout it takes: gta, synthia, cityscapes, acdc, darkzurich, bdd100k, mapillary,
            viper or synthia_seqs; null: nothing is exported.
        out: the root of the tree; what lies there must be an export of the same kind, which is then completed.
        size: `small`, a quarter of the official height and width; `official`; or [height, width].
        train: training scenes.
        val: validation scenes, of data sets that have them.
        views: write stereo partners and neighbouring frames too, where the data set has them: four renderings a scene.
        domain: the domain of streets that is rendered; null: one that suits the data set.
        workers: processes, two a core at most; null: one per core.
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
    """What a person types to check and convert this data; roots that follow from others are left out."""
    roots = [("data.source", settings.source), ("data.target", settings.target)]
    roots += [(f"data.validation.{name}", domain) for name, domain in settings.validation.items()]
    words = [f"python -m uda_seg.prepare data={settings.name}"]
    seen: set[str] = set()
    for option, domain in roots:
        if domain is not None and domain.root is not None and domain.root not in seen:
            words.append(f"{option}.root={shlex.quote(domain.root)}")
            seen.add(domain.root)
    return " ".join(words)
