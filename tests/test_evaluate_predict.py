"""A trained network scored and used: from its checkpoint alone, with nothing that only training needs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from command_line import configured, in_a_fork, small_run, with_depth
from data.trees import camvid_tree, save
from prediction.films import clip
from uda_seg import evaluate, models, predict, train
from uda_seg.cli.command import check
from uda_seg.config.commands import DepthConfig, EvaluateConfig, PredictConfig
from uda_seg.config.compose import composed
from uda_seg.config.former import PLAIN_BICL, RELEASED_BICL
from uda_seg.config.replay import describe, replay
from uda_seg.config.schema import Origin
from uda_seg.data.labels import CAMVID, CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.evaluation.servers import raw_ids
from uda_seg.prediction.inputs import named_images
from uda_seg.prediction.networks import first_choice
from uda_seg.runs.folder import alone_in
from uda_seg.visualize.pictures import colorize

METHODS = ("lcmsm", "adabn", "corda")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, camvid) -> Path:
    """One trained run of each method."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = [*small_run(camvid, steps=3), "evaluator.teacher=true"]
    for method in METHODS:
        more = with_depth(camvid) if method == "corda" else []
        command_line(train.main, folder, f"method={method}", *overrides, *more, f"hydra.run.dir={method}")
    return folder


def command_line(main: Callable[[], None], folder: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["command", *arguments])
        main()


def evaluated(*overrides: str) -> dict:
    """The scores that `evaluate` writes, without composing a configuration for each test."""
    given = evaluate.expand(list(overrides))
    folder = Path(given[0].partition("=")[2].strip("'").partition("${")[0]) / "here"
    evaluate.evaluate(configured(*given, kind=EvaluateConfig), folder)
    return json.loads((folder / "scores.json").read_text())


def refused(said: str) -> pytest.RaisesExc[UserError]:
    return pytest.raises(UserError, match=re.escape(said))


def last(runs: Path, method: str = "lcmsm") -> str:
    return f"checkpoint={runs / method / 'checkpoints' / 'last.ckpt'}"


def metrics(runs: Path, method: str) -> dict:
    return json.loads((runs / method / "metrics.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_finds_what_training_measured(runs, monkeypatch, capsys, method):
    monkeypatch.setattr(models.text, "SHIPPED", Path("nowhere.npz"))  # a trained network needs no text
    scores = evaluated(last(runs, method), "evaluator.teacher=false")
    said = metrics(runs, method)
    assert list(scores) == ["target"]
    assert scores["target"]["miou"] == pytest.approx(said["miou"], abs=1e-12)
    assert scores["target"]["per_class"] == pytest.approx(said["per_class"])
    table = (runs / method / "evaluation" / "here" / "scores.md").read_text()
    assert f"{100 * said['miou']:.2f}" in table
    assert all(name in table for name in CAMVID.names)
    assert f"{100 * said['miou']:.2f}" in capsys.readouterr().out
    assert cv2.imread(str(runs / method / "evaluation" / "here" / "confusion_target.png")) is not None


def test_nothing_that_a_checkpoint_says_chooses_where_is_written(runs, camvid, tmp_path):
    content = torch.load(runs / "adabn" / "checkpoints" / "last.ckpt", weights_only=True)
    validation = [o for o in content["uda_seg"]["overrides"] if not o.startswith("data.name=")]
    content["uda_seg"]["overrides"] = [
        *validation,
        f"+data.validation.more={{dataset: camvid, root: '{camvid}', split: val, size: [32,48]}}",
        "submission=cityscapes",
        f"output={tmp_path}/y",
        f"hydra.run.dir={tmp_path}/z",
        "export=true",
    ]
    stranger = tmp_path / "stranger" / "checkpoints" / "last.ckpt"
    stranger.parent.mkdir(parents=True)
    torch.save(content, stranger)
    command_line(evaluate.main, tmp_path, f"checkpoint={stranger}", "evaluator.teacher=false")
    content["uda_seg"]["overrides"].append("data.name=../../../x")
    torch.save(content, stranger)
    with pytest.raises(SystemExit):
        command_line(evaluate.main, tmp_path, f"checkpoint={stranger}", "evaluator.teacher=false")
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} - {
        stranger.relative_to(tmp_path)
    }
    assert {path.parent.parent for path in written} == {Path("stranger/evaluation")}
    assert {path.name for path in written} >= {"scores.json", "confusion_target.png", "confusion_more.png"}
    assert not [path for path in tmp_path.parent.iterdir() if path.name in ("x", "y", "z")]


def test_two_evaluations_do_not_write_into_one_folder(runs):
    with alone_in(runs / "adabn" / "evaluation" / "here", "an evaluation"), refused("is in use by an evaluation on "):
        evaluated(last(runs, "adabn"), "evaluator.teacher=false")


def test_evaluate_scores_the_teacher_beside_the_student(runs):
    scores = evaluated(last(runs))  # evaluator.teacher=true is the run's own
    said = metrics(runs, "lcmsm")
    assert scores["target"]["miou"] == pytest.approx(said["miou"], abs=1e-12)
    assert scores["target (teacher)"]["miou"] == pytest.approx(said["teacher"], abs=1e-12)
    with refused("has no teacher: leave out evaluator.teacher=true"):
        evaluated(last(runs, "adabn"), "evaluator.teacher=true")


def test_several_targets_have_a_mean(runs, camvid):
    more = [f"+data.validation.more.{key}={value}" for key, value in
            (("dataset", "camvid"), ("root", camvid), ("split", "train"), ("size", "[32,48]"))]  # fmt: skip
    scores = evaluated(last(runs), *more)
    assert list(scores) == ["target", "more", "mean", "target (teacher)", "more (teacher)", "mean (teacher)"]
    for kind in ("", " (teacher)"):
        mean = (scores[f"target{kind}"]["miou"] + scores[f"more{kind}"]["miou"]) / 2
        assert scores[f"mean{kind}"]["miou"] == pytest.approx(mean)
    assert scores["mean"]["miou_over"] == {"11": scores["mean"]["miou"]}


def test_predict_looks_at_an_image_as_evaluate_does(runs, tmp_path, monkeypatch, camvid):
    how = ["evaluator.teacher=false", "evaluator.scales=[0.75,1.5]", "evaluator.flip=true"]
    scores = evaluated(last(runs), *how)
    said, ids = [last(runs), f"input={camvid}/val", f"output={tmp_path}"], list(range(11))
    predict.predict(configured(*predict.expand([*said, *how])[1:], kind=PredictConfig), tmp_path)
    pairs = [
        (cv2.imread(str(tmp_path / "labelIds" / path.name), -1), cv2.imread(str(path), -1))
        for path in sorted((camvid / "valannot").iterdir())
    ]
    known = [(ours[truth < 11], truth[truth < 11]) for ours, truth in pairs]
    right = sum(int((ours == truth).sum()) for ours, truth in known) / sum(truth.size for _, truth in known)
    assert {int(i) for ours, _ in pairs for i in np.unique(ours)} <= set(ids)
    assert scores["target"]["pixel_accuracy"] == pytest.approx(right, abs=1e-3)


def test_evaluate_on_other_data_keeps_the_network(runs, tmp_path):
    other = camvid_tree(tmp_path / "other", "val", 2, (32, 48))
    where = ["data=streets2camvid", f"data.target.root={other}", "data.target.size=[32,48]", "data.val_batch=2"]
    assert evaluated(last(runs), *where)["target"]["miou"] != pytest.approx(metrics(runs, "lcmsm")["miou"])
    with refused("predicts the classes of camvid, this run those of cityscapes"):
        evaluated(last(runs), "data=gta2cs")


def test_jobs_of_a_multirun_are_scored_into_folders_of_their_own(cli, runs, tmp_path):
    given = [last(runs, "adabn"), "evaluator.teacher=false", "trainer=cpu", "-m"]
    done = cli(evaluate.main, *given, "evaluator.flip=false,true", "evaluator.scales=[0.5]")
    assert done.code == 0, done
    names = sorted(path.name for path in (runs / "adabn/evaluation").iterdir() if "scales" in path.name)
    assert names == [f"streets2camvid,evaluator.flip={flip},evaluator.scales=-0.5-" for flip in ("false", "true")]
    assert not (tmp_path / "outputs").exists()


def test_options_of_training_are_no_options_of_a_trained_network(runs):
    for given in (
        "running_statistics=all",
        "steps=7",
        "optimizer.lr=1",
        "seed=1",
        "evaluator.times=2",
        "resume=x",
    ):
        for expand, more in ((evaluate.expand, ()), (predict.expand, ("input=a.png", "output=b"))):
            with refused(f"{given.partition('=')[0]}= has no effect on a trained network: leave it out"):
                expand([last(runs), given, *more])
    with refused("overwrite= has no effect on a trained network"):
        evaluate.expand([last(runs), "overwrite=true"])


def test_evaluate_and_predict_in_processes_of_their_own(runs, camvid, tmp_path):
    finished = in_a_fork(tmp_path, "uda_seg.evaluate", last(runs), "hydra.run.dir=scores")
    assert finished.code == 0, finished.err
    assert (tmp_path / "scores" / "scores.md").exists()
    arguments = ["uda_seg.predict", last(runs), f"input={camvid}/val", "output=pictures"]
    finished = in_a_fork(tmp_path, *arguments)
    assert finished.code == 0, finished.err
    folders = ("colour", "overlay", "labelIds", "confidence")
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == sorted((*folders, "predict.jsonl"))
    for folder in folders:
        assert len(list((tmp_path / "pictures" / folder).iterdir())) == 5


def test_predict_takes_odd_sizes_and_names_what_it_cannot_read(cli, runs, tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    sizes = {"a/one.png": (33, 47), "two.png": (5, 70), "three.jpg": (7, 9), "three.png": (64, 20)}
    for name, size in sizes.items():
        save(images / name, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (images / "broken.png").write_bytes(b"nothing")
    (images / "notes.txt").write_text("no image")
    finished = cli(predict.main, last(runs), "input=images", "output=images/out", "predict.size=null")
    assert "1 of 5 images failed: images/broken.png" in finished.error
    names = {"a/one.png": (33, 47), "two.png": (5, 70), "three.jpg.png": (7, 9), "three.png.png": (64, 20)}
    for name, size in names.items():
        ids = cv2.imread(str(images / "out" / "labelIds" / name), cv2.IMREAD_UNCHANGED)
        assert ids.shape == size
        assert ids.max() < len(CAMVID)
        colour = cv2.imread(str(images / "out" / "colour" / name))[..., ::-1]
        assert np.array_equal(colour, colorize(ids, CAMVID.palette))
        for folder in ("overlay", "confidence"):
            assert cv2.imread(str(images / "out" / folder / name)).shape == (*size, 3)
    assert len(list((images / "out").rglob("*.png"))) == 16
    again = cli(predict.main, last(runs), "input=images", "output=images/out", "predict.size=null")
    assert "4 images, 4 of them already there" in again.out  # and not its own pictures
    assert "1 of 5 images" in again.error


def test_predict_says_when_there_is_nothing_to_do(cli, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no image" in cli(predict.main, last(runs), "input=empty", "output=out").error
    for output, said in (("empty", "output=empty is the folder of the images"), ("file", "output=file is a file")):
        (tmp_path / "file").touch()
        assert said in cli(predict.main, last(runs), "input=empty", f"output={output}").error
    os.mkfifo(tmp_path / "pipe.png")
    assert "input=pipe.png is a pipe" in cli(predict.main, last(runs), "input=pipe.png", "output=out").error


def test_settings_without_effect_are_refused(cli, runs, tmp_path):
    film = clip(tmp_path / "clip.mp4", sound=None, times=[0])
    for words, said in (
        (("input=clip.mp4", "output=out.mp4", "predict.outputs=[ids]"), "predict.outputs= has no effect on a video"),
        (("input=.", "output=out", "predict.video=beside"), "predict.video= has no effect on images"),
        (("serve=true", "input=."), "input= has no effect with serve=true"),
    ):
        assert said in cli(predict.main, last(runs), *words).error
    before = film.read_bytes()
    for place in ("clip.mp4", "."):  # the folder of the video: the same name
        said = cli(predict.main, last(runs), "input=clip.mp4", f"output={place}", "overwrite=true", "trainer=cpu").error
        assert "clip.mp4 is the video itself: choose another name" in said
    assert film.read_bytes() == before


def test_the_page_has_students_and_teachers_of_several_checkpoints(cli, runs, monkeypatch):
    served: list[tuple] = []
    monkeypatch.setattr(predict, "serve", lambda *given: served.append(given))
    both = f"checkpoint=[{','.join(last(runs, method).partition('=')[2] for method in ('lcmsm', 'adabn'))}]"
    finished = cli(predict.main, both, "serve=true", "trainer=cpu", "evaluator=slide", "predict.port=7")
    assert finished.code == 0, finished.err
    [(networks, selected, _, host, port)] = served
    assert (list(networks), selected) == (["lcmsm", "lcmsm (teacher)", "adabn"], ["lcmsm (teacher)", "adabn"])
    assert first_choice(networks, teacher=False) == ["lcmsm", "adabn"]
    assert (host, port) == ("127.0.0.1", 7)
    assert {model.infer.window for model in networks.values()} == {(512, 512)}
    assert "add serve=true to compare them" in cli(predict.main, both, "input=x", "output=y").error
    assert "nowhere.ckpt: there is no such file" in cli(predict.main, "checkpoint=[nowhere.ckpt]", "serve=true").error


def test_a_checkpoint_neither_serves_nor_chooses_what_is_written():
    said = checkpoint_of("serve=true", "predict.host=0.0.0.0", "predict.outputs=[npz]", "predict.size=[8,8]")
    assert replay(said, [], PredictConfig)[1:] == ["predict.size=[8,8]"]


def test_jobs_of_a_multirun_do_not_predict_into_one_folder(cli, runs, tmp_path):
    save(tmp_path / "image.png", np.zeros((32, 48, 3), np.uint8))
    given = [last(runs), "input=image.png", "trainer=cpu", "hydra.sweep.dir=sweep", "-m"]
    said = cli(predict.main, *given, "evaluator.flip=false,true", "output=out").error
    assert said.startswith("error: 1 job(s) failed")
    assert "out is the folder of another job of this multirun too: give one output= for each" in said


def test_predicted_label_ids_are_those_of_the_official_files():
    assert raw_ids(CITYSCAPES)[:5].tolist() == [7, 8, 11, 12, 13]
    assert raw_ids(CITYSCAPES)[18] == 33
    assert raw_ids(CAMVID)[:11].tolist() == list(range(11))


def test_one_image_is_named_by_itself(tmp_path):
    save(tmp_path / "x" / "one.png", np.zeros((4, 4, 3), np.uint8))
    assert named_images(tmp_path / "x" / "one.png", tmp_path / "out") == {tmp_path / "x" / "one.png": Path("one.png")}


def checkpoint_of(*overrides: str, **choices: str) -> dict:
    return {"uda_seg": {"choices": choices, "overrides": list(overrides)}}


def test_replay_takes_what_makes_the_network_and_lets_given_overrides_win():
    said = checkpoint_of(
        "steps=3", "++model.head.width=4", "data.crop=[8,8]", "hydra.run.dir=x", "init=a.ckpt", "resume=last",
        "trainer.max_steps=2", "model.encoder.weights=/gone", "+data.validation.night={}", "seed=1",
        method="lcmsm", data="streets", trainer="gpu", logger="wandb", debug="two_steps", evaluator="slide",
    )  # fmt: skip
    start = ["++model.encoder.weights=null", "method=lcmsm", "data=streets", "evaluator=slide"]
    kept = ["steps=3", "++model.head.width=4", "data.crop=[8,8]", "+data.validation.night={}", "seed=1"]
    assert replay(said, ["checkpoint=x"]) == [*start, *kept, "checkpoint=x"]
    given = ["data=gta2cs", "seed=2"]
    start.remove("data=streets")
    assert replay(said, given) == [*start, "steps=3", "++model.head.width=4", *given]


def test_data_given_now_replaces_all_that_an_experiment_says_of_its_own():
    said = checkpoint_of(experiment="bicl_gta2cs", method="bicl", model="deeplabv2_r101", data="gta2cs")
    now = configured(*replay(said, ["data=cs2acdc"]))
    assert now.data == configured("data=cs2acdc", "method=bicl").data
    assert (now.method["stem"], now.model["encoder"]["freeze_norm"], now.model["align_corners"]) == ("own", True, True)
    # Without `data=` nothing of it is lost, and what a run itself said wins over its experiment.
    then = configured("experiment=bicl_gta2cs", "model.encoder.weights=null")
    assert configured(*replay(said, [])) == then
    said["uda_seg"]["overrides"].append("method.entropy_weight=0.1")
    assert configured(*replay(said, ["data=cs2acdc"])).method["entropy_weight"] == 0.1


def test_windows_of_the_training_crops_size_stay_so_in_other_commands():
    overrides = ["evaluator=slide_crop", "data=gta2cs", "data.crop=[256,384]"]
    trained = configured(*overrides)
    said = checkpoint_of("data.crop=[256,384]", evaluator="slide_crop", data="gta2cs")
    trained.origin = Origin({"evaluator": "slide"}, [])
    assert describe(trained)["overrides"] == []
    trained.origin = Origin({"evaluator": "slide_crop"}, [])
    windows = describe(trained)["overrides"]
    for kind in (EvaluateConfig, PredictConfig):
        now = configured(*replay(said, [], kind), kind=kind)
        assert (now.evaluator.window, now.evaluator.stride) == ([256, 384], [128, 192])
        said["uda_seg"]["overrides"] += windows
        now = configured(*replay(said, ["data=cs2acdc"], kind), kind=kind)
        assert now.evaluator.window == [256, 384] != now.data.crop
        now = configured(*replay(said, ["evaluator=slide"], kind), kind=kind)
        assert now.evaluator.window == configured("evaluator=slide").evaluator.window


def test_scores_of_another_network_or_evaluator_have_a_folder_of_their_own(tmp_path):
    def folder(path, *given):
        return evaluate._variant(
            Path(path), {o.partition("=")[0] for o in given}, [*given, "seed=1", "data.crop=[8,8]"]
        )

    same = ("checkpoint=x", "data=here", "data.name=y", "evaluator.teacher=true", "trainer=cpu")
    assert folder("x/last.ckpt", *same) == ""
    assert folder("x/best.ckpt", "evaluator=multi_scale") == ",best,evaluator=multi_scale"
    assert folder("x/last.ckpt", "data.validation.target.split=test") == ",data.validation.target.split=test"


def test_values_of_an_experiment_are_read_back_by_hydra():
    overrides = replay(checkpoint_of(experiment="bicl_gta2cs", method="bicl"), [])[1:-1]
    read = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(overrides)}
    assert (read["data.crop"], read["data.crop_max_ratio"]) == ([730, 730], 1.0)
    assert read["method._target_"] == "uda_seg.methods.released.bicl.ReleasedBiCL"
    assert read["model.encoder.freeze_norm"] is True


@pytest.mark.parametrize("moved", [["method.feature=logits"], ["++method.stem=own", "method.entropy_weight=0.1"]])
def test_options_that_are_of_the_release_now_select_its_class(moved):
    """A checkpoint of a version in which one class had them all; what it did not say is as in the paper."""
    network = ["model.encoder.weights=null", "model.encoder.blocks=[1,1,1,1]", "model.encoder.width=4"]
    said = checkpoint_of(*moved, *network[1:], "method.rounds=3", method="bicl", model="deeplabv2_r101", data="streets")
    now = configured(*replay(said, []))
    plain = configured("method=bicl", "model=deeplabv2_r101", "data=streets", "method.rounds=3", *network)
    values = {"feature": "logits"} if len(moved) == 1 else {"stem": "own", "entropy_weight": 0.1}
    assert now.method == plain.method | PLAIN_BICL | values | {"_target_": RELEASED_BICL}
    kept = configured(*replay(checkpoint_of("method.feature=backbone", method="bicl", data="streets"), [])).method
    assert kept["_target_"] == plain.method["_target_"]


def test_an_experiment_is_replayed_with_the_released_behaviours_that_it_chooses():
    """Checkpoints of older versions name none: their experiments had these values themselves."""
    then = configured("experiment=corda_synthia2cs_mono", "model.encoder.weights=null")
    choices = {
        "method": "corda",
        "model": "deeplabv2_r101",
        "data": "synthia2cs",
        "experiment": "corda_synthia2cs_mono",
    }
    for more in ({}, {"quirks": "corda"}):
        assert configured(*replay(checkpoint_of(**choices, **more), [])) == then
    other = configured(*replay(checkpoint_of(**choices, quirks="corda"), ["data=cs2acdc"]))
    assert other.data == configured("data=cs2acdc", "method=corda").data
    assert (other.method["jitter_order"], other.model["align_corners"]) == ("bgr", True)
    chosen = replay(checkpoint_of(method="mic", data="gta2cs", quirks="hrda", model="hrda_mitb5"), [])
    assert configured(*chosen).model["detail_offsets"] == "released"


def test_keys_of_older_versions_and_of_other_commands_are_translated_in_silence():
    said = checkpoint_of(
        "text=shuffled", "masking.ratio=0.4", "masking={weight: 2.0}", "model.recompute=true", "depth.steps=9",
        "bench.pairs=2", "predict.size=[8,8]", "~optimizer.lr", "~data.validation.target",
        method="lcmsm", data="streets", model="hrda_small",
    )  # fmt: skip
    said["uda_seg"]["options"] = {"text": "shuffled", "mask_ratio": 0.4, "mask_weight": 2.0}
    overrides = replay(said, [])
    config = composed(check(overrides))
    assert (config.method["text"], config.method["mask_ratio"], config.method["mask_weight"]) == ("shuffled", 0.4, 2.0)
    assert (config.model["activation_checkpointing"], config.optimizer.lr) == (True, 6e-5)
    assert config.data.validation == {}
    assert "predict.size=[8,8]" in replay(said, [], PredictConfig)
    assert "depth.steps=9" in replay(said, [], DepthConfig)
    # Methods without such an option had not read it.
    said["uda_seg"]["choices"]["method"], said["uda_seg"]["options"] = "dacs", {"mask_ratio": 0.4}
    assert not [o for o in replay(said, []) if "text" in o or "mask_weight" in o]


def test_an_experiment_of_many_jobs_is_replayed_as_one():
    """Also by its name of older versions."""
    said = checkpoint_of("method.until=backward", experiment="bicl_ladder", method="bicl", data="streets")
    expected = ["++model.encoder.weights=null", "method=bicl", "data=streets", "method.until=backward"]
    assert replay(said, []) == expected


def test_an_unknown_experiment_is_left_to_the_check_of_choices():
    said = checkpoint_of(experiment="../method/bicl", method="bicl")
    assert "experiment=../method/bicl" in replay(said, ["data=gta2cs"])


@pytest.mark.parametrize(
    "override", ["+model.x={_target_: os.system}", "text=${oc.env:HOME}", "method._target_=os.system"]
)
def test_a_checkpoint_that_names_code_is_refused(runs, tmp_path, override):
    content = torch.load(runs / "lcmsm" / "checkpoints" / "last.ckpt", weights_only=True)
    content["uda_seg"]["overrides"].append(override)
    torch.save(content, tmp_path / "last.ckpt")
    given = [f"checkpoint={tmp_path}/last.ckpt", f"input={tmp_path}", f"output={tmp_path}"]
    for expand in (evaluate.expand, predict.expand):
        with refused("which names code: not loaded"):
            expand(given)


@pytest.mark.parametrize("override", [" hydra.searchpath=[file:///x]", "method @hydra=x", "+method@hydra.searchpath=x"])
def test_a_checkpoint_cannot_say_where_files_are_looked_for(override):
    with refused("is no override: not loaded"):
        replay(checkpoint_of(override, method="dacs"), [])
    assert replay(checkpoint_of("hydra.searchpath=[file:///x]", "callbacks.a={_target_: os.system}"), []) == replay(
        checkpoint_of(), []
    )


def test_a_description_in_a_checkpoint_names_no_class():
    said = checkpoint_of(method="dacs", data="custom")
    said["uda_seg"]["described"] = {"data.source.custom": {"_target_": "os.system"}}
    with refused("the checkpoint describes data.source.custom"):
        replay(said, [])


def test_a_checkpoint_of_something_else(runs, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with refused("is no checkpoint of uda_seg"):
        evaluated(f"checkpoint={tmp_path}/foreign.ckpt")
    with refused("does not fit the network: heads.main"):
        evaluated(last(runs), "model.head.width=8")


def test_an_interpolation_is_stored_as_its_value(cli, camvid, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", str(camvid))
    overrides = [o for o in small_run(camvid, steps=1) if not o.startswith("data.target.root")]
    where = "data.target.root=${oc.env:SOME_FOLDER}"
    assert cli(train.main, "method=source_only", *overrides, where, "hydra.run.dir=run").code == 0
    monkeypatch.delenv("SOME_FOLDER")
    assert cli(evaluate.main, last(tmp_path, "run")).code == 0
