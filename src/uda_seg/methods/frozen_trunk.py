"""Checkpoints without a frozen trunk: they hold what was trained, and the trunk's name and digest.

On loading, the trunk is the one that the network was built with (`pretrained=`), and its digest must be the recorded
one. The teacher's copy of frozen tensors is never stored, because it is the student's. A trunk that was loaded from
nowhere (`pretrained=null`, or `init=` with other weights) cannot be had again and stays in the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.models.segmentor import Encoder
from uda_seg.models.trunk import digest, frozen_tensors
from uda_seg.options.validate import shown

STUDENT, TEACHER = "segmentor.", "teacher.network."
# Names that mean the same weights everywhere. Anything else is a path of the machine that trained, and never read.
PLAIN = re.compile(r"imagenet|builtin|timm:[\w.-]+|hub:[\w.-]+/[\w.-]+(@[\w.-]+)?")


def leave_out_trunk(state: dict[str, Any], encoder: Encoder) -> dict[str, str | int | None] | None:
    """Remove the frozen tensors of the student's encoder from a module's state dict.

    Returns:
        The trunk's description for the checkpoint, None if it is not left out of the student: `weights`, the name it
        was loaded by (None for a file); `file`, the file's name; `sha256`, its digest; `tensors`, their number.
    """
    frozen = frozen_tensors(encoder)
    for name in frozen:
        state.pop(f"{TEACHER}encoder.{name}", None)
    if not frozen or encoder.loaded_from is None:
        return None
    for name in frozen:
        del state[f"{STUDENT}encoder.{name}"]
    said = encoder.loaded_from
    plain = PLAIN.fullmatch(said) is not None
    named = {"weights": said if plain else None, "file": None if plain else Path(said).name}
    return {**named, "sha256": digest(frozen), "tensors": len(frozen)}


def is_trunk(value: object) -> bool:
    """Return whether a value is a description that `leave_out_trunk` returns, or returned before it had `tensors`."""
    if not isinstance(value, Mapping) or value.keys() | {"tensors"} != {"weights", "file", "sha256", "tensors"}:
        return False
    if type(value.get("tensors", 1)) is not int:
        return False
    weights, file, sha256 = value["weights"], value["file"], value["sha256"]
    named = isinstance(weights, str) and PLAIN.fullmatch(weights) is not None and file is None
    return (named or (weights is None and isinstance(file, str))) and isinstance(sha256, str)


def with_trunk(content: Mapping[str, Any], encoder: Encoder, path: Path | str) -> dict[str, Any]:
    """Return a checkpoint's state dict, completed by the trunk that the network was built with.

    Args:
        content: a checkpoint of this package.
        encoder: the student's.
        path: of the checkpoint, for messages.

    Raises:
        UserError: another trunk than the checkpoint's, or adapters that the encoder lacks.
    """
    state = dict(content["state_dict"])
    own = encoder.state_dict()
    prefix = f"{STUDENT}encoder."
    if (trunk := content["uda_seg"].get("trunk")) is not None:
        missing = {name: own[name] for name in own if prefix + name not in state}
        if digest(missing) != trunk["sha256"]:
            raise UserError(_differs(trunk, len(missing), encoder.loaded_from, path))
        state |= {prefix + name: tensor for name, tensor in missing.items()}
    strangers = [n for n in state if n.startswith(prefix) and ".lora." in n and n.removeprefix(prefix) not in own]
    if strangers:
        raise UserError(f"{path} has adapters, as {strangers[0]}: give its model.encoder.lora too")
    if any(name.startswith(TEACHER) for name in state):
        for name in frozen_tensors(encoder):
            if prefix + name in state:
                state.setdefault(f"{TEACHER}encoder.{name}", state[prefix + name])
    return state


def _differs(trunk: Mapping[str, Any], lacking: int, mine: str | None, path: Path | str) -> str:
    if (tensors := trunk.get("tensors", lacking)) != lacking:
        return (
            f"{path} does not hold its frozen trunk of {tensors} tensors, and of this network {lacking} are not in it: "
            "give model.encoder.name, taps, freeze and lora as it was trained with"
        )
    said = trunk["weights"] or f"the file {trunk['file']}"
    wanted = f"{shown(said)} (SHA-256 of its tensors {trunk['sha256'][:12]})"
    given = "this network was built without weights" if mine is None else f"pretrained={mine} has another"
    cure = f"pretrained={trunk['weights']}" if trunk["weights"] else f"pretrained=FILE with {shown(trunk['file'])}"
    return f"{path} does not hold its frozen trunk, which was {wanted}, and {given}: give {cure}"


def note_replaced_trunk(encoder: Encoder, state: Mapping[str, Tensor], prefix: str) -> None:
    """Note that a trunk is not that of its file any more, so that it will be saved.

    Args:
        encoder: the student's, before the weights are loaded into it.
        state: weights of a checkpoint, from `init=` or of a resumed run.
        prefix: what the encoder's names in it begin with.
    """
    frozen = {f"{prefix}{name}": tensor for name, tensor in frozen_tensors(encoder).items()}
    if any(not tensor.equal(state[name].to(tensor)) for name, tensor in frozen.items() if name in state):
        encoder.loaded_from = None
