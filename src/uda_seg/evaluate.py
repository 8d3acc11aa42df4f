"""`python -m uda_seg.evaluate checkpoint=FILE`: per-class IoU of a trained network, and where it confuses what.

The network is the one that the checkpoint was trained with; `data=` replaces only the data, `evaluator.teacher=true`
scores the averaged network beside the student. Table, scores and confusion pictures go to
`<run>/evaluation/<data>`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from uda_seg.command import given_path, run
from uda_seg.config import Config
from uda_seg.evaluation.evaluator import Scores
from uda_seg.evaluation.tables import class_table
from uda_seg.files import save_png, write_text
from uda_seg.methods.source_only import SourceOnly
from uda_seg.pictures import confusion_heat
from uda_seg.records import write_json
from uda_seg.runs import device_precision, load_trained, read_checkpoint, replay
from uda_seg.train import build_data, build_module, quiet_lightning

USAGE = "python -m uda_seg.evaluate checkpoint=<run>/checkpoints/last.ckpt"

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    run("config", evaluate, expand=expand)


def expand(given: list[str]) -> list[str]:
    """The checkpoint's own configuration below the given overrides; results go beside the checkpoint's run."""
    path = given_path(given, "checkpoint", USAGE)
    folder = path.resolve().parent.parent / "evaluation"
    replayed = replay(read_checkpoint(path), given)
    # Nothing is cropped here, so no crop can be too large for other data.
    return [f"hydra.run.dir='{folder}/${{data.name}}'", *replayed, "data.crop=[1,1]"]


def evaluate(config: Config, folder: Path) -> float:
    """Score the checkpoint on every validation set of `data=`; returns the mean of their mIoU, in [0, 1]."""
    quiet_lightning()
    path = Path(str(config.checkpoint))
    content = read_checkpoint(path)
    data = build_data(config)
    module = build_module(config, data)
    # A plain module: what a method does around validation (AdaBN's statistics) is in the checkpoint already.
    scorer = SourceOnly(load_trained(module, content, path), module.plan)
    scorer.infer = module.infer
    if config.evaluator.teacher:
        load_trained(module, content, path, teacher=True)
        scorer.teacher, scorer.evaluate_teacher = module.teacher, True
    data.setup("validate")
    trainer = pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=device_precision(config.trainer.precision, config.trainer.accelerator),  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_progress_bar=config.callbacks.progress and sys.stderr.isatty(),
        default_root_dir=folder,
    )
    trainer.validate(scorer, dataloaders=list(data.val_dataloader().values()), verbose=False)
    columns = scorer.scores | {f"{name} (teacher)": scores for name, scores in scorer.teacher_scores.items()}
    table = class_table(columns, f"{'/'.join(path.resolve().parts[-4:-2])}, step {content['global_step']}: IoU in %")
    table.show()
    write_text(folder / "scores.md", table.markdown())
    write_json(folder / "scores.json", {name: as_json(scores) for name, scores in columns.items()})
    for name, scores in columns.items():
        picture = confusion_heat(scores.confusion.numpy(), data.classes.names)
        save_png(folder / f"confusion_{name.replace(' (teacher)', '_teacher')}.png", picture)
    log.info("written: %s", folder)
    return scorer.miou


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
