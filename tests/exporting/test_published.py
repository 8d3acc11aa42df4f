"""A network that is published comes back bit for bit, from a folder and from a hub; whatever else is there does not."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import constants

import uda_seg
from command_line import configured, small_run
from exporting.hub import TOKEN, Hub, serving
from results.invented import scores
from uda_seg import evaluate, export
from uda_seg.config.commands import EvaluateConfig, ExportConfig
from uda_seg.config.compose import composed
from uda_seg.config.replay import describe
from uda_seg.data.custom import classes_of
from uda_seg.errors import UserError
from uda_seg.exporting.card import is_private, plain, supervision
from uda_seg.exporting.samples import samples
from uda_seg.exporting.scores import Numbers, numbers_of
from uda_seg.methods.base import Plan
from uda_seg.results.result import Best, Result, TargetScores, Validation, write_result
from uda_seg.runs.build import instantiate_module
from uda_seg.runs.checkpoint import load_weights
from uda_seg.runs.trained import TrainedSegmentor

SEED = 7
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def counted(miou: float, names: tuple[str, ...], images: int = 8) -> TargetScores:
    """Scores of images with 40 pixels of each class, whose errors are of the next class: IoU is hits / (80 - hits)."""
    hits = 80 * miou / (1 + miou) + np.where(np.arange(images) % 2, 4, -4)  # on average over the images
    counts, ids = np.zeros((images, len(names), len(names)), np.int64), np.arange(len(names))
    counts[:, ids, ids] = np.round(hits)[:, None]
    counts[:, ids, np.roll(ids, -1)] = 40 - np.round(hits)[:, None]
    return scores(counts, names)


def a_run(folder: Path, camvid: Path, *overrides: str, seed: int = SEED, miou: float = 0.25) -> Path:
    """Make what a short run leaves: a checkpoint after step 3, and its result."""
    config = composed([*small_run(camvid), "method=dacs", f"seed={seed}", *overrides])
    plan = Plan(steps=4, seed=seed, classes=classes_of(config.data), eval_classes=tuple(range(11)), crop=(32, 32))
    torch.manual_seed(seed)
    module = instantiate_module(config, plan)
    with torch.no_grad():  # the teacher of an untrained network is its student
        for parameter in module.teacher.network.parameters():
            parameter.mul_(0.9)
    said = {**describe(config), "source_images": 6, "bits": None}
    content = {"state_dict": module.state_dict(), "uda_seg": said, "global_step": 3, "epoch": 0}
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    write_result(
        folder / "result.json",
        Result("a", "dacs", "camvid", "small", seed, 3, 4, miou, {"target": counted(miou, plan.classes.names)}),
    )
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, camvid) -> Path:
    return a_run(tmp_path_factory.mktemp("run"), camvid)


@pytest.fixture(scope="module")
def network(checkpoint) -> TrainedSegmentor:
    return uda_seg.load(checkpoint, device="cpu")


def exported(*words: str) -> Path:
    given = [o for o in export.expand(list(words)) if not o.startswith("hydra")]
    return export.export(composed(given, ExportConfig), Path())


@pytest.fixture(scope="module")
def card(checkpoint, tmp_path_factory) -> Path:
    """The folder, written by the command itself."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["export", f"checkpoint={checkpoint}", "format=hub", "out=card/"])
        export.main()
    return folder / "card"


@pytest.fixture
def copied(card, tmp_path) -> Path:
    return shutil.copytree(card, tmp_path / "card")


def logits(model: TrainedSegmentor) -> np.ndarray:
    return model.predict(IMAGE, "logits")


def test_a_folder_comes_back_bit_for_bit(card, network, checkpoint):
    loaded = uda_seg.load(card, device="cpu")
    assert np.array_equal(logits(loaded), logits(network))
    assert (loaded.classes, loaded.fit, loaded.infer) == (network.classes, network.fit, network.infer)
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    tensors = safetensors.torch.load_file(card / "model.safetensors")
    assert tensors
    assert all(tensor.equal(stored[f"segmentor.{name}"]) for name, tensor in tensors.items())


def test_evaluate_scores_the_folder_as_the_checkpoint(card, checkpoint, camvid, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    roots = [f"data.{key}.root={camvid}" for key in ("source", "target", "validation.target")]
    found = {}
    for path in (checkpoint, card):
        given = evaluate.expand([f"checkpoint={path}", *roots[:2]])
        found[path] = evaluate.evaluate(configured(*given, *roots[:2], kind=EvaluateConfig), tmp_path / path.name)
        (scores := json.loads((tmp_path / path.name / "scores.json").read_text()))
        found[path] = scores
    assert found[card] == found[checkpoint]
    assert evaluate.expand([f"checkpoint={card}"])[0].startswith("hydra.run.dir='outputs/evaluation/card/")


def test_a_run_begins_from_the_folder(card, checkpoint, camvid, make_plan):
    config = composed([*small_run(camvid), "method=source_only"])
    plan = Plan(steps=4, seed=0, classes=classes_of(config.data), eval_classes=tuple(range(11)), crop=(32, 32))
    states = []
    for path in (checkpoint, card):
        module = instantiate_module(config, plan)
        load_weights(module, path)
        states.append(module.segmentor.state_dict())
    assert all(tensor.equal(states[1][name]) for name, tensor in states[0].items())


def test_the_folder_says_what_a_reader_wants_and_nothing_of_this_machine(card, camvid):
    text = (card / "README.md").read_text() + (card / "config.json").read_text()
    assert sorted(path.name for path in card.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert str(camvid) not in text
    assert str(card.parent) not in text
    assert "root" not in text
    front = yaml.safe_load((card / "README.md").read_text().split("---")[1])
    assert (front["library_name"], front["license"]) == ("uda_seg", "other")
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.25
    assert re.search(r"\| target \| \*\*25.0\*\* \(19\.\d to 31\.\d\) \|", text)
    assert "bootstrap over 8 images" in text
    assert "how much the score varies between seeds is not known" in text
    assert "| 1 | building | `#800000` | 25.0 |" in text
    assert "by unsupervised domain adaptation: labels of the source alone, images of the target." in text
    config = json.loads((card / "config.json").read_text())
    assert config["uda_seg"]["class_names"] == list(config["id2label"].values())
    assert config["model"]["encoder"]["widths"] == [4, 4, 4, 4]
    assert "_target_" not in text


@pytest.mark.slow
def test_several_runs_give_mean_deviation_and_interval(checkpoint, camvid, tmp_path):
    other = a_run(tmp_path / "other", camvid, seed=8, miou=1 / 3).parents[1]
    third = a_run(tmp_path / "third", camvid, seed=9, miou=1 / 3).parents[1] / "result.json"
    words = (f"checkpoint={checkpoint}", "format=hub", f"out={tmp_path}/card")
    exported(*words, f"export.runs=[{other},{third},{checkpoint.parents[1]}]")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "3 runs (seeds 7, 8, 9), mean ± standard deviation" in text
    found = re.search(r"\| \*\*30\.6 ± 4\.8\*\* \(([\d.]+) to ([\d.]+)\) \|", text)
    assert found is not None
    assert 20 < float(found[1]) < 30.6 < float(found[2]) < 40
    copy = shutil.copytree(other, tmp_path / "copy")
    exported(*words, "overwrite=true", f"export.runs=[{other},{third},{copy}]")
    assert (tmp_path / "card" / "README.md").read_text() == text
    again = a_run(tmp_path / "again", camvid, seed=8, miou=0.25).parents[1]
    with pytest.raises(UserError, match="has the seed of another run, 8"):
        exported(*words, "overwrite=true", f"export.runs=[{other},{again}]")


def result(seed: int = 7, **changes) -> Result:
    told = {"run": "a", "method": "dacs", "data": "camvid", "model": "small", "seed": seed, "step": 4, "steps": 4}
    target = counted(0.25, ("road", "car"))
    return Result(**({**told, "miou": 0.25, "targets": {"target": target}, "best": Best(0.5, 2)} | changes))


def test_the_scores_are_those_of_the_checkpoints_step():
    target = dataclasses.replace(counted(0.25, ("road", "car")), teacher_miou=0.75)
    runs = [result(targets={"target": target}, validations=[Validation(3, 0.125)])]
    found = {
        "last": Numbers(runs, 4, False),
        "teacher": Numbers(runs, 4, True),
        "best": Numbers(runs, 2, False, "best"),
        "unsupervised": Numbers(runs, 3, False, "best_unsupervised"),
        "unknown": Numbers(runs, 1, False),
        "teacher at an unknown step": Numbers(runs, 2, True, "best"),
    }
    own = {name: [score.own for score in numbers.scores()] for name, numbers in found.items()}
    assert own.pop("last") == pytest.approx([0.25])
    assert own == {
        "teacher": [0.75],
        "best": [0.5],
        "unsupervised": [0.125],
        "unknown": [],
        "teacher at an unknown step": [],
    }
    assert (
        found["best"].kind == Numbers([result(step=2)], 2, False, "best").kind == "best"
    )  # chosen on labels all the same
    assert Numbers([result(step=2)], 2, False, "last").kind == "student"


def test_runs_of_other_settings_or_without_an_end_are_refused(tmp_path):
    checkpoint = tmp_path / "own" / "checkpoints" / "last.ckpt"
    for name, changes in {"own": {}, "longer": {"steps": 8, "step": 8, "seed": 8}}.items():
        (tmp_path / name).mkdir()
        write_result(tmp_path / name / "result.json", result(**changes))
    with pytest.raises(UserError, match=r"longer/result.json has not the settings and steps of"):
        numbers_of(checkpoint, 4, [str(tmp_path / "longer")], False)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "run.yaml").write_text("{}")
    with pytest.raises(UserError, match="stopped is not finished"):
        numbers_of(checkpoint, 4, [str(tmp_path / "stopped")], False)
    with pytest.raises(UserError, match=r"has no result.json: leave export\.runs out"):
        numbers_of(tmp_path / "new" / "checkpoints" / "last.ckpt", 4, [str(tmp_path / "own")], False)


def test_what_is_written_goes_to_the_run_by_default(checkpoint, tmp_path):
    words = [f"checkpoint={checkpoint}", "format=safetensors", "export.teacher=true"]
    assert f"out='{checkpoint.parents[1]}/export/last_teacher.safetensors'" in export.expand(words)
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(UserError, match=r"out= is missing, and .*a.ckpt is in no run's folder"):
        export.expand([f"checkpoint={tmp_path}/a.ckpt", "format=onnx"])


def test_weights_of_the_teacher_are_the_teachers(checkpoint, tmp_path):
    out = exported(
        f"checkpoint={checkpoint}", "format=safetensors", f"out={tmp_path}/t.safetensors", "export.teacher=true"
    )
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    tensors = safetensors.torch.load_file(out)
    assert all(tensor.equal(stored[f"teacher.network.{name}"]) for name, tensor in tensors.items())
    name = next(n for n in tensors if n.endswith("conv.weight"))
    assert not tensors[name].equal(stored[f"segmentor.{name}"])


# ---------------------------------------------------------------------- a hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)  # what HF_ENDPOINT sets at import
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pushed_network_comes_back_from_the_hub(hub: Hub, checkpoint, network, tmp_path, monkeypatch):
    exported(f"checkpoint={checkpoint}", "format=hub", f"out={tmp_path}/card", "push=somebody/streets")
    assert hub.repositories["somebody/streets"] == [files_of(tmp_path / "card")]
    first = hub.oid("somebody/streets", 0)
    loaded = uda_seg.load("hub:somebody/streets", device="cpu")
    assert np.array_equal(logits(loaded), logits(network))
    hub.commit("somebody/streets", {"config.json": b"{}"})  # a later commit is another network
    with pytest.raises(UserError, match="is not of a network that uda_seg has published"):
        uda_seg.load("hub:somebody/streets")
    assert np.array_equal(logits(uda_seg.load(f"hub:somebody/streets@{first}", device="cpu")), logits(network))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no connection: the cached revision
    assert np.array_equal(logits(uda_seg.load(f"hub:somebody/streets@{first}", device="cpu")), logits(network))
    given = evaluate.expand([f"checkpoint=hub:somebody/streets@{first}"])
    assert any(o == "model=daformer_small" for o in given)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/nothing", "there is no such repository on the hub"),
        ("somebody/encoder", "it is no network that uda_seg has published"),
        ("somebody/encoder@other", "the repository has no revision of that name"),
        ("somebody/../x", "is no name on the hub"),
        ("somebody/x@../../y", "is no name on the hub"),
        ("streets", "is no name on the hub"),
    ],
)
def test_a_name_that_gives_nothing_is_one_line(hub: Hub, name, said):
    hub.commit("somebody/encoder", {"model.safetensors": b"x"})
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        uda_seg.load(f"hub:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_without_login_or_network_the_folder_stays(hub: Hub, checkpoint, tmp_path, monkeypatch):
    words = (f"checkpoint={checkpoint}", "format=hub", "push=somebody/streets")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
    with pytest.raises(UserError, match=r"the hub refuses \(401\).*is complete and can be pushed later"):
        exported(*words, f"out={tmp_path}/a")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the hub cannot be reached.*is complete and can be pushed later"):
        exported(*words, f"out={tmp_path}/b")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with pytest.raises(UserError, match="not logged in to the hub: run `hf auth login`"):
        exported(*words, f"out={tmp_path}/c")
    assert all((tmp_path / name / "config.json").is_file() for name in "abc")


# ---------------------------------------------------------------------- what is not loaded


def said_by(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def with_override(folder: Path, *overrides: str) -> None:
    said = json.loads((folder / "config.json").read_text())["uda_seg"]
    said_by(folder, uda_seg={**said, "overrides": [*said["overrides"], *overrides]})


def with_tensors(folder: Path, change) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    said_by(folder, weights={})  # a stranger's file may have no digest


def cut(folder: Path, digest: bool) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    if not digest:
        said_by(folder, weights={})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


CALLED: list[str] = []
NAME = "heads.main.conv_seg.weight"
DAMAGE = {
    "pickled": (pickled, "has no model.safetensors but pytorch_model.bin, which is pickled"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "another program's": (lambda f: said_by(f, library_name="timm"), "is not of a network that uda_seg has published"),
    "newer": (lambda f: said_by(f, format=99), "was published by a newer version"),
    "cut short": (lambda f: cut(f, True), "is not as it was written"),
    "cut short, no digest": (lambda f: cut(f, False), "cannot be read, maybe cut short"),
    "missing": (lambda f: with_tensors(f, lambda t: t.pop(NAME)), f"does not fit the network: {NAME}"),
    "extra": (
        lambda f: with_tensors(f, lambda t: t.update(x=torch.zeros(1))),
        "tensors that its network does not, as x",
    ),
    "not finite": (lambda f: with_tensors(f, lambda t: t[NAME].fill_(torch.nan)), "is not finite"),
    "fewer outputs": (
        lambda f: with_tensors(f, lambda t: t.update({NAME: t[NAME][:5].clone()})),
        "does not fit the network",
    ),
    "fewer names": (lambda f: said_by(f, palette=[[0, 0, 0]]), "disagrees with itself on the number of classes"),
    "a class": (lambda f: said_by(f, model={"_target_": "os.system"}), "has _target_, which names code"),
    "an override": (lambda f: with_override(f, "model._target_=os.system"), "names code: not loaded"),
    "an environment": (lambda f: with_override(f, "data.name=${oc.env:HOME}"), "names code: not loaded"),
    "no override": (lambda f: with_override(f, " hydra.searchpath=[/]"), "is no override: not loaded"),
    "no names": (lambda f: said_by(f, uda_seg={}), "is damaged, uda_seg.class_names is missing"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_no_published_network_is_one_line(copied, what):
    spoil, said = DAMAGE[what]
    spoil(copied)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        uda_seg.load(copied, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_runs_folder_is_told_its_checkpoint(checkpoint):
    with pytest.raises(UserError, match=f"is a run's folder: name its checkpoint, {re.escape(str(checkpoint))}"):
        uda_seg.load(checkpoint.parents[1])


@pytest.mark.slow
def test_what_exists_is_kept(checkpoint, card, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years")
    for words, said in (
        (["format=hub", f"out={card}"], "exists already"),
        (["format=hub", f"out={tmp_path / 'full'}"], r"holds other files \(thesis.txt\)"),
        (["format=safetensors", f"out={tmp_path / 'full'}"], "is a folder: name the file"),
        (["format=safetensors", f"out={checkpoint}"], "exists already"),
        (["format=safetensors", f"out={tmp_path / 'new'}", "push=a/b"], "say format=hub"),
        (["format=hub", f"out={tmp_path / 'new'}", "push=ab"], "is no name on the hub"),
        ([f"out={tmp_path / 'new'}"], "format= is missing, one of onnx"),
    ):
        with pytest.raises(UserError, match=said):
            exported(f"checkpoint={checkpoint}", *words)
    assert not (tmp_path / "new").exists()


def test_paths_stay_at_home():
    private = (
        "data.target.root=/home/me",
        "++model.encoder.weights=hub:a/b",
        "init=x",
        "data.class_set='~/c.yaml'",
        "out=y",
    )
    assert all(map(is_private, private))
    assert not any(
        map(is_private, ("method.alpha=0.9", "data.crop=[32,32]", "model.encoder.name=vit_tiny.tag", "data.name=a"))
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=oracle"], "on labels of the target: an upper bound"),
        (["method=source_only"], "on labels of the source alone, without an image of the target"),
        (["method=dacs", "data.target.labelled=10"], "semi-supervised domain adaptation"),
        (["method=adabn"], "unsupervised domain adaptation"),
    ],
)
def test_the_card_says_which_labels_were_seen(overrides, said):
    assert said in supervision(configured("data=streets", *overrides))


def test_names_are_not_markup():
    assert plain("<b>|a_b*\n[x](y)") == r"&lt;b&gt;\|a\_b\* \[x\](y)"


def test_sixteen_bit_images_are_read_with_the_bits_that_are_said(tmp_path):
    image = np.full((4, 6, 3), 4095, np.uint16)  # white, of 12 bits
    cv2.imwrite(str(tmp_path / "deep.png"), image)
    [tensor] = samples(tmp_path / "deep.png", 1, None, bits=12)
    assert tensor.shape == (3, 4, 6)
    assert (tensor == 1).all()
    with pytest.raises(UserError, match="16 bits"):
        samples(tmp_path / "deep.png", 1, None)
