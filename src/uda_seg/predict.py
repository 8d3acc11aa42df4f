"""`python -m uda_seg.predict checkpoint=FILE input=DIR output=DIR`: segment a folder of images.

Every image becomes four PNGs under `output`: `colour`, `overlay`, `labelIds` (what the data set's own label files hold:
Cityscapes' label ids for its classes; of folders of one's own what the `label_map` names, of several ids or colours of
a class the first) and `confidence`. `input` may also be one image; `evaluator.teacher=true` takes the averaged network.
An image that cannot be read is named, the others are written, and the exit code is 1.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from uda_seg.command import given_path, run
from uda_seg.config import Config
from uda_seg.data.batch import Sample
from uda_seg.data.custom import classes_of
from uda_seg.data.datamodule import resize_of
from uda_seg.data.decoding import read_image
from uda_seg.data.labels import ClassSet
from uda_seg.data.settings import DomainSettings
from uda_seg.data.transforms import Resize
from uda_seg.errors import UserError
from uda_seg.evaluation.label_values import LabelValues, label_values
from uda_seg.files import save_png
from uda_seg.methods.base import Plan
from uda_seg.models.inference import Inference
from uda_seg.models.segmentor import Segmentor
from uda_seg.pictures import colorize, heat, overlay
from uda_seg.runs import load_trained, read_checkpoint, replay
from uda_seg.train import inference, instantiate_module

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
USAGE = "python -m uda_seg.predict checkpoint=<run>/checkpoints/last.ckpt input=<folder> output=<folder>"


def main() -> None:
    """Entry point."""
    run("config", predict, expand=expand)


def expand(given: list[str]) -> list[str]:
    """The checkpoint's own configuration below the given overrides; Hydra leaves the output folder alone."""
    path = given_path(given, "checkpoint", USAGE)
    given_path(given, "input", USAGE)
    output = given_path(given, "output", USAGE, must_exist=False)
    return ["hydra/job_logging=stdout", f"hydra.run.dir='{output}'", *replay(read_checkpoint(path), given)]


def predict(config: Config, folder: Path) -> int:
    """Write colour, overlay, labelIds and confidence pictures of every image; returns how many there were.

    Raises:
        UserError: there is no image, or some could not be read (said once the others are written).
    """
    checkpoint, source, output = (Path(str(p)) for p in (config.checkpoint, config.input, config.output))
    images = named_images(source, output)
    classes = classes_of(config.data)
    eval_classes = classes.subset(config.data.eval_classes)
    plan = Plan(steps=config.steps, seed=config.seed, classes=classes, eval_classes=eval_classes, crop=(1, 1))
    module = instantiate_module(config, plan)
    network = load_trained(module, read_checkpoint(checkpoint), checkpoint, teacher=config.evaluator.teacher)
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    network, infer, fit = network.to(device), inference(config), input_resize(config)
    values = label_values(config.data, classes)
    for note in values.notes:
        log.info("labelIds: %s", note)
    unreadable = []
    for path, name in track(images.items(), description="predict", disable=not config.callbacks.progress):
        try:
            image = read_image(path)
        except UserError as error:
            log.error("%s", error)
            unreadable.append(path)
            continue
        confidence, label = probabilities(network, image, fit, infer, device).max(0)
        write(output, name, image, label, confidence, classes, values)
    log.info("%d images: %s", len(images) - len(unreadable), output)
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(images)} images cannot be read: {', '.join(map(str, unreadable))}")
    return len(images)


def named_images(source: Path, output: Path) -> dict[Path, Path]:
    """All images below a folder (those in `output` aside), or the one image, each with its pictures' relative name.

    Raises:
        UserError: there are none.
    """
    found = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
    found = [path for path in found if output.resolve() not in path.resolve().parents]
    if not found:
        raise UserError(f"{source} holds no image ({', '.join(SUFFIXES)}): check input=")
    root = source.parent if source.is_file() else source
    stems = Counter(path.with_suffix("") for path in found)
    return {
        path: (path.with_suffix(".png") if stems[path.with_suffix("")] == 1 else Path(f"{path}.png")).relative_to(root)
        for path in found
    }


def input_resize(config: Config) -> Resize | None:
    """How images are brought to a size: as in validation, or to `predict.size`; None leaves them as they are."""
    validation = next(iter(config.data.validation.values()), DomainSettings())
    if config.predict.size != "auto":
        validation = replace(validation, size=config.predict.size)
    return resize_of(validation)


@torch.no_grad()
def probabilities(
    network: Segmentor,
    image: Pixels,
    fit: Resize | None,
    infer: Inference,
    device: torch.device,
) -> Tensor:
    """Class probabilities [K, H, W] of an RGB image [H, W, 3], at the image's own size."""
    height, width = image.shape[:2]
    if fit is not None:
        image = fit(Sample(image)).image
    tensor = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    return infer(network, tensor, (height, width))[0].softmax(0).cpu()


def write(
    output: Path,
    name: Path,
    image: Pixels,
    label: Tensor,
    confidence: Tensor,
    classes: ClassSet,
    values: LabelValues,
) -> None:
    """The four pictures of one image."""
    ids = label.numpy().astype(np.uint8)
    colour = colorize(ids, classes.palette)
    save_png(output / "colour" / name, colour)
    save_png(output / "overlay" / name, overlay(image, colour))
    save_png(output / "labelIds" / name, values.table[ids])
    save_png(output / "confidence" / name, heat(confidence.numpy()))


if __name__ == "__main__":
    main()
