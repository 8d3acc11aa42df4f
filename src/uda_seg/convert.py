"""`python -m uda_seg.convert official=FILE out=FILE`: convert a released checkpoint to one of ours.

Files of DAFormer, HRDA, MIC, LC-MSM and CorDA are recognised by their keys. Every tensor of the network must be
present, or nothing is written; a table shows what matched, what was dropped, and why. `evaluate`, `predict` and `init=`
read the result. The papers report the student; `teacher=true` converts its EMA copy instead. `data=` selects the
default data for evaluation, `method=` the method for `init=`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from uda_seg.callbacks.checkpoint import AtomicCheckpointIO
from uda_seg.cli.arguments import as_override, given_path
from uda_seg.cli.command import run
from uda_seg.config.commands import ConvertConfig
from uda_seg.config.replay import describe
from uda_seg.config.schema import key_of
from uda_seg.data.custom import classes_of
from uda_seg.errors import UserError
from uda_seg.evaluation.tables import Table
from uda_seg.methods.base import Plan
from uda_seg.models.official import BATCH, Official, recognise
from uda_seg.models.weights import check_tensors, read_tensors
from uda_seg.runs.build import instantiate_module

log = logging.getLogger(__name__)

USAGE = "python -m uda_seg.convert official=<released file> out=<folder>/checkpoints/last.ckpt"
OWN = ("official", "out", "overwrite", "convert.teacher")  # options of this command, not of the network


def main() -> None:
    """Run the command."""
    run(ConvertConfig, convert, expand=expand)


def expand(given: list[str]) -> list[str]:
    """Add the official network's overrides below the given ones, and keep Hydra from creating a folder."""
    path = given_path(given, "official", USAGE)
    out = given_path(given, "out", USAGE, must_exist=False)
    given = [o.replace("teacher=", "convert.teacher=", 1) if key_of(o) == "teacher" else o for o in given]
    overrides = with_defaults(recognise(read_tensors(path), path), given)
    return ["hydra/job_logging=stdout", as_override("hydra.run.dir", str(out.parent)), *overrides]


def with_defaults(official: Official, given: Sequence[str]) -> list[str]:
    """Combine the network's overrides with `given`, which win; another method or network has its own options."""
    keys = {key_of(o) for o in given}
    replaced = tuple(f"{group}." for group in ("method", "model", "evaluator", "data") if group in keys)
    default = ("data=gta2cs", "pretrained=null", *official.overrides)
    stored = {key_of(o): o for o in default if not (replaced and key_of(o).startswith(replaced))}
    return [o for key, o in stored.items() if key not in keys] + list(given)


def convert(config: ConvertConfig, folder: Path) -> Path:
    """Write the checkpoint and return its path.

    Raises:
        UserError: the file is damaged, of an unknown network, or lacks a finite tensor; or `out` exists.
    """
    path, out = Path(str(config.official)), Path(str(config.out))
    if out.suffix == ".safetensors" or out.is_dir():
        raise UserError(f"out={out}: name the checkpoint to write, a file such as converted.ckpt")
    if out.exists() and out.samefile(path):
        raise UserError(f"out={out} is official= itself: choose another file")
    if out.exists() and not config.overwrite:
        raise UserError(f"out={out} exists already: choose another file or replace it with overwrite=true")
    official = recognise(read_tensors(path), path)
    if config.convert.teacher and not official.teacher:
        raise UserError(f"{path} has no averaged copy (ema_model): leave out teacher=true")
    network = untrained_network(config)
    wanted = {name: tensor.shape for name, tensor in network.items()}
    student = fill(official.student, wanted, official.untrained, f"{path}: student")
    teacher = fill(official.teacher, wanted, official.untrained, f"{path}: teacher") if official.teacher else {}
    for found, like in ((student, network), (teacher, network), (official.outside, official.outside)):
        check_tensors(found, like, path)
    Console().print(report(official, student, config.convert.teacher, f"{path.name}: {official.kind}").rich())
    tensors = {f"segmentor.{name}": t for name, t in (teacher if config.convert.teacher else student).items()}
    tensors |= {f"teacher.network.{name}": t for name, t in teacher.items()}
    AtomicCheckpointIO().save_checkpoint(checkpoint(config, official, tensors | official.outside), out)
    log.info("written: %s", out)
    return out


def untrained_network(config: ConvertConfig) -> dict[str, Tensor]:
    """Build the state of the configured network on the meta device: names, shapes and dtypes without memory."""
    classes = classes_of(config.data)
    eval_classes = classes.subset(config.data.eval_classes)
    plan = Plan(steps=config.steps, seed=config.seed, classes=classes, eval_classes=eval_classes, crop=(1, 1))
    with torch.device("meta"):
        module = instantiate_module(config, plan)
    return dict(module.segmentor.state_dict())


def fill(
    found: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], untrained: Sequence[str], what: str
) -> dict[str, Tensor]:
    """Collect every tensor of the network by name, with zeros for those that nothing reads.

    Raises:
        UserError: a tensor is missing, superfluous or of another shape.
    """
    missing = [name for name in wanted if name not in found and not name.startswith(tuple(untrained))]
    if missing:
        raise UserError(
            f"{what} lacks {len(missing)} of the network's {len(wanted)} tensors, first {missing[0]}; nothing written"
        )
    strange = [name for name in found if name not in wanted]
    if strange:
        raise UserError(
            f"{what} has {len(strange)} tensors that the network does not, first {strange[0]}; choose another model="
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name]:
            raise UserError(
                f"{what}: {name} is {tuple(tensor.shape)}, the network wants {tuple(wanted[name])}; choose another "
                "model= or data="
            )
    return {name: found[name] if name in found else torch.zeros(shape) for name, shape in wanted.items()}


def report(official: Official, student: Mapping[str, Tensor], teacher: bool, title: str) -> Table:
    """Tabulate matched and dropped tensors."""
    parts = sorted({_part(name) for name in official.student})
    rows = [(part, str(sum(_part(n) == part for n in official.student)), "matched") for part in parts]
    if official.teacher:
        fate = "matched, in the student's place" if teacher else "matched"
        rows.append(("teacher", str(len(official.teacher)), f"{fate}; batch-norm statistics: the student's"))
    if official.outside:
        rows.append(("projection of class text", str(len(official.outside)), "matched"))
    made = [name for name in student if name not in official.student]
    if made:
        rows.append((_part(made[0]), str(len(made)), "not in the file and read by nothing: zeros"))
    rows += [("dropped", str(dropped.count), dropped.why) for dropped in official.dropped]
    return Table(("part", "tensors", "what became of them"), tuple(rows), title)


def _part(name: str) -> str:
    """Return the part of a tensor's name, such as `encoder` or `heads.main`."""
    return ".".join(name.split(".")[: 2 if name.startswith("heads.") else 1])


def checkpoint(config: ConvertConfig, official: Official, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Build a checkpoint like that of a run, without the state for resuming."""
    said = describe(config)
    said["overrides"] = [o for o in said["overrides"] if key_of(o) not in OWN and not key_of(o).startswith("hydra")]
    said["source_images"] = BATCH * official.step
    said["converted"] = {"kind": official.kind, "network": "teacher" if config.convert.teacher else "student"}
    return {"state_dict": tensors, "uda_seg": said, "global_step": official.step, "epoch": 0}


if __name__ == "__main__":
    main()
