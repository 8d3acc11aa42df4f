"""A method, a network and a data set of another package: found, checked, trained, and loaded again from checkpoints."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.plugins import Plugins
from PIL import Image

import uda_seg
from command_line import NETWORK, small_run
from data.trees import streets_tree
from uda_seg import evaluate, predict, train
from uda_seg.errors import UserError
from uda_seg.options.validate import check_target, options

EXAMPLE = Path(__file__).parents[1] / "examples" / "my_method"
SEARCH = f"hydra.searchpath=[file://{EXAMPLE}/conf]"
MINE = """
from dataclasses import dataclass

from uda_seg.methods.options.source_only import SourceOnlyOptions
from uda_seg.methods.source_only import SourceOnly

@dataclass(frozen=True, kw_only=True)
class MyOptions(SourceOnlyOptions):
    factor: float = 1.0

class Mine(SourceOnly):
    def __init__(self, segmentor, plan, options: MyOptions):
        super().__init__(segmentor, plan, options)

class Old(SourceOnly):
    def __init__(self, segmentor, plan, *, factor: float = 1.0):
        super().__init__(segmentor, plan, SourceOnlyOptions())
"""


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """Nothing that is imported from elsewhere is left to the tests that follow."""
    Plugins.instance()  # looks around once: what these tests make importable was not installed
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [
        n for n in sys.modules if n.partition(".")[0] in ("my_method", "mylab", "hydra_plugins.my_method_conf")
    ]:
        del sys.modules[name]


@pytest.fixture
def my_run(cli, camvid, tmp_path):
    """The checkpoint of a run of the example's method."""
    words = (SEARCH, "method=my_method", *small_run(camvid, 2), "hydra.run.dir=run")
    finished = cli(train.main, *words)
    assert finished.code == 0, finished
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def test_a_method_of_another_package_is_trained_and_loaded_again(cli, camvid, my_run, tmp_path):
    content = torch.load(my_run, weights_only=True)
    assert content["uda_seg"]["choices"]["method"] == "my_method"
    assert b"_target_" not in my_run.read_bytes()
    assert cli(evaluate.main, f"checkpoint={my_run}", SEARCH).code == 0
    words = (f"input={camvid}/val", "output=pictures", SEARCH)
    assert cli(predict.main, f"checkpoint={my_run}", *words).code == 0
    assert uda_seg.load(my_run, SEARCH).predict(torch.zeros(3, 20, 30)).shape == (20, 30)
    more = [SEARCH, "method=my_method", *small_run(camvid, 2)]
    assert cli(train.main, *more, "hydra.run.dir=other", f"init={my_run}").code == 0
    finished = cli(train.main, *more, "hydra.run.dir=run", "resume=last")
    assert finished.code == 0, finished


def test_without_its_package_a_checkpoint_says_what_is_missing(cli, my_run, tmp_path):
    line = cli(evaluate.main, f"checkpoint={my_run}").error
    assert "method=my_method" in line
    assert "my_method.method.MinEnt" in line
    assert "hydra.searchpath" in line
    for name in [n for n in sys.modules if n.partition(".")[0] in ("my_method", "my_method_conf", "mylab")]:
        del sys.modules[name]
    sys.path.remove(str(EXAMPLE))
    shutil.copytree(EXAMPLE / "conf", tmp_path / "alone" / "conf")  # the YAML is there, the package is not
    line = cli(evaluate.main, f"checkpoint={my_run}", f"hydra.searchpath=[file://{tmp_path}/alone/conf]").error
    assert "my_method.method.MinEnt: there is no module my_method here" in line


def test_an_installed_package_needs_no_search_path(cli, camvid, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE / "hydra_plugins"))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from my_method_conf import MyMethodConf

    plugins = Plugins.instance()
    plugins.register(MyMethodConf)
    try:
        finished = cli(train.main, "method=my_method", *small_run(camvid, 1), "hydra.run.dir=run")
    finally:
        for known in plugins.plugin_type_to_subclass_list.values():
            if MyMethodConf in known:
                known.remove(MyMethodConf)
    assert finished.code == 0, finished


def test_help_explains_its_options_as_it_does_ours(cli):
    finished = cli(train.main, SEARCH, "method=my_method", "method.entropy_weight=1", "--help")
    assert finished.out.startswith("method=my_method: my_method.method.MinEnt\n\nMinEntOptions: Options of MinEnt.\n")
    own = finished.out.partition("\n\n")[2].splitlines()
    assert " ".join(own[1].split()) == "entropy_weight = 1 (default 0.001) number, between 0 and 100"
    assert own[2].strip() == "Weight of the entropy in nats, averaged over pixels."


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=my_methd", "did you mean my_method?"),
        ("method.entropy_wieght=1", "did you mean method.entropy_weight?"),
        ("method.entropy_weight=-1", "method.entropy_weight=-1"),
        ("method.entropy_weight=much", "method.entropy_weight=much is of the wrong type"),
        ("method._target_=my_method.method.MinEnd", "did you mean MinEnt?"),
        ("method._target_=my_method.network.LinearHead", "is no UDAModule"),
        ("method._target_=json.JSONDecoder", "is no UDAModule"),
        ("model.head._target_=json.JSONDecoder", "is no head of a network"),
        ("method._target_=nothing_here.Mine", "there is no module nothing_here here: install its package"),
        ("hydra.searchpath=[file:///nothing/here]", "/nothing/here: there is no such folder"),
        ("hydra.searchpath=[pkg://nothing.here]", "pkg://nothing.here: there is no such folder"),
        ("hydra.searchpath=[s3://here]", "give file://FOLDER or pkg://PACKAGE.FOLDER"),
        ("hydra.searchpath=here", "must be a list"),
    ],
)
def test_typos_are_answered_as_those_of_our_own_classes(cli, camvid, override, said):
    first = [] if override.startswith("hydra") else [SEARCH]
    method = [] if override.startswith(("hydra", "method=")) else ["method=my_method"]
    assert said in cli(train.main, *first, *method, override, *small_run(camvid, 1)).error


def test_a_class_may_be_named_on_the_command_line_and_never_by_a_checkpoint(cli, camvid, tmp_path, monkeypatch):
    (tmp_path / "mylab.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["method=source_only", "method._target_=mylab.Mine", "method.factor=2.0"]
    assert "did you mean method.factor?" in cli(train.main, *words, "method.facter=1", *small_run(camvid, 1)).error
    old = cli(train.main, words[0], "method._target_=mylab.Old", *small_run(camvid, 1)).error
    assert "method._target_=mylab.Old: its constructor must take (segmentor, plan, options)" in old
    finished = cli(train.main, *words, *small_run(camvid, 1), "hydra.run.dir=run")
    assert finished.code == 0, finished
    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last.ckpt"
    with pytest.raises(UserError, match="names code"):
        uda_seg.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    line = cli(evaluate.main, checkpoint).error
    assert "method._target_=mylab.Mine" in line
    assert "names code" in line
    assert cli(evaluate.main, checkpoint, "method._target_=mylab.Mine").code == 0


def test_a_network_and_a_data_set_of_another_package(cli, tmp_path):
    for split in ("train", "val"):
        tree = streets_tree(tmp_path / "made" / split, 4, (32, 48))
        shutil.copytree(tree / "image", tmp_path / "made" / "photos" / split)
        (tmp_path / "made" / "ids" / split).mkdir(parents=True)
        for path in sorted((tree / "label").iterdir()):
            np.save(tmp_path / "made" / "ids" / split / f"{path.stem}.npy", np.array(Image.open(path)))
    network = [o.replace("daformer_small", "my_network") for o in NETWORK if "head" not in o]
    words = [SEARCH, "method=my_method", "data=my_streets", "data.crop=[32,32]", "steps=1", "trainer=cpu", *network]
    words += [f"data.{d}.root={tmp_path}/made" for d in ("source", "target")]
    words += ["callbacks.progress=false", "callbacks.panels=0", "hydra.run.dir=run", "pretrained=null"]
    finished = cli(train.main, *words)
    assert finished.code == 0, finished
    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last.ckpt"
    assert cli(evaluate.main, checkpoint, SEARCH).code == 0
    line = cli(evaluate.main, checkpoint, "method=source_only").error
    assert "model=my_network" in line
    assert "my_method.network" not in line


def test_entropy_minimisation_is_cross_entropy_and_shannons_entropy(make_segmentor, make_plan, make_batch, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from my_method.method import MinEnt, MinEntOptions

    batch = make_batch(0)
    module = MinEnt(make_segmentor(), make_plan(), MinEntOptions(entropy_weight=0.5)).eval()  # without dropout
    source, target = module.losses(batch)
    with torch.no_grad():
        p = module.segmentor.predict(batch["target"].image / 255).double().softmax(1)
        expected = torch.special.entr(p).sum(1).mean()
        logits = module.segmentor.predict(batch["source"].image / 255)
    assert torch.allclose(target.value.double(), expected, rtol=1e-5)  # float32 against float64
    assert (target.weight, source.weight) == (0.5, 1.0)
    wanted = torch.nn.functional.cross_entropy(logits, batch["source"].label.long(), ignore_index=255, reduction="none")
    assert torch.allclose(source.value, wanted.mean(), rtol=1e-5)


class Opaque:
    """A class of another package: annotations that no YAML value can be held against, and options that it passes on."""

    def __init__(self, path: Path, size: int = 1, **others) -> None:
        pass


def test_a_foreign_signature_is_the_schema():
    name = f"{__name__}.Opaque"
    assert options(name, "x") == {"path": Path, "size": int, "**": options(name, "x")["**"]}
    check_target({"_target_": name, "path": "a/b", "size": 2, "anything": [1]}, "x")
    for node, said in (
        ({"size": 2}, "x.path is missing"),
        ({"path": "a", "size": "two"}, "x.size=two is of the wrong type"),
        ({"path": "a", "_args_": []}, "x._args_ is unknown"),
    ):
        with pytest.raises(UserError, match=said):
            check_target({"_target_": name, **node}, "x")
