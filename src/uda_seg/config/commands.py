"""Commands: what each is configured by besides training's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from uda_seg.config.settings import Config
from uda_seg.data.settings import PackSettings, StreetsSettings
from uda_seg.evaluation.servers import SERVERS
from uda_seg.options.constraints import (
    BitDepth,
    Channels,
    Count,
    CountOrZero,
    FilePath,
    FilePaths,
    Fraction,
    Interval,
    Length,
    LossWeight,
    OneOf,
    PixelSize,
    Rate,
    Ratio,
    Size,
    Text,
)

Domain = Annotated[str, OneOf(("source", "target"))]
PICTURES = ("colour", "overlay", "ids", "confidence", "npz")  # kinds of files that `predict` writes
FORMATS = ("onnx", "torch_export", "safetensors", "hub")  # of `export`


@dataclass
class PredictSettings:
    """Settings of `predict`: how images are read, what is written, and the page of `serve=true`."""

    size: Annotated[Any, PixelSize(("auto", None))] = "auto"
    """[height, width] that images are resized to fit inside; `auto`: that of the validation images, on which the
    network was scored; null: no resize."""

    bits: BitDepth | None = None
    """Used bits per channel of 16-bit images; null: as in training, or determined from the images."""

    outputs: Annotated[list[Annotated[str, OneOf(PICTURES)]], Length(1, len(PICTURES))] = field(
        default_factory=lambda: ["colour", "overlay", "ids", "confidence"]
    )
    """Files written of an image, each kind into a folder of its name: `colour`, `overlay`, `ids` (folder `labelIds`: in
    the encoding of the data set's label files), `confidence` (picture of the largest probability), `npz` (NumPy arrays:
    `ids`, the network's class ids, uint8 [H, W]; `confidence`, float16 [H, W]; `classes`, their names)."""

    probabilities: bool = False
    """`npz` also holds `probabilities`, float16 [classes, H, W]."""

    video: Annotated[str, OneOf(("overlay", "colour", "confidence", "beside"))] = "overlay"
    """Picture that a video shows: `overlay`, `colour`, `confidence`, or `beside`: the original, and the overlay."""

    batch: Count | None = None
    """Images of one size in a forward; null: one on a CPU, on a GPU as many as its memory holds. If memory is full, the
    batch is halved."""

    host: Text = "127.0.0.1"
    """Address that the page of `serve=true` is reached at; 127.0.0.1: by this machine alone."""

    port: Annotated[int, Interval(0, 65535)] = 7860
    """Port of the page; 0: any that is free."""


@dataclass
class ConvertSettings:
    """Settings of `convert`."""

    teacher: bool = False
    """Use the EMA copy as the student; `teacher=true` on the command line is short for it."""


@dataclass
class ExportSettings:
    """Settings of `export`."""

    output: Annotated[str, OneOf(("logits", "probabilities", "labels"))] = "logits"
    """Output of an exported graph, at the image's size: float32 `logits` or `probabilities` [N, K, H, W], or uint8
    `labels` [N, H, W]."""

    teacher: bool = False
    """Export the EMA teacher instead of the student."""

    size: Size | None = None
    """[height, width] of the images that a graph takes; null: any."""

    images: Annotated[int, Interval(1, 100)] = 4
    """Number of images that an exported graph is checked on."""

    tolerance: Annotated[float, Interval(0, 0.1)] = 1e-3
    """Largest difference of a probability from the network's that the check accepts (ours)."""

    licence: Text = "other"
    """Licence in the model card, as the hub spells it: `mit`, `apache-2.0`, ... It has to agree with the data and the
    initial weights."""

    runs: list[FilePath] = field(default_factory=list)
    """Folders or `result.json` files of runs of the same settings with other seeds, for mean, deviation and interval in
    the model card."""


@dataclass
class DepthSettings:
    """Settings of `depth`; defaults: Monodepth2 (Godard et al. 2019)."""

    supervision: Annotated[str, OneOf(("stereo", "monocular", "both"))] = "stereo"
    """Source of supervision: `stereo` pairs, `monocular` sequences, or `both`."""

    domains: Annotated[list[Domain], Length(1, 2)] = field(default_factory=lambda: ["source", "target"])
    """Domains to train on: `source`, `target`."""

    steps: Count = 40000
    """Optimiser steps."""

    batch: Count = 12
    """Images per step and rank."""

    lr: Rate = 1e-4
    """Learning rate of Adam, with polynomial decay."""

    encoder_lr: Ratio = 1.0
    """Learning rate of the depth network's encoder relative to `lr`."""

    pose_scale: Annotated[float, Interval(0.05, 1)] = 1.0
    """Input scale of the pose network."""

    clip_norm: Ratio | None = None
    """Maximum L2 norm of the gradient; null: no clipping."""

    widths: Annotated[list[Channels], Length(1, 16)] = field(default_factory=lambda: [16, 32, 64, 128, 256])
    """Channels of the decoder, full resolution first."""

    scales: Annotated[int, Interval(1, 5)] = 4
    """Number of supervised decoder levels."""

    smooth: LossWeight = 1e-3
    """Weight of the smoothness at the finest level."""

    auto_mask: bool = True
    """Leave out pixels that are static relative to the camera."""

    nearest: Ratio = 0.1
    """Depth at disparity 1, in the network's unit (the stereo baseline is a tenth of it)."""

    farthest: Ratio = 100.0
    """Depth at disparity 0."""

    crop: Size | None = None
    """[height, width] of training crops in pixels; null: whole images."""

    flip: bool = True
    """Flip half of the images horizontally."""

    jitter: Fraction = 0.1
    """Strength of the colour jitter."""

    val_count: Count = 100
    """Number of images of streets' validation split to score."""


@dataclass
class BenchSettings:
    """Settings of `bench`."""

    what: Annotated[list[str], Length(1, 32)] = field(default_factory=lambda: ["all"])
    """Benchmarks to run: overhead, methods, evaluator, mixing, memory, render, ema, reading, busy, classic, precision,
    phases, `all` of them, or against."""

    pairs: Count = 5
    """Number of A/B pairs whose median is the ratio."""

    steps: Count = 10
    """Training steps in each half of a pair."""

    scenes: Count = 100
    """Scenes to render of each domain of streets."""

    habits: list[Annotated[str, OneOf(("backward", "ema", "augment", "item"))]] = field(
        default_factory=lambda: ["backward", "ema", "augment", "item"]
    )
    """Habits of the original repositories that `classic` has."""

    tf32: bool = True
    """`classic` uses TF32 on a GPU, as under PyTorch 1.7, instead of full float32."""

    against: list[str] = field(default_factory=list)
    """Overrides of the other configuration; `against.KEY=VALUE` on the command line."""

    output: FilePath = "outputs/bench/bench.json"
    """JSON file of the results."""


@dataclass
class EvaluateConfig(Config):
    """Scoring of a trained network."""

    checkpoint: FilePath | None = None
    """Checkpoint of the network to score."""

    submission: Annotated[str | None, OneOf((*SERVERS, None))] = None
    """Write files for this benchmark's test server instead of scoring."""


@dataclass
class PredictConfig(Config):
    """Segmentation of images and videos."""

    checkpoint: FilePaths | None = None
    """Checkpoint of the network to predict with; with `serve=true` a list of several."""

    input: FilePath | None = None
    """A folder of images, one image, a glob in quotes, a text file with one path per line, or a video."""

    output: FilePath | None = None
    """Folder of the results; for a video also the file to write."""

    serve: bool = False
    """Open a page on this machine instead: drop an image there, or use the camera."""

    predict: PredictSettings = field(default_factory=PredictSettings)
    """Images, results, and the page."""

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"output": self.output}


@dataclass
class ExportConfig(Config):
    """Trained networks for other programs and other people."""

    checkpoint: FilePath | None = None
    """Checkpoint of the network to export."""

    format: Annotated[str | None, OneOf((*FORMATS, None))] = None
    """`onnx`, `torch_export` (.pt2), `safetensors`, or `hub`, a folder for the Hugging Face hub."""

    out: FilePath | None = None
    """The file to write, of `hub` the folder; default: in the folder `export` of the run."""

    input: FilePath | None = None
    """A folder of images, or one image, to check an exported graph on; null: images of the built-in streets."""

    push: Text | None = None
    """`owner/repository` on the hub that the folder is uploaded to."""

    export: ExportSettings = field(default_factory=ExportSettings)
    """Format, contents and check of an export."""

    predict: PredictSettings = field(default_factory=PredictSettings)
    """Reading of images."""

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"out": self.out}


@dataclass
class DepthConfig(Config):
    """Self-supervised depth."""

    checkpoint: FilePath | None = None
    """Checkpoint of a trained network, to score or export instead of training one."""

    export: bool = False
    """Write maps of the source and the target."""

    depth: DepthSettings = field(default_factory=DepthSettings)
    """Training of depth."""


@dataclass
class PrepareConfig(Config):
    """Check of a pair of domains before training."""

    fix: bool = False
    """Repair damaged files; nothing is deleted."""

    unpack: Annotated[str, OneOf(("auto", "all", "never"))] = "auto"
    """Unpack ZIPs in a root if folders are missing (`auto`), all missing files (`all`), or `never`."""

    pack: PackSettings = field(default_factory=PackSettings)
    """Pack the target's images into shards."""

    streets: StreetsSettings = field(default_factory=StreetsSettings)
    """Export the rendered streets in another data set's layout."""

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"pack.out": self.pack.out, "streets.out": self.streets.out}


@dataclass
class ConvertConfig(Config):
    """Conversion of a released checkpoint."""

    official: FilePath | None = None
    """A released checkpoint of DAFormer, HRDA, MIC, LC-MSM or CorDA."""

    out: FilePath | None = None
    """The checkpoint to write."""

    convert: ConvertSettings = field(default_factory=ConvertSettings)
    """The network to convert."""

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"out": self.out}


@dataclass
class BenchConfig(Config):
    """Measurement of the step and its parts."""

    bench: BenchSettings = field(default_factory=BenchSettings)
    """The measurements."""

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"bench.output": self.bench.output}


@dataclass
class ReportSettings:
    """Settings of `report`."""

    against: list[Text] = field(default_factory=lambda: ["source_only"])
    """Rows that the others are compared with, besides every control and the base rows of ablations: methods, names of
    rows, or their overrides, separated by blanks (`"method.text=none method.mask_ratio=0.3"`)."""

    draws: Annotated[int, Interval(100, 1_000_000)] = 2000
    """Bootstrap samples of an interval."""

    pictures: CountOrZero = 0
    """Number of the best and of the worst images to show with every method's prediction; 0: none is predicted."""

    title: Text | None = None
    """Title of the page; null: where the runs are."""


@dataclass
class ReportConfig(Config):
    """Comparison of many runs."""

    runs: FilePaths | None = None
    """Folder with runs or with their JSON files, a pattern in quotes, or a list of these."""

    out: FilePath | None = None
    """Folder of the page and its tables; null: `report` in the folder of the runs."""

    report: ReportSettings = field(default_factory=ReportSettings)
    """Contents of the page."""

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"out": self.out}


# Primary configuration, a file of `conf/` -> its schema. `config` is that of `train`.
COMMANDS: Mapping[str, type[Config]] = {
    "config": Config,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "depth": DepthConfig,
    "prepare": PrepareConfig,
    "convert": ConvertConfig,
    "bench": BenchConfig,
    "export": ExportConfig,
    "report": ReportConfig,
}
