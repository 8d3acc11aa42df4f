"""`predict` on what lies in people's folders: nothing is left out in silence, and no image costs another."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from command_line import configured, small_run
from data.trees import noise, save
from uda_seg import predict, train
from uda_seg.config.settings import PredictConfig
from uda_seg.errors import UserError
from uda_seg.predict import named_images, picture_names
from uda_seg.runs.trained import TrainedSegmentor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, camvid):
    """Of a run without any validation set."""
    folder = tmp_path_factory.mktemp("run")
    config = configured(*small_run(camvid, steps=1), "method=source_only", "data.validation=null")
    train.train(config, folder)
    return folder / "checkpoints/last.ckpt"


@pytest.fixture
def predicted(checkpoint, camvid, tmp_path):
    """`predicted(folder, *overrides)`: the ids written of a folder's images, and the line of those that failed."""

    def run(folder: Path, *overrides: str) -> tuple[dict[str, np.ndarray], str]:
        out, said = tmp_path / "out", ""
        given = [*small_run(camvid, steps=1), "method=source_only", "data.validation=null", f"checkpoint={checkpoint}"]
        config = configured(*given, f"input={folder}", f"output={out}", *overrides, kind=PredictConfig)
        try:
            predict.predict(config, out)
        except UserError as error:
            said = str(error)
        found = sorted((out / "labelIds").rglob("*.png"))
        for other in ("colour", "overlay", "confidence"):
            assert len(list((out / other).rglob("*.png"))) == len(found)
        return {str(path.relative_to(out / "labelIds")): cv2.imread(str(path), -1) for path in found}, said

    return run


def test_odd_images_are_segmented_and_what_fails_costs_no_other(predicted, tmp_path, monkeypatch, caplog):
    folder, other = tmp_path / "in", tmp_path / "elsewhere"
    sizes = {
        "strip.png": (3, 640),
        "column.png": (640, 1),
        "dot.png": (1, 1),
        "CAPITALS.PNG": (8, 9),
        "plain.jpg": (16, 20),
    }
    for name, size in sizes.items():
        save(folder / name, noise(1, size))
    Image.fromarray(noise(2)).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(2)).convert("P").save(folder / "palette.png")
    Image.fromarray(noise(2)).convert("LA").save(folder / "alpha.png")
    pictures = [Image.fromarray(noise(seed)) for seed in (3, 4)]
    pictures[0].save(folder / "moving.gif", save_all=True, append_images=pictures[1:])
    Image.fromarray(noise(2)).save(folder / "nameless", "PNG")
    save(folder / "cut.png", noise(5, (40, 60)))
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-40])
    save(folder / "cut.jpg", noise(5, (40, 60)))
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-40])
    save(folder / "trouble.png", noise(6, (33, 44)))
    save(other / "linked.png", noise(7))
    (folder / "more").symlink_to(other)
    (other / "circle").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for name, content in {
        "film.mp4": b"\0\0\0\x20ftypisom",
        "notes.txt": b"BM",
        "._plain.jpg": b"",
        "Thumbs.db": b"",
    }.items():
        (folder / name).write_bytes(content)
    real = TrainedSegmentor.logits

    def logits(model, image):
        if image.shape[:2] == (33, 44):
            raise torch.OutOfMemoryError("out of memory\nand more")
        return real(model, image)

    monkeypatch.setattr(TrainedSegmentor, "logits", logits)
    found, said = predicted(folder)
    whole = {**sizes, "cmyk.jpg": (8, 12), "palette.png": (8, 12), "alpha.png": (8, 12), "moving.gif": (8, 12),
             "nameless": (8, 12), "more/linked.png": (8, 12)}  # fmt: skip
    assert {name: ids.shape for name, ids in found.items()} == {
        str(Path(name).with_suffix(".png")): size for name, size in whole.items()
    }
    bad = ["cut.jpg", "cut.png", "gone.png", "trouble.png"]
    assert said == f"4 of 15 images failed: {', '.join(str(folder / name) for name in bad)}"
    for words in (
        "cut.png is cut off", "cut.jpg is cut off", "gone.png cannot be opened",
        "trouble.png: OutOfMemoryError: out of memory", "moving.gif contains 2 frames: only the first is read",
        "being no images: 2 files (1 .mp4, 1 .txt): film.mp4, notes.txt",
    ):  # fmt: skip
        assert words in caplog.text


def test_images_of_twelve_bits_are_no_night(predicted, tmp_path, caplog):
    caplog.set_level("INFO")
    image = noise(1, (16, 24))
    for i in range(2):
        save(tmp_path / f"deep/{i}.png", image.astype(np.uint16) * 16 + i)
        save(tmp_path / f"plain/{i}.png", image)
    deep, said = predicted(tmp_path / "deep")
    assert said == ""
    assert "predict.bits=12: images have 16 bits per channel" in caplog.text
    plain, _ = predicted(tmp_path / "plain")
    assert all(np.array_equal(deep[name], plain[name]) for name in ("0.png", "1.png"))
    predicted(tmp_path / "deep", "predict.bits=16")
    assert cv2.imread(str(tmp_path / "out/overlay/0.png")).max() < 140  # half of it the picture, nearly black


def test_a_dark_image_is_scaled_as_in_training(checkpoint, camvid, tmp_path):
    save(tmp_path / "dark.png", np.full((4, 4, 3), 600, np.uint16))
    config = configured(*small_run(camvid), kind=PredictConfig)
    images = [tmp_path / "dark.png"]
    assert predict.input_bits(config, images, None) == 10
    assert predict.input_bits(config, images, 12) == 12
    assert predict.input_bits(config, images, "12; import os") == 10  # a checkpoint says values of its own
    config.data.validation["target"].bits = 14
    assert predict.input_bits(config, images, 12) == 14
    config.predict.bits = 16
    assert predict.input_bits(config, images, 12) == 16
    assert torch.load(checkpoint, weights_only=True)["uda_seg"]["bits"] is None


def test_a_full_disk_ends_it_at_once(predicted, tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", noise(i))
    tried = []

    def save_png(path, picture):
        tried.append(path)
        raise UserError(f"cannot write {path}: No space left on device") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(predict, "save_png", save_png)
    assert predicted(tmp_path / "in")[1].endswith("No space left on device")
    assert len(tried) == 1


def test_a_video_is_called_a_video(predicted, tmp_path):
    video = tmp_path / "film.mp4"
    video.write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    with pytest.raises(UserError, match=r"film\.mp4 is a video, not an image: extract its frames first"):
        named_images(video, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no image .* but 1 file \(1 \.mp4\): film\.mp4: .* extract the frames"):
        named_images(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["a.png", "b.jpg"], ["a.png", "b.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["a.jpg", "a.png", "a.png.png"], ["a.jpg.png", "a.png.png", "a.png.png.png"]),
        (["a", "a.png", "x/a.png"], ["a.png", "a.png.png", "x/a.png"]),
    ],
)
def test_pictures_of_two_images_never_have_one_name(names, pictures):
    assert [str(path) for path in picture_names(names)] == pictures


# ---------------------------------------------------------------------- a target that nobody labelled


def test_a_run_without_validation_has_null_scores(checkpoint):
    folder = checkpoint.parents[1]
    said = json.loads((folder / "metrics.json").read_text())
    assert (said["miou"], said["best"], said["pixel_accuracy"], said["targets"]) == (None, None, None, {})
    assert set(said["per_class"].values()) == {None}
    assert said["miou_over"] == {"11": None}
    assert len(said["classes"]) == 11
    assert said["step"] == 1
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["last.ckpt"]
