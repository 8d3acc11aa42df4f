"""Submissions: what a server is handed, through the real command, scored by the real cityscapesScripts."""

from __future__ import annotations

import importlib
import json
import math
import zipfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from command_line import NETWORK
from command_line import configured as configured_for
from data.trees import cityscapes_splits, image_of, save
from uda_seg import evaluate, train
from uda_seg.config.commands import EvaluateConfig
from uda_seg.data.labels import CITYSCAPES, CITYSCAPES_RAW
from uda_seg.errors import UserError
from uda_seg.evaluation import submission
from uda_seg.evaluation.servers import SERVERS
from uda_seg.evaluation.submission import Job, Submission, Writer
from uda_seg.models.inference import Inference
from uda_seg.models.segmentor import Segmentor

configured = partial(configured_for, kind=EvaluateConfig)

SLIDE = ["evaluator.inference=slide", "evaluator.window=[24,40]", "evaluator.stride=[12,20]"]
VIEWS = [*SLIDE, "evaluator.scales=[0.5,1.25]", "evaluator.flip=true"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return cityscapes_splits(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tree) -> str:
    """A run on that tree."""
    folder = tmp_path_factory.mktemp("run") / "method" / "seed0"
    root = [f"data.{name}.root={tree}" for name in ("source", "target")]
    sizes = [f"data.{name}.size=[32,64]" for name in ("source", "target", "validation.cityscapes")]
    train.train(
        configured(
            "data=gta2cs", "method=dacs", "trainer=cpu", *NETWORK, *root, *sizes, "data.source.dataset=cityscapes",
            "data.source.split=val", "data.target.split=val", "data.crop=[32,32]", "data.workers=0", "steps=1",
            "pretrained=null", "callbacks.panels=0", "callbacks.progress=false",
        ),
        folder,
    )  # fmt: skip
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    # What the command line would have left, had the run been started there.
    content["uda_seg"]["choices"] = {"data": "gta2cs", "method": "dacs", "model": "daformer_small", "trainer": "cpu"}
    content["uda_seg"]["overrides"] = [*NETWORK[1:], *root, *sizes, "data.workers=0", "callbacks.progress=false"]
    torch.save(content, path)
    return f"checkpoint={path}"


def run(checkpoint: str, folder: Path, *overrides: str) -> None:
    given = [o for o in evaluate.expand([checkpoint, *overrides]) if not o.startswith("hydra")]
    evaluate.evaluate(configured(*given), folder)


def nearest_id(self: Segmentor, image: torch.Tensor) -> torch.Tensor:
    """All classes, rightly more often than not: the trees' images show label ids in red; green disturbs them."""
    ids = torch.tensor([raw for raw, train_id in sorted(CITYSCAPES_RAW.items()) if train_id < 19]).view(1, 19, 1, 1)
    return -(image[:, :1] * 255 + 3 * (image[:, 1:2] - 0.5) - ids).abs()


def predicted(monkeypatch) -> list[tuple[int, int]]:
    """The sizes of the images that are predicted from now on."""
    seen = []
    original = submission.Writer._predict

    def counting(self, job, image, size):
        seen.append(size)
        return original(self, job, image, size)

    monkeypatch.setattr(submission.Writer, "_predict", counting)
    return seen


@pytest.mark.parametrize("how", [[], VIEWS], ids=["whole", "slide, scales, flip"])
def test_cityscapes_scripts_score_what_is_written_as_we_do(cli, checkpoint, tree, tmp_path, monkeypatch, how):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tree))
    results = tmp_path / "out" / "submission" / "cityscapes_val"
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(results))
    official = importlib.reload(pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"))
    monkeypatch.setattr(Segmentor, "predict", nearest_id)
    if how:
        run(checkpoint, tmp_path / "out", "submission=cityscapes", *how)
    else:
        finished = cli(evaluate.main, checkpoint, "submission=cityscapes", "hydra.run.dir=out")
        assert finished.code == 0, finished.err
    official.args.evalInstLevelScore, official.args.JSONOutput, official.args.quiet = False, False, True
    truths = sorted(map(str, Path(tree).glob("gtFine/val/*/*_gtFine_labelIds.png")))
    found = [official.getPrediction(official.args, truth) for truth in truths]
    expected = official.evaluateImgLists(found, truths, official.args)
    run(checkpoint, tmp_path / "scores", *how)
    ours = json.loads((tmp_path / "scores" / "scores.json").read_text())["cityscapes"]
    theirs = {name: expected["classScores"][name] for name in CITYSCAPES.names}
    assert ours["per_class"] == pytest.approx(theirs, abs=1e-6)
    assert ours["miou"] == pytest.approx(expected["averageScoreClasses"], abs=1e-6)
    assert all(0.05 < value < 1 for value in theirs.values()), "too easy or too hard to tell anything"
    with zipfile.ZipFile(results.with_suffix(".zip")) as archive:
        assert sorted(archive.namelist()) == sorted(Path(path).name for path in found)


def test_the_test_split_needs_no_labels_and_is_never_scored(checkpoint, tree, tmp_path):
    test = "data.validation.cityscapes.split=test"
    with pytest.raises(UserError, match=r"publishes no labels of its test split: evaluate with submission=cityscapes"):
        run(checkpoint, tmp_path, test)
    run(checkpoint, tmp_path, test, "submission=cityscapes")
    with zipfile.ZipFile(tmp_path / "submission" / "cityscapes_test.zip") as archive:
        names = archive.namelist()
        assert names == [f"berlin_00000{i}_000019_pred_labelIds.png" for i in range(2)]
        ids = cv2.imdecode(np.frombuffer(archive.read(names[0]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert ids.shape == (64, 128)  # the image's on disk, not the network's
    assert {CITYSCAPES_RAW[i] for i in np.unique(ids).tolist()} <= set(range(19))


def test_a_stopped_submission_goes_on_and_keeps_nothing_of_another_network(checkpoint, tmp_path, monkeypatch):
    seen = predicted(monkeypatch)
    saved, original = [], submission.save_png

    def full(path, image):
        if len(saved) == 1:
            raise UserError(f"cannot write {path}: No space left on device")
        saved.append(path)
        original(path, image)

    monkeypatch.setattr(submission, "save_png", full)
    with pytest.raises(UserError, match="No space left"):
        run(checkpoint, tmp_path, "submission=cityscapes")
    folder = tmp_path / "submission"
    assert sorted(p.name for p in folder.rglob("*.png")) == [saved[0].name]
    assert not list(folder.glob("*.zip"))
    monkeypatch.setattr(submission, "save_png", original)
    run(checkpoint, tmp_path, "submission=cityscapes")
    assert len(seen) == 2 + 2  # one of three was there
    archive = (folder / "cityscapes_val.zip").read_bytes()
    run(checkpoint, tmp_path, "submission=cityscapes")
    assert len(seen) == 4
    assert (folder / "cityscapes_val.zip").read_bytes() == archive
    content = bytearray(saved[0].read_bytes())
    content[60] ^= 1
    saved[0].write_bytes(bytes(content))
    run(checkpoint, tmp_path, "submission=cityscapes")
    assert len(seen) == 4 + 1  # the damaged one again
    assert (folder / "cityscapes_val.zip").read_bytes() == archive
    seen.pop()
    run(checkpoint, tmp_path, "submission=cityscapes", "evaluator.flip=true")  # predicted in another way
    assert len(seen) == 4 + 3
    path = Path(checkpoint.removeprefix("checkpoint="))
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {n: -t if "heads.main" in n else t for n, t in content["state_dict"].items()}
    other = tmp_path / "other" / "checkpoints" / "last.ckpt"
    other.parent.mkdir(parents=True)
    torch.save(content, other)
    run(f"checkpoint={other}", tmp_path, "submission=cityscapes", "evaluator.flip=true")
    assert len(seen) == 7 + 3


def test_the_teacher_has_a_submission_of_its_own(checkpoint, tmp_path):
    run(checkpoint, tmp_path, "submission=cityscapes", "evaluator.teacher=true")
    names = {path.name for path in (tmp_path / "submission").iterdir()}
    assert names == {f"cityscapes_val{t}{end}" for t in ("", "_teacher") for end in ("", ".zip")}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["submission=acdc"], r"evaluates cityscapes \(cityscapes\), which this server does not know"),
        (["submission=cityscape"], r"submission=cityscape is none of .*; did you mean cityscapes\?"),
        (["evaluator.scales=[]"], r"evaluator.scales=\[\] must have 1 to 32 entries"),
        (["evaluator.scales=[0]"], r"evaluator.scales=\[0.*\] must lie between 0.01 and 10"),
        (["evaluator.average=logit"], "did you mean logits"),
        (["submission=cityscapes", "data.classes=camvid", "data.eval_classes='11'"], "scored on the 19 classes"),
    ],
)
def test_bad_input_is_told_in_a_line(checkpoint, tmp_path, overrides, said):
    with pytest.raises(UserError, match=said) as caught:
        run(checkpoint, tmp_path, *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "submission").exists()


IMAGES = {
    "cityscapes": ("berlin/berlin_000000_000019_leftImg8bit.png", ["berlin_000000_000019_pred_labelIds.png"]),
    "acdc": (
        "night/test/GOPR0594/GOPR0594_frame_000007_rgb_anon.png",
        ["labelTrainIds/GOPR0594_frame_000007_rgb_anon.png"],
    ),
    "darkzurich": (
        "night/GOPR0364/GOPR0364_frame_000001_rgb_anon.png",
        [f"{f}/GOPR0364_frame_000001_rgb_anon.png" for f in ("labelTrainIds", "labelTrainIds_invalid", "confidence")],
    ),
    "bdd100k": ("cabc30fc-e7726578.jpg", ["cabc30fc-e7726578.png"]),
}  # fmt: skip


@pytest.mark.parametrize("server", SERVERS)
def test_names_and_encoding_of_every_server(server, tmp_path):
    image, names = IMAGES[server]
    written = Submission(SERVERS[server], tmp_path / "x", [image], CITYSCAPES, {})
    assert written.missing() == [0]
    label = np.arange(19, dtype=np.uint8).reshape(1, 19)
    certain = np.linspace(0, 65535, 19).astype(np.uint16).reshape(1, 19)
    written.write(0, label, certain if server == "darkzurich" else None)
    assert written.missing() == []
    with zipfile.ZipFile(written.pack()) as archive:
        assert sorted(archive.namelist()) == sorted(names)
        for name in names:
            stored = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
            if name.startswith("confidence"):
                assert np.array_equal(stored, certain)
            elif server == "cityscapes":
                assert [CITYSCAPES_RAW[i] for i in stored[0].tolist()] == list(range(19))
            else:
                assert np.array_equal(stored, label)


@pytest.mark.parametrize("server", SERVERS)
def test_images_of_another_benchmark_are_refused(server, tmp_path):
    for other, (image, _) in IMAGES.items():
        if {server, other} not in ({server}, {"acdc", "darkzurich"}):
            with pytest.raises(UserError, match="is not named as the images of"):
                Submission(SERVERS[server], tmp_path, [image], CITYSCAPES, {})


def test_two_images_never_share_a_file(tmp_path):
    names = ["a/GOPR0594_frame_000007_rgb_anon.png", "b/GOPR0594_frame_000007_rgb_anon.png"]
    with pytest.raises(UserError, match="would both be labelTrainIds"):
        Submission(SERVERS["acdc"], tmp_path, names, CITYSCAPES, {})


def test_confidence_is_the_largest_probability(make_segmentor, tmp_path):
    network = make_segmentor().eval()
    image = IMAGES["darkzurich"][0]
    written = Submission(SERVERS["darkzurich"], tmp_path / "x", [image], CITYSCAPES, {})
    writer = Writer([Job(network, written)], Inference())
    picture = image_of(np.zeros((32, 64), np.uint8))
    save(tmp_path / "a.png", picture)
    pixels = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    with torch.no_grad():
        writer.predict_step((pixels, 0, (40, 80)), 0)
        logits = network.predict(pixels[None] / 255)
    resized = torch.nn.functional.interpolate(logits, (40, 80), mode="bilinear")[0].double().softmax(0)
    stored = cv2.imread(str(tmp_path / "x" / IMAGES["darkzurich"][1][2]), cv2.IMREAD_UNCHANGED)
    assert np.abs(stored / 65535 - resized.amax(0).numpy()).max() < 1 / 65535
    label = cv2.imread(str(tmp_path / "x" / IMAGES["darkzurich"][1][0]), cv2.IMREAD_UNCHANGED)
    assert (label == resized.argmax(0).numpy()).mean() > 0.99
    assert not math.isnan(stored.mean())
