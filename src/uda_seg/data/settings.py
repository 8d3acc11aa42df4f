"""Settings of the configuration's `data` node."""

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
    LabelBudget,
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
NAMED = ("validation", "more_sources", "more_targets")  # settings of the data that are domains by freely chosen names


@dataclass
class DomainSettings:
    """Images of one domain."""

    dataset: Text = "streets"
    """A name in `uda_seg.data.specs.SPECS`, or custom, described by `custom`."""
    root: FilePath | None = None
    """The data set's folder; null renders streets into the cache, all others need it."""
    domain: Text | None = None
    """streets only: game, camera, night_rain, or another style of streets, such as camera_alike."""
    split: Text = "train"
    """train or val, or both joined: `train+val`."""
    include: list[Text] = field(default_factory=list)
    """Patterns of the images to use: an image is used if one of them matches its name, with or without sub-folders
    (`0001TP*`, `frankfurt/*`). Empty: all images of the split."""
    exclude: list[Text] = field(default_factory=list)
    """Patterns of images to leave out, likewise."""
    size: Size | None = None
    """[H, W]; images are resized to fit inside it, keeping their aspect ratio; streets renders at it. null: as on
    disk."""
    keep_ratio: bool = True
    """False stretches images to the whole `size`, as some of the papers' codes do. (Depth is trained and exported with
    the aspect ratio kept.)"""
    image_resize: Annotated[str, OneOf(("bilinear", "pil_bilinear", "pil_bicubic"))] = "bilinear"
    """Interpolation of images: `bilinear` by OpenCV (as in DAFormer), or the antialiased `pil_bilinear` and
    `pil_bicubic` (as in DACS, CorDA and BiCL)."""
    count: Count | None = None
    """Use the first `count` of these images; streets: number of images to render."""
    bits: BitDepth | None = None
    """Used bits per channel of 16-bit images: a camera's 12 bits, read as 16, would be nearly black. null: determined
    from a sample, and logged. Without effect on 8-bit images."""
    margins: Margins | None = None
    """[top, bottom, left, right] pixels of the image on disk in which pseudo-labels are ignored (MIC's second version:
    30, 240, 30, 30 on Cityscapes). Used for targets only."""
    depth: FilePath | None = None
    """Folder of depth maps, named like the images and with their sub-folders; null: the data set's own location. Read
    for methods that use depth."""
    depth_encoding: Text | None = None
    """Encoding of the maps, a name in `uda_seg.data.depth.ENCODINGS`; null: from the folder's `depth.json` or the data
    set's layout. Required for PNGs in a folder without that file."""
    depth_resize: Annotated[str, OneOf(("nearest", "bilinear"))] = "nearest"
    """Interpolation of inverse depth: nearest, or bilinear, which blends in invalid pixels."""
    custom: Any = None
    """With `dataset=custom`: `uda_seg.data.custom.CustomData` as a mapping, or a YAML file with it; or `{_target_:
    package.module.Class}` with its options, a `uda_seg.data.specs.DatasetSpec`."""
    share: Positive = 1.0
    """With several sources or targets: this domain's weight among them. 2 beside 1 is drawn twice as often; the default
    draws all equally often, however many images they have."""
    labelled: LabelBudget = None
    """Targets only: train on the labels of so many of its images, in the source terms: a number (100), a share
    (0.0625), or a file with one image name per line. Drawn once by the run's seed, and written to the run's folder as
    `labelled_target.txt`. The images stay in the unlabelled stream. null: no labels."""
    labelled_share: Positive = 1.0
    """With `labelled`: the weight of these images among the sources, as `share`. By default as often as a source: half
    of the batch beside one source. In proportion to their number, 100 images beside GTA's 24 966 would hardly occur."""

    @property
    def rendered(self) -> bool:
        """True if its images are rendered into the cache, and thus follow from `data.world_seed`."""
        return self.dataset == "streets" and self.root is None


@dataclass
class RareClassSettings:
    """Rare-class sampling of the sources, of each by its own statistics (DAFormer, Hoyer et al. 2022, section 3.3)."""

    enabled: bool = False
    """Draw a class first, then an image with it; otherwise every image once per pass."""
    temperature: Temperature = 0.01
    """T of P(c) = softmax((1 - f_c) / T); smaller values favour rare classes more."""
    min_pixels: CountOrZero | None = None
    """Minimum pixels of a class, on disk, for an image to count for it. null: 3000 at GTA's 1914 x 1052, scaled by the
    label's area."""
    min_crop_pixels: CountOrZero | None = None
    """Minimum pixels of the class in a crop. null: 1500 at 512 x 512, scaled by the crop's area."""
    tries: Annotated[int, Interval(1, 1000)] = 10
    """Number of further crops from the same image if there are fewer; the last one is kept."""


@dataclass
class ShardSettings:
    """Settings of `data.reader=shards` for the unlabelled target."""

    window: Count = 8
    """Number of a rank's shards whose images are shuffled together."""
    cache_gb: Positive = 200.0
    """Maximum size of fetched shards on a machine's disk, in 10^9 bytes, for a remote root; at least the windows of its
    ranks."""


@dataclass
class PackSettings:
    """Packing of the target's images into shards by `prepare`."""

    out: FilePath | None = None
    """Folder of the shards; null: no packing."""
    images: Count = 1000
    """Images per shard."""


@dataclass
class DataSettings:
    """Training and validation data."""

    name: Name = "streets"
    """Name of the `data=` file, for messages."""
    classes: Annotated[str, OneOf((*CLASS_SETS, "custom"))] = "cityscapes"
    """A class set of `uda_seg.data.labels`, or custom; every domain's labels are mapped to it."""
    class_set: Any = None
    """With `classes=custom`: `uda_seg.data.custom.CustomClasses` as a mapping, or a YAML file with it."""
    eval_classes: Text = "19"
    """Subset of classes for the reported mean."""
    merge: Any = None
    """With `classes=custom`: classes of Cityscapes (those of streets, GTA, SYNTHIA, ...) -> the custom class that each
    becomes, or `ignore`, as a mapping; or custom class -> list of them. Every class has to be named once. Without a
    `class_set` the custom classes are those named here, in that order. null: only custom data sets can be read."""
    world_seed: CountOrZero = 0
    """Seed of the rendered world (streets), independent of the seed of training."""
    crop: Size = field(default_factory=lambda: [512, 512])
    """[H, W] of a training crop."""
    crop_max_ratio: PositiveFraction = 0.75
    """Redraw source crops while one class covers this share or more of the labelled pixels; 1.0 switches the rule
    off."""
    crop_tries: Annotated[int, Interval(1, 1000)] = 10
    """Maximum number of crops drawn under that rule; the last is kept unconditionally. (DAFormer's code base: 11, an
    eleventh after ten failures.)"""
    flip: bool = True
    """Flip crops horizontally with probability 0.5."""
    source_batch: Batch = 2
    """Source images per step and rank."""
    target_batch: Batch | None = None
    """Target images per step and rank; null: as many as source images."""
    val_batch: Batch = 1
    """Images per step of validation."""
    source: DomainSettings = field(default_factory=DomainSettings)
    """The labelled domain."""
    more_sources: dict[Name, DomainSettings] = field(default_factory=dict)
    """Name -> further labelled domains, sampled with the first by their `share`."""
    target: DomainSettings | None = None
    """The unlabelled domain; null for domain generalisation."""
    more_targets: dict[Name, DomainSettings] = field(default_factory=dict)
    """Name -> further unlabelled domains, sampled with the first by their `share`."""
    validation: dict[Name, DomainSettings] = field(default_factory=dict)
    """Name -> labelled images for evaluation."""
    rare_class: RareClassSettings = field(default_factory=RareClassSettings)
    """Rare-class sampling."""
    workers: CountOrZero | None = None
    """Number of loader processes, at most two per core; null: chosen by `uda_seg.data.loading.choose_workers`."""
    cache: Annotated[str, OneOf(("auto", "memory", "disk", "none"))] = "auto"
    """`memory`: keep decoded images (small sets); `none`: decode each time; `disk`: crop from the resized images
    written by `python -m uda_seg.prepare ... data.cache=disk`; `auto`: these if they exist, else memory for a domain of
    at most 512 MiB."""
    reader: Annotated[str, OneOf(("files", "shards"))] = "files"
    """Storage of the target's unlabelled images: `files`, or `shards`, tars in the folder or at the address
    `target.root` (`uda_seg.data.storage.shards`)."""
    shards: ShardSettings = field(default_factory=ShardSettings)
    """Settings of the shards."""

    @property
    def sources(self) -> dict[str, DomainSettings]:
        """Key -> every source, the first one first."""
        return {"data.source": self.source, **_named("data.more_sources", self.more_sources)}

    @property
    def targets(self) -> dict[str, DomainSettings]:
        """Key -> every target, the first one first; empty without one."""
        first = {} if self.target is None else {"data.target": self.target}
        return {**first, **_named("data.more_targets", self.more_targets)}

    @property
    def domains(self) -> dict[str, DomainSettings]:
        """Key -> every domain, those for training first."""
        return {**self.sources, **self.targets, **_named("data.validation", self.validation)}


def _named(group: str, domains: dict[str, DomainSettings]) -> dict[str, DomainSettings]:
    return {f"{group}.{name}": domain for name, domain in domains.items()}


@dataclass
class StreetsSettings:
    """Export by `python -m uda_seg.prepare data=streets streets.export=NAME streets.out=FOLDER`."""

    export: Text | None = None
    """The data set whose layout to write: gta, synthia, urbansyn, cityscapes, acdc, darkzurich, bdd100k, mapillary,
    viper or synthia_seqs; null: no export."""
    out: FilePath | None = None
    """Root of the tree; an existing one must be an export with the same settings, which is completed."""
    size: Annotated[Any, PixelSize(("small", "official"))] = "small"
    """`small`, a quarter of the official height and width; `official`; or [height, width]."""
    train: Count = 40
    """Number of training scenes."""
    val: Count = 10
    """Number of validation scenes, for data sets with them."""
    views: bool = True
    """Also write stereo partners and neighbouring frames if the data set has them: four renderings per scene."""
    domain: Text | None = None
    """Domain of streets to render; null: one that suits the data set."""
    workers: Count | None = None
    """Number of processes, at most two per core; null: one per core."""


def prepare_command(settings: DataSettings) -> str:
    """Build the command that prepares this data, leaving out roots that follow from others."""
    words = [f"python -m uda_seg.prepare data={settings.name}"]
    seen: set[str] = set()
    for option, domain in settings.domains.items():
        if domain.root is not None and domain.root not in seen:
            words.append(f"{option}.root={shlex.quote(domain.root)}")
            seen.add(domain.root)
    return " ".join(words)
