"""`python -m uda_seg.predict checkpoint=FILE input=FOLDER output=FOLDER`: segment images or a video.

`input=` is a folder (with its sub-folders), an image, a pattern in quotes (input='photos/*.JPG'), a text file with one
path per line, or a video:

  python -m uda_seg.predict checkpoint=... input=photos/ output=segmented/
  python -m uda_seg.predict checkpoint=... input=clip.mp4 output=out.mp4
  python -m uda_seg.predict checkpoint=... serve=true

Of an image, predict.outputs=[colour,overlay,ids,confidence,npz] chooses what is written: `labelIds` are in the encoding
of the data set's label files (Cityscapes' label ids for its classes; for custom data sets the `label_map`'s, with the
first of several ids or colours of a class), `npz` has class ids and confidence as NumPy arrays
(predict.probabilities=true: all probabilities). Images are recognised by content; other files are listed. If an image
fails, it is named, the others are written, and the exit code is 1. What is finished is kept: the same command goes on
where it was stopped. Another checkpoint or other settings need another output=, or overwrite=true.

Of a video, predict.video=overlay|colour|confidence|beside is written, with its time stamps and sound.

serve=true opens a page on this machine, to drop an image or use the camera, with one network or several:
checkpoint=[before.ckpt,after.ckpt]. predict.port chooses its port; predict.host opens it to others.

evaluator.teacher=true uses the EMA teacher, evaluator=slide windows in place of whole images; `--help predict` lists
the other options.
"""

from __future__ import annotations

import logging
from pathlib import Path

from uda_seg.cli.arguments import as_override, given_path, parsed
from uda_seg.cli.command import run
from uda_seg.cli.idle import refuse_training_options
from uda_seg.config.commands import PredictConfig
from uda_seg.config.replay import replay
from uda_seg.config.schema import key_of
from uda_seg.errors import UserError
from uda_seg.evaluation.label_values import label_values
from uda_seg.launch.devices import one_device
from uda_seg.prediction.batches import Batches
from uda_seg.prediction.images import Predictor
from uda_seg.prediction.inputs import input_bits, is_film, is_glob, named_images
from uda_seg.prediction.journal import Journal, settings_of
from uda_seg.prediction.networks import first_choice, networks_of
from uda_seg.prediction.outputs import Outputs
from uda_seg.prediction.page import MOST, serve
from uda_seg.prediction.video import Painter, predict_video, video_output
from uda_seg.runs.checkpoint import read_checkpoint
from uda_seg.runs.folder import alone_in
from uda_seg.runs.trained import TrainedSegmentor, trained, trained_domain

log = logging.getLogger(__name__)

USAGE = "python -m uda_seg.predict checkpoint=<run>/checkpoints/last.ckpt input=photos/ output=segmented/"
ELSEWHERE = "choose another output="
OF_IMAGES = ("predict.outputs", "predict.probabilities")  # keys that other inputs have no use for
OF_VIDEOS = ("predict.video",)
OF_PAGE = ("predict.host", "predict.port")


def main() -> None:
    """Run the command."""
    run(PredictConfig, predict, expand=expand)


def expand(given: list[str]) -> list[str]:
    """Add the checkpoint's configuration below the given overrides, and keep Hydra from creating a folder."""
    serves = any(key_of(o) == "serve" and parsed([o])[0].value() is True for o in given)
    checkpoints = given_checkpoints(given)
    _refuse_without_effect(given, serves)
    refuse_training_options(given)
    if len(checkpoints) > 1 and not serves:
        raise UserError("checkpoint= has several files: add serve=true to compare them, or give one")
    folder = Path() if serves else results_folder(given)
    return [
        "hydra/job_logging=stdout",
        as_override("hydra.run.dir", str(folder)),
        *replay(read_checkpoint(checkpoints[0]), given, PredictConfig),
    ]


def _refuse_without_effect(given: list[str], serves: bool) -> None:
    """Refuse overrides that this call would ignore."""
    if serves:
        place, ignored = "with serve=true", {"input", "output", "overwrite", "predict.batch", *OF_IMAGES, *OF_VIDEOS}
    elif is_film(given_path(given, "input", USAGE, must_exist=False)):
        place, ignored = "on a video", {"predict.bits", *OF_IMAGES, *OF_PAGE}
    else:
        place, ignored = "on images", {*OF_VIDEOS, *OF_PAGE}
    for key in filter(ignored.__contains__, map(key_of, given)):
        raise UserError(f"{key}= has no effect {place}: leave it out")


def given_checkpoints(given: list[str]) -> list[Path]:
    """Return the checkpoints of `checkpoint=`: one, or a list of them.

    Raises:
        UserError: it is missing, or a file does not exist.
    """
    last = next((o for o in reversed(given) if key_of(o) == "checkpoint"), "")
    value = parsed([last])[0].value() if last else None
    if not isinstance(value, list):
        return [given_path(given, "checkpoint", USAGE)]
    return [given_path([as_override("checkpoint", str(path))], "checkpoint", USAGE) for path in value]


def results_folder(given: list[str]) -> Path:
    """Return the folder of the results of `input=` and `output=`.

    Raises:
        UserError: one of them is missing, or cannot be one.
    """
    source = given_path(given, "input", USAGE, must_exist=False)
    if not is_glob(source):
        given_path(given, "input", USAGE)
    output = given_path(given, "output", USAGE, must_exist=False)
    if is_film(source):
        return video_output(source, output).parent
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: choose a folder")
    return output


def predict(config: PredictConfig, folder: Path) -> int:
    """Predict all images or a video, or serve the page; return the number of images or frames.

    Raises:
        UserError: there is no image, or some failed (raised after the others have been written).
    """
    if config.serve:
        _serve(config)
        return 0
    checkpoint, source, output = (Path(str(p)) for p in (config.checkpoint, config.input, config.output))
    film = is_film(source)
    images = {} if film else named_images(source, output)
    content = read_checkpoint(checkpoint)
    model = trained(config, content, checkpoint, teacher=config.evaluator.teacher).to(one_device(config.trainer))
    if film:
        return _predict_video(config, model, source, video_output(source, output))
    bits = input_bits(config, list(images), content["uda_seg"].get("bits"))
    return _predict_images(config, model, images, bits)


def _serve(config: PredictConfig) -> None:
    given = config.checkpoint
    paths = [Path(str(path)) for path in (given if isinstance(given, list) else [given])]
    networks, settings = networks_of(paths, config, one_device(config.trainer)), config.predict
    selected = first_choice(networks, config.evaluator.teacher)
    bits = settings.bits or trained_domain(config).bits
    serve(networks, selected[:MOST], bits, settings.host, settings.port)


def _predict_video(config: PredictConfig, model: TrainedSegmentor, source: Path, output: Path) -> int:
    if output.exists() and output.samefile(source):
        raise UserError(f"output={output} is the video itself: choose another name")
    if output.exists() and not config.overwrite:
        raise UserError(f"output={output} exists: choose another name, or replace it with overwrite=true")
    painter, batches = Painter(model.classes, config.predict.video), Batches(model, config.predict.batch)
    return predict_video(source, output, batches, painter, config.callbacks.progress)


def _predict_images(config: PredictConfig, model: TrainedSegmentor, images: dict[Path, Path], bits: int | None) -> int:
    settings, output = config.predict, Path(str(config.output))
    if settings.probabilities and "npz" not in settings.outputs:
        kinds = ",".join([*settings.outputs, "npz"])
        raise UserError(f"predict.probabilities=true is of npz files: add them, predict.outputs=[{kinds}]")
    values = label_values(config.data, model.classes)
    for note in values.notes if "ids" in settings.outputs else ():
        log.info("labelIds: %s", note)
    outputs = Outputs(output, settings.outputs, model.classes, values, settings.probabilities)
    with alone_in(output, "a prediction", ELSEWHERE):
        journal = Journal(outputs, settings_of(config, model, outputs), images.values(), config.overwrite)
        work = Predictor(Batches(model, settings.batch), outputs, journal, bits)
        work.run(images, progress=config.callbacks.progress)
    kept = f", {work.kept} of them already there" if work.kept else ""
    log.info("written: %s (%d images%s)", output, len(images) - len(work.failed), kept)
    if work.failed:
        raise UserError(f"{len(work.failed)} of {len(images)} images failed: {', '.join(map(str, work.failed))}")
    return len(images)


if __name__ == "__main__":
    main()
