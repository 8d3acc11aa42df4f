"""`python -m uda_seg.predict checkpoint=FILE input=DIR output=DIR`: segment a folder of images.

Writes four PNGs per image to `output`: `colour`, `overlay`, `labelIds` (in the encoding of the data set's label files:
Cityscapes' label ids for its classes; for custom data sets the `label_map`'s, with the first of several ids or colours
of a class) and `confidence`. `input` may also be a single image; `evaluator.teacher=true` uses the EMA teacher. Images
are recognised by content. Sub-folders are searched, including links; other files are listed. If an image fails, it is
named, the others are written, and the exit code is 1.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from uda_seg.cli.arguments import as_override, given_path
from uda_seg.cli.command import run
from uda_seg.config.replay import replay
from uda_seg.config.settings import PredictConfig
from uda_seg.data.folders import ends_in, files_below, kinds_of
from uda_seg.data.images import (
    HEAD,
    RAW,
    SUFFIXES,
    VIDEOS,
    frames,
    image_of,
    kind_of,
    may_be_deep,
    read_bytes,
    spread,
    used_bits,
    wrong_with,
)
from uda_seg.data.integrity import check_image
from uda_seg.data.labels import ClassSet
from uda_seg.errors import UserError
from uda_seg.evaluation.label_values import LabelValues, label_values
from uda_seg.launch.ranks import one_device
from uda_seg.runs.checkpoint import read_checkpoint
from uda_seg.runs.trained import TrainedSegmentor, trained, trained_domain
from uda_seg.storage.files import save_png
from uda_seg.visualize.pictures import colorize, heat, overlay

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors that would affect all further pictures
USAGE = "python -m uda_seg.predict checkpoint=<run>/checkpoints/last.ckpt input=<folder> output=<folder>"


def main() -> None:
    """Run the command."""
    run(PredictConfig, predict, expand=expand)


def expand(given: list[str]) -> list[str]:
    """Add the checkpoint's configuration below the given overrides, and keep Hydra from creating a folder."""
    path = given_path(given, "checkpoint", USAGE)
    given_path(given, "input", USAGE)
    output = given_path(given, "output", USAGE, must_exist=False)
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: choose a folder")
    return [
        "hydra/job_logging=stdout",
        as_override("hydra.run.dir", str(output)),
        *replay(read_checkpoint(path), given, PredictConfig),
    ]


@dataclass(frozen=True)
class Predictor:
    """A trained network with its input and output settings.

    Attributes:
        model: the network, on its device.
        bits: used bits per channel of 16-bit images; None without any.
        values: encoding of `labelIds`.
        output: output folder.
    """

    model: TrainedSegmentor
    bits: int | None
    values: LabelValues
    output: Path

    def __call__(self, path: Path, name: Path) -> None:
        """Write the pictures of one image.

        Raises:
            UserError: it is damaged, or a picture cannot be written.
        """
        content = read_bytes(path)
        check_image(content, str(path))  # OpenCV would accept a truncated image
        if (count := frames(content)) > 1:
            log.warning("%s contains %d frames: only the first is read", path, count)
        image = image_of(content, self.bits, str(path))
        logits = self.model.logits(image)
        label, confidence = logits.argmax(0).cpu(), logits.softmax(0).amax(0).cpu()
        write(self.output, name, image, label, confidence, self.model.classes, self.values)


def predict(config: PredictConfig, folder: Path) -> int:
    """Write colour, overlay, labelIds and confidence of every image, and return the number of images.

    Raises:
        UserError: there is no image, or some failed (raised after the others have been written).
    """
    checkpoint, source, output = (Path(str(p)) for p in (config.checkpoint, config.input, config.output))
    images = named_images(source, output)
    content = read_checkpoint(checkpoint)
    model = trained(config, content, checkpoint, teacher=config.evaluator.teacher).to(one_device(config.trainer))
    bits = input_bits(config, list(images), content["uda_seg"].get("bits"))
    values = label_values(config.data, model.classes)
    for note in values.notes:
        log.info("labelIds: %s", note)
    work = Predictor(model, bits, values, output)
    failed = predict_each(work, images, progress=config.callbacks.progress)
    log.info("%d images: %s", len(images) - len(failed), output)
    if failed:
        raise UserError(f"{len(failed)} of {len(images)} images failed: {', '.join(map(str, failed))}")
    return len(images)


def predict_each(work: Predictor, images: dict[Path, Path], progress: bool) -> list[Path]:
    """Write the pictures of all images, log failures, and return the failed images.

    Raises:
        UserError: pictures cannot be written.
    """
    failed = []
    for path, name in track(images.items(), description="predict", disable=not progress):
        try:
            work(path, name)
        except UserError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM:
                raise
            log.error("%s", error)
            failed.append(path)
        except Exception as error:  # a failing image must not stop the others
            log.error("%s: %s: %s", path, type(error).__name__, str(error).partition("\n")[0])
            failed.append(path)
    return failed


def named_images(source: Path, output: Path) -> dict[Path, Path]:
    """Find all images below a folder (except `output`), or the single image, with their pictures' relative names.

    Images are recognised by content, damaged ones by name. Other files are logged.

    Raises:
        UserError: there are no images, or `output` is their folder.
    """
    if source.is_file():
        if not is_image(source):
            raise UserError(f"{source} {wrong_with(read_bytes(source))}")
        return {source: Path(source.name).with_suffix(".png")}
    if not source.is_dir():
        raise UserError(f"input={source} is a pipe or a device: give a folder or an image")
    if source.resolve() == output.resolve():
        raise UserError(f"output={output} is the folder of the images: choose another, or one inside it")
    below = files_below(source, without=output)
    found = [name for name in below if is_image(source / name)]
    others = sorted(set(below) - set(found))
    if not found:
        there = f" but {kinds_of(others)}" if others else ""
        cure = "; of a video extract the frames first" if any(n.lower().endswith(VIDEOS) for n in others) else ""
        raise UserError(f"{source} holds no image ({', '.join(SUFFIXES)}){there}: check input={cure}")
    if others:
        log.warning("left out of %s, being no images: %s", source, kinds_of(others))
    return {source / name: picture for name, picture in zip(found, picture_names(found), strict=True)}


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its content, or else by its name."""
    if path.name.lower().endswith(RAW):
        return False
    return kind_of(head_of(path)) is not None or ends_in(path.name, ".*")


def picture_names(names: Sequence[str]) -> list[Path]:
    """Build the pictures' names: `a.png` for `a.jpg`, but `a.jpg.png` to avoid duplicates."""
    whole = [Path(f"{name}.png") for name in names]
    chosen = [Path(name).with_suffix(".png") for name in names]
    while len(set(chosen)) < len(chosen):
        count = Counter(chosen)
        chosen = [short if count[short] == 1 else long for short, long in zip(chosen, whole, strict=True)]
    return chosen


def input_bits(config: PredictConfig, images: Sequence[Path], found: object) -> int | None:
    """Determine the used bits per channel of 16-bit images: configured, as in training, or from the images."""
    deep = [path for path in images if may_be_deep(head_of(path))]
    if not deep or config.predict.bits is not None:
        return config.predict.bits
    said = trained_domain(config).bits or (found if isinstance(found, int) and found in range(8, 17) else None)
    if said is not None:
        log.info("predict.bits=%d: images of 16 bits a channel are scaled as in training", said)
        return said
    return used_bits([partial(read_bytes, path) for path in spread(deep)], "predict.bits")


def head_of(path: Path) -> bytes:
    """Read the start of a file; empty if it cannot be opened."""
    try:
        return read_bytes(path, HEAD)
    except UserError:
        return b""


def write(
    output: Path,
    name: Path,
    image: Pixels,
    label: Tensor,
    confidence: Tensor,
    classes: ClassSet,
    values: LabelValues,
) -> None:
    """Write the four pictures of an image."""
    ids = label.numpy().astype(np.uint8)
    colour = colorize(ids, classes.palette)
    save_png(output / "colour" / name, colour)
    save_png(output / "overlay" / name, overlay(image, colour))
    save_png(output / "labelIds" / name, values.table[ids])
    save_png(output / "confidence" / name, heat(confidence.numpy()))


if __name__ == "__main__":
    main()
