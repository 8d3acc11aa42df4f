"""Classes and label files of one's own, through the commands: what was described stays with the checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from command_line import NETWORK, configured
from data.trees import blocks, image_of, save
from uda_seg import evaluate, predict, prepare, train
from uda_seg.data.custom import classes_of
from uda_seg.data.domains import open_domain
from uda_seg.errors import UserError
from uda_seg.models.weights import load_encoder
from uda_seg.runs.build import build_data, build_module
from uda_seg.runs.checkpoint import load_weights

SIZE = (32, 48)
NAMES = ["ground's", "object", "sky $1"]
RAW = {"ground's": [1000, 7], "object": [2000], "sky $1": [3]}
FORMATS = {
    "gray": {1000: "ground's", 7: "ground's", 2000: "object", 3: "sky $1", 0: "ignore"},
    "color": {"1,2,3": "ground's", "4,5,6": "object", "#ffffff": "sky $1", "0,0,0": "ignore"},
}
COLOURS = np.array([[1, 2, 3], [4, 5, 6], [255, 255, 255], [0, 0, 0]], np.uint8)
SHORT = [
    "data=custom", "method=source_only", "data.classes=custom", "data.eval_classes=all", "data.crop=[32,32]",
    "data.source_batch=2", "data.target_batch=2", "data.workers=0", "steps=2", "trainer=cpu",
    "logger.log_every=1", "callbacks.progress=false", "callbacks.panels=0", *NETWORK,
]  # fmt: skip


def tree(root: Path, label_format: str) -> Path:
    """Two images of each split; the ids of `FORMATS`, road in two of them."""
    for split, seed in (("train", 0), ("train", 1), ("val", 2)):
        train_ids = blocks(seed, SIZE, [0, 1, 2, 3])
        save(root / f"images/{split}/{seed}.png", image_of(train_ids, seed))
        label = COLOURS[train_ids] if label_format == "color" else np.array([1000, 2000, 3, 0], np.uint16)[train_ids]
        save(root / f"labels/{split}/{seed}.png", label)
    return root


def described(folder: Path, root: Path, label_format: str) -> list[str]:
    """Overrides that read class set and data set from files."""
    classes = {"names": NAMES, "subsets": {"two of them": ["object", "sky $1"]}}
    (folder / "classes.yaml").write_text(json.dumps(classes))
    said = {"label_format": label_format, "label_map": [[raw, name] for raw, name in FORMATS[label_format].items()]}
    (folder / "own.yaml").write_text(json.dumps(said))
    files = [f"data.class_set={folder}/classes.yaml", f"data.source.custom={folder}/own.yaml"]
    return [*SHORT, *files, f"data.source.root={root}", f"data.target.root={root}"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("label_format", FORMATS)
def test_a_checkpoint_is_enough_to_evaluate_and_predict_in_the_files_own_ids(cli, tmp_path, label_format, caplog):
    root = tree(tmp_path / "data", label_format)
    given = [*described(tmp_path, root, label_format), "data.cache=disk"]
    for main in (prepare.main, train.main):
        finished = cli(main, *given, "hydra.run.dir=run")
        assert finished.code == 0, finished
    shares = (tmp_path / "run/classes.md").read_text()
    assert "| ground's | " in shares
    assert " 0.00 " not in shares
    said = json.loads((tmp_path / "run/metrics.json").read_text())
    for name in ("classes.yaml", "own.yaml"):
        (tmp_path / name).unlink()
    checkpoint = "checkpoint=run/checkpoints/last.ckpt"
    finished = cli(evaluate.main, checkpoint)
    assert finished.code == 0, finished
    scores = json.loads((tmp_path / "run/evaluation/custom/scores.json").read_text())
    assert scores["target"]["per_class"] == pytest.approx(said["per_class"])
    assert set(scores["target"]["miou_over"]) == {"all", "two of them"}
    finished = cli(predict.main, checkpoint, "input=data/images/val", "output=out")
    assert finished.code == 0, finished
    written = cv2.imread(str(tmp_path / "out/labelIds/2.png"), cv2.IMREAD_UNCHANGED)
    if label_format == "color":
        assert {tuple(c[::-1]) for c in written.reshape(-1, 3).tolist()} <= set(map(tuple, COLOURS[:3].tolist()))
    else:
        assert written.dtype == np.uint16
        assert set(np.unique(written).tolist()) <= {1000, 2000, 3}
        assert "labelIds: ground's is written as 1000, the first of its ids 1000, 7" in finished.out + caplog.text


def test_a_run_without_labels_is_not_scored_and_told_why(cli, tmp_path):
    given = described(tmp_path, tree(tmp_path / "data", "gray"), "gray")
    assert cli(train.main, *given, "hydra.run.dir=run").code == 0
    (tmp_path / "own.yaml").write_text(json.dumps({**json.loads((tmp_path / "own.yaml").read_text()), "labels": None}))
    line = cli(evaluate.main, "checkpoint=run/checkpoints/last.ckpt", "data.validation.target.custom=own.yaml").error
    assert "data.validation (target) has no labels: there are no labelled images to score on; say where" in line


def test_a_description_that_is_given_now_wins_over_the_checkpoints(cli, tmp_path):
    given = described(tmp_path, tree(tmp_path / "data", "gray"), "gray")
    assert cli(train.main, *given, "hydra.run.dir=run").code == 0
    checkpoint = "checkpoint=run/checkpoints/last.ckpt"
    (tmp_path / "other.yaml").write_text(json.dumps({"label_map": {9: "object"}, "unlisted": "ignore"}))
    # The validation set's follows that of the source, as it does in training.
    line = cli(evaluate.main, checkpoint, "data.source.custom=other.yaml").error
    assert "data.validation.target: " in line
    assert "no label has a pixel of any class" in line
    (tmp_path / "classes.yaml").write_text(json.dumps({"names": NAMES[::-1]}))
    line = cli(evaluate.main, checkpoint, "data.class_set=classes.yaml").error
    assert "predicts 3 classes (ground's, object, sky $1), this run 3 (sky $1, object, ground's)" in line
    content = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert content["uda_seg"]["described"]["data.class_set"]["names"] == NAMES
    content["uda_seg"]["described"]["data.validation.a b.custom"] = {"label_map": {7: "object"}}  # which no key is
    content["uda_seg"]["described"]["hydra.run.dir"] = {"label_map": {7: "object"}}
    torch.save(content, tmp_path / "run/checkpoints/last.ckpt")
    assert cli(evaluate.main, checkpoint, f"data.class_set={{names: {json.dumps(NAMES)}}}").code == 0
    assert (tmp_path / "run/evaluation/custom/scores.json").is_file()
    content["uda_seg"]["described"]["data.class_set"]["names"][0] = "${oc.env:HOME}"
    torch.save(content, tmp_path / "run/checkpoints/last.ckpt")
    assert "not loaded" in cli(evaluate.main, checkpoint).error
    for key in ("described", "class_names"):  # as older versions left them
        del content["uda_seg"][key]
    torch.save(content, tmp_path / "run/checkpoints/last.ckpt")
    described(tmp_path, tmp_path / "data", "gray")
    assert cli(evaluate.main, checkpoint).code == 0


def module_of(*classes: str):
    config = configured(*SHORT, f"data.class_set={{names: [{', '.join(classes)}]}}", "data.source.root=x")
    return build_module(config, build_data(config))


@pytest.mark.parametrize("name_of_classes", [True, False])
def test_init_from_other_classes_names_the_way_that_works(tmp_path, name_of_classes):
    there, here = module_of("a", "b", "c"), module_of("a", "b")
    said = {"choices": {}, "overrides": [], "classes": "custom", "source_images": 0} | (
        {"class_names": ["a", "b", "c"]} if name_of_classes else {}
    )
    state = {"state_dict": there.state_dict(), "uda_seg": said, "global_step": 0}
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(UserError) as caught:
        load_weights(here, tmp_path / "last.ckpt")
    line = str(caught.value)
    cure = re.search(r"to start from its encoder alone, say pretrained=(\S+) instead of init=$", line)
    assert cure, line
    if name_of_classes:
        assert "predicts 3 classes (a, b, c), this run 2 (a, b)" in line
    load_encoder(here.segmentor.encoder, cure[1])
    for name, tensor in here.segmentor.encoder.state_dict().items():
        assert torch.equal(tensor, there.segmentor.encoder.state_dict()[name])


def test_masks_of_0_and_255_stop_every_command(cli, tmp_path):
    root = tree(tmp_path / "data", "gray")
    for path in root.rglob("labels/*/*.png"):
        save(path, blocks(int(path.stem), SIZE, [0, 255]))
    given = [*SHORT, f"data.source.root={root}", f"data.target.root={root}"]
    (tmp_path / "classes.yaml").write_text("names: [background, object]")
    given.append("data.class_set=classes.yaml")
    line = cli(train.main, *given, "hydra.run.dir=run").error
    assert "data.source: " in line
    assert "255 is read as ignore: masks of two classes?" in line
    line = cli(prepare.main, *given).error
    assert "masks of two classes? (say what they mean, e.g. {0: background, 255: object}, in data.source.cust" in line
    assert "fix=true" not in line
    (tmp_path / "own.yaml").write_text("label_map: {0: background, 255: object}")
    right = [*given, "data.source.custom=own.yaml"]
    assert cli(train.main, *right, "hydra.run.dir=run").code == 0
    (tmp_path / "own.yaml").write_text("label_map: null")
    checkpoint = "checkpoint=run/checkpoints/last.ckpt"
    line = cli(evaluate.main, checkpoint, "data.source.custom=own.yaml").error
    assert "data.validation.target: " in line
    assert "masks of two classes?" in line


WRITTEN = {
    "keys": ["data.source.custom.label_map.1000=a", "++data.source.custom.label_map.2000=b",
             "+data.source.custom.label_map.3=c", "data.source.custom.label_map.0=ignore"],
    "mapping": ["data.source.custom.label_map={1000:a,2000:b,3:c,0:ignore}"],
    "pairs": ["data.source.custom.label_map=[[1000,a],[2000,b],[3,c],[0,ignore]]"],
    "colours": ["data.source.custom.label_format=color",
                "data.source.custom.label_map=[[[1,2,3],a],[[4,5,6],b],[[255,255,255],c],[[0,0,0],ignore]]"],
    "hexadecimal": ["data.source.custom.label_format=color",
                    "data.source.custom.label_map=[['#010203',a],['4,5,6',b],['#FFFFFF',c],['0,0,0',null]]"],
}  # fmt: skip


@pytest.fixture
def composed(cli, monkeypatch):
    """Calls `prepare` on data of one's own, and gives what it would have prepared."""
    found = []

    def keep(config, folder):
        found.append(config.data)

    def call(*given):
        found.clear()
        finished = cli(prepare.main, "data=custom", "data.classes=custom", "data.eval_classes=all", *given)
        return finished, list(found)

    monkeypatch.setattr(prepare, "prepare", keep)
    return call


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_classes_and_maps_can_be_written_on_the_command_line(composed, tmp_path, written):
    root = tree(tmp_path / "data", "color" if "color" in written[0] else "gray")
    names = ["data.class_set.names=[a,b,c]", "+data.class_set.subsets.few=[a,b]"]
    finished, found = composed(f"data.source.root={root}", *names, *written)
    assert finished.code == 0, finished
    data, expected = found[0], blocks(0, SIZE, [0, 1, 2, 3])
    label = open_domain(data.source, data, classes_of(data), "data.source", labeled=True).read(0).label
    np.testing.assert_array_equal(label, np.where(expected < 3, expected, 255))
    assert classes_of(data).subset("few") == (0, 1)


def test_classes_can_be_swept_over_and_typos_in_them_name_the_nearest_key(composed):
    finished, found = composed("-m", "hydra.sweep.dir=sweep", "data.class_set.names=[a,b],[a,b,c]")
    assert finished.code == 0, finished
    assert [classes_of(data).names for data in found] == [("a", "b"), ("a", "b", "c")]
    for typo, right in (("class_set.nams=[a]", "class_set.names"), ("source.custom.labl=x", "source.custom.labels")):
        finished, _ = composed(f"data.{typo}")
        assert f"did you mean data.{right}" in finished.error
