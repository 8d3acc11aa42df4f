"""Options that a call would ignore, refused in a line so that nobody takes them for done."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from hydra.core.override_parser.types import Override

from uda_seg.cli.arguments import Arguments, text_of
from uda_seg.config.schema import key_of
from uda_seg.errors import UserError

# Keys, and what must be chosen for them to have an effect.
_NEEDS = {
    r"evaluator\.(window|stride|windows_per_batch)": ("evaluator.inference", ("slide",), "add evaluator=slide"),
    r"data\.shards\.\w+": ("data.reader", ("shards",), "add data.reader=shards"),
    r"logger\.(project|entity|group|tags|mode|offline|artifacts)": ("logger.kind", ("wandb",), "add logger=wandb"),
    r"logger\.pictures": ("logger.kind", ("wandb", "tensorboard"), "add logger=wandb or logger=tensorboard"),
}

# Keys that training alone reads, whatever the checkpoint. `pretrained` may be of a frozen trunk.
_TRAINING = re.compile(
    r"(init|resume|steps|seed|running_statistics|statistics_batches|preset|quirks|sweep|debug)"
    r"|(optimizer|schedule|teacher|logger|callbacks)\.(?!progress$).*"
    r"|evaluator\.(times|label_free|label_free_images|choose_by)|data\.(flip|source_batch|target_batch|rare_class\..*)"
)


def refuse_places(said: Arguments) -> None:
    """Raise UserError if the folder of the results is given for another kind of run than this one."""
    given = {key_of(override) for override in said.overrides}
    if said.multirun and "hydra.run.dir" in given:
        raise UserError(
            "hydra.run.dir= is the folder of a single run: with -m say hydra.sweep.dir=FOLDER, in which each run has "
            "one of its own"
        )
    several = said.multirun or not given.isdisjoint({"sweep", "hydra.mode"})
    if not several and (key := next((k for k in ("hydra.sweep.dir", "hydra.sweep.subdir") if k in given), None)):
        raise UserError(f"{key}= is of several runs: add -m, or say hydra.run.dir=FOLDER")
    for override in said.overrides:
        if key_of(override) == "hydra.job.chdir" and text_of(override).lower() == "true":
            raise UserError(
                "hydra.job.chdir=true: relative folders of the configuration would be looked for in that of the run: "
                "leave it out"
            )


def refuse_two_ends(said: Arguments) -> None:
    """Raise UserError if a run is to be both continued and replaced."""
    given = {key_of(override): override for override in said.overrides if key_of(override) in ("resume", "overwrite")}
    if len(given) == 2 and said.is_one_job:
        continued, replaced = text_of(given["resume"]), text_of(given["overwrite"])
        if continued.lower() not in ("none", "") and replaced.lower() == "true":
            raise UserError(f"resume={continued} continues a run and overwrite=true replaces it: leave one of them out")


def refuse_training_options(given: Sequence[str], other: str = "") -> None:
    """Raise UserError if options of training are given to a command that runs a trained network.

    Args:
        given: overrides of the command line.
        other: pattern of further keys that the command ignores.
    """
    for override in given:
        key = key_of(override)
        if "${" in override:
            continue  # of a checkpoint that has it, `replay` wants to be told it again
        if _TRAINING.fullmatch(key) or (other and re.fullmatch(other, key)):
            raise UserError(f"{key}= has no effect on a trained network: leave it out")


def refuse_without_effect(typed: Set[str], overrides: Sequence[Override], trees: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError for a key whose condition no combination of choices fulfils.

    Args:
        typed: keys on the command line.
        overrides: overrides of keys, also those that a checkpoint adds.
        trees: composed files of every combination, without `overrides`.
    """
    for pattern, (condition, wanted, cure) in _NEEDS.items():
        key = next((key for key in sorted(typed) if re.fullmatch(pattern, key)), None)
        if key is None:
            continue
        said = [o for o in overrides if o.key_or_group == condition]
        found = {str(_at(tree, condition)) for tree in trees}
        if said:
            last = said[-1]
            found = {*map(str, last.sweep_string_iterator() if last.is_sweep_override() else [last.value()])}
        if found.isdisjoint(wanted):
            raise UserError(
                f"{key}= has no effect with {condition}={', '.join(sorted(found))}: {cure}, or leave it out"
            )


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
