"""Trained networks as they are published: a folder, or a repository on the Hugging Face hub.

`model.safetensors` has the tensors of the network used at test, `config.json` what rebuilds it: the choices and plain
values of a checkpoint, which are replayed by the same rules. Nothing else is read, nothing is unpickled, and no file
names a class or a path to load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from uda_seg.config.naming import plain_name
from uda_seg.errors import Damaged, UserError
from uda_seg.models.hub import HUB, download
from uda_seg.options.validate import shown
from uda_seg.storage.files import first_line, open_file, read_json

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1
LARGEST = 2**24  # bytes of config.json
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
ABSENT = "export it again: python -m uda_seg.export checkpoint=FILE format=hub out=FOLDER"


def is_published(path: Path) -> bool:
    """Return whether a checkpoint is given as a published network: a folder, or a name on the hub."""
    return on_hub(path) or path.is_dir()


def on_hub(path: Path | str) -> bool:
    """Return whether a checkpoint is given as a name on the hub."""
    return str(path).startswith(HUB)


def folder_of(path: Path) -> Path:
    """Return the folder of a published network, downloading it where it is a name on the hub."""
    return download(str(path).removeprefix(HUB), (CONFIG, WEIGHTS)) if on_hub(path) else path


def results_of(path: Path) -> Path:
    """Return where results of evaluating a checkpoint belong: to its run, or for a published network `outputs/`."""
    if is_published(path):
        name = str(path).removeprefix(HUB) if on_hub(path) else path.resolve().name
        return Path("outputs/evaluation", plain_name(name))
    return path.resolve().parent.parent / "evaluation"


def title_of(path: Path) -> str:
    """Name a checkpoint for people: its run's method and seed, or a published network's name."""
    if on_hub(path):
        return str(path)
    return path.resolve().name if path.is_dir() else "/".join(path.resolve().parts[-4:-2])


def weights_of(path: Path) -> Path:
    """Return the file with a checkpoint's tensors."""
    return folder_of(path) / WEIGHTS if is_published(path) else path


def read_published(path: Path) -> dict[str, Any]:
    """Read a published network in the form of a checkpoint.

    Raises:
        UserError: files are missing, truncated or not what this package writes, or `config.json` names code.
    """
    folder = folder_of(path)
    name = str(path) if on_hub(path) else str(folder)
    config = _read_config(folder, name)
    said = config["uda_seg"]
    tensors = _read_tensors(folder / WEIGHTS, name, config["weights"])
    return {
        "state_dict": {f"segmentor.{key}": tensor for key, tensor in tensors.items()},
        "uda_seg": {**{k: v for k, v in said.items() if k != "trunk"}, "published": True},
        "global_step": config["step"],
        "epoch": 0,
    }


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{name} {_holds_instead(folder)}")
    config = read_json(folder / CONFIG, ABSENT, LARGEST)
    if not isinstance(config, dict) or config.get("library_name") != "uda_seg":
        raise UserError(f"{name}: {CONFIG} is not of a network that uda_seg has published; {ABSENT}")
    if isinstance(config.get("format"), int) and config["format"] > FORMAT:
        raise UserError(f"{name} was published by a newer version of uda_seg: install that one")
    if code := next((key for key in _keys(config) if key in ("_target_", "_partial_", "auto_map")), None):
        raise UserError(f"{name}: {CONFIG} has {code}, which names code: not loaded")
    said: Any = config.get("uda_seg")
    weights, names = config.get("weights"), said.get("class_names") if isinstance(said, dict) else None
    nonsense = {
        "uda_seg": not isinstance(said, dict),
        "uda_seg.class_names": not (isinstance(names, list) and all(isinstance(n, str) for n in names)),
        "weights": not (isinstance(weights, dict) and isinstance(weights.get("sha256"), str | None)),
        "step": not isinstance(config.get("step"), int),
        "palette": not isinstance(config.get("palette"), list),
        "id2label": not isinstance(config.get("id2label"), dict),
    }
    if wrong := [key for key, bad in nonsense.items() if bad]:
        raise Damaged(f"{name}: {CONFIG} is damaged, {wrong[0]} is missing or nonsense; {ABSENT}")
    if len({len(config[key]) for key in ("palette", "id2label")} | {len(said["class_names"])}) > 1:
        raise Damaged(f"{name}: {CONFIG} disagrees with itself on the number of classes; {ABSENT}")
    return config


def _keys(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from _keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from _keys(value)


def _holds_instead(folder: Path) -> str:
    """Say what a folder is that has no `config.json`, in words that follow its name."""
    if not folder.is_dir():
        return "is no folder: correct the path"
    if (last := folder / "checkpoints" / "last.ckpt").is_file():
        return f"is a run's folder: name its checkpoint, {last}"
    return f"has no {CONFIG}: it is no network that uda_seg has published; name a checkpoint, or {ABSENT}"


def _read_tensors(path: Path, name: str, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        pickled = sorted(file.name for file in path.parent.iterdir() if file.suffix in PICKLED)
        there = f" but {shown(pickled[0])}, which is pickled and could run code: it is never loaded" if pickled else ""
        raise UserError(f"{name} has no {WEIGHTS}{there}; {ABSENT}")
    try:
        if (digest := weights.get("sha256")) is not None:
            with open_file(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise Damaged(f"{name}: {WEIGHTS} is not as it was written, cut short or changed; fetch it again")
        return safetensors.torch.load_file(path)
    except UserError:
        raise
    except Exception as error:  # a truncated file can raise anything
        said = f"{name}: {WEIGHTS} cannot be read, maybe cut short ({first_line(error)})"
        raise Damaged(f"{said}; fetch it again") from error
