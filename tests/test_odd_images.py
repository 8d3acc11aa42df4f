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
from uda_seg.config.commands import PredictConfig
from uda_seg.data.images import read_image
from uda_seg.data.integrity import check_image_file
from uda_seg.errors import Damaged, UserError
from uda_seg.prediction import outputs
from uda_seg.prediction.inputs import input_bits, named_images, picture_names
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
        if overrides and overrides[-1].startswith("output_is_new="):
            out, overrides = tmp_path / overrides[-1], overrides[:-1]
        given = [*small_run(camvid, steps=1), "method=source_only", "data.validation=null", f"checkpoint={checkpoint}"]
        config = configured(*given, f"input={folder}", f"output={out}", *overrides, kind=PredictConfig)
        try:
            predict.predict(config, out)
        except UserError as error:
            said = str(error)
        found = sorted((out / "labelIds").rglob("*.png"))
        for other in () if any("outputs" in o for o in overrides) else ("colour", "overlay", "confidence"):
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
    pictures[0].save(folder / "SCAN.TIF", save_all=True, append_images=pictures[1:])
    Image.fromarray(noise(2, (9, 11))).convert("RGBA").save(folder / "web.WEBP", lossless=True)
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
    real = TrainedSegmentor.batch_logits

    def batch_logits(model, images):
        if images[0].shape[:2] == (33, 44):
            raise torch.OutOfMemoryError("out of memory\nand more")
        return real(model, images)

    monkeypatch.setattr(TrainedSegmentor, "batch_logits", batch_logits)
    found, said = predicted(folder)
    whole = {**sizes, "SCAN.TIF": (8, 12), "web.WEBP": (9, 11),
             "cmyk.jpg": (8, 12), "palette.png": (8, 12), "alpha.png": (8, 12), "moving.gif": (8, 12),
             "nameless": (8, 12), "more/linked.png": (8, 12)}  # fmt: skip
    assert {name: ids.shape for name, ids in found.items()} == {
        str(Path(name).with_suffix(".png")): size for name, size in whole.items()
    }
    bad = ["cut.jpg", "cut.png", "gone.png", "trouble.png"]
    assert said == f"4 of 17 images failed: {', '.join(str(folder / name) for name in bad)}"
    for words in (
        "cut.png is cut off", "cut.jpg is cut off", "gone.png cannot be opened",
        "trouble.png: memory is full with one image of 44 x 33 pixels: predict it in windows",
        "moving.gif contains 2 frames: only the first is read", "SCAN.TIF contains 2 frames: only the first is read",
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
    assert input_bits(config, images, None) == 10
    assert input_bits(config, images, 12) == 12
    assert input_bits(config, images, "12; import os") == 10  # a checkpoint says values of its own
    config.data.validation["target"].bits = 14
    assert input_bits(config, images, 12) == 14
    config.predict.bits = 16
    assert input_bits(config, images, 12) == 16
    assert torch.load(checkpoint, weights_only=True)["uda_seg"]["bits"] is None


def test_what_a_pattern_or_a_list_names_is_predicted(predicted, tmp_path, monkeypatch, caplog):
    for name in ("-a b.JPG", "straße/ü.jpg", "c.png", "d[1].jpg"):
        save(tmp_path / "in" / name, noise(1))
    (tmp_path / "in/notes.jpg.md").touch()
    assert set(predicted(tmp_path / "in/*.[jJ][pP][gG]")[0]) == {"-a b.png", "d[1].png"}
    found, said = predicted(tmp_path / "in/**/*.jpg", "predict.outputs=[ids]", "output_is_new=1")
    assert (set(found), said) == ({"straße/ü.png", "d[1].png"}, "")
    lines = "\ufeffin/c.png\r\n\nin/d[1].jpg\nin/d[1].jpg\ngone.png\n"
    (tmp_path / "list.TXT").write_text(lines, "utf-8")
    found, said = predicted(tmp_path / "list.TXT", "output_is_new=2")
    assert set(found) == {"in/c.png", "in/d[1].png"}
    assert said == f"1 of 3 images failed: {tmp_path / 'gone.png'}"
    assert "lists 1 paths twice" in caplog.text
    (tmp_path / "list.TXT").write_text("\n")
    assert "is an empty list: write one path per line" in predicted(tmp_path / "list.TXT")[1]
    assert "matches no file: check the pattern" in predicted(tmp_path / "in/*.tif")[1]


def test_what_is_finished_is_kept_and_other_settings_are_refused(predicted, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    for i in range(4):
        save(tmp_path / f"in/{i}.png", noise(i))
    seen: list[int] = []
    real = TrainedSegmentor.batch_logits
    monkeypatch.setattr(
        TrainedSegmentor, "batch_logits", lambda m, images: (seen.append(len(images)), real(m, images))[1]
    )
    assert predicted(tmp_path / "in")[1] == ""
    assert seen == [1] * 4
    (tmp_path / "out/colour/0.png").unlink()
    save(tmp_path / "in/1.png", noise(9))  # another picture of the same name
    journal = tmp_path / "out/predict.jsonl"
    journal.write_text(journal.read_text()[:-9])  # killed while it wrote the last line
    first = predicted(tmp_path / "in")[0]
    assert sum(seen) == 7
    assert "4 images, 1 of them already there" in caplog.text
    assert predicted(tmp_path / "in", "predict.outputs=[npz,ids]", "predict.batch=3")[1] == ""
    assert seen[-2:] == [3, 1]
    said = predicted(tmp_path / "in", "evaluator.flip=true")[1]
    assert f"output={tmp_path / 'out'} holds predictions of evaluator.flip=False (now True): choose another" in said
    assert sum(seen) == 11
    again, said = predicted(tmp_path / "in", "evaluator.flip=true", "overwrite=true", "predict.outputs=[ids]")
    assert (sum(seen), said) == (15, "")
    assert "overwrite=true: 20 files predicted by evaluator.flip=False (now True) are removed" in caplog.text
    assert set(again) == set(first)
    assert not list((tmp_path / "out/npz").iterdir())


def test_files_that_come_between_two_calls_are_not_replaced_either(predicted, tmp_path):
    """Of a kind that was not asked for before, of an image that is new, and where the journal is lost."""
    save(tmp_path / "in/a.png", noise(1))
    label = tmp_path / "out/labelIds/a.png"
    assert predicted(tmp_path / "in", "predict.outputs=[overlay]")[1] == ""
    save(label, noise(4))
    said = predicted(tmp_path / "in", "predict.outputs=[ids]")[1]
    assert said.startswith(f"output={tmp_path / 'out'} has labelIds/a.png of other origin: choose another output=")
    label.unlink()
    assert predicted(tmp_path / "in", "predict.outputs=[ids]")[1] == ""
    save(tmp_path / "in/b.png", noise(2))
    save(tmp_path / "out/labelIds/b.png", noise(5))
    assert "has labelIds/b.png of other origin" in predicted(tmp_path / "in", "predict.outputs=[ids]")[1]
    assert np.array_equal(read_image(tmp_path / "out/labelIds/b.png"), noise(5))
    (tmp_path / "out/predict.jsonl").write_text("")
    said = predicted(tmp_path / "in", "predict.outputs=[ids]")[1]
    assert "has labelIds/a.png and 1 more files of other origin" in said


def test_files_that_a_killed_call_has_begun_are_its_own(predicted, tmp_path):
    save(tmp_path / "in/a.png", noise(1))
    assert predicted(tmp_path / "in", "predict.outputs=[ids]")[1] == ""
    journal = tmp_path / "out/predict.jsonl"
    settings, begun, finished = journal.read_text().splitlines()
    assert "begun" in json.loads(begun)
    journal.write_text(f"{settings}\n{begun}\n{finished[:9]}")
    assert predicted(tmp_path / "in", "predict.outputs=[ids]")[1] == ""
    assert [next(iter(json.loads(line))) for line in journal.read_text().splitlines()] == [
        "settings",
        "begun",
        "begun",
        "name",
    ]


def test_earlier_predictions_below_the_images_are_left_out(predicted, tmp_path, caplog):
    save(tmp_path / "in/a.png", noise(1))
    (tmp_path / "in/deep").mkdir()
    for out in ("in/first", "in/deep/second"):
        assert predicted(tmp_path / "in")[1] == ""
        (tmp_path / "out").rename(tmp_path / out)
    kept = {tmp_path / "in/a.png": Path("a.png")}
    assert named_images(tmp_path / "in", tmp_path / "out") == kept
    assert f"left out of {tmp_path / 'in'}, being earlier predictions: deep/second, first" in caplog.text
    assert named_images(tmp_path / "in/**/*.png", tmp_path / "out") == kept
    assert len(named_images(tmp_path / "in/first/colour", tmp_path / "out")) == 1


def test_a_raw_photograph_is_told_as_one(tmp_path):
    (tmp_path / "a.dng").write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(UserError, match=r"a\.dng is a raw photograph, which is not read: develop it"):
        named_images(tmp_path / "a.dng", tmp_path / "out")
    with pytest.raises(Damaged, match=r"a\.dng is a raw photograph, which is not read: develop it"):
        check_image_file(tmp_path / "a.dng")


def test_nothing_of_others_is_replaced_unasked(predicted, tmp_path, caplog):
    """Neither the pictures of another folder's image, nor files that nobody predicted, such as labels of a data set."""
    save(tmp_path / "in/a.png", noise(1))
    save(tmp_path / "other/a.jpg", noise(2))
    save(tmp_path / "other/b.jpg", noise(3))
    label = tmp_path / "out/labelIds/a.png"
    save(label, noise(4))
    said = predicted(tmp_path / "in", "predict.outputs=[ids]")[1]
    assert said.startswith(f"output={tmp_path / 'out'} has labelIds/a.png of other origin: choose another output=")
    assert np.array_equal(read_image(label), noise(4))
    assert not (tmp_path / "out/predict.jsonl").exists()
    assert predicted(tmp_path / "in", "predict.outputs=[ids]", "overwrite=true")[1] == ""
    first = label.read_bytes()
    assert predicted(tmp_path / "other", "predict.outputs=[ids]")[1].startswith("1 of 2 images failed")
    assert f"other/a.jpg: output={tmp_path / 'out'} holds the prediction of another image of this name" in caplog.text
    assert label.read_bytes() == first
    (tmp_path / "in").rename(tmp_path / "moved")
    caplog.set_level("INFO")
    assert predicted(tmp_path / "moved", "predict.outputs=[ids]")[1] == ""
    assert "1 images, 1 of them already there" in caplog.text
    assert predicted(tmp_path / "other", "predict.outputs=[ids]", "overwrite=true")[1] == ""
    assert label.read_bytes() != first


def test_a_pattern_and_the_folder_of_its_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.png", "photos/out/colour/a.png"):
        save(tmp_path / name, noise(1))
    assert named_images(Path("photos/**/*.png"), tmp_path / "photos/out") == {Path("photos/a.png"): Path("a.png")}
    assert list(named_images(Path("photos/*.png"), Path("."))) == [Path("photos/a.png")]
    with pytest.raises(UserError, match="output=photos is the folder of the images"):
        named_images(Path("photos/*.png"), Path("photos"))


def test_probabilities_need_a_place(predicted, tmp_path):
    save(tmp_path / "in/a.png", noise(1))
    said = predicted(tmp_path / "in", "predict.outputs=[ids]", "predict.probabilities=true")[1]
    assert said == "predict.probabilities=true is of npz files: add them, predict.outputs=[ids,npz]"


def test_arrays_are_those_of_the_network(predicted, tmp_path, monkeypatch):
    save(tmp_path / "in/a.jpg", noise(1))
    made: list[TrainedSegmentor] = []
    real = predict.trained
    monkeypatch.setattr(predict, "trained", lambda *a, **k: made.append(real(*a, **k)) or made[0])
    ids, said = predicted(tmp_path / "in", "predict.outputs=[npz,ids]", "predict.probabilities=true")
    assert said == ""
    with np.load(tmp_path / "out/npz/a.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays}
    [model], image = made, read_image(tmp_path / "in/a.jpg")
    shares = model.predict(image, output="probabilities")
    assert np.array_equal(found["ids"], model.predict(image))
    assert (found["confidence"].dtype, found["probabilities"].dtype) == (np.float16, np.float16)
    # Half precision has 11 bits.
    np.testing.assert_allclose(found["probabilities"], shares, atol=2**-12)
    np.testing.assert_allclose(found["confidence"], shares.max(0), atol=2**-12)
    assert tuple(found["classes"]) == model.class_names
    assert np.array_equal(ids["a.png"], found["ids"])  # CamVid's label files hold class ids


def test_a_photograph_of_a_phone_is_refused_with_a_cure(predicted, tmp_path, caplog):
    save(tmp_path / "in/a.png", noise(1))
    (tmp_path / "in/IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    found, said = predicted(tmp_path / "in")
    assert set(found) == {"a.png"}
    assert said == f"1 of 2 images failed: {tmp_path / 'in/IMG_1.HEIC'}"
    assert "IMG_1.HEIC is a HEIC photograph, which is not read: convert it to JPEG or PNG" in caplog.text


def test_a_full_disk_ends_it_at_once(predicted, tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", noise(i))
    tried = []

    def save_png(path, picture, cure):
        tried.append(path)
        raise UserError(f"cannot write {path}: No space left on device") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(outputs, "save_png", save_png)
    assert predicted(tmp_path / "in")[1].endswith("No space left on device")
    assert len(tried) == 1


def test_a_video_is_called_a_video(predicted, tmp_path):
    video = tmp_path / "film.mp4"
    video.write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    with pytest.raises(UserError, match=r"film\.mp4 is a video, not an image: extract its frames first"):
        named_images(video, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no image .* but 1 file \(1 \.mp4\): film\.mp4: .* input=VIDEO"):
        named_images(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["a.png", "b.jpg"], ["a.png", "b.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["a.jpg", "a.png", "a.png.png"], ["a.jpg.png", "a.png.png", "a.png.png.png"]),
        (["A.jpg", "a.png"], ["A.jpg.png", "a.png.png"]),
        (["a.png", "A.png", "b.png"], ["a.png.0.png", "A.png.1.png", "b.png"]),
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
