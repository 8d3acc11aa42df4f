"""Reading of checkpoints, and comparison of runs by their settings."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uda_seg.config.former import todays_method, todays_options
from uda_seg.config.replay import FORMAT, method_name, method_options
from uda_seg.config.schema import Config, resolved
from uda_seg.data.settings import NAMED
from uda_seg.errors import Damaged, UserError
from uda_seg.methods.base import UDAModule
from uda_seg.methods.frozen_trunk import is_trunk, note_replaced_trunk, with_trunk
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.weights import check_tensors, read_tensors
from uda_seg.options.validate import defaults, leaves
from uda_seg.runs.published import is_published, read_published
from uda_seg.runs.record import read_record

log = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package: Lightning's dict with plain values under `uda_seg`.

    A folder, and `hub:owner/repository[@revision]`, are published networks (`runs.published`).

    Raises:
        UserError: the file is missing, truncated, contains pickled objects, or is another program's.
    """
    if is_published(path):
        published = read_published(path)
        _check_said(published, path)
        return published
    cure, absent = "take another checkpoint of the run, or train it again", "correct the path of the checkpoint"
    content = dict(read_tensors(path, cure, absent))
    if not isinstance(content.get("uda_seg"), Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise UserError(
            f"{path} is no checkpoint of uda_seg; convert official ones first: "
            "python -m uda_seg.convert official=FILE out=FILE"
        )
    _check_said(content, path)
    return content


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_scale(value: object) -> bool:
    """Return whether a value is a valid description of a depth network's unit, as this or an earlier version has it."""
    if not isinstance(value, Mapping):
        return False
    earlier = value.keys() == {"baseline", "domains"} and _all_text(value["domains"])
    units = dict.fromkeys(value["domains"], value["baseline"]) if earlier else value.get("baselines")
    if not isinstance(units, Mapping) or not units:
        return False
    return _all_text([*units]) and all(isinstance(metres, int | float) for metres in units.values())


def _all_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# Entries of a checkpoint's description, and whether a value is valid.
_SAID: Mapping[str, Callable[[Any], bool]] = {
    "choices": lambda value: isinstance(value, Mapping) and _all_text([*value.keys(), *value.values()]),
    "overrides": _all_text,
    "classes": _is_text,
    "method": _is_text,
    "start": _is_text,
    "options": lambda value: isinstance(value, Mapping),
    "depth": _is_scale,
    "trunk": is_trunk,
    **dict.fromkeys(("source_images", "source_images_per_step", "target_images_per_step", "ranks"), _is_count),
}


def _check_said(content: Mapping[str, Any], path: Path) -> None:
    """Validate a checkpoint's description, which later code relies on."""
    said = content["uda_seg"]
    if isinstance(said.get("format"), int) and said["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer version, uda_seg {said.get('version')}: install that one")
    wrong = [
        *(key for key, fits in _SAID.items() if key in said and not fits(said[key])),
        *(key for key in ("choices", "overrides", "classes") if key not in said),
        *(key for key in ("global_step", "epoch") if not _is_count(content.get(key, 0))),
        *(f"the weight {name}" for name in content["state_dict"] if not isinstance(name, str)),
    ]
    if wrong:
        raise Damaged(f"{path} is damaged, {wrong[0]} is missing or nonsense: take another checkpoint of the run")


def check_same(module: UDAModule, path: Path, config: Config) -> None:
    """Check that a checkpoint belongs to the run that resumes from it.

    Raises:
        UserError: another method, method option, class set or network.
    """
    content = read_checkpoint(path)
    if content["uda_seg"].get("published"):
        raise UserError(f"{path} is a published network, which no run continues: start a new one with init={path}")
    if "loops" not in content:
        raise UserError(f"{path} was converted and contains only weights: start a new run from it with init={path}")
    check_classes(content, module, path)
    said, mine = content["uda_seg"], method_options(config)
    if todays_method(said) != method_name(config):
        raise UserError(
            f"{path} is of the method {todays_method(said)}, this run is {method_name(config)}: resume with the same "
            "method="
        )
    theirs = defaults(type(module)) | todays_options(said)  # it may be older than an option
    for name in sorted(mine):
        if theirs.get(name) != mine[name]:
            raise UserError(
                f"{path} was trained with method.{name}={theirs.get(name)}, this run has {mine[name]}: "
                "resume with the same method= and options"
            )
    if not re.match(r"\d+\.\d+", str(content.get("pytorch-lightning_version"))):
        raise Damaged(
            f"{path} is damaged, Lightning's version is missing or nonsense: take another checkpoint of the run"
        )
    state = with_trunk(content, module.segmentor.encoder, path)
    check_tensors(state, module.state_dict(), path)
    networks = ("segmentor.", "teacher.network.")
    wanted = {n: t.shape for n, t in module.state_dict().items() if n.startswith(networks)}
    found = {n: getattr(t, "shape", None) for n, t in state.items() if n.startswith(networks)}
    if found != wanted:
        first = sorted(n for n in {**wanted, **found} if wanted.get(n) != found.get(n))[0]
        raise UserError(f"{path} is of another network: {first} does not match; resume with the same model=")
    rest = {n for n, t in module.state_dict().items() if getattr(state.get(n), "shape", None) != t.shape}
    if rest:
        raise Damaged(
            f"{path} is damaged, {min(rest)} is missing or of another size: take another checkpoint of the run"
        )


# Settings that do not change results.
_NO_CHANGE = re.compile(
    r"^callbacks\.(checkpoints|panels|validation_panels|progress)$|^evaluator\.(label_free|label_free_images|choose_by)$|^(resume|overwrite|init|logger|predict|bench|convert|runs|report|depth|streets|export|fix|unpack|input|output)(\.|$)"
    r"|^trainer\.(max_steps|devices|num_nodes|strategy|timeout|profiler)$|\.(root|workers|cache)$"
)


# Locations of data, and hardware, which may differ in a resumed run.
_MOVED = re.compile(r"^trainer\.|\.(root|depth)$")
_NOT_IDENTITY = re.compile(
    r"^callbacks\.(checkpoints|panels|validation_panels|progress)$|^(resume|overwrite|checkpoint|logger|predict|bench|convert|runs|report|streets|pack|export|fix|unpack|input|output"
    r"|official|out|submission)(\.|$)|\.(workers|cache)$|^evaluator\.(teacher|windows_per_batch|label_free|label_free_images|choose_by)$"
    r"|^trainer\.(?!(accelerator|devices|num_nodes|precision|sync_batchnorm|overfit)$)"
)
# Settings of later versions and the values at which a run is what it was without them, so that older runs still count.
_ADDED = {"method.centre_text": False, "method.spatial_start": "random", "method.source_augment": False}


def settings_of(config: Mapping[str, Any], moved: bool = False) -> dict[str, Any]:
    """Select the settings that a run's result depends on; runs with equal ones are the same.

    Args:
        config: configuration as plain values, from `run.yaml` or `resolved`.
        moved: leave out locations of data and the hardware.
    """
    found = {k: v for k, v in leaves(config) if not isinstance(v, Mapping) and not _NOT_IDENTITY.search(k)}
    found = {k: v for k, v in found.items() if k not in _ADDED or v != _ADDED[k]}
    return {k: v for k, v in found.items() if not (moved and _MOVED.search(k))}


def say_changes(path: Path, config: Config) -> None:
    """Warn of settings in which a resumed run differs from the record next to its checkpoint.

    A missing record, or one of a version with other settings, allows fewer comparisons; a damaged one causes a warning.
    """
    try:
        before = dict(leaves(read_record(path.absolute().parent.parent)))
    except Damaged as error:
        log.warning("%s", error)
        return
    now = dict(leaves(resolved(config)))
    changed = [
        f"{key}={value} (was {before[key]})"
        for key, value in now.items()
        if not isinstance(value, Mapping) and before.get(key, value) != value and not _NO_CHANGE.search(key)
    ]
    changed += _changed_domains(before, now)
    if changed:
        log.warning("resumed with different settings, so no longer the same run: %s", ", ".join(changed))


def _changed_domains(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the domains by freely chosen names that only one of two configurations has."""
    changed = []
    for key in (f"data.{group}" for group in NAMED):
        if isinstance(before.get(key), Mapping):  # older records lack some
            changed += [f"without {key}.{name}" for name in before[key] if name not in now[key]]
            changed += [f"with {key}.{name}" for name in now[key] if name not in before[key]]
    return changed


def load_weights(module: UDAModule, path: Path) -> str:
    """Initialise student and teacher of a new run from a checkpoint's student; the method initialises missing heads.

    Parameters of the method outside of the network (the projection of class text) are loaded if their shape fits.

    Returns a line for the log.

    Raises:
        UserError: the checkpoint's classes or network differ.
    """
    content = read_checkpoint(path)
    cure = f"; to start from its encoder alone, say pretrained={path} instead of init="
    check_classes(content, module, path, cure)
    theirs: Mapping[str, Tensor] = with_trunk(content, module.segmentor.encoder, path)
    mine = module.segmentor.state_dict()
    check_tensors(theirs, module.state_dict(), path)
    found = {name: theirs[f"segmentor.{name}"] for name in mine if f"segmentor.{name}" in theirs}
    wrong = [n for n in found if found[n].shape != mine[n].shape]
    missing = [n for n in mine if n not in found]
    essential = [n for n in missing if n.startswith(("encoder.", "heads.main."))]
    if wrong or essential:
        name = (wrong + essential)[0]
        cure = "" if any(n.startswith("encoder.") for n in wrong + essential) else cure
        raise UserError(f"{path} is of another network: {name} does not match; choose the same model={cure}")
    note_replaced_trunk(module.segmentor.encoder, found, "encoder.")
    module.segmentor.load_state_dict({**mine, **found})
    module.start_heads({name.split(".")[1] for name in missing})
    if module.teacher is not None:
        module.teacher.network.load_state_dict(module.segmentor.state_dict())
    outside = {n: p for n, p in module.named_parameters() if not n.startswith(("segmentor.", "teacher."))}
    unfit = {n.split(".")[0] for n, p in outside.items() if n not in theirs or theirs[n].shape != p.shape}
    kept = {n: theirs[n] for n in outside if n.split(".")[0] not in unfit}
    with torch.no_grad():
        for name, tensor in kept.items():
            outside[name].copy_(tensor)
    fresh = sorted({".".join(name.split(".")[:2]) for name in missing} | unfit)
    return f"{len(found) + len(kept)} tensors from {path}" + (f", fresh: {', '.join(fresh)}" if fresh else "")


def load_trained(module: UDAModule, content: Mapping[str, Any], path: Path, teacher: bool = False) -> Segmentor:
    """Load the weights of the network used at test, ignoring everything that only training needs.

    Args:
        module: module composed from the same checkpoint.
        content: result of `read_checkpoint`.
        path: for messages.
        teacher: load and return the EMA teacher instead of the student.

    Raises:
        UserError: classes, method or network differ, or there is no teacher.
    """
    check_classes(content, module, path)
    if teacher and module.teacher is None:
        raise UserError(f"{path} has no teacher: leave out evaluator.teacher=true (of export: export.teacher=true)")
    if teacher and content["uda_seg"].get("published"):
        raise UserError(f"{path} has one network, no teacher beside it: leave out evaluator.teacher=true")
    network = module.teacher.network if teacher and module.teacher is not None else module.segmentor
    prefix = "teacher.network." if teacher else "segmentor."
    wanted = tensors_at_test(network)
    state = with_trunk(content, module.segmentor.encoder, path)
    found = {n: state[prefix + n] for n in wanted if prefix + n in state}
    check_tensors(found, wanted, path)
    wrong = [n for n, tensor in wanted.items() if n not in found or found[n].shape != tensor.shape]
    if wrong:
        raise UserError(f"{path} does not fit the network: {wrong[0]}; leave method= and model= to the checkpoint")
    extra = [n for n in state if n.removeprefix(prefix) not in wanted]
    if extra and content["uda_seg"].get("published"):
        raise UserError(f"{path} has tensors that its network does not, as {extra[0].removeprefix(prefix)}: not loaded")
    network.load_state_dict(found, strict=False)
    return network.eval()


def tensors_at_test(network: Segmentor) -> dict[str, Tensor]:
    """Return the tensors of the network that are used at test: of the encoder and of the heads that predict."""
    used = ("encoder.", *(f"heads.{name}." for name in heads_at_test(network)))
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(used)}


def heads_at_test(network: Segmentor) -> tuple[str, ...]:
    """Return the names of the heads used at test: the predicting one, and those that it reads."""
    return (network.eval_head, *getattr(network.heads[network.eval_head], "reads", ()))


def check_classes(content: Mapping[str, Any], module: UDAModule, path: Path, cure: str = "") -> None:
    """Raise UserError if a checkpoint's class set is not the module's; `cure` suggests an alternative."""
    theirs, mine = content["uda_seg"]["classes"], module.plan.classes
    if theirs != mine.name:
        raise UserError(
            f"{path} predicts the classes of {theirs}, this run those of {mine.name}: choose data= accordingly{cure}"
        )
    names = content["uda_seg"].get("class_names")  # missing in older checkpoints
    if isinstance(names, list) and names != list(mine.names):
        raise UserError(
            f"{path} predicts {len(names)} classes ({', '.join(map(str, names))}), this run {len(mine)} "
            f"({', '.join(mine.names)}): choose data.class_set accordingly{cure}"
        )


def device_precision(wanted: str, accelerator: str = "auto") -> str:
    """Resolve Lightning's precision: `auto` is bf16-mixed on GPUs with native bf16, otherwise 32-true.

    This includes CPUs with AMX: there, with PyTorch 2.15 on a busy machine, the same bf16 step was seen to give
    different bits and non-finite gradients.
    """
    if wanted != "auto":
        return wanted
    on_gpu = torch.cuda.is_available() and accelerator != "cpu"
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
