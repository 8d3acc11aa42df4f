"""`python -m uda_seg.predict checkpoint=... input=DIR output=DIR`: segment a folder of images."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from uda_seg.command import given_path, run
from uda_seg.config import Config
from uda_seg.data.labels import CITYSCAPES_RAW, CLASS_SETS, IGNORE, ClassSet
from uda_seg.errors import UserError
from uda_seg.methods.base import Plan
from uda_seg.models.segmentor import Segmentor, resize
from uda_seg.pictures import colorize, heat, overlay, save_png
from uda_seg.runs import load_trained, read_checkpoint, replay
from uda_seg.train import inference, instantiate_module

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
USAGE = "python -m uda_seg.predict checkpoint=<run>/checkpoints/last.ckpt input=<folder> output=<folder>"


def main() -> None:
    """Entry point."""
    run("config", predict, expand=expand)


def expand(given: list[str]) -> list[str]:
    """The checkpoint's own configuration below the given overrides; Hydra leaves the output folder alone."""
    path = given_path(given, "checkpoint", USAGE)
    output = given_path(given, "output", USAGE, must_exist=False)
    given_path(given, "input", USAGE)
    quiet = ["hydra.output_subdir=null", "hydra/job_logging=stdout", f"hydra.run.dir='{output}'"]
    return replay(read_checkpoint(path), given) + quiet


def predict(config: Config, folder: Path) -> int:
    """Write colour, overlay, labelIds and confidence pictures of every image; returns how many there were."""
    checkpoint, source, output = (
        Path(str(config.checkpoint)),
        Path(str(config.input)),
        Path(str(config.output)),
    )
    images = find_images(source)
    classes = CLASS_SETS[config.data.classes]
    plan = Plan(config.steps, config.seed, classes, classes.subset(config.data.eval_classes), (1, 1))
    module = instantiate_module(config, plan)
    network = load_trained(module, read_checkpoint(checkpoint), checkpoint, teacher=config.evaluator.teacher)
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    network = network.to(device)
    infer = inference(config)
    for path in track(images, description="predict", disable=not config.callbacks.progress):
        image = read_image(path)
        with torch.no_grad():
            probability = probabilities(network, image, config.predict.size, infer, device)
        confidence, label = probability.max(0)
        write(
            output,
            path.relative_to(source if source.is_dir() else source.parent),
            image,
            label,
            confidence,
            classes,
        )
    log.info("%d images: %s", len(images), output)
    return len(images)


def find_images(source: Path) -> list[Path]:
    """All images below a folder, or the one image.

    Raises:
        UserError: there are none.
    """
    found = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{source} holds no image ({', '.join(sorted(SUFFIXES))}): check input=")
    return found


def read_image(path: Path) -> Pixels:
    """RGB uint8 [H, W, 3].

    Raises:
        UserError: the file is no readable image.
    """
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise UserError(f"{path} cannot be read as an image: remove it from input= or mend it")
    pixels: Pixels = np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)
    return pixels


def probabilities(
    network: Segmentor, image: Pixels, size: list[int] | None, infer: object, device: torch.device
) -> torch.Tensor:
    """Class probabilities [K, H, W] at the image's own size."""
    assert callable(infer)
    height, width = image.shape[:2]
    if size is not None:
        scale = min(size[0] / height, size[1] / width)
        image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    tensor = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    return resize(infer(network, tensor), (height, width))[0].softmax(0).cpu()


def raw_ids(classes: ClassSet) -> Pixels:
    """Lookup table uint8 [256] from train ids to the ids of the data set's own label files."""
    table = np.arange(256, dtype=np.uint8)
    if classes.name == "cityscapes":
        for raw, train in CITYSCAPES_RAW.items():
            if train != IGNORE:
                table[train] = raw
    return table


def write(
    output: Path, name: Path, image: Pixels, label: torch.Tensor, confidence: torch.Tensor, classes: ClassSet
) -> None:
    """The four pictures of one image."""
    ids = label.numpy().astype(np.uint8)
    colour = colorize(ids, classes.palette)
    png = name.with_suffix(".png")
    save_png(output / "colour" / png, colour)
    save_png(output / "overlay" / png, overlay(image, colour))
    save_png(output / "labelIds" / png, raw_ids(classes)[ids])
    save_png(output / "confidence" / png, heat(confidence.numpy()))


if __name__ == "__main__":
    main()
