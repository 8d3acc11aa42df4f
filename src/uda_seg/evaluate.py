"""`python -m uda_seg.evaluate checkpoint=FILE`: per-class IoU and confusion matrices of a trained network.

The network is the checkpoint's; `data=` replaces only the data, `evaluator.teacher=true` also scores the EMA teacher,
and `evaluator=multi_scale` uses six scales and flips. Table, scores and confusion matrices are written to
`<run>/evaluation/<data>`; the folder also names another checkpoint than the last, and options that change scores.
`checkpoint=` may also be a published network, a folder or `hub:owner/repository`; its results are written to
`outputs/evaluation`.

`submission=cityscapes` (or acdc, darkzurich, bdd100k) does not score and reads no labels: it writes the predictions of
`data.validation` in the format of that benchmark's test server, and an archive to submit. An interrupted call can be
continued. For the test split: `data.validation.cityscapes.split=test`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf

from uda_seg.cli.arguments import as_override, given_path
from uda_seg.cli.command import run
from uda_seg.cli.idle import refuse_training_options
from uda_seg.config.commands import EvaluateConfig
from uda_seg.config.naming import changes_results, plain_name, variant
from uda_seg.config.replay import replay
from uda_seg.config.schema import key_of
from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.domains import open_domain
from uda_seg.data.loading import bound_workers, choose_workers
from uda_seg.data.parallel import cores
from uda_seg.data.parts import validation_parts
from uda_seg.data.readers import resize_of
from uda_seg.data.settings import DomainSettings
from uda_seg.errors import UserError
from uda_seg.evaluation.evaluator import Scores, mean_scores
from uda_seg.evaluation.servers import SERVERS, domains_of, refuse_unlabelled
from uda_seg.evaluation.submission import Job, Submission, Writer
from uda_seg.evaluation.tables import class_table
from uda_seg.launch.devices import devices
from uda_seg.methods.base import UDAModule
from uda_seg.methods.options.source_only import SourceOnlyOptions
from uda_seg.methods.source_only import SourceOnly
from uda_seg.runs.build import build_data, build_module, quiet_lightning
from uda_seg.runs.checkpoint import device_precision, load_trained, read_checkpoint
from uda_seg.runs.folder import alone_in
from uda_seg.runs.published import is_published, results_of, title_of, weights_of
from uda_seg.runs.record import write_json
from uda_seg.storage.files import remove_parts, save_png, write_text
from uda_seg.visualize.pictures import confusion_heat

USAGE = "python -m uda_seg.evaluate checkpoint=<run>/checkpoints/last.ckpt"

# Keys that the folder of the results names, or that do not change scores.
_NOT_SCORED_OTHERWISE = re.compile(r"^submission$|^data\.(name|val_batch|class_set|classes)$|\.custom(\.|$)")

# Settings of the evaluator that change no label that a network predicts, or that are said otherwise.
_NO_OTHER_LABELS = ("times", "teacher", "windows_per_batch", "label_free", "label_free_images", "choose_by")

log = logging.getLogger(__name__)


def main() -> None:
    """Run the command."""
    run(EvaluateConfig, evaluate, expand=expand)


def expand(given: list[str]) -> list[str]:
    """Add the checkpoint's configuration below the given overrides, and write results to the checkpoint's run."""
    path = given_path(given, "checkpoint", USAGE)
    refuse_training_options(given, "overwrite")
    replayed = replay(read_checkpoint(path), given, EvaluateConfig)
    keys = {key_of(o) for o in given}
    OmegaConf.register_new_resolver("scored", partial(_variant, path, keys), replace=True)  # by each job's overrides
    place = "${plain_name:${data.name}}${scored:${hydra:overrides.task}}"
    return [
        as_override("hydra.run.dir", str(results_of(path)), f"/{place}"),
        as_override("hydra.sweep.dir", str(results_of(path))),
        as_override("hydra.sweep.subdir", "", place),
        *replayed,
    ]


def _variant(path: Path, keys: Set[str], overrides: Sequence[str]) -> str:
    """Name another checkpoint than the last and options that change scores, so that none replace those of others.

    Args:
        path: the checkpoint.
        keys: what the command line gives.
        overrides: of a job, also those that the checkpoint adds.
    """
    own = [o for o in overrides if key_of(o) in keys and changes_results(key_of(o))]
    named = [o for o in own if not _NOT_SCORED_OTHERWISE.search(key_of(o))]
    name = "" if is_published(path) or path.stem == "last" else f",{plain_name(path.stem)}"
    return name + variant(named)


def evaluate(config: EvaluateConfig, folder: Path) -> float:
    """Score the checkpoint on every validation set of `data=`, and return the mean of their mIoU, in [0, 1].

    With `submission=` nothing is scored (NaN).
    """
    quiet_lightning()
    path = Path(str(config.checkpoint))
    content = read_checkpoint(path)
    with alone_in(folder, "an evaluation"):
        remove_parts(folder.rglob(".*.tmp"))
        if config.submission is not None:
            submit(config, folder, path, content)
            return math.nan
        return score(config, folder, path, content)


def score(config: EvaluateConfig, folder: Path, path: Path, content: Mapping[str, Any]) -> float:
    """Score the checkpoint, print and write the results, and return the mIoU, in [0, 1]."""
    if not validation_parts(config.data):
        said = "is empty" if not config.data.validation else f"({', '.join(config.data.validation)}) has no labels"
        raise UserError(
            f"data.validation {said}: there are no labelled images to score on; say where labels lie "
            "(data.validation.NAME.custom.labels=...), give data= of a pair that has some, or add "
            "+data.validation.NAME.dataset=... and +data.validation.NAME.root=..."
        )
    refuse_unlabelled(config.data)
    data = build_data(config)
    scorer = trained(config, data, path, content)
    data.setup("validate")
    tester(config, folder).validate(scorer, dataloaders=list(data.val_dataloader().values()), verbose=False)
    show(columns(scorer), folder, f"{title_of(path)}, step {content['global_step']}: IoU in %")
    log.info("written: %s", folder)
    return scorer.miou


def trained(config: EvaluateConfig, data: UDADataModule, path: Path, content: Mapping[str, Any]) -> UDAModule:
    """Load the checkpoint's student, and its teacher if configured, as a module for validation only."""
    module = build_module(config, data)
    # A plain module, because a method's preparation of validation (AdaBN's statistics) is already in the checkpoint.
    scorer = SourceOnly(load_trained(module, content, path), module.plan, SourceOnlyOptions())
    scorer.infer = module.infer
    if config.evaluator.teacher:
        load_trained(module, content, path, teacher=True)
        scorer.teacher, scorer.evaluate_teacher = module.teacher, True
    return scorer


def tester(config: EvaluateConfig, folder: Path) -> pl.Trainer:
    """Build Lightning's trainer on one device, to validate or predict."""
    chosen = devices(config.trainer)
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=chosen[:1] if isinstance(chosen, list) else 1,
        precision=device_precision(config.trainer.precision, config.trainer.accelerator),  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_progress_bar=config.callbacks.progress and sys.stderr.isatty(),
        default_root_dir=folder,
    )


def columns(scorer: UDAModule) -> dict[str, Scores]:
    """Collect scores by target and network, with the mean over several targets."""
    found: dict[str, Scores] = {}
    for suffix, scores in (("", scorer.scores), (" (teacher)", scorer.teacher_scores)):
        found |= {f"{name}{suffix}": value for name, value in scores.items()}
        if len(scores) > 1:
            found.setdefault(f"mean{suffix}", mean_scores(list(scores.values())))
    return found


def show(found: Mapping[str, Scores], folder: Path, title: str) -> None:
    """Print the table, and write it, the scores and a confusion matrix per column."""
    for earlier in folder.glob("confusion_*.png"):  # perhaps also of the teacher
        earlier.unlink()
    table = class_table(found, title)
    table.show()
    write_text(folder / "scores.md", table.markdown())
    write_json(folder / "scores.json", {name: as_json(scores) for name, scores in found.items()})
    for name, scores in found.items():
        picture = confusion_heat(scores.confusion.numpy(), tuple(scores.per_class))
        save_png(folder / f"confusion_{plain_name(name.replace(' (teacher)', '_teacher'))}.png", picture)


def submit(config: EvaluateConfig, folder: Path, path: Path, content: Mapping[str, Any]) -> None:
    """Write predictions and archive of every validation set that the server scores."""
    server = str(config.submission)
    domains = domains_of(server, config.data)
    data = build_data(config)
    scorer = trained(config, data, path, content)
    networks = {"": scorer.segmentor} | ({"_teacher": scorer.teacher.network} if scorer.teacher is not None else {})
    for name, domain in domains.items():
        if domain.split != "test":
            log.warning("split %s of %s: its server scores data.validation.%s.split=test", domain.split, name, name)
        dataset = open_domain(domain, config.data, data.classes, f"data.validation.{name}", labeled=False)
        jobs = []
        for suffix, network in networks.items():
            place = folder / "submission" / plain_name(f"{name}_{domain.split}{suffix}")
            record = made_by(config, path, domain, suffix)
            jobs.append(Job(network, Submission(SERVERS[server], place, dataset.names, data.classes, record)))
        write(config, folder, Writer(jobs, scorer.infer), dataset, domain)


def made_by(config: EvaluateConfig, path: Path, domain: DomainSettings, suffix: str) -> dict[str, Any]:
    """Describe what predictions depend on, so that files of another network or other settings are not kept."""
    with weights_of(path).open("rb") as file:
        checkpoint = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint": checkpoint,
        "network": suffix or "student",
        "submission": config.submission,
        "precision": device_precision(config.trainer.precision, config.trainer.accelerator),
        "evaluator": {key: value for key, value in asdict(config.evaluator).items() if key not in _NO_OTHER_LABELS},
        "images": {**asdict(domain), "count": None, "root": None},
    }


def write(
    config: EvaluateConfig, folder: Path, writer: Writer, dataset: SegmentationDataset, domain: DomainSettings
) -> None:
    """Predict the missing images of a validation set, then pack the archive."""
    left = len(set().union(*writer.missing))
    log.info("%d of %d images are already predicted", len(dataset) - left, len(dataset))
    asked = config.data.workers
    workers = choose_workers(False, cores()) if asked is None else bound_workers(asked, left)
    loader = writer.loader(dataset, resize_of(domain), workers)
    if left:
        tester(config, folder).predict(writer, loader, return_predictions=False)
    for job in writer.jobs:
        log.info("written: %s", job.submission.pack())


def as_json(scores: Scores) -> dict[str, Any]:
    """Convert scores without the matrix to plain values; `miou_16_converted` is `Scores.converted`."""
    return {
        "miou": scores.miou,
        "mean_accuracy": scores.mean_accuracy,
        "pixel_accuracy": scores.pixel_accuracy,
        "per_class": scores.per_class,
        "classes": list(scores.classes),
        "miou_over": scores.means,
        "miou_16_converted": scores.converted,
    }


if __name__ == "__main__":
    main()
