"""`python -m uda_seg.evaluate checkpoint=...`: per-class IoU of a trained network, and where it confuses what."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console

from uda_seg.command import given_path, run
from uda_seg.config import Config
from uda_seg.evaluation.evaluator import Scores
from uda_seg.evaluation.tables import class_table
from uda_seg.pictures import confusion_heat, save_png
from uda_seg.runs import device_precision, load_trained, read_checkpoint, replay, write_json, write_text
from uda_seg.train import build_data, build_module, quiet_lightning

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    run("config", evaluate, expand=expand)


def expand(given: list[str]) -> list[str]:
    """The checkpoint's own configuration below the given overrides; results go beside the checkpoint's run."""
    path = given_path(given, "checkpoint", "python -m uda_seg.evaluate checkpoint=<run>/checkpoints/last.ckpt")
    overrides = replay(read_checkpoint(path), given)
    if not any(o.startswith("hydra.run.dir=") for o in given):
        overrides.append(f"hydra.run.dir='{path.resolve().parent.parent / 'evaluation'}'")
    return overrides


def evaluate(config: Config, folder: Path) -> float:
    """Score the checkpoint on every validation set of `data=`; returns the mean of their mIoU, in [0, 1]."""
    quiet_lightning()
    path = Path(str(config.checkpoint))
    content = read_checkpoint(path)
    data = build_data(config)
    data.prepare_data()
    data.setup("validate")
    module = build_module(config, data)
    load_trained(module, content, path, teacher=config.evaluator.teacher)
    module.teacher, module.evaluate_teacher = None, False
    trainer = pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=device_precision(config.trainer.precision),  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_progress_bar=config.callbacks.progress,
    )
    trainer.validate(module, dataloaders=list(data.val_dataloader().values()), verbose=False)
    table = class_table(module.scores, f"{path.parent.parent.name}, step {content['global_step']}: IoU in %")
    Console().print(table.rich())
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.md", table.markdown())
    write_json(folder / "scores.json", {name: as_json(scores) for name, scores in module.scores.items()})
    for name, scores in module.scores.items():
        save_png(folder / f"confusion_{name}.png", confusion_heat(scores.confusion.numpy(), data.classes.names))
    log.info("written: %s", folder)
    return module.miou


def as_json(scores: Scores) -> dict[str, Any]:
    """Scores without the matrix, plain values."""
    return {
        "miou": scores.miou,
        "mean_accuracy": scores.mean_accuracy,
        "pixel_accuracy": scores.pixel_accuracy,
        "per_class": scores.per_class,
        "classes": list(scores.classes),
    }


if __name__ == "__main__":
    main()
