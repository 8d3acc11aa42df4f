"""`python -m uda_seg.train`: train a method on a pair of domains."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from uda_seg.callbacks.checkpoint import Checkpoints, Chosen
from uda_seg.cli.command import run
from uda_seg.config.compose import departures, stand_ins
from uda_seg.config.schema import Config
from uda_seg.data.datamodule import UDADataModule
from uda_seg.evaluation.evaluator import mean_scores
from uda_seg.evaluation.servers import refuse_unlabelled
from uda_seg.launch.ranks import on_all_ranks
from uda_seg.launch.rendezvous import this_rank
from uda_seg.methods.base import UDAModule
from uda_seg.runs.build import (
    build_data,
    build_module,
    build_trainer,
    check_crop,
    may_stop,
    quiet_lightning,
    try_sizes,
)
from uda_seg.runs.checkpoint import check_same, load_weights, read_checkpoint, say_changes
from uda_seg.runs.folder import RunFolder, run_folder
from uda_seg.runs.loggers import close_loggers
from uda_seg.runs.record import write_json, write_record
from uda_seg.runs.result import start_digest, watch_memory, write_run
from uda_seg.sweeps.table import job_of, write_table

log = logging.getLogger(__name__)


def main() -> None:
    """Run the command."""
    run(Config, job_of(on_all_ranks(train)), after=write_table)


def train(config: Config, folder: Path, *callbacks: pl.Callback) -> float:
    """Train and evaluate a run, and return the mIoU after the last step, in [0, 1]; NaN without validation sets.

    Args:
        config: of the run.
        folder: of the run.
        callbacks: further Lightning callbacks, for calls from Python.
    """
    quiet_lightning()
    refuse_unlabelled(config.data)
    watch_memory()
    with run_folder(folder, config, config.steps) as place:
        return train_in(place, config, *callbacks)


def train_in(place: RunFolder, config: Config, *callbacks: pl.Callback) -> float:
    """Train in this run's folder; a run to replace is only touched once everything has been built and checked."""
    folder, resume, first = place.folder, place.resume, this_rank() == 0
    if first:
        say_choices(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config, resume)
    data.find()
    if first and not data.validation_names:
        log.warning("there are no labels to validate on: metrics.json will have no scores, and no best.ckpt is written")
    module = build_module(config, data)
    check_crop(config, module.segmentor)
    init = None if config.init is None else read_checkpoint(Path(config.init))  # a wrong one fails before rendering
    module.setup("fit")  # missing weights or class text fail before rendering
    # Other ranks wait for it in `fit`, which does the same once per machine.
    if first:
        data.prepare_data()
        data.setup()
        try_sizes(config, module, data)
    seen = 0
    if init is not None:
        log.info("init: %s", load_weights(module, Path(str(config.init))))
        seen = int(init["uda_seg"]["source_images"])
    if resume is not None:
        check_same(module, resume, config)
        say_changes(resume, config)
    place.begin()
    write_record(folder, config)
    if first:
        data.labelled.write(folder)
    trainer = build_trainer(config, folder, data, seen, place.tenant(), *callbacks)
    say_batch(config, data, trainer.world_size, None if resume is None else read_checkpoint(resume)["uda_seg"])
    checkpoints = with_start(trainer, module, resume)
    failed = True
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        say_stop(config, trainer)
        if data.validation_names and module.scored_step != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False)
        if trainer.is_global_zero:
            write_json(folder / "metrics.json", collect(config, data, module, trainer, checkpoints, seen))
            write_run(folder, config, data, module, trainer, checkpoints, seen)
            say_score(folder, module, trainer.global_step)
        failed = False
    finally:
        close_loggers(trainer, failed)
    trainer.strategy.barrier()  # another machine's next job needs this one's results
    return module.miou


def with_start(trainer: pl.Trainer, module: UDAModule, resume: Path | None) -> Checkpoints:
    """Return the checkpoints' callback, which keeps the digest of the initial weights: a resumed run's are gone."""
    found = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
    known = start_digest(module.segmentor) if resume is None else read_checkpoint(resume)["uda_seg"].get("start")
    found.content |= {} if known is None else {"start": known}
    return found


def say_stop(config: Config, trainer: pl.Trainer) -> None:
    """Log that a callback has ended the run early, if one has."""
    if is_stopped(trainer):
        names = " or ".join(f"callbacks.{name}" for name in may_stop(config))
        log.info("stopped early after step %d of %d by %s", trainer.global_step, config.steps, names)


def is_stopped(trainer: pl.Trainer) -> bool:
    """Return whether a callback has ended the run early."""
    return bool(trainer.should_stop) and trainer.global_step < trainer.max_steps


def say_score(folder: Path, module: UDAModule, step: int) -> None:
    """Log the score after the last step."""
    score = f"mIoU {100 * module.miou:.1f} %" if module.scores else "no scores"
    log.info("%s (after the last step, %d) in %s", score, step, folder)


def say_choices(config: Config) -> None:
    """Log how settings differ from the method's defaults, and what stands in for something that is not installed."""
    if changed := departures(config):
        log.info("differs from the method's defaults (in brackets): %s", ", ".join(changed))
    for line in stand_ins():
        log.info("%s", line)


def say_batch(config: Config, data: UDADataModule, world_size: int, before: Mapping[str, Any] | None) -> None:
    """Log the batch size over all ranks, and how it differs from that of the resumed run."""
    source, target = config.data.source_batch, data.target_batch
    if world_size > 1:
        log.info(
            "global batch: %d source and %d target images per step, %d and %d on each of %d ranks; the learning rate "
            "is%s multiplied by the number of ranks",
            *(
                source * world_size,
                target * world_size,
                source,
                target,
                world_size,
                "" if config.optimizer.scale_lr else " not",
            ),
        )
    if before is None:
        return
    for domain, now in (("source", source * world_size), ("target", target * world_size)):
        if (was := before.get(f"{domain}_images_per_step", now)) != now:
            log.warning(
                "resumed with %d %s images per step instead of %d: the samplers continue at this position of a stream "
                "read at the new rate, so some images are %s, and it is no longer the same run",
                *(now, domain, was, "skipped" if now > was else "repeated"),
            )
    if (ranks := before.get("ranks", world_size)) != world_size:
        log.warning(
            "resumed on %d rank(s) instead of %d: random draws of a step (mixed classes, masks, augmentation) differ "
            "from here on%s",
            *(
                world_size,
                ranks,
                f"; the learning rate is {world_size} times optimizer.lr" if config.optimizer.scale_lr else "",
            ),
        )


def collect(
    config: Config, data: UDADataModule, module: UDAModule, trainer: pl.Trainer, checkpoints: Checkpoints, seen: int
) -> dict[str, Any]:
    """Build the contents of `metrics.json`; `miou` is the student after the last step.

    Scores are None without a validation set.
    """
    scores, classes = list(module.scores.values()), module.plan.classes
    best = {"miou": checkpoints.best_miou, "step": checkpoints.best_step, "chosen_on": "target labels"}
    chosen = checkpoints.chosen
    teacher = [scores.miou for scores in module.teacher_scores.values()]
    return {
        "miou": module.miou,
        "pixel_accuracy": scores[0].pixel_accuracy if scores else None,
        "per_class": scores[0].per_class if scores else dict.fromkeys(classes.names),
        "miou_over": mean_scores(scores).means if scores else dict.fromkeys(classes.subsets),
        "classes": [classes.names[i] for i in module.plan.eval_classes],
        "targets": {name: scores.miou for name, scores in module.scores.items()},
        "step": trainer.global_step,
        "steps": config.steps,
        "stopped": is_stopped(trainer),
        "seed": config.seed,
        "source_images": checkpoints.source_images,
        "source_images_before": seen,
        "labelled_target_images": data.labelled_target_images,
        "lr": config.optimizer.lr,
        "init": config.init,
        "best": best if checkpoints.best_step >= 0 else None,
        "best_unsupervised": None if chosen is None or chosen.step < 0 else described(chosen),
        "label_free": module.label_free,
        "teacher": sum(teacher) / len(teacher) if teacher else None,
        "wall_s": round(checkpoints.wall_s, 1),
    }


def described(chosen: Chosen) -> dict[str, Any]:
    """Describe the checkpoint chosen without labels; `miou` is there to judge the choice by."""
    return asdict(chosen) | {"chosen_on": "unlabelled target images"}


if __name__ == "__main__":
    import uda_seg.train

    uda_seg.train.main()  # launchers pickle functions by an importable module name, which `__main__` is not
