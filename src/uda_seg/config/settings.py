"""Settings of every command as dataclasses: the one place of names, defaults, constraints and their explanation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from hydra.core.config_store import ConfigStore

from uda_seg.data.settings import DataSettings, DomainSettings, PackSettings, StreetsSettings
from uda_seg.evaluation.servers import SERVERS
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings, TeacherSettings
from uda_seg.options.constraints import (
    BitDepth,
    Channels,
    Count,
    CountOrZero,
    FilePath,
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

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"


@dataclass
class TrainerSettings:
    """Hardware settings; except for `precision` they do not change the mathematics.

    Attributes:
        accelerator: cpu, gpu (or its synonym cuda), mps (Apple) or auto.
        devices: number of devices, or auto.
        num_nodes: number of machines.
        strategy: `auto` is ddp on two or more devices; `ddp` also on one.
        precision: `auto` is bf16-mixed on devices with fast bf16, otherwise 32-true.
        max_steps: stop early after this many steps with the schedule unchanged; null runs all of `steps`.
        timeout: seconds that a rank waits for others before it fails.
        sync_batchnorm: batch-norm statistics over all ranks (only GPUs).
        deterministic: Lightning's flag: true, false or `warn`.
        benchmark: let cuDNN select the fastest convolution for every new size.
        profiler: simple, advanced or null.
        overfit: train repeatedly on the first batch.
    """

    accelerator: Annotated[str, OneOf(("auto", "cpu", "gpu", "cuda", "mps"))] = "auto"
    devices: Any = "auto"
    num_nodes: Count = 1
    strategy: Annotated[str, OneOf(("auto", "ddp"))] = "auto"
    precision: Annotated[str, OneOf(("auto", "32-true", "bf16-mixed"))] = "auto"
    max_steps: Count | None = None
    timeout: Count = 1800
    sync_batchnorm: bool = False
    deterministic: Annotated[Any, OneOf((False, True, "warn"))] = False
    benchmark: bool = False
    profiler: Annotated[str | None, OneOf(("simple", "advanced", None))] = None
    overfit: bool = False


@dataclass
class LoggerSettings:
    """`csv` is always written; `kind` adds wandb or tensorboard.

    Attributes:
        kind: csv, wandb or tensorboard.
        log_every: steps between log entries.
        project: W&B project.
        offline: W&B writes only to the run's folder.
        tags: W&B tags.
    """

    kind: Annotated[str, OneOf(("csv", "wandb", "tensorboard"))] = "csv"
    log_every: Count = 20
    project: Text = "uda_seg"
    offline: bool = False
    tags: list[Text] = field(default_factory=list)


@dataclass
class CallbackSettings:
    """Frequencies of callbacks, in times per run.

    Attributes:
        checkpoints: number of times that `last.ckpt` is written.
        panels: number of times that image panels are written; 0: never.
        progress: show a progress bar (plain lines without a terminal).
        others: further Lightning callbacks by name, each a class with its options; in files and on the command line
            they are next to the settings above.
    """

    checkpoints: Count = 5
    panels: CountOrZero = 4
    progress: bool = True
    others: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluatorSettings:
    """Evaluation settings.

    Attributes:
        times: validations per run, the last one at its end.
        inference: `whole` images or sliding windows (`slide`).
        window: height and width of the window.
        stride: vertical and horizontal stride of the window.
        windows_per_batch: windows per image in one forward.
        scales: scales of multi-scale inference, relative to the network's input size.
        flip: add a horizontally flipped view of each scale.
        average: quantity averaged over scales and flips: `probabilities` (the papers' codes) or `logits`.
        teacher: also score the teacher.
    """

    times: Count = 2
    inference: Annotated[str, OneOf(("whole", "slide"))] = "whole"
    window: Size = field(default_factory=lambda: [512, 512])
    stride: Size = field(default_factory=lambda: [256, 256])
    windows_per_batch: Count = 8
    scales: Annotated[list[Annotated[float, Interval(0.01, 10)]], Length(1, 32)] = field(default_factory=lambda: [1.0])
    flip: bool = False
    average: Annotated[str, OneOf(("probabilities", "logits"))] = "probabilities"
    teacher: bool = False


@dataclass
class PredictSettings:
    """Input settings of `predict`.

    Attributes:
        size: [height, width] that images are resized to fit inside; `auto`: that of the validation images, on which the
            network was scored; null: no resize.
        bits: used bits per channel of 16-bit images; null: as in training, or determined from the images.
    """

    size: Annotated[Any, PixelSize(("auto", None))] = "auto"
    bits: BitDepth | None = None


@dataclass
class ConvertSettings:
    """Settings of `convert`.

    Attributes:
        teacher: use the EMA copy as the student; `teacher=true` on the command line is short for it.
    """

    teacher: bool = False


@dataclass
class DepthSettings:
    """Settings of `depth`; defaults: Monodepth2 (Godard et al. 2019).

    Attributes:
        supervision: `stereo` pairs, `monocular` sequences, or `both`.
        domains: training domains: source, target.
        steps: optimiser steps.
        batch: images per step and rank.
        lr: learning rate of Adam, with polynomial decay.
        encoder_lr: learning rate of the depth network's encoder relative to `lr`.
        pose_scale: input scale of the pose network.
        clip_norm: maximum L2 norm of the gradient; null: no clipping.
        widths: channels of the decoder, full resolution first.
        scales: number of supervised decoder levels.
        smooth: weight of the smoothness at the finest level.
        auto_mask: leave out pixels that are static relative to the camera.
        nearest: depth at disparity 1, in the network's unit (the stereo baseline is a tenth of it).
        farthest: depth at disparity 0.
        crop: [height, width] of training crops; null: whole images.
        flip: flip half of the images horizontally.
        jitter: strength of the colour jitter.
        val_count: number of images of streets' validation split to score.
    """

    supervision: Annotated[str, OneOf(("stereo", "monocular", "both"))] = "stereo"
    domains: Annotated[list[Domain], Length(1, 2)] = field(default_factory=lambda: ["source", "target"])
    steps: Count = 40000
    batch: Count = 12
    lr: Rate = 1e-4
    encoder_lr: Ratio = 1.0
    pose_scale: Annotated[float, Interval(0.05, 1)] = 1.0
    clip_norm: Ratio | None = None
    widths: Annotated[list[Channels], Length(1, 16)] = field(default_factory=lambda: [16, 32, 64, 128, 256])
    scales: Annotated[int, Interval(1, 5)] = 4
    smooth: LossWeight = 1e-3
    auto_mask: bool = True
    nearest: Ratio = 0.1
    farthest: Ratio = 100.0
    crop: Size | None = None
    flip: bool = True
    jitter: Fraction = 0.1
    val_count: Count = 100


@dataclass
class BenchSettings:
    """Settings of `bench`.

    Attributes:
        what: overhead, methods, evaluator, mixing, memory, render, ema, reading, busy, classic, precision, phases,
            `all` of them, or against.
        pairs: number of A/B pairs whose median is the ratio.
        steps: training steps in each half of a pair.
        scenes: scenes to render of each domain of streets.
        habits: habits of the original repositories that `classic` has.
        tf32: `classic` uses TF32 on a GPU, as under PyTorch 1.7, instead of full float32.
        against: overrides of the other configuration; `against.KEY=VALUE` on the command line.
        output: JSON file of the results.
    """

    what: Annotated[list[str], Length(1, 32)] = field(default_factory=lambda: ["all"])
    pairs: Count = 5
    steps: Count = 10
    scenes: Count = 100
    habits: list[Annotated[str, OneOf(("backward", "ema", "augment", "item"))]] = field(
        default_factory=lambda: ["backward", "ema", "augment", "item"]
    )
    tf32: bool = True
    against: list[str] = field(default_factory=list)
    output: FilePath = "outputs/bench/bench.json"


@dataclass
class Config:
    """A run: what training reads. Other commands read it too, and add what is theirs in a class of their own.

    Attributes:
        steps: optimiser steps of the whole run; schedule, warm-up and rounds scale with it.
        seed: seed of training; the rendered world has `data.world_seed`.
        init: checkpoint with the initial weights of a new run.
        resume: `last`, or a checkpoint, to continue a run from.
        overwrite: replace the run in this folder as soon as the new one has a checkpoint.
        running_statistics: batch-norm statistics at test: `all` (released), `mixed` or `target` (AdaBN).
        statistics_batches: number of target batches for `target`.
        pretrained: the encoder's initial weights: `imagenet`, `builtin` (of the small networks), the path of a weights
            file, `hub:owner/repository` (Hugging Face), `timm:tag` (model=timm), or null.
        pretrained_allow_missing: names of the encoder's tensors or modules that the file may lack.
    """

    model: dict[str, Any]
    method: dict[str, Any]
    steps: Count = 40000
    seed: Annotated[int, Interval(0, 2**32 - 1)] = 0
    init: FilePath | None = None
    resume: FilePath | None = None
    overwrite: bool = False
    pretrained: FilePath | None = "imagenet"
    pretrained_allow_missing: list[Text] = field(default_factory=list)
    running_statistics: Annotated[str, OneOf(("all", "mixed", "target"))] = "all"
    statistics_batches: Count = 40
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    callbacks: CallbackSettings = field(default_factory=CallbackSettings)
    evaluator: EvaluatorSettings = field(default_factory=EvaluatorSettings)

    def __post_init__(self) -> None:
        """Leave room for what the configuration was composed from, which is not part of the schema."""
        self.origin: Origin | None = None

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {}


@dataclass
class EvaluateConfig(Config):
    """Scoring of a trained network.

    Attributes:
        checkpoint: the network.
        submission: write files for this benchmark's test server instead of scoring.
    """

    checkpoint: FilePath | None = None
    submission: Annotated[str | None, OneOf((*SERVERS, None))] = None


@dataclass
class PredictConfig(Config):
    """Segmentation of a folder of images.

    Attributes:
        checkpoint: the network.
        input: a folder of images, or one image.
        output: folder for colour, overlay, labelIds and confidence.
        predict: how images are read.
    """

    checkpoint: FilePath | None = None
    input: FilePath | None = None
    output: FilePath | None = None
    predict: PredictSettings = field(default_factory=PredictSettings)

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"output": self.output}


@dataclass
class DepthConfig(Config):
    """Self-supervised depth.

    Attributes:
        checkpoint: a trained network, to score or export instead of training one.
        export: write maps of the source and the target.
        depth: how depth is learnt.
    """

    checkpoint: FilePath | None = None
    export: bool = False
    depth: DepthSettings = field(default_factory=DepthSettings)


@dataclass
class PrepareConfig(Config):
    """Check of a pair of domains before training.

    Attributes:
        fix: repair damaged files; nothing is deleted.
        unpack: unpack ZIPs in a root if folders are missing (`auto`), all missing files (`all`), or `never`.
        pack: pack the target's images into shards.
        streets: export the rendered streets in another data set's layout.
    """

    fix: bool = False
    unpack: Annotated[str, OneOf(("auto", "all", "never"))] = "auto"
    pack: PackSettings = field(default_factory=PackSettings)
    streets: StreetsSettings = field(default_factory=StreetsSettings)

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"pack.out": self.pack.out, "streets.out": self.streets.out}


@dataclass
class ConvertConfig(Config):
    """Conversion of a released checkpoint.

    Attributes:
        official: a released checkpoint of DAFormer, HRDA, MIC, LC-MSM or CorDA.
        out: the checkpoint to write.
        convert: which of its networks to take.
    """

    official: FilePath | None = None
    out: FilePath | None = None
    convert: ConvertSettings = field(default_factory=ConvertSettings)

    def places(self) -> dict[str, str | None]:
        """Return the places that are written besides the run's folder, by key."""
        return {"out": self.out}


@dataclass
class BenchConfig(Config):
    """Measurement of the step and its parts.

    Attributes:
        bench: what is measured.
    """

    bench: BenchSettings = field(default_factory=BenchSettings)


# Primary configuration, a file of `conf/` -> its schema. `config` is that of `train`.
COMMANDS: Mapping[str, type[Config]] = {
    "config": Config,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "depth": DepthConfig,
    "prepare": PrepareConfig,
    "convert": ConvertConfig,
    "bench": BenchConfig,
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
    """Say whose a key is that this command does not read, in words that follow the key; None if it is nobody's."""
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

    They are composed below the files of `conf/`, which say only what differs. The network and the method have none.
    """
    tree = asdict(kind(model={}, method={}))
    if kind is not Config:
        return {key: tree[key] for key in own_keys(kind)}
    for key in ("model", "method"):
        del tree[key]
    del tree["callbacks"]["others"]
    tree["data"]["target"] = asdict(DomainSettings())
    return tree


for _name, _kind in COMMANDS.items():
    ConfigStore.instance().store(f"{_name}_defaults", plain_defaults(_kind), provider="uda_seg")


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
