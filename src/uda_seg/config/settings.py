"""Settings of every command as dataclasses: the one place of names, defaults, constraints and their explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from uda_seg.data.settings import DataSettings
from uda_seg.evaluation.label_free import SCORES
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings, TeacherSettings
from uda_seg.options.constraints import (
    Count,
    CountOrZero,
    FilePath,
    Interval,
    Length,
    OneOf,
    Size,
    Text,
)

VALIDATION_PANELS = ("disagreement", "prototypes", "features", "confidence")

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
