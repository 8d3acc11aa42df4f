"""`python -m uda_seg.export checkpoint=FILE format=onnx out=FILE`: a trained network for other programs and people.

`format=onnx` and `format=torch_export` (.pt2) write the network used at test as a graph: `image`, float32 RGB in
[0, 1] [N, 3, H, W] of any number and size in; `export.output=logits|probabilities|labels` at the images' size out;
normalisation inside. It is one forward over the whole image: windows and scales of `evaluator`, and the resize of large
images, are the caller's. The graph is run at once, on the images of `input=` or on rendered streets, at several sizes
and batch sizes, beside the network; if they differ, nothing is written. `export.size=[H,W]` fixes the size.

`format=safetensors` writes the weights. `format=hub` writes a folder with weights, configuration and model card, which
`checkpoint=FOLDER`, `init=FOLDER` and `uda_seg.load("FOLDER")` read; `push=OWNER/NAME` uploads it to the Hugging Face
hub, from where `hub:OWNER/NAME` is read likewise. `export.teacher=true` exports the EMA teacher instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from uda_seg.cli.arguments import as_override, given_path, text_of
from uda_seg.cli.command import run
from uda_seg.config.commands import FORMATS, ExportConfig
from uda_seg.config.replay import replay
from uda_seg.config.schema import key_of
from uda_seg.errors import UserError
from uda_seg.exporting.card import ROOM, write_folder
from uda_seg.exporting.compare import batches, check, difference
from uda_seg.exporting.formats import (
    need_onnx,
    run_onnx,
    run_torch_export,
    write_onnx,
    write_safetensors,
    write_torch_export,
)
from uda_seg.exporting.graph import Exported, captured
from uda_seg.exporting.push import check_name, push
from uda_seg.exporting.samples import samples
from uda_seg.runs.checkpoint import read_checkpoint, tensors_at_test
from uda_seg.runs.published import CONFIG, WEIGHTS, is_published
from uda_seg.runs.trained import TrainedSegmentor, load, trained
from uda_seg.storage.files import written_whole

log = logging.getLogger(__name__)

USAGE = f"python -m uda_seg.export checkpoint=<run>/checkpoints/last.ckpt format={'|'.join(FORMATS)} out=..."
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors", "hub": "_hub"}


def main() -> None:
    """Run the command."""
    run(ExportConfig, export, expand=expand)


def expand(given: list[str]) -> list[str]:
    """Add the checkpoint's configuration below the given overrides, and keep Hydra from creating a folder."""
    path = given_path(given, "checkpoint", USAGE)
    if not any(key_of(o) == "format" for o in given):
        raise UserError(f"format= is missing, one of {', '.join(FORMATS)}: {USAGE}")
    if any(key_of(o) == "input" for o in given):
        given_path(given, "input", USAGE)
    if not any(key_of(o) == "out" for o in given):
        given = [*given, as_override("out", str(default_out(path, given)))]
    out = given_path(given, "out", USAGE, must_exist=False)
    folder = as_override("hydra.run.dir", str(out.parent))
    return ["hydra/job_logging=stdout", folder, *replay(read_checkpoint(path), given, ExportConfig)]


def default_out(checkpoint: Path, given: Sequence[str]) -> Path:
    """Name what is written after the checkpoint, in the folder `export` of its run.

    Raises:
        UserError: the checkpoint is not in a run's folder.
    """
    said = {key_of(o): text_of(o) for o in given if key_of(o) in ("format", "export.teacher")}
    if is_published(checkpoint) or checkpoint.resolve().parent.name != "checkpoints":
        raise UserError(f"out= is missing, and {checkpoint} is in no run's folder that could have it: {USAGE}")
    name = checkpoint.stem + ("_teacher" if said.get("export.teacher", "").lower() == "true" else "")
    return checkpoint.resolve().parent.parent / "export" / (name + SUFFIXES.get(said["format"], ""))


def export(config: ExportConfig, folder: Path) -> Path:
    """Write the network, and return where.

    Raises:
        UserError: `out` exists, the graph is not the network, or a package is missing; nothing is written.
    """
    path, out = Path(str(config.checkpoint)), Path(str(config.out))
    _check(config, out)
    content = read_checkpoint(path)
    model = trained(config, content, path, teacher=config.export.teacher)
    if config.format == "hub":
        write_folder(config, model, content, out)
        _check_folder(model, out)
    elif config.format == "safetensors":
        with written_whole(out, ROOM) as part:
            write_safetensors(tensors_at_test(model.network), part, description(model, config))
    else:
        write_graph(config, model, out)
    log.info("written: %s (%s)", out, "teacher" if config.export.teacher else "student")
    if config.push is not None:
        log.info("pushed: %s", push(out, config.push))
    return out


def _check(config: ExportConfig, out: Path) -> None:
    """Refuse what cannot be written, before anything is read.

    Raises:
        UserError: names the key and the cure.
    """
    if config.format is None:
        raise UserError(f"format= is missing, one of {', '.join(FORMATS)}: {USAGE}")
    if config.format == "onnx":
        need_onnx()
    if config.push is not None:
        if config.format != "hub":
            raise UserError(f"push={config.push} uploads what format=hub writes: say format=hub")
        check_name(config.push)
    if config.format == "hub":
        others = [] if not out.is_dir() or (out / WEIGHTS).is_file() else sorted(file.name for file in out.iterdir())
        if others or (out.exists() and not out.is_dir()):
            raise UserError(f"out={out} holds other files ({', '.join(others[:3])}): choose a new folder")
    elif out.is_dir():
        raise UserError(f"out={out} is a folder: name the file to write in it")
    if out.exists() and not config.overwrite and (config.format != "hub" or (out / WEIGHTS).is_file()):
        raise UserError(f"out={out} exists already: choose another or replace it with overwrite=true")


def _check_folder(model: TrainedSegmentor, out: Path) -> None:
    """Read a folder back, and leave it unreadable if it is not the network.

    Raises:
        UserError: it cannot be rebuilt, or differs.
    """
    try:
        found = tensors_at_test(load(out, device="cpu").network)
    except UserError as error:
        (out / CONFIG).unlink()
        raise UserError(f"{out} cannot be read back ({error}): its {CONFIG} is removed") from error
    if not all(tensor.equal(found[name]) for name, tensor in tensors_at_test(model.network).items()):
        (out / CONFIG).unlink()
        raise UserError(f"{out} does not give the network back: its {CONFIG} is removed")


def write_graph(config: ExportConfig, model: TrainedSegmentor, out: Path) -> None:
    """Capture the network, write the graph, and keep it only if it gives what the network gives."""
    settings = config.export
    size = None if settings.size is None else (settings.size[0], settings.size[1])
    exported = Exported(model.network, settings.output)  # type: ignore[arg-type]  # checked by the schema
    source = None if config.input is None else Path(config.input)
    images = samples(source, settings.images, model.fit, config.predict.bits)
    program = captured(exported, size)
    described = description(model, config)
    with written_whole(out, ROOM) as part:
        if config.format == "onnx":
            write_onnx(program, part, settings.output, described)
        else:
            write_torch_export(program, part, described)
        graph = run_onnx(part) if config.format == "onnx" else run_torch_export(part)
        with torch.no_grad():
            found = [
                difference(model.network, graph, batch, exported.output)
                for batch in batches(images, model.network.smallest, size)
            ]
        log.info("%s", check(found, settings.tolerance))


def description(model: TrainedSegmentor, config: ExportConfig) -> Mapping[str, Any]:
    """Describe input and output of a network for those who have only the file."""
    return {
        "classes": list(model.class_names),
        "palette": model.palette.tolist(),
        "input": "image: float32 RGB in [0, 1], [N, 3, H, W]; the network normalises it",
        "fit": None if model.fit is None else list(model.fit.box),
        "smallest": model.network.smallest,
        "network": "teacher" if config.export.teacher else "student",
    }


if __name__ == "__main__":
    main()
