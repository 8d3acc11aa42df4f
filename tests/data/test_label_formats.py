"""Label files of every format a person may have: ids come out as they were meant, or a line says what is wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from trees import blocks, image_of, save

from uda_seg.data.custom import CustomData, classes_of, label_table
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.decoding import read_color, read_gray, read_ids, read_own_red, read_palette, read_red
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import CITYSCAPES, CITYSCAPES_RAW, ClassSet
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.statistics import class_statistics
from uda_seg.data.storage.disk_cache import find_cache, write_cache
from uda_seg.errors import UserError
from uda_seg.evaluation.label_values import label_values

NAMES = ["ground", "object", "sky"]
PALETTE = [[128, 64, 128], [0, 0, 142], [70, 130, 180]]
SIZE = (16, 24)


def settings(root: Path, **custom) -> DataSettings:
    domain = DomainSettings("custom", str(root), custom=custom)
    classes = {"names": NAMES, "palette": PALETTE}
    return DataSettings("own", "custom", classes, "all", source=domain, validation={"own": domain})


def opened(root: Path, **custom) -> SegmentationDataset:
    data = settings(root, **custom)
    return open_domain(data.source, data, classes_of(data), "data.source", labeled=True)


def tree(root: Path, *labels: np.ndarray) -> Path:
    """Images, and labels as they are given: [H, W] of 8 or 16 bits, or RGB."""
    for i, label in enumerate(labels):
        save(root / f"images/train/{i}.png", image_of(np.zeros(SIZE, np.uint8), i))
        save(root / f"labels/train/{i}.png", label)
    return root


def train_ids(seed: int = 0) -> np.ndarray:
    return blocks(seed, SIZE, [0, 1, 2, 255], 4)


def painted(ids: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """RGB of train ids, pixel by pixel."""
    return np.array([[colours[int(i)] for i in row] for row in ids], np.uint8)


OWN = {0: (1, 2, 3), 1: (255, 255, 255), 2: (0, 0, 255), 255: (9, 9, 9)}
MAPS = {
    "strings": {"1,2,3": "ground", "255,255,255": "object", "0,0,255": 2, "9,9,9": "ignore"},
    "hexadecimal": {"#010203": "ground", "#FFffff": "object", "#0000ff": "sky", "#090909": None},
    "pairs": [[[1, 2, 3], "ground"], [[255, 255, 255], 1], [[0, 0, 255], "sky"], [[9, 9, 9], 255]],
}


@pytest.mark.parametrize("said", MAPS.values(), ids=MAPS)
def test_colours_become_classes_by_the_map(tmp_path, said):
    data = opened(tree(tmp_path, painted(train_ids(), OWN)), label_format="color", label_map=said)
    np.testing.assert_array_equal(data.read(0).label, train_ids())


def test_colours_without_a_map_are_those_of_the_palette_and_black_is_ignored(tmp_path):
    colours = dict(enumerate(map(tuple, PALETTE))) | {255: (0, 0, 0)}
    data = opened(tree(tmp_path, painted(train_ids(), colours)), label_format="color")
    np.testing.assert_array_equal(data.read(0).label, train_ids())


def test_colours_behind_a_palette_or_with_an_opaque_alpha_are_colours_too(tmp_path):
    root = tree(tmp_path, painted(train_ids(), OWN))
    picture = Image.open(root / "labels/train/0.png")
    for other in (picture.quantize(16), picture.convert("RGBA")):
        other.save(root / "labels/train/0.png")
        data = opened(root, label_format="color", label_map=MAPS["strings"])
        np.testing.assert_array_equal(data.read(0).label, train_ids())
    picture.putalpha(100)
    picture.save(root / "labels/train/0.png")
    with pytest.raises(UserError, match=r"0\.png is partly transparent"):
        data.read(0)


def test_colours_of_cityscapes_own_pictures(official):
    custom = {
        "images": "leftImg8bit/{split}", "labels": "gtFine/{split}", "image_suffix": "_leftImg8bit.png",
        "label_suffix": "_gtFine_color.png", "label_format": "color", "unlisted": "ignore",
    }  # fmt: skip
    domain = DomainSettings("custom", str(official["cityscapes"]), custom=custom)
    data = open_domain(domain, DataSettings(), CITYSCAPES, "data.source", labeled=True)
    ids = open_domain(
        DomainSettings("cityscapes", str(official["cityscapes"])), DataSettings(), CITYSCAPES, "x", labeled=True
    )
    for i in range(len(ids)):
        np.testing.assert_array_equal(data.read(i).label, ids.read(i).label)


def test_an_unknown_colour_is_told_as_a_colour_or_ignored(tmp_path):
    root = tree(tmp_path, painted(train_ids(), OWN))
    some = {"1,2,3": "ground", "255,255,255": "object"}
    with pytest.raises(UserError, match=r"0\.png has the unknown label id \[(0, 0, 255|9, 9, 9)\]: name it in"):
        opened(root, label_format="color", label_map=some).read(0)
    label = opened(root, label_format="color", label_map=some, unlisted="ignore").read(0).label
    np.testing.assert_array_equal(label, np.where(train_ids() < 2, train_ids(), 255))


def test_ids_of_16_bits(tmp_path):
    ids = {0: 0, 1: 40000, 2: 65535, 255: 300}
    deep = np.vectorize(ids.get)(train_ids()).astype(np.uint16)
    root, said = tree(tmp_path, deep), {0: "ground", 40000: "object", 65535: "sky", 300: "ignore"}
    np.testing.assert_array_equal(opened(root, label_map=said).read(0).label, train_ids())
    with pytest.raises(UserError, match=r"0\.png has the unknown label id \d+: name it in data.source.custom.label"):
        opened(root, label_map={0: "ground", 40000: "object"}).read(0)
    with pytest.raises(UserError, match=r"unknown label id \d+: without a label_map files hold train ids"):
        opened(root).read(0)
    label = opened(root, label_map={0: "ground"}, unlisted="ignore").read(0).label
    np.testing.assert_array_equal(label, np.where(train_ids() == 0, 0, 255))
    tree(tmp_path / "plain", train_ids().astype(np.uint16))
    np.testing.assert_array_equal(opened(tmp_path / "plain").read(0).label, train_ids())


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("label_format", ["gray", "palette"])
def test_grey_of_fewer_bits_holds_its_samples_not_what_decoders_stretch_them_to(tmp_path, bits, label_format):
    ids = blocks(0, SIZE, [0, 1] if bits == 1 else [0, 1, 2], 4)
    root = tree(tmp_path, ids)
    write_grey(root / "labels/train/0.png", ids, bits)
    np.testing.assert_array_equal(opened(root, label_format=label_format).read(0).label, ids)


def write_grey(path: Path, ids: np.ndarray, bits: int) -> None:
    """A grey PNG of 1, 2 or 4 bits, written by hand (PIL writes 1 alone)."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    each = 8 // bits
    packed = sum(ids.reshape(SIZE[0], -1, each)[..., k].astype(int) << (bits * (each - 1 - k)) for k in range(each))
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("kind", [".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("label_format", ["gray", "palette", "color"])
def test_lossy_labels_are_refused_whatever_their_name_says(tmp_path, kind, label_format):
    root = tree(tmp_path, train_ids())
    picture = Image.fromarray(painted(train_ids(), OWN) if label_format == "color" else train_ids())
    how = {".jpg": {"format": "JPEG"}, ".webp": {"format": "WEBP"}, ".tif": {"format": "TIFF", "compression": "jpeg"}}
    picture.save(root / "labels/train/0.png", **how[kind])
    with pytest.raises(UserError, match=r"0\.png is a .* changes ids: export the labels again as PNG"):
        opened(root, label_format=label_format, unlisted="ignore").read(0)


@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 3), (np.uint8, 4), (np.uint16, 3)])
def test_ids_in_red_may_have_8_or_16_bits(tmp_path, kind, channels):
    root, ids = tree(tmp_path, train_ids()), train_ids()
    others = [np.full(SIZE, value) for value in (77, 99, 200)]
    label = np.dstack([ids, *others[: channels - 1]]).astype(kind)
    code = cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA
    assert cv2.imwrite(str(root / "labels/train/0.png"), cv2.cvtColor(label, code))
    np.testing.assert_array_equal(opened(root, label_format="red").read(0).label, ids)


@pytest.mark.parametrize("label_format", ["gray", "red"])
@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_labels_of_32_bits_are_told_to_be_saved_with_fewer(tmp_path, kind, label_format):
    root = tree(tmp_path, train_ids())
    Image.fromarray(train_ids().astype(kind)).save(root / "labels/train/0.png", format="TIFF")
    with pytest.raises(UserError, match=r"0\.png is not a .*label .*but grey of 32 bits: save it with 8 or 16 bits$"):
        opened(root, label_format=label_format).read(0)


def test_other_kinds_of_files_are_called_what_they_are(tmp_path):
    root, file = tree(tmp_path, train_ids()), tmp_path / "labels/train/0.png"

    def said(**custom):
        with pytest.raises(UserError) as caught:
            opened(root, **custom).read(0)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    Image.fromarray(train_ids()).convert("P").save(file)
    assert "but a palette PNG" in said()
    assert "label_format=palette" in said()
    save(file, np.zeros((*SIZE, 3), np.uint8))
    assert "but a picture of colours of 8 bits: its three channels are equal" in said()
    save(file, painted(train_ids(), OWN))
    assert "but a picture of colours of 8 bits: set label_format=color" in said()
    assert "label_format=color" in said(label_format="palette")
    assert "grey" not in said(label_format="red")
    Image.merge("LA", [Image.fromarray(train_ids())] * 2).save(file)
    assert "but grey of 8 bits with transparency: save it without its alpha channel" in said()
    Image.fromarray(train_ids()).save(file, transparency=0)
    np.testing.assert_array_equal(opened(root).read(0).label, train_ids())
    save(file, np.zeros(SIZE, np.uint8))
    assert "in the red of its colours but grey of 8 bits: set label_format=gray to read these" in said(
        label_format="red"
    )
    assert "is not a label of 8-bit colours but grey of 8 bits" in said(label_format="color")
    save(file, np.zeros(SIZE, np.uint16))
    assert "is not a label with 8-bit ids but grey of 16 bits" in said(label_format="palette")


@pytest.mark.filterwarnings("ignore")  # PIL's, about odd metadata
@pytest.mark.parametrize("kind", ["BMP", "GIF", "PNG", "TIFF"])
def test_damage_is_one_line_whatever_its_decoder_raises(tmp_path, kind):
    file, rng = tmp_path / "label", np.random.default_rng(0)
    Image.fromarray(train_ids()).convert("P").save(file, format=kind)
    whole, said = file.read_bytes(), []
    for _ in range(40):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(0, 80, 3)] = rng.integers(0, 256, 3)
        file.write_bytes(content.tobytes())
        for read in (read_gray, read_ids, read_palette, read_red, read_own_red, read_color):
            try:
                read(file)
            except UserError as error:
                said.append(str(error))
    assert len(said) > 40
    assert all(line.startswith(str(file)) and "\n" not in line for line in said)


@pytest.mark.parametrize(
    ("custom", "wrong"),
    [
        ({"label_map": {"ground": 0}}, "label_map: ground is no raw id: give a number"),
        ({"label_map": {70000: 0}}, "the raw id 70000 is not between 0 and 65535"),
        ({"label_map": {300: 0}, "label_format": "palette"}, "the raw id 300 is not between 0 and 255"),
        ({"label_map": {0: "ignore", 1: None}}, "maps to no class, so there is nothing to train on"),
        ({"label_map": {}}, "maps to no class, so there is nothing to train on"),
        ({"label_map": {7: "ground", "7": "sky"}}, "7 maps to two classes"),
        ({"label_map": "ground"}, "is no map: give {7: road, 8: sidewalk}"),
        ({"label_map": [[7, "ground", 8]]}, "is no map: give {7: road, 8: sidewalk}"),
        ({"label_map": {7: "ground"}, "label_format": "color"}, "7 is no colour: give [R, G, B]"),
        ({"label_map": {"1,2": "ground"}, "label_format": "color"}, "1,2 is no colour"),
        ({"label_map": {"1,2,256": "ground"}, "label_format": "color"}, "the raw id 256 is not between 0 and 255"),
        ({"label_map": [[[1, 2, 3], "street"]], "label_format": "color"}, "street is no class"),
    ],
)
def test_a_map_that_cannot_be_is_told(tmp_path, custom, wrong):
    with pytest.raises(UserError) as caught:
        opened(tree(tmp_path, train_ids()), **custom)
    assert str(caught.value).startswith("data.source.custom.label_map")
    assert wrong in str(caught.value)


def test_one_colour_of_two_classes_needs_a_map():
    classes = ClassSet("custom", ("a", "b"), ((1, 1, 1), (1, 1, 1)), (), ("a", "b"))
    with pytest.raises(UserError, match="two classes share a colour in the palette: give a label_map"):
        label_table(CustomData(label_format="color"), classes, "data.source.custom.label_map")


def test_caches_and_counts_follow_the_map(tmp_path):
    """The files stay; what is kept of them must not."""
    root, cache = tree(tmp_path / "tree", painted(train_ids(), OWN)), tmp_path / "cache"
    for said in (MAPS["strings"], {**MAPS["strings"], "1,2,3": "sky"}):
        data = opened(root, label_format="color", label_map=said)
        label = data.read(0).label
        assert find_cache(data, None, cache) is None
        write_cache(data, None, cache, [SIZE])
        np.testing.assert_array_equal(find_cache(data, None, cache).sample(0).label, label)
        counted = class_statistics(data, cache)
        assert counted.pixels.tolist() == [[int((label == c).sum()) for c in range(3)]]
        assert counted.areas.tolist() == [label.size]


def test_official_counts_are_not_taken_for_a_description_of_ones_own(tmp_path):
    root = tree(tmp_path, train_ids())
    (root / "sample_class_stats.json").write_text('[{"file": "labels/train/0.png", "0": 7}]')
    assert class_statistics(opened(root), tmp_path / "cache").pixels[0, 0] == (train_ids() == 0).sum()


# ---------------------------------------------------------------------- the way back


def way_back(root: Path, **custom):
    data = settings(root, **custom)
    return label_values(data, classes_of(data))


def test_predictions_hold_what_the_files_hold(tmp_path):
    for said in MAPS.values():
        found = way_back(tmp_path, label_format="color", label_map=said).table
        assert found.tolist() == [list(OWN[c]) for c in range(3)]
    deep = way_back(tmp_path, label_map={0: "ground", 40000: "object", 65535: "sky"}).table
    assert (deep.tolist(), deep.dtype) == ([0, 40000, 65535], np.uint16)
    red = way_back(tmp_path, label_format="red", label_map={9: "ground", 300: "object", 2: "sky"}).table
    save(tmp_path / "red.png", red[blocks(0, SIZE, [0, 1, 2])])
    np.testing.assert_array_equal(read_red(tmp_path / "red.png"), np.array([9, 300, 2])[blocks(0, SIZE, [0, 1, 2])])
    plain = way_back(tmp_path)
    assert (plain.table.tolist(), plain.table.dtype, plain.notes) == ([0, 1, 2], np.uint8, ())
    assert way_back(tmp_path, label_format="color").table.tolist() == PALETTE


def test_of_several_ids_of_a_class_the_first_named_is_written_and_told():
    found = way_back(Path("x"), label_map={8: "ground", 7: "ground", 26: "object", 0: "ignore", 23: "sky"})
    assert found.table.tolist() == [8, 26, 23]
    assert found.notes == ("ground is written as 8, the first of its ids 8, 7",)


def test_a_class_that_no_id_stands_for_is_written_as_ignored():
    assert way_back(Path("x"), label_map={7: "ground", 0: "ignore"}).table.tolist() == [7, 0, 0]
    found = way_back(Path("x"), label_map={255: "ground", 0: "object"})
    assert found.table.tolist() == [255, 0, 254]
    assert found.notes == ("no id stands for sky: written as 254",)
    full = way_back(Path("x"), label_map={raw: "ground" if raw < 9 else "object" for raw in range(256)})
    assert full.table.tolist() == [0, 9, 256]
    black = way_back(Path("x"), label_format="color", label_map={"#0000ff": "ground"}).table
    assert black.tolist() == [[0, 0, 255], [0, 0, 0], [0, 0, 0]]


def test_public_data_keeps_the_ids_of_its_release_and_own_folders_theirs():
    public = DataSettings(source=DomainSettings("gta"), validation={"a": DomainSettings("cityscapes")})
    expected = [raw for raw, train in CITYSCAPES_RAW.items() if train < 19]
    assert label_values(public, CITYSCAPES).table.tolist() == expected
    own = DataSettings(validation={"a": DomainSettings("custom", custom={})})
    assert label_values(own, CITYSCAPES).table.tolist() == list(range(19))  # files without a map hold train ids
    unlabelled = DataSettings(
        source=DomainSettings("custom", custom={"label_map": {50 + c: c for c in range(19)}}),
        target=DomainSettings("custom", custom={"labels": None}),
    )
    assert label_values(unlabelled, CITYSCAPES).table.tolist() == list(range(50, 69))
