from __future__ import annotations

import re
import zipfile

import cv2
import numpy as np
import pytest

from data.trees import blocks, image_of, save, save_palette
from uda_seg import prepare, train
from uda_seg.data.settings import DataSettings, DomainSettings, prepare_command
from uda_seg.data.specs import SPECS

IDS = [0, 7, 8, 11, 21, 23, 26]
SIZES = ["data.source.size=[48,64]", "data.target.size=[32,64]", "data.validation.cityscapes.size=[32,64]"]


@pytest.fixture
def trees(tmp_path, monkeypatch):
    """GTA and Cityscapes in their official layouts, a few images each."""
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    gta, cityscapes = tmp_path / "gta", tmp_path / "cityscapes"
    for i in range(4):
        label = blocks(i, (48, 64), IDS)
        save(gta / f"images/{i:05d}.png", image_of(label, i))
        save_palette(gta / f"labels/{i:05d}.png", label)
    for split in ("train", "val"):
        for i in range(3):
            label, stem = blocks(9 + i, (32, 64), IDS), f"{split}/aachen/aachen_{i:06d}_000019"
            save(cityscapes / f"leftImg8bit/{stem}_leftImg8bit.png", image_of(label, i))
            save(cityscapes / f"gtFine/{stem}_gtFine_labelIds.png", label)
    return gta, cityscapes


@pytest.fixture
def call(cli, trees):
    gta, cityscapes = trees

    def prepared(*more, main=prepare.main):
        roots = [f"data.source.root={gta}", f"data.target.root={cityscapes}"]
        return cli(main, "data=gta2cs", "data.crop=[32,32]", *roots, *SIZES, *more)

    return prepared


def test_a_sound_pair_of_domains_gets_statistics_and_a_page(call, tmp_path):
    finished = call()
    assert finished.code == 0, finished
    folder = tmp_path / "outputs/gta2cs/prepared"
    assert {path.name for path in folder.iterdir()} >= {"index.html", "problems.txt", "classes.md", "contact_sheet.png"}
    page = (folder / "index.html").read_text()
    assert "validation.cityscapes" in page
    assert page.count('class="bar"') == 3 * 19
    assert re.search(r"<td>road</td><td class=\"n\">\d+\.\d+ %", page)
    assert 'src="data:image/jpeg;base64,' in page
    assert "http" not in page  # nothing is fetched
    told = (folder / "problems.txt").read_text()
    assert f"the official GTA has {SPECS['gta'].counts['train']} in train" in told
    assert f"note\t{tmp_path}/gta/labels\tno label has a pixel of wall, fence, pole, " in told
    assert len(list((tmp_path / "cache/statistics").iterdir())) == 3
    assert not (tmp_path / "cache/resized").exists()


def test_damage_is_listed_and_fails_and_fix_mends_it(call, trees, tmp_path):
    gta, _ = trees
    (gta / "images/00001.png").write_bytes((gta / "images/00001.png").read_bytes()[:200])
    finished = call()
    assert (
        f"1 files or folders are damaged, the first is {gta}/images/00001.png: is cut off after 200" in finished.error
    )
    assert f"python -m uda_seg.prepare data=gta2cs data.source.root={gta}" in finished.error
    assert finished.error.endswith("fix=true")
    listed = (tmp_path / "outputs/gta2cs/prepared/problems.txt").read_text()
    assert f"damage\t{gta}/images/00001.png\tis cut off after 200 bytes\t" in listed
    assert call("fix=true").code == 0
    assert (gta / "images/00001.png.damaged").stat().st_size == 200
    assert call().code == 0


def test_a_test_split_needs_no_labels(call, trees, tmp_path):
    _, cityscapes = trees
    (cityscapes / "leftImg8bit/val").rename(cityscapes / "leftImg8bit/test")
    (cityscapes / "gtFine/val").rename(cityscapes / "gtFine/test")
    for path in (cityscapes / "gtFine/test").rglob("*.png"):
        save(path, np.zeros((32, 64), np.uint8))  # as Cityscapes publishes them
    assert call("data.validation.cityscapes.split=test").code == 0
    assert "damage" not in (tmp_path / "outputs/gta2cs/prepared/problems.txt").read_text()


def test_labels_without_an_image_fail_here_as_in_training_and_can_be_set_aside(call, trees, tmp_path):
    gta, _ = trees
    (gta / "images/00001.png").unlink()
    assert f"the first is {gta}/labels/00001.png: belongs to no image" in call().error
    assert call("fix=true").code == 0
    assert (gta / "labels/00001.png.damaged").is_file()


def pack(root, folders, archive):
    with zipfile.ZipFile(root / archive, "w") as packed:
        for folder in folders:
            for path in sorted((root / folder).rglob("*.png")):
                packed.write(path, path.relative_to(root))


def test_zips_are_unpacked_where_folders_are_missing_and_damaged_files_come_from_them(call, trees):
    gta, _ = trees
    pack(gta, ["images"], "01_images.zip")
    pack(gta, ["labels"], "01_labels.zip")
    whole = (gta / "images/00002.png").read_bytes()
    for folder in ("images", "labels"):
        (gta / folder).rename(gta.parent / f"was_{folder}")
    assert "holds packed files only: run python -m uda_seg.prepare data=gta2cs" in call(main=train.main).error
    assert call().code == 0
    assert (gta / "images/00002.png").read_bytes() == whole
    (gta / "images/00002.png").write_bytes(b"broken")
    (gta / "labels/00003.png").unlink()
    assert call().code == 1
    assert call("fix=true").code == 0
    assert (gta / "images/00002.png").read_bytes() == whole
    assert (gta / "images/00002.png.damaged").read_bytes() == b"broken"
    (gta / "labels/00001.png").unlink()
    assert call().code == 1
    assert call("unpack=all").code == 0


def test_a_wrong_level_is_found(cli, trees, tmp_path):
    gta, cityscapes = trees
    wrong = {f"{gta}/images": gta, str(tmp_path): gta}
    for given, right in wrong.items():
        line = cli(prepare.main, "data=gta2cs", f"data.source.root={given}", f"data.target.root={cityscapes}").error
        assert f"set data.source.root={right}, which holds images" in line


def test_training_reads_the_cache_that_was_prepared(call, tmp_path, monkeypatch):
    small = ["method=source_only", "model=daformer_small", "pretrained=null", "trainer=cpu", "trainer.max_steps=1"]
    small += ["data.cache=disk", "data.workers=0", "evaluator.times=1"]
    line = call(*small, main=train.main).error
    assert "there is no cache for data.source" in line
    assert line.endswith("data.cache=disk")
    assert call("data.cache=disk").code == 0
    made = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache/resized").iterdir()}
    assert made == {"gta-train-image", "gta-train-label", "cityscapes-train-image"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("data.bin")}
    assert call("data.cache=disk").code == 0
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("data.bin")}


def test_the_oracle_reads_the_cache_that_was_prepared_with_its_method(call, trees, tmp_path):
    small = ["method=oracle", "model=daformer_small", "pretrained=null", "trainer=cpu", "trainer.max_steps=1"]
    small += ["data.cache=disk", "data.workers=0", "evaluator.times=1", "data.target.count=2"]
    assert "there is no cache for data.target" in call(*small, main=train.main).error
    assert call("method=oracle", "data.cache=disk", "data.target.count=2").code == 0
    made = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache/resized").iterdir()}
    assert "cityscapes-train-label" in made
    finished = call(*small, main=train.main)
    assert finished.code == 0, finished


def test_labels_of_the_target_may_be_damaged_unless_the_oracle_trains_on_them(call, trees):
    _, cityscapes = trees
    label = cityscapes / "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png"
    label.write_bytes(label.read_bytes()[:100])
    assert call().code == call("method=oracle", "data.target.labelled=1").code == 0
    assert f"1 files or folders are damaged, the first is {label}" in call("method=oracle").error


def test_a_target_that_is_said_to_have_no_labels_is_not_validated_on(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    for i in range(2):
        save(tmp_path / f"source/images/train/{i}.png", image_of(blocks(i, (48, 64), [0, 1]), i))
        save(tmp_path / f"source/labels/train/{i}.png", blocks(i, (48, 64), [0, 1]))
        save(tmp_path / f"target/images/train/{i}.png", image_of(blocks(i, (48, 64), [0, 1]), i))
    roots = [f"data.{domain}.root={tmp_path / domain}" for domain in ("source", "target")]
    finished = cli(prepare.main, "data=custom", "data.crop=[32,32]", *roots, "data.target.custom={labels: null}")
    assert finished.code == 0, finished
    page = (tmp_path / "outputs/custom/prepared/index.html").read_text()
    assert "target" in page
    assert "validation" not in page


def test_the_command_names_each_root_once():
    settings = DataSettings(
        name="a2b",
        source=DomainSettings("gta", "/data/my gta"),
        target=DomainSettings("cityscapes", "/cs"),
        validation={"cs": DomainSettings("cityscapes", "/cs"), "acdc": DomainSettings("acdc", "/acdc")},
    )
    assert prepare_command(settings) == (
        "python -m uda_seg.prepare data=a2b data.source.root='/data/my gta' data.target.root=/cs "
        "data.validation.acdc.root=/acdc"
    )


def test_streets_needs_no_root(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    few = [
        f"data.{name}.{key}"
        for name in ("source", "target", "validation.target")
        for key in ("size=[32,64]", "count=2")
    ]
    finished = cli(prepare.main, "data=streets", "data.crop=[32,32]", *few)
    assert finished.code == 0, finished
    sheet = cv2.imread(str(tmp_path / "outputs/streets/prepared/contact_sheet.png"))
    assert sheet is not None
    assert np.asarray(sheet).std() > 10


def test_every_source_is_prepared_and_a_class_of_one_is_not_missed_in_another(call, tmp_path):
    for i in range(2):
        label = np.full((48, 64), i, np.uint8)
        save(tmp_path / f"synthia/RGB/{i:07d}.png", image_of(label, i))
        save(tmp_path / f"synthia/GT/LABELS/{i:07d}_labelTrainIds.png", np.full((48, 64), 3 + i, np.uint8))
    more = [f"+data.more_sources.synthia.{key}" for key in ("dataset=synthia", f"root={tmp_path / 'synthia'}")]
    finished = call(*more, "+data.more_sources.synthia.size=[48,64]", "data.cache=disk")
    assert finished.code == 0, finished
    told = (tmp_path / "outputs/gta2cs/prepared/problems.txt").read_text()
    [absent] = re.findall(r"no label has a pixel of ([^:]*):", told)
    assert absent.startswith("pole, ")  # wall and fence are in the second source
    made = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache/resized").iterdir()}
    assert {"synthia-train-image", "synthia-train-label"} < made
