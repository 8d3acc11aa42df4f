"""`python -m uda_seg.depth data=...`: train self-supervised depth, evaluate it, and export maps for CorDA.

depth.supervision=stereo|monocular|both   training signal
depth.domains=[source,target]             training domains
checkpoint=FILE                           use a trained network instead of training one
export=true                               write maps of data.source and data.target to the run's folder, <run>/maps;
                                          then train method=corda data.source.depth=<run>/maps/game
                                          data.target.depth=<run>/maps/camera

Images without sequences, such as CamVid's (in UDA_SEG_CAMVID), get maps from a network trained on other images:
  python -m uda_seg.depth data=streets
  python -m uda_seg.depth checkpoint=<run>/checkpoints/last.ckpt data=streets2camvid export=true
  python -m uda_seg.train method=corda data=streets2camvid
where <run> is outputs/streets/depth_stereo_daformer_small/seed0; maps of another run:
data.target.depth=<run>/maps/camvid

Scores of a network given by checkpoint= are written to <run>/evaluation/<data>.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger
from torch import Tensor

from uda_seg.callbacks.checkpoint import LastCheckpoint
from uda_seg.callbacks.csv_log import CSVLog
from uda_seg.callbacks.progress import ProgressBar
from uda_seg.callbacks.stop import Stop
from uda_seg.cli.arguments import as_override, given_path
from uda_seg.cli.command import run
from uda_seg.config.commands import DepthConfig
from uda_seg.config.naming import plain_name
from uda_seg.config.replay import describe, replay
from uda_seg.config.schema import key_of
from uda_seg.data.depth_layouts import maps_name
from uda_seg.data.sequence_module import SequenceData
from uda_seg.data.sequences import SequenceDataset, stack
from uda_seg.errors import UserError
from uda_seg.evaluation.depth import DepthEvaluator, DepthScores
from uda_seg.evaluation.tables import Table
from uda_seg.launch.devices import one_device
from uda_seg.launch.ranks import on_all_ranks
from uda_seg.methods.depth import SelfSupervisedDepth
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings, StepPlan
from uda_seg.models.depth import DepthHead, PoseNetwork
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.trial import trained, try_out
from uda_seg.models.weights import check_tensors
from uda_seg.runs.build import interval, new_trainer, own_callbacks, quiet_lightning
from uda_seg.runs.checkpoint import read_checkpoint
from uda_seg.runs.depth_maps import Scale, export_domain
from uda_seg.runs.folder import RunFolder, alone_in, run_folder
from uda_seg.runs.record import write_json, write_record
from uda_seg.storage.files import save_png, write_text
from uda_seg.visualize.pictures import Captioned, Row, heat, panel_grid

log = logging.getLogger(__name__)

SCENES = 4  # scenes in the picture
MEDIAN_SCENES = 200  # training images for the median baseline
USAGE = "python -m uda_seg.depth checkpoint=<run>/checkpoints/last.ckpt"


def main() -> None:
    """Run the command."""
    run(DepthConfig, on_all_ranks(depth), expand=expand)


def expand(given: list[str]) -> list[str]:
    """Choose a folder next to the segmentation runs; with a checkpoint, its folder and configuration."""
    if not any(override.startswith("checkpoint=") for override in given):
        name = "depth_${depth.supervision}_${hydra:runtime.choices.model}${variant:${hydra:overrides.task}}"
        swept = name.replace("task}}", "task},${swept:}}")
        one = f"hydra.run.dir='outputs/${{data.name}}/{name}/seed${{seed}}'"
        return [one, f"hydra.sweep.subdir='{swept}/seed${{seed}}'", *given]
    path = given_path(given, "checkpoint", USAGE)
    if path.absolute().parent.name != "checkpoints" and not any(key_of(o) == "hydra.run.dir" for o in given):
        raise UserError(f"{path} is in no run's folder that could have the maps: say hydra.run.dir=FOLDER")
    replayed = replay(read_checkpoint(path), given, DepthConfig)
    return [as_override("hydra.run.dir", str(path.absolute().parent.parent)), *replayed]


def depth(config: DepthConfig, folder: Path) -> float:
    """Train or load, evaluate, draw, export; return the first domain's abs-rel (NaN without exact depth)."""
    quiet_lightning()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    module = build_module(config, data)
    if config.checkpoint is None:
        with run_folder(folder, config, config.depth.steps) as place:
            trainer, scale = learn(config, place, data, module)
            report(module, data, trainer, folder)
    else:
        scores = folder / "evaluation" / plain_name(config.data.name)
        with alone_in(scores, "an evaluation"):
            data.setup("validate")
            trainer, scale = build_trainer(config, folder, {}), load(module, Path(config.checkpoint))
            report(module, data, trainer, scores)
    if config.export and trainer.is_global_zero:
        with alone_in(folder / "maps", "an export of depth maps"):
            export(config, module, scale, folder)
    return next((found.abs_rel for found in module.scores.values()), float("nan"))


def learn(
    config: DepthConfig, place: RunFolder, data: SequenceData, module: SelfSupervisedDepth
) -> tuple[pl.Trainer, Scale]:
    """Train, and return the trainer and the network's unit of depth."""
    folder, resume = place.folder, place.resume
    if resume is not None:
        read_fitting(resume, module, ("network.", "pose."))
    data.prepare_data()
    check_crop(config, data, module)
    learnt = zip(data.domains.values(), data.train, strict=True)
    scale = Scale({d.domain or d.dataset: float(samples[0].baseline[0]) for d, samples in learnt})
    place.begin()
    write_record(folder, config)
    log.info("training depth on %d images", sum(len(domain) for domain in data.train))
    trainer = build_trainer(config, folder, describe(config) | {"depth": asdict(scale)}, place.tenant())
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer, scale


def check_crop(config: DepthConfig, data: SequenceData, module: SelfSupervisedDepth) -> None:
    """Raise UserError if `depth.crop` does not fit the resized images, or the network refuses it."""
    crop = config.depth.crop
    for name, samples in zip(data.domains, data.train, strict=True):
        height, width = samples[0].image.shape[-2:]
        if crop is not None and (crop[0] > height or crop[1] > width):
            raise UserError(
                f"depth.crop={crop} is larger than the images of data.{name}, which are [{height}, {width}] (height, "
                f"width) after the resize: make the crop smaller or data.{name}.size larger"
            )
        try_out(module.network, trained, config.depth.batch, crop or (height, width))


def build_data(config: DepthConfig) -> SequenceData:
    """Build the data module."""
    s = config.depth
    return SequenceData(config.data, s.domains, s.supervision, s.batch, s.steps, config.seed, s.val_count)


def build_module(config: DepthConfig, data: SequenceData) -> SelfSupervisedDepth:
    """Build depth and pose network on the configured encoder."""
    s = config.depth
    # A plain network on the configured encoder, also if segmentation uses two resolutions.
    own = ("mean", "std", "channel_order", "activation_checkpointing")
    options = {key: value for key, value in config.model.items() if key in own}
    encoder, head = instantiate(config.model["encoder"]), partial(DepthHead, widths=s.widths)
    network = Segmentor(encoder, head, 1, **options)
    pose = None if s.supervision == "stereo" else PoseNetwork(instantiate(config.model["encoder"]))
    plan = StepPlan(
        steps=s.steps,
        seed=config.seed,
        log_every=config.logger.log_every,
        optimizer=OptimizerSettings(lr=s.lr, weight_decay=0.0, clip_norm=s.clip_norm),
        schedule=ScheduleSettings(warmup=0.0, power=0.9),
    )
    return SelfSupervisedDepth(
        network,
        pose,
        plan,
        views=data.views,
        targets=data.validation_names,
        scales=s.scales,
        smooth=s.smooth,
        auto_mask=s.auto_mask,
        nearest=s.nearest,
        farthest=s.farthest,
        crop=s.crop,
        flip=s.flip,
        jitter=s.jitter,
        encoder_lr=s.encoder_lr,
        pose_scale=s.pose_scale,
    )


def build_trainer(config: DepthConfig, folder: Path, content: dict[str, Any], *more: pl.Callback) -> pl.Trainer:
    """Build Lightning's trainer; a batch is a step. `content` is stored in checkpoints to rebuild the network."""
    steps = config.depth.steps
    callbacks: list[pl.Callback] = [ProgressBar()] if config.callbacks.progress else []
    loggers: list[Logger] = []
    if config.checkpoint is None:  # training
        checkpoints = LastCheckpoint(folder / "checkpoints", interval(steps, config.callbacks.checkpoints), content)
        callbacks += [checkpoints, *more, *own_callbacks(config, folder), Stop(checkpoints)]
        loggers.append(CSVLog(folder / "metrics.csv"))
    return new_trainer(config, folder, steps, loggers, callbacks)


def load(module: SelfSupervisedDepth, path: Path) -> Scale:
    """Load the depth network from a checkpoint of this command and return its unit of depth."""
    content = read_fitting(path, module, ("network.",))
    found = {n: t for n, t in content["state_dict"].items() if n.startswith("network.")}
    module.load_state_dict(found, strict=False)
    return Scale.read(content["uda_seg"]["depth"])


def read_fitting(path: Path, module: SelfSupervisedDepth, parts: tuple[str, ...]) -> dict[str, Any]:
    """Read a checkpoint of this command after checking that its networks, or the named ones, match the module's.

    Raises:
        UserError: other networks, or not a depth network.
    """
    content = read_checkpoint(path)
    if "depth" not in content["uda_seg"]:
        raise UserError(f"{path} is no checkpoint of python -m uda_seg.depth")
    check_tensors(content["state_dict"], module.state_dict(), path)
    found, wanted = (
        {n: getattr(t, "shape", None) for n, t in state.items() if n.startswith(parts)}
        for state in (content["state_dict"], module.state_dict())
    )
    if found != wanted:
        first = min(n for n, _ in set(found.items()) ^ set(wanted.items()))
        raise UserError(
            f"{path} is of another network: {first} does not fit; leave model= and depth= as they were in training"
        )
    return content


# ---------------------------------------------------------------------- evaluation


def report(module: SelfSupervisedDepth, data: SequenceData, trainer: pl.Trainer, folder: Path) -> None:
    """Score against exact depth, with a baseline that needs no training; print, write and draw the results."""
    if not data.validation:
        names = " and ".join(domain.domain or domain.dataset for domain in data.domains.values())
        log.info("no scores: there is no exact depth of %s", names)
        return
    if module.scored_step != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return
    rows: dict[str, DepthScores] = {}
    for name, scores in module.scores.items():
        rows[name] = scores
        rows[f"{name}, each pixel's median"] = median_baseline(data, name, not module.metric)
    scaling = "in metres" if module.metric else "after median scaling"
    table = Table(
        ("depth", "abs-rel", "sq-rel", "rmse", "log", "d1", "d2", "d3"),
        tuple((name, *(f"{value:.3f}" for value in scores)) for name, scores in rows.items()),
        f"predicted against exact depth, {scaling}, below 80 m; dn: share within a factor of 1.25^n"
        + (f"; {data.seen}" if data.seen else ""),
    )
    table.show()
    write_text(folder / "depth.md", table.markdown())
    write_json(folder / "depth_metrics.json", {name: scores._asdict() for name, scores in rows.items()})
    save_png(folder / "depth.png", picture(module, data))


def median_baseline(data: SequenceData, name: str, median_scaling: bool) -> DepthScores:
    """Score the prediction of each pixel's median over training images, on the same validation images."""
    train = SequenceDataset(data.domains[name], data.settings, data.classes, f"data.{name}", (), depth=True)
    depths = [train[i].depth for i in range(min(len(train), MEDIAN_SCENES))]
    known = torch.cat([depth for depth in depths if depth is not None])
    constant = torch.where(known > 0, known, torch.nan).nanmedian(0, keepdim=True).values.nan_to_num(80.0)
    evaluator = DepthEvaluator(median_scaling)
    for index in range(len(data.validation[name])):
        exact = data.validation[name][index].depth
        assert exact is not None
        evaluator.update(constant, exact)
    return evaluator.compute()


@torch.no_grad()
def picture(module: SelfSupervisedDepth, data: SequenceData) -> NDArray[np.uint8]:
    """Draw images, exact and predicted depth of a few scenes of every domain."""
    module.eval()
    rows = []
    for name, samples in data.validation.items():
        batch = stack([samples[int(i)] for i in np.linspace(0, len(samples) - 1, SCENES)]).to(module.device)
        assert batch.depth is not None
        predicted = module.depth(batch.image / 255, batch.baseline)
        if not module.metric:
            predicted = predicted * (batch.depth[batch.depth > 0].median() / predicted.median())
        rows.append(Row(name, [Captioned("", image.permute(1, 2, 0).cpu().numpy()) for image in batch.image]))
        rows.append(Row("exact", [Captioned("", shade(metres)) for metres in batch.depth]))
        rows.append(Row("predicted", [Captioned("", shade(metres)) for metres in predicted]))
    return panel_grid(rows, height=160)


def shade(metres: Tensor) -> NDArray[np.uint8]:
    """Draw depth [1, H, W]: near yellow, far dark, unknown grey; logarithmic from 2 to 80 m."""
    nearness = 1 - (metres[0].clamp(2.0, 80.0) / 2.0).log() / np.log(40.0)
    return heat(torch.where(metres[0] > 0, nearness, torch.nan).float().cpu().numpy())


# ---------------------------------------------------------------------- maps


def export(config: DepthConfig, module: SelfSupervisedDepth, scale: Scale, folder: Path) -> None:
    """Write maps of every image of sources and targets to `maps/<domain>`."""
    device = one_device(config.trainer)
    module = module.to(device).eval()
    for option, domain in (config.data.sources | config.data.targets).items():
        if option == "data.target" and config.data.reader == "shards":
            log.info("data.reader=shards: no maps of the target, because no method reads depth with shards")
        else:
            export_domain(
                config,
                module,
                domain,
                option,
                folder / "maps" / plain_name(maps_name(config.data, option, domain)),
                scale,
            )


if __name__ == "__main__":
    main()
