"""Settings of every command as dataclasses: the one place of names, defaults, constraints and their explanation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from uda_seg.data.settings import DataSettings, DomainSettings, PackSettings, StreetsSettings
from uda_seg.evaluation.label_free import SCORES
from uda_seg.evaluation.servers import SERVERS
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings, TeacherSettings
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

VALIDATION_PANELS = ("disagreement", "prototypes", "features", "confidence")
Domain = Annotated[str, OneOf(("source", "target"))]
PICTURES = ("colour", "overlay", "ids", "confidence", "npz")  # kinds of files that `predict` writes
FORMATS = ("onnx", "torch_export", "safetensors", "hub")  # of `export`

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"


@dataclass
class TrainerSettings:
    """Hardware settings; except for `precision` they do not change the mathematics."""

    accelerator: Annotated[str, OneOf(("auto", "cpu", "gpu", "cuda", "mps"))] = "auto"
    """Kind of device: `cpu`, `gpu` (or its synonym `cuda`), `mps` (Apple), or `auto`, the best there is."""

    devices: Any = "auto"
    """Number of devices of each machine, a list of them, or `auto`, all."""

    num_nodes: Count = 1
    """Number of machines."""

    strategy: Annotated[str, OneOf(("auto", "ddp"))] = "auto"
    """Distribution over devices: `auto` is ddp on two or more of them; `ddp` also on one."""

    precision: Annotated[str, OneOf(("auto", "32-true", "bf16-mixed"))] = "auto"
    """Precision of the forward and backward passes: `auto` is bf16-mixed on devices with fast bf16, otherwise 32-true.
    Softmax, losses and thresholds are always float32."""

    max_steps: Count | None = None
    """Stop early after this many steps with the schedule unchanged; null runs all of `steps`."""

    timeout: Count = 1800
    """Seconds that a rank waits for others before it fails."""

    sync_batchnorm: bool = False
    """Compute batch-norm statistics over all ranks (GPUs only)."""

    deterministic: Annotated[Any, OneOf((False, True, "warn"))] = False
    """Use deterministic algorithms only (Lightning's flag); `warn` tells which have none instead of failing."""

    benchmark: bool = False
    """Let cuDNN select the fastest convolution for every new size."""

    profiler: Annotated[str | None, OneOf(("simple", "advanced", None))] = None
    """Lightning's profiler, which sums up the time of every hook: `simple`, or `advanced` by functions; null: none."""

    overfit: bool = False
    """Train repeatedly on the first batch."""


@dataclass
class LoggerSettings:
    """`csv` is always written; `kind` adds wandb or tensorboard."""

    kind: Annotated[str, OneOf(("csv", "wandb", "tensorboard"))] = "csv"
    """Dashboard besides the CSV file: `wandb` or `tensorboard`; `csv`: none."""

    log_every: Count = 20
    """Steps between logged points."""

    project: Text = "uda_seg"
    """Name of the W&B project."""

    entity: Text | None = None
    """W&B's user or team; null: WANDB_ENTITY, or the one that is logged in."""

    group: Text | None = None
    """Group of the run in W&B; null: the experiment, or the data with the sweep."""

    tags: list[Text] = field(default_factory=list)
    """Tags of the run in W&B, besides the data's name."""

    mode: Annotated[str | None, OneOf(("online", "offline", "disabled", None))] = None
    """W&B: `online`, `offline` (written into the run's folder, for `wandb sync`), or `disabled`; null: as WANDB_MODE
    says, otherwise online."""

    offline: bool = False
    """Short for `logger.mode=offline`."""

    artifacts: Annotated[str, OneOf(("last", "best", "none"))] = "none"
    """Checkpoint that W&B keeps when the run has ended: `last`, `best` (chosen on target labels), or `none`."""

    pictures: CountOrZero = 8
    """Validation images of each target that a dashboard shows; 0: none."""


@dataclass
class CallbackSettings:
    """Frequencies of callbacks, in times per run."""

    checkpoints: Count = 5
    """Number of times that `last.ckpt` is written."""

    panels: CountOrZero = 4
    """Number of times that image panels are written; 0: never."""

    validation_panels: Annotated[list[Annotated[str, OneOf(VALIDATION_PANELS)]], Length(0, 16)] = field(
        default_factory=lambda: ["disagreement", "prototypes"]
    )
    """Pictures that are drawn at validations, unless `panels` is 0: `disagreement` of student and teacher, BiCL's
    `prototypes` and their calibration, a map of pixel `features` by class and domain (PCA and t-SNE, seconds), and the
    `confidence` of pseudo-labels by class. The last two read validation labels, as an oracle may."""

    progress: bool = True
    """Show a progress bar (plain lines without a terminal)."""

    others: dict[str, Any] = field(default_factory=dict)
    """Further Lightning callbacks by name, each a class with its options; in files and on the command line they are
    next to the settings above."""


@dataclass
class EvaluatorSettings:
    """Evaluation settings."""

    times: Count = 2
    """Validations per run, the last one at its end."""

    inference: Annotated[str, OneOf(("whole", "slide"))] = "whole"
    """Input of a forward: `whole` images, or sliding windows (`slide`)."""

    window: Size = field(default_factory=lambda: [512, 512])
    """[height, width] of the window in pixels."""

    stride: Size = field(default_factory=lambda: [256, 256])
    """Vertical and horizontal stride of the window in pixels."""

    windows_per_batch: Count = 8
    """Windows per image in one forward."""

    scales: Annotated[list[Annotated[float, Interval(0.01, 10)]], Length(1, 32)] = field(default_factory=lambda: [1.0])
    """Scales of multi-scale inference, relative to the network's input size."""

    flip: bool = False
    """Add a horizontally flipped view of each scale."""

    average: Annotated[str, OneOf(("probabilities", "logits"))] = "probabilities"
    """Quantity averaged over scales and flips: `probabilities` (the papers' codes) or `logits`."""

    teacher: bool = False
    """Also score the teacher."""

    label_free: Annotated[list[Annotated[str, OneOf(SCORES)]], Length(0, 16)] = field(default_factory=list)
    """Scores that read no target label, computed at every validation on unlabelled training images of the target:
    `infomax` (confident pixels, and classes in the source's shares), `snd` (soft neighbourhood density),
    `masked_agreement` (of the masked student with the clean teacher, or the clean student without one). Of all, higher
    is better."""

    choose_by: Annotated[str | None, OneOf((*SCORES, None))] = None
    """The one of `label_free` that chooses `best_unsupervised.ckpt`; null: the first."""

    label_free_images: Count = 32
    """Number of images of the sample that `label_free` is computed on, the same in every run."""

    @property
    def chooser(self) -> str | None:
        """The score that chooses `best_unsupervised.ckpt`; None without any."""
        return self.choose_by or next(iter(self.label_free), None)


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
class Config:
    """Configuration of training; sub-classes add the keys of other commands."""

    model: dict[str, Any]
    """The network: `_target_` and its options."""

    method: dict[str, Any]
    """The method: `_target_` and its options."""

    steps: Count = 40000
    """Optimiser steps of the whole run; schedule, warm-up and rounds scale with it."""

    seed: Annotated[int, Interval(0, 2**32 - 1)] = 0
    """Seed of training; the rendered world has `data.world_seed`."""

    init: FilePath | None = None
    """Checkpoint with the initial weights of a new run."""

    resume: FilePath | None = None
    """`last`, or a checkpoint, to continue a run from."""

    overwrite: bool = False
    """Replace the run in this folder as soon as the new one has a checkpoint."""

    pretrained: FilePath | None = "imagenet"
    """The encoder's initial weights: `imagenet`, `builtin` (of the small networks), the path of a weights file,
    `hub:owner/repository` (Hugging Face), `timm:tag` (model=timm), or null."""

    pretrained_allow_missing: list[Text] = field(default_factory=list)
    """Names of the encoder's tensors or modules that the file may lack."""

    running_statistics: Annotated[str, OneOf(("all", "mixed", "target"))] = "all"
    """Training images that update batch norm's statistics for the test: `all` (released), only the `mixed` ones, or
    `target` crops before every validation (AdaBN)."""

    statistics_batches: Count = 40
    """Number of target batches that `running_statistics=target` averages over."""

    data: DataSettings = field(default_factory=DataSettings)
    """Training and validation data."""

    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """The optimiser and its parameter groups."""

    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """Warm-up and decay of the learning rate."""

    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    """The mean teacher and its pseudo-labels."""

    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """Hardware and precision."""

    logger: LoggerSettings = field(default_factory=LoggerSettings)
    """Loggers of a run."""

    callbacks: CallbackSettings = field(default_factory=CallbackSettings)
    """Checkpoints, image panels, progress, and further callbacks."""

    evaluator: EvaluatorSettings = field(default_factory=EvaluatorSettings)
    """Validation: its frequency, inference and scores."""

    def __post_init__(self) -> None:
        """Declare `origin`, set by composition; it is not part of the schema."""
        self.origin: Origin | None = None

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {}


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


@dataclass
class ReportSettings:
    """Settings of `report`."""

    against: list[Text] = field(default_factory=lambda: ["source_only"])
    """Methods, or names of rows, that the others are compared with, besides every control there is."""

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


def own_keys(kind: type[Config]) -> set[str]:
    """Return the top-level keys that a command has besides those of training."""
    return {f.name for f in fields(kind)} - {f.name for f in fields(Config)}


def primary(kind: type[Config]) -> str:
    """Return the name of a schema's primary configuration."""
    return next(name for name, found in COMMANDS.items() if found is kind)


def kind_of(tree: Iterable[Any]) -> type[Config]:
    """Tell a command's schema by the keys of its composed configuration."""
    return next((kind for kind in COMMANDS.values() if kind is not Config and own_keys(kind) <= {*tree}), Config)


def belongs_to(key: str, kind: type[Config]) -> str | None:
    """Name the commands that read a key which this one does not, in words that follow it; None if there are none."""
    name = key.partition(".")[0]
    owners = [f"uda_seg.{command}" for command, found in COMMANDS.items() if name in own_keys(found)]
    if not owners or name in own_keys(kind):
        return None
    command = "train" if kind is Config else primary(kind)
    said = f"is read by {', '.join(owners)}, not by uda_seg.{command}"
    if key == "checkpoint":
        return f"{said}: to begin with its weights say init=..., to continue its run resume=..."
    return said


# Keys of older versions -> their names now.
RENAMED = {
    "text": "method.text",
    "masking.weight": "method.mask_weight",
    "masking.ratio": "method.mask_ratio",
    "model.recompute": "model.activation_checkpointing",
}


def renamed(key: str) -> str | None:
    """Say what a key of older versions is called now, in words that follow it; None if it is none."""
    found = [now for before, now in RENAMED.items() if f"{before}.".startswith(f"{key}.")]
    return f"is now {' and '.join(found)}" if found and key not in ("model", "method") else None


def plain_defaults(kind: type[Config]) -> dict[str, Any]:
    """Return the defaults of a command's own keys, of `Config` of all keys, as plain values.

    They are composed below the files of `conf/`, which say only what differs. The network, the method, and the name and
    data sets of `data` have none.
    """
    tree = asdict(kind(model={}, method={}))
    if kind is not Config:
        return {key: tree[key] for key in own_keys(kind)}
    for key in ("model", "method"):
        del tree[key]
    del tree["callbacks"]["others"]
    tree["data"]["target"] = asdict(DomainSettings())
    tree["data"]["name"] = tree["data"]["source"]["dataset"] = tree["data"]["target"]["dataset"] = MISSING
    return tree


def _stored(kind: type[Config]) -> DictConfig:
    """Return the defaults with room for options that no file of a network or method states; `parse` knows them."""
    tree = OmegaConf.create(plain_defaults(kind))
    for key in ("model", "method") if kind is Config else ():
        tree[key] = {}
        OmegaConf.set_struct(tree[key], False)
    return tree


for _name, _kind in COMMANDS.items():
    ConfigStore.instance().store(f"{_name}_defaults", _stored(_kind), provider="uda_seg")


def groups() -> set[str]:
    """Return the configuration's groups, the folders of `conf/`."""
    return {path.name for path in CONF.iterdir() if path.is_dir()}


@dataclass(frozen=True)
class Origin:
    """Sources of a configuration: the choice in each group, and the overrides."""

    choices: Mapping[str, str]
    overrides: Sequence[str]

    @classmethod
    def of(cls, hydra: Any) -> Origin:
        """Read them from Hydra's own node."""
        choices = {k: str(v) for k, v in hydra.runtime.choices.items() if k in groups() and v is not None}
        return cls(choices, [str(override) for override in hydra.overrides.task])
