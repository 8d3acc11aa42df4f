"""Streets in official layouts: every byte-level rule, seen by readers that know nothing of ours, and by ours."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from trees import EXPORTED_SIZE as SIZE
from trees import exported as settings

from uda_seg.data.custom import classes_of
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import CITYSCAPES, CITYSCAPES_RAW, MAPILLARY_RAW, SYNTHIA_RAW
from uda_seg.data.sequences import VIEWS, SequenceDataset
from uda_seg.data.settings import DataSettings, DomainSettings, StreetsSettings
from uda_seg.data.specs import SPECS
from uda_seg.data.streets.cache import FIRST_INDEX
from uda_seg.data.streets.export import check, export
from uda_seg.data.streets.layouts import LAYOUTS
from uda_seg.data.streets.world import BASELINE, render
from uda_seg.errors import UserError

SEGMENTED = ("gta", "synthia", "urbansyn", "cityscapes", "acdc", "darkzurich", "bdd100k", "mapillary")


@pytest.fixture(scope="module")
def trees(official):
    """A tree of each data set, of the same scenes."""
    return official


def scene(index, split="train", view="left"):
    return render(0, "camera", FIRST_INDEX[split] + index, SIZE, view)


def chunks(path: Path) -> dict[bytes, bytes]:
    """A PNG taken apart by hand; the data of equal chunks is joined, checksums are checked."""
    content, found = path.read_bytes(), {}
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place = 8
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", content, place + 8 + length)[0] == zlib.crc32(kind + data)
        found[kind] = found.get(kind, b"") + data
        place += 12 + length
    return found


def pixels(path: Path) -> tuple[np.ndarray, int]:
    """(samples [H, W, C], colour type) of a PNG, decoded without any image library."""
    parts = chunks(path)
    width, height, bits, colour, *_, interlaced = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert interlaced == 0
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    step, line = channels * bits // 8, width * channels * bits // 8
    raw, before, rows, place = zlib.decompress(parts[b"IDAT"]), bytearray(line), [], 0
    for _ in range(height):
        kind, row = raw[place], bytearray(raw[place + 1 : place + 1 + line])
        place += 1 + line
        for i in range(line):
            a, b = (row[i - step] if i >= step else 0), before[i]
            c = before[i - step] if i >= step else 0
            nearest = min((a, b, c), key=lambda v, p=a + b - c: abs(p - v))
            row[i] = (row[i] + (0, a, b, (a + b) // 2, nearest)[kind]) & 255
        rows.append(bytes(row))
        before = row
    samples = np.frombuffer(b"".join(rows), ">u2" if bits == 16 else np.uint8)
    return samples.reshape(height, width, channels).astype(np.int64), colour


def to_train_ids(raw, table):
    return np.array([[table[int(value)] for value in row] for row in raw])


@pytest.mark.parametrize("name", SEGMENTED)
def test_our_reader_finds_streets_own_images_and_labels(trees, name):
    for split in LAYOUTS[name].splits:
        labelled = not (name == "darkzurich" and split == "train")
        data = SegmentationDataset(SPECS[name], trees[name], split, CITYSCAPES, labeled=labelled)
        assert len(data) == (2 if split == "train" else 1)
        by_image = {}
        for index in range(len(data)):
            sample = data.read(index)
            by_image[data.names[index]] = sample
        for index in range(len(data)):
            frame, path = scene(index, split), LAYOUTS[name].image(split, index)
            sample = next(s for n, s in by_image.items() if path.endswith(n))
            if path.endswith(".jpg"):
                assert np.abs(sample.image.astype(int) - frame.image).mean() < 6
            else:
                np.testing.assert_array_equal(sample.image, frame.image)
            if labelled:
                np.testing.assert_array_equal(sample.label, frame.label)


def test_gta_labels_are_palette_pngs_of_cityscapes_ids(trees):
    path = trees["gta"] / "labels/00001.png"
    ids, colour = pixels(path)
    assert colour == 3
    np.testing.assert_array_equal(to_train_ids(ids[..., 0], CITYSCAPES_RAW), scene(0).label)
    road = CITYSCAPES_RAW[7]
    assert tuple(chunks(path)[b"PLTE"][21:24]) == CITYSCAPES.palette[road]
    assert Image.open(path).mode == "P"
    assert Image.open(trees["gta"] / "images/00001.png").mode == "RGB"


def test_synthia_labels_are_16_bit_colour_that_pil_would_cut(trees):
    path = trees["synthia"] / "GT/LABELS/0000001.png"
    samples, colour = pixels(path)
    assert (colour, chunks(path)[b"IHDR"][8]) == (2, 16)
    label = scene(1).label
    np.testing.assert_array_equal(to_train_ids(samples[..., 0], SYNTHIA_RAW), label)
    things = np.isin(label, range(11, 19))
    np.testing.assert_array_equal(samples[..., 1] > 0, things)
    assert samples[..., 2].max() == 0
    assert len(np.unique(samples[..., 1])) > 2  # more than one thing
    assert np.asarray(Image.open(path)).max() < samples.max()  # the trap


def test_synthia_depth_is_in_centimetres_and_its_sky_as_far_as_they_reach(trees):
    samples, _ = pixels(trees["synthia"] / "Depth/Depth/0000000.png")
    depth = scene(0).depth
    known = np.isfinite(depth) & (depth > 0) & (depth < 655)
    np.testing.assert_allclose(samples[..., 0][known], 100 * depth[known], atol=0.51)
    assert (samples[..., 0][np.isinf(depth)] == 65535).all()
    assert np.isinf(depth).any()
    assert (samples == samples[..., :1]).all()


def test_cityscapes_labels_instances_and_colours(trees):
    stem = trees["cityscapes"] / "gtFine/train/aachen/aachen_000000_000019_gtFine"
    label = scene(0).label
    ids, colour = pixels(Path(f"{stem}_labelIds.png"))
    assert colour == 0
    np.testing.assert_array_equal(to_train_ids(ids[..., 0], CITYSCAPES_RAW), label)
    assert (ids[..., 0][label == 255] == 1).all()  # ego vehicle
    single, _ = pixels(Path(f"{stem}_instanceIds.png"))
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    counted = np.isin(ids[..., 0], [kind.id for kind in official if kind.hasInstances])
    assert counted.any()
    np.testing.assert_array_equal(np.where(counted, single[..., 0] // 1000, single[..., 0]), ids[..., 0])
    painted, colour = pixels(Path(f"{stem}_color.png"))
    assert colour == 6
    np.testing.assert_array_equal(painted[label == 0], np.tile((128, 64, 128, 255), ((label == 0).sum(), 1)))


def test_cityscapes_depth_disparity_and_camera_agree(trees):
    root, stem, frame = trees["cityscapes"], "train/bochum/bochum_000000_000019", scene(1)
    metres = loadmat(root / f"depth/{stem}_depth_stereoscopic.mat")["depth_map"]
    assert metres.dtype == np.float64
    np.testing.assert_array_equal(metres, frame.depth)
    camera = json.loads((root / f"camera/{stem}_camera.json").read_text())
    assert camera["extrinsic"]["baseline"] == BASELINE
    assert camera["intrinsic"]["fx"] == pytest.approx(frame.intrinsics[0, 0] * 2048 / SIZE[1])
    raw, _ = pixels(root / f"disparity/{stem}_disparity.png")
    known = np.isfinite(metres) & (raw[..., 0] > 0)
    back = BASELINE * camera["intrinsic"]["fx"] / ((raw[..., 0][known] - 1) / 256)
    np.testing.assert_allclose(back, metres[known], rtol=0.02)
    assert known.mean() > 0.3


def test_references_and_daylight_stay_unread(trees):
    for name, split, strangers in (("acdc", "train", "_ref"), ("darkzurich", "train", "day"), ("acdc", "val", "_ref")):
        every = list(trees[name].rglob(f"rgb_anon/**/*{strangers}*/**/*.png"))
        assert every
        data = SegmentationDataset(SPECS[name], trees[name], split, CITYSCAPES, labeled=False)
        assert not {data.image_path(i) for i in range(len(data))} & set(every)
    conditions = {
        n.partition("/")[0]
        for n in SegmentationDataset(SPECS["acdc"], trees["acdc"], "train", CITYSCAPES, labeled=True).names
    }
    assert conditions == {"fog", "night"}


def test_acdc_as_others_rearrange_or_unpack_it(trees, tmp_path):
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    for path in trees["acdc"].rglob("*.png"):
        kind, _, split, *rest = path.relative_to(trees["acdc"]).parts
        if split in ("train", "val"):
            (flat / kind / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, flat / kind / split / rest[-1])
    shutil.copytree(trees["acdc"] / "rgb_anon", nested / "rgb_anon_trainvaltest/rgb_anon")
    shutil.copytree(trees["acdc"] / "gt", nested / "gt_trainval/gt")
    expected = SegmentationDataset(SPECS["acdc"], trees["acdc"], "train", CITYSCAPES, labeled=True)
    for root in (flat, nested):
        found = SegmentationDataset(SPECS["acdc"], root, "train", CITYSCAPES, labeled=True)
        assert [Path(n).name for n in found.names] == [Path(n).name for n in expected.names]
        np.testing.assert_array_equal(found.read_label(1), expected.read_label(1))


def test_mapillary_and_bdd_as_their_releases_have_them(trees, tmp_path):
    label = next((trees["mapillary"] / "training/v1.2/labels").iterdir())
    ids, colour = pixels(label)
    assert colour == 3
    assert {c for c in np.unique(scene(0).label) if c != 255} <= {MAPILLARY_RAW[int(i)] for i in np.unique(ids)}
    old = tmp_path / "mapillary"
    shutil.copytree(trees["mapillary"] / "training/images", old / "training/images")
    shutil.copytree(trees["mapillary"] / "training/v1.2/labels", old / "training/labels")
    assert len(SegmentationDataset(SPECS["mapillary"], old, "train", CITYSCAPES, labeled=True)) == 2
    unlabelled = SegmentationDataset(SPECS["mapillary"], old, "train", CITYSCAPES, labeled=False)
    assert unlabelled.label_root == old / "training/labels"  # where a check looks for them
    first = tmp_path / "bdd"
    shutil.copytree(trees["bdd100k"] / "images/10k", first / "seg/images")
    for path in (trees["bdd100k"] / "labels/sem_seg/masks").rglob("*.png"):
        target = first / "seg/labels" / path.parent.name / f"{path.stem}_train_id.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert len(SegmentationDataset(SPECS["bdd100k"], first, "val", CITYSCAPES, labeled=True)) == 1


def depth_of(name, root, encoding=None):
    domain = DomainSettings(name, str(root), depth_encoding=encoding)
    return open_domain(domain, DataSettings(), CITYSCAPES, "data.source", labeled=False, depth=True).read(0).depth


@pytest.mark.parametrize(
    ("name", "encoding"), [("synthia", None), ("cityscapes", None), ("cityscapes", "disparity"), ("gta", None)]
)
def test_exported_depth_is_streets_own(trees, name, encoding):
    z, depth = depth_of(name, trees[name], encoding), scene(0).depth
    known = np.isfinite(depth) & (depth > 4) & (depth < 250)
    if encoding == "disparity" or name == "gta":  # sampled at another size, and no nearer than 16 bits reach
        assert np.median(np.abs(z[known] * depth[known] / 655.36 - 1)) < 0.1
    else:
        np.testing.assert_allclose(z[known], 655.36 / (depth[known] + 0.01), rtol=0.01)
        assert (z[np.isinf(depth)] == 1.0).all()


@pytest.mark.parametrize(
    ("name", "supervision", "count"),
    [("cityscapes", "both", 2), ("viper", "monocular", 2), ("synthia_seqs", "both", 2)],
)
def test_sequences_are_found_with_their_neighbours(trees, name, supervision, count):
    domain = DomainSettings(name, str(trees[name]))
    data = SequenceDataset(domain, DataSettings(), CITYSCAPES, "data.source", VIEWS[supervision])
    assert len(data) == count
    sample = data[0]
    for place, view in enumerate(VIEWS[supervision]):
        shown = sample.views[0, place].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(shown - scene(0, view=view).image).mean() < (6 if name == "viper" else 0.5)
    if name == "cityscapes":
        np.testing.assert_allclose(sample.intrinsics[0].numpy(), scene(0).intrinsics, rtol=1e-5)
        assert sample.baseline.item() == BASELINE


def test_a_damaged_viper_frame_is_no_neighbour_either(trees, tmp_path):
    root = tmp_path / "viper"
    frame = next((trees["viper"] / "train/img/001").iterdir())
    for number in (62, 63, 64, 65, 66):
        (root / "train/img/052").mkdir(parents=True, exist_ok=True)
        shutil.copy(frame, root / f"train/img/052/052_{number:05d}.jpg")
    domain = DomainSettings("viper", str(root))
    with pytest.raises(UserError, match=r"no image under .* has its previous and next"):
        SequenceDataset(domain, DataSettings(), CITYSCAPES, "data.source", VIEWS["monocular"])
    for number in (60, 61):
        shutil.copy(frame, root / f"train/img/052/052_{number:05d}.jpg")
    found = SequenceDataset(domain, DataSettings(), CITYSCAPES, "data.source", VIEWS["monocular"])
    assert found.names == ["052/052_00061.jpg", "052/052_00062.jpg"]


# ---------------------------------------------------------------------- the command's own promises


def test_a_finished_export_is_left_alone_and_an_interrupted_one_completed(trees, tmp_path):
    root = tmp_path / "acdc"
    shutil.copytree(trees["acdc"], root)
    image = root / LAYOUTS["acdc"].image("train", 1)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.png")}
    content = image.read_bytes()
    image.unlink()
    export(settings("acdc", root), 0, progress=False)
    assert image.read_bytes() == content
    after = {p: p.stat().st_mtime_ns for p in root.rglob("*.png")}
    changed = {p for p in after if after[p] != before.get(p)}
    assert changed
    assert all("000002" in p.name for p in changed)  # files of that scene alone
    assert not list(root.rglob("*.tmp"))


def test_nothing_foreign_is_written_into(trees, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/picture.png").write_bytes(b"")
    with pytest.raises(UserError, match="mine is not empty and no export of streets: choose another folder"):
        export(settings("gta", tmp_path / "mine"), 0, progress=False)
    with pytest.raises(UserError, match="holds another export: layout differs"):
        export(settings("synthia", trees["gta"]), 0, progress=False)
    with pytest.raises(UserError, match="holds another export: world_seed differs"):
        export(settings("gta", trees["gta"]), 1, progress=False)


def test_sizes_and_names_that_cannot_be_are_told():
    assert check(StreetsSettings("cityscapes", "x"))[1] == (256, 512)
    assert check(StreetsSettings("gta", "x", size="official"))[1] == (1052, 1914)
    for changes, said in (
        ({"export": "kitti"}, "streets.export=kitti is unknown; choose one of gta, synthia, urbansyn, cityscapes"),
        ({"out": None}, "streets.out is not set: set streets.out=FOLDER"),
        ({"size": [8, 8]}, "give small, official, or [height,width] of at least 16 pixels"),
        ({"size": "large"}, "give small, official"),
        ({"domain": "moon"}, "unknown streets domain 'moon'"),
    ):
        with pytest.raises(UserError) as caught:
            check(replace(StreetsSettings("gta", "x"), **changes))
        assert said in str(caught.value)


# ---------------------------------------------------------------------- what goes wrong with downloads


@pytest.mark.parametrize("name", SEGMENTED)
def test_a_root_that_is_too_high_or_too_low_names_the_right_one(trees, name):
    split = "val" if "val" in LAYOUTS[name].splits else "train"
    right = trees[name]
    inner = right / SPECS[name].images.partition("/")[0].format(split=SPECS[name].folders.get(split, split))
    for wrong in (right.parent, inner):
        with pytest.raises(UserError) as caught:
            SegmentationDataset(SPECS[name], wrong, split, CITYSCAPES, labeled=True, option="data.target")
        assert f"set data.target.root={right}, which holds " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_half_of_a_download_is_told_with_the_file_and_the_cure(trees, tmp_path):
    root = tmp_path / "cityscapes"
    shutil.copytree(trees["cityscapes"], root)
    image = root / "leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png"
    label = root / "gtFine/train/bochum/bochum_000000_000019_gtFine_labelIds.png"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(UserError) as caught:
        SegmentationDataset(SPECS["cityscapes"], root, "train", CITYSCAPES, labeled=True)
    assert f"1 labels have no image, the first is {label}" in str(caught.value)
    assert "unpack the images again" in str(caught.value)
    assert len(SegmentationDataset(SPECS["cityscapes"], root, "train", CITYSCAPES, labeled=False)) == 1
    image.write_bytes(content)
    label.unlink()
    with pytest.raises(UserError) as caught:
        SegmentationDataset(SPECS["cityscapes"], root, "train", CITYSCAPES, labeled=True)
    assert f"1 of 2 images have no label, the first is {image} without {label}" in str(caught.value)
    assert "unpack the labels again, or set data.source.count" in str(caught.value)
    assert len(SegmentationDataset(SPECS["cityscapes"], root, "train", CITYSCAPES, labeled=True, count=1)) == 1


def test_labels_that_a_program_cut_to_8_bits_are_refused(trees, tmp_path):
    root = tmp_path / "synthia"
    shutil.copytree(trees["synthia"], root)
    path = root / "GT/LABELS/0000000.png"
    Image.open(path).save(path)  # what PIL reads, written back
    with pytest.raises(UserError, match=r"0000000.png is not a SYNTHIA label: it is uint8, not 16-bit.*unpack"):
        SegmentationDataset(SPECS["synthia"], root, "train", CITYSCAPES, labeled=True).read(0)


def test_labels_of_sequences_are_not_read(trees):
    with pytest.raises(UserError, match="VIPER has no supported labels"):
        SegmentationDataset(SPECS["viper"], trees["viper"], "train", CITYSCAPES, labeled=True)


# ---------------------------------------------------------------------- folders of one's own

CLASSES = {"names": ["ground", "object", "sky"], "things": ["object"], "subsets": {"solid": ["ground", "object"]}}


def own(root, **changes):
    said = {
        "images": "leftImg8bit/{split}", "labels": "gtFine/{split}", "image_suffix": "_leftImg8bit.png",
        "label_suffix": "_gtFine_labelIds.png", "label_map": {7: "ground", 8: 0, 26: 1, 23: "sky"},
        "unlisted": "ignore",
    }  # fmt: skip
    domain = DomainSettings("custom", str(root), custom=said | changes)
    data = DataSettings(classes="custom", class_set=CLASSES, eval_classes="solid")
    return open_domain(domain, data, classes_of(data), "data.source", labeled=True)


def test_folders_and_classes_of_ones_own(trees):
    label, expected = own(trees["cityscapes"]).read(0).label, scene(0).label
    names = {0: 0, 1: 0, 13: 1, 10: 2}
    np.testing.assert_array_equal(label, np.vectorize(lambda c: names.get(c, 255))(expected))
    classes = classes_of(DataSettings(classes="custom", class_set=CLASSES))
    assert (classes.names, classes.things, classes.subset("solid")) == (tuple(CLASSES["names"]), (1,), (0, 1))
    assert classes.subset("all") == (0, 1, 2)
    assert len(set(classes.palette)) == 3


def test_descriptions_may_stand_in_files(trees, tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text(json.dumps(CLASSES))  # JSON is YAML
    assert classes_of(DataSettings(classes="custom", class_set=str(file))).names == tuple(CLASSES["names"])
    file.write_text("names: [a, b")
    with pytest.raises(UserError, match=r"data.class_set=\S+classes.yaml is no YAML"):
        classes_of(DataSettings(classes="custom", class_set=str(file)))
    with pytest.raises(UserError, match=r"data.class_set=\S+none.yaml cannot be opened: No such file"):
        classes_of(DataSettings(classes="custom", class_set=str(tmp_path / "none.yaml")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label_map": {7: "street"}}, "data.source.custom.label_map: 7: street is no class; use a train id below 3"),
        ({"label_map": {70000: 0}}, "the raw id 70000 is not between 0 and 65535"),
        ({"label_map": {7: 5}}, "7: 5 is no class"),
        ({"label_format": "grey"}, "data.source.custom.label_format=grey is none of gray, palette, red"),
        ({"label_sufix": ".png"}, "data.source.custom"),
        ({"labels": None}, "the custom data set has no supported labels"),
    ],
)
def test_what_is_wrong_in_a_description_is_told_by_its_key(trees, changes, said):
    with pytest.raises(UserError) as caught:
        own(trees["cityscapes"], **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_that_the_map_does_not_name_is_an_error_unless_told(trees):
    with pytest.raises(UserError, match="has the unknown label id"):
        own(trees["cityscapes"], unlisted="error").read(0)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"names": []}, "give 2 to 254 different class names"),
        ({"names": ["a", "a"]}, "give 2 to 254 different class names"),
        ({"names": ["a" * 5000]}, "aaa...: give 2 to 254 different class names"),
        ({"names": ["a", "ignore"]}, "ignore is what a label_map calls pixels of no class"),
        ({"names": ["a", "b"], "palette": [[0, 0, 3], [0, 0, 300]]}, "give [R, G, B] from 0 to 255"),
        ({"names": ["a", "b"], "words": []}, "data.class_set.words has 0 entries, but there are 2 class names"),
        ({"names": ["a", "b"], "things": ["c"]}, "data.class_set.things: c is none of the classes a, b"),
        ({"names": ["a"]}, "beside a single one the background is a class too"),
        (None, "data.class_set is not set"),
    ],
)
def test_a_class_set_that_is_not_whole_is_told(said, wrong):
    with pytest.raises(UserError) as caught:
        classes_of(DataSettings(classes="custom", class_set=said))
    assert wrong in str(caught.value)
    with pytest.raises(UserError, match=r"data.classes=cityscapes: set data.classes=custom to use it"):
        classes_of(DataSettings(class_set={"names": ["a"]}))
