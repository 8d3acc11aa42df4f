"""From files as they are downloaded to a training run: every data config and recipe on trees in official layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from command_line import NETWORK, configured
from data.trees import EXPORTED_SIZE
from uda_seg import depth, prepare, train
from uda_seg.config.commands import DepthConfig
from uda_seg.config.schema import CONF
from uda_seg.data.streets.layouts import LAYOUTS
from uda_seg.errors import UserError

HEIGHT, WIDTH = EXPORTED_SIZE
SHORT = [
    "data.crop=[32,32]", "data.source_batch=2", "data.target_batch=2", "data.workers=0",
    "steps=40000", "pretrained=null",
    "data.rare_class.min_pixels=0", "data.rare_class.min_crop_pixels=0", "trainer=cpu", "trainer.max_steps=2",
    "logger.log_every=1", "callbacks.progress=false", "callbacks.panels=0",
]  # fmt: skip
DEEPLAB = ["model=deeplabv2_r101", "model.encoder.width=2", "model.encoder.blocks=[1,1,1,1]"]
ROOTS = {
    "gta2cs": {"source": "gta", "target": "cityscapes"},
    "synthia2cs": {"source": "synthia", "target": "cityscapes"},
    "gta_synthia2cs": {"source": "gta", "more_sources.synthia": "synthia", "target": "cityscapes"},
    "synthetic2real": {
        "source": "gta",
        "more_sources.synthia": "synthia",
        "more_sources.urbansyn": "urbansyn",
        "target": "cityscapes",
        "more_targets.mapillary": "mapillary",
    },
    "cs2acdc": {"source": "cityscapes", "target": "acdc"},
    "cs2darkzurich": {"source": "cityscapes", "target": "darkzurich"},
    "gta2dg": {"source": "gta"} | {f"validation.{name}": name for name in ("cityscapes", "bdd100k", "mapillary")},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Class statistics of these trees are nobody's business."""
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))


def overrides(data, official, *more):
    given = [f"data.{domain}.root={official[name]}" for domain, name in ROOTS[data].items()]
    sized = {*ROOTS[data], *(f"validation.{name}" for name in configured(f"data={data}").data.validation)}
    return [*SHORT, *given, *(f"data.{domain}.size=[{HEIGHT},{WIDTH}]" for domain in sized), *more]


def run(tmp_path, *given):
    folder = tmp_path / "run"
    train.train(configured(*given), folder)
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    "data", [pytest.param(name, marks=[pytest.mark.slow] if name == "synthetic2real" else []) for name in ROOTS]
)
def test_every_pair_trains_and_is_scored(data, official, tmp_path):
    method = "source_only_strong" if data == "gta2dg" else "dacs"
    found = run(tmp_path, *overrides(data, official, f"data={data}", f"method={method}", *NETWORK))
    assert found["step"] == 2
    assert set(found["targets"]) == set(configured(f"data={data}").data.validation)
    assert 0 <= found["miou"] <= 1
    assert found["miou_over"]["16" if data == "synthia2cs" else "19"] == pytest.approx(found["miou"], rel=1e-12)
    if len(found["targets"]) == 1:
        few = {"terrain", "truck", "train", "wall", "fence", "pole"}
        scores = [v for name, v in found["per_class"].items() if name not in few and v is not None]
        assert found["miou_over"]["13"] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize(
    ("recipe", "data", "network"),
    [
        ("lcmsm_gta2cs", "gta2cs", [*NETWORK, "method.text=file"]),
        ("corda_synthia2cs", "synthia2cs", DEEPLAB),
        ("corda_synthia2cs_mono", "synthia2cs", DEEPLAB),
        ("daformer_cs2acdc", "cs2acdc", NETWORK),
        ("t2sda_gta2dg", "gta2dg", NETWORK),
    ],
)
def test_recipes_run_on_files_as_they_are_downloaded(recipe, data, network, official, tmp_path):
    # The margins are those of images of 1024 rows.
    margins = [] if data == "gta2dg" else ["data.target.margins=null"]
    assert run(tmp_path, *overrides(data, official, f"experiment={recipe}", *network, *margins))["step"] == 2


@pytest.mark.parametrize("recipe", ["depth_cityscapes", "depth_cityscapes_stereo", "depth_viper", "depth_synthia"])
def test_depth_is_learnt_from_sequences_and_stereo_pairs(recipe, official, tmp_path):
    config = configured(f"experiment={recipe}", kind=DepthConfig)
    name = config.depth.domains[0]
    dataset = getattr(config.data, name).dataset
    depth.depth(
        configured(
            f"experiment={recipe}", *DEEPLAB, f"data.{name}.root={official[dataset]}", f"data.{name}.size=[64,128]",
            "pretrained=null", "depth.crop=[64,64]", "depth.steps=1", "depth.batch=2", "depth.widths=[2]",
            "trainer=cpu",
            "callbacks.progress=false", "data.workers=0", "logger.log_every=1",
            "data.crop=[32,32]",
            kind=DepthConfig,
        ),
        tmp_path / "run",
    )  # fmt: skip
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()


def test_folders_and_classes_of_ones_own_train(official, tmp_path):
    root, classes = official["cityscapes"], tmp_path / "classes.yaml"
    classes.write_text("names: [ground, object, sky]\nthings: [object]\nsubsets: {solid: [ground, object]}\n")
    custom = tmp_path / "mine.yaml"
    custom.write_text(
        "images: leftImg8bit/{split}\nlabels: gtFine/{split}\nimage_suffix: _leftImg8bit.png\n"
        "label_suffix: _gtFine_labelIds.png\nlabel_map: {7: ground, 8: ground, 26: object, 23: 2}\nunlisted: ignore\n"
    )
    found = run(
        tmp_path, *SHORT, *NETWORK, "data=custom", "method=dacs", "data.classes=custom", "data.eval_classes=solid",
        f"data.class_set={classes}", f"data.source.root={root}", f"data.target.root={root}",
        f"data.source.custom={custom}", f"data.target.custom={custom}",
    )  # fmt: skip
    assert found["classes"] == ["ground", "object"]
    solid = [found["per_class"][name] for name in ("ground", "object") if found["per_class"].get(name) is not None]
    assert found["miou"] == pytest.approx(sum(solid) / len(solid))


def test_without_a_root_the_folder_and_the_command_are_named(tmp_path):
    for data, option in (("cs2acdc", "data.source"), ("gta2dg", "data.source")):
        with pytest.raises(UserError, match=rf"{option}.root is not set: .* python -m uda_seg.prepare data={data}"):
            train.train(configured(f"data={data}", "method=source_only", *SHORT, *NETWORK), tmp_path / data)


def test_prepare_exports_and_says_where(cli, tmp_path):
    size = ["streets.size=[16,32]", "streets.train=1", "streets.val=1", "streets.domain=camera", "streets.workers=1"]
    given = ["data=streets", "streets.export=darkzurich", f"streets.out={tmp_path / 'tree'}", *size]
    done = cli(prepare.main, *given)
    assert done.code == 0, done
    assert f"Dark Zurich layout of streets in {tmp_path / 'tree'}, 2 new scenes" in done.out + done.err
    assert (tmp_path / "tree" / LAYOUTS["darkzurich"].image("val", 0)).is_file()
    assert "0 new scenes" in "".join((again := cli(prepare.main, *given)).out + again.err)
    assert "streets.export=moon is unknown" in cli(prepare.main, "data=streets", "streets.export=moon").error


def test_every_recipe_has_its_line_in_the_table():
    table = (Path(__file__).parents[1] / "docs/recipes.md").read_text()
    said = set(re.findall(r"`([\w{},]+)`", table))
    said |= {name for pattern in said for name in braced(pattern)}
    assert not {path.stem for path in (CONF / "experiment").glob("*.yaml")} - said


def braced(pattern: str) -> list[str]:
    """Expand the braces of `a{b,c}` as a shell does."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    return [name for one in found[1].split(",") for name in braced(pattern.replace(found[0], one, 1))]
