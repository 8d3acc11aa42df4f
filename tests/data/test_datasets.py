from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader
from trees import (
    blocks,
    camvid_tree,
    cityscapes_tree,
    gta_tree,
    image_of,
    noise,
    save,
    save_palette,
    streets_tree,
    synthia_tree,
    urbansyn_tree,
)

from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.domains import open_domain
from uda_seg.data.images import read_image
from uda_seg.data.labels import CAMVID, CAMVID_RAW, CITYSCAPES, CITYSCAPES_RAW, SYNTHIA_RAW, URBANSYN_RAW
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.specs import SPECS
from uda_seg.errors import UserError
from uda_seg.errors.known import user_error


def open_tree(name, root, classes=CITYSCAPES, split="train", labeled=True, **options):
    return SegmentationDataset(SPECS[name], root, split, classes, labeled=labeled, **options)


def mapped(raw, table):
    return np.array([[table[int(value)] for value in row] for row in raw])


def test_camvids_test_split_is_scored_like_its_others(tmp_path):
    for split, count in (("train", 2), ("val", 1), ("test", 3)):
        camvid_tree(tmp_path, split, count)
    data = open_tree("camvid", tmp_path, CAMVID, split="test")
    assert [data.label_path(i).parent.name for i in range(len(data))] == 3 * ["testannot"]
    assert set(np.unique(data.read(0).label)) <= {*range(11), 255}
    assert [len(open_tree("camvid", tmp_path, CAMVID, split=split)) for split in ("train", "val", "train+val")] == [
        2,
        1,
        3,
    ]


def test_a_public_label_of_nearly_the_images_shape_is_resized_to_it_and_told_once(tmp_path, caplog):
    root = tmp_path / "gta"
    for i in range(3):
        save(root / f"images/{i}.png", noise(i, (33, 50)))
        save_palette(root / f"labels/{i}.png", blocks(i, (32, 48) if i else (33, 50), [0, 7, 8]))
    data = open_tree("gta", root)
    labels = [data.read(i).label for i in range(3)]
    assert [label.shape for label in labels] == 3 * [(33, 50)]
    for i in (1, 2):
        expected = cv2.resize(data.read_label(i), (50, 33), interpolation=cv2.INTER_NEAREST_EXACT)
        np.testing.assert_array_equal(labels[i], expected)
        np.testing.assert_array_equal(data.read_upright_label(i), expected)
    assert caplog.text.count("such labels are resized to their image") == 1
    assert f"{root}/labels/1.png is 32x48 but its image {root}/images/1.png is 33x50" in caplog.text
    save_palette(root / "labels/0.png", blocks(0, (50, 33), [0, 7]))
    said = r"labels/0\.png is 50x33 .*: leave the pair out with 'data\.source\.exclude=\[\"0\.png\"\]'$"
    with pytest.raises(UserError, match=said):
        data.read(0)


def test_ones_own_label_of_another_size_is_refused_with_its_cures(tmp_path):
    save(tmp_path / "images/train/a.png", noise(0, (33, 50)))
    save(tmp_path / "labels/train/a.png", blocks(0, (32, 48), [0, 7]))
    settings = DataSettings(name="custom", source=DomainSettings("custom", str(tmp_path), custom={}))
    data = open_domain(settings.source, settings, CITYSCAPES, "data.source", labeled=True)
    said = r": export the label again, leave the pair out with .*exclude=.*, or set such pairs aside with .* fix=true$"
    with pytest.raises(UserError, match=said):
        data.read(0)


def test_reads_images_as_rgb_in_the_order_of_their_names(tmp_path):
    data = open_tree("streets", streets_tree(tmp_path, count=3))
    assert len(data) == 3
    for i in range(3):
        label = blocks(i, (32, 48), [*range(19), 255])
        sample = data.read(i)
        np.testing.assert_array_equal(sample.image, image_of(label, i))
        np.testing.assert_array_equal(sample.label, label)
    assert len(open_tree("streets", tmp_path, count=2)) == 2


@pytest.mark.parametrize(
    ("name", "write", "table"),
    [
        ("cityscapes", cityscapes_tree, CITYSCAPES_RAW),
        ("gta", gta_tree, CITYSCAPES_RAW),
        ("synthia", synthia_tree, SYNTHIA_RAW),
        ("urbansyn", urbansyn_tree, URBANSYN_RAW),
    ],
)
def test_official_encodings_become_train_ids(tmp_path, name, write, table):
    raw = blocks(3, (32, 48), [i for i in table if i != 255], 4)
    data = open_tree(name, write(tmp_path, raw))
    np.testing.assert_array_equal(data.read(0).label, mapped(raw, table))


def test_a_label_whose_name_begins_otherwise_is_missed_and_found_by_its_image(tmp_path):
    root = urbansyn_tree(tmp_path, np.full((8, 8), 19, np.uint8))
    assert set(open_tree("urbansyn", root).read(0).label.ravel()) == {255}
    (root / "ss/ss_0001.png").rename(root / "ss/rgb_0001.png")
    with pytest.raises(UserError, match=r"rgb/rgb_0001.png without \S+/ss/ss_0001.png"):
        open_tree("urbansyn", root)
    urbansyn_tree(tmp_path, np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=r"1 labels have no image, the first is \S+/ss/rgb_0001.png"):
        open_tree("urbansyn", root)


@pytest.mark.parametrize("classes", [CAMVID, CITYSCAPES], ids=lambda c: c.name)
def test_converted_labels_are_preferred(tmp_path, classes):
    root = cityscapes_tree(tmp_path, np.full((8, 8), 7, np.uint8))
    cityscapes_tree(root, np.full((8, 8), 13, np.uint8), suffix="labelTrainIds")
    car = CITYSCAPES.names.index("car") if classes is CITYSCAPES else CAMVID.names.index("car")
    assert set(open_tree("cityscapes", root, classes).read(0).label.ravel()) == {car}


def test_camvid_layout(tmp_path):
    camvid_tree(tmp_path), camvid_tree(tmp_path, "val", count=2)
    assert (len(open_tree("camvid", tmp_path, CAMVID)), len(open_tree("camvid", tmp_path, CAMVID, "val"))) == (4, 2)
    raw = blocks(1, (36, 48), list(range(12)))
    np.testing.assert_array_equal(open_tree("camvid", tmp_path, CAMVID).read(1).label, mapped(raw, CAMVID_RAW))


def test_without_labels_no_label_file_is_needed(tmp_path):
    shutil.rmtree(streets_tree(tmp_path) / "label")
    data = open_tree("streets", tmp_path, labeled=False)
    assert data.read(0).label is None


def damage_missing_folder(root):
    shutil.rmtree(root / "label")
    return r"no folder \S+/label: set data.source.root to the folder that holds image/\*\*/\*.png"


def damage_no_image(root):
    shutil.rmtree(root / "image")
    (root / "image").mkdir()
    return r"no image \S+/image/\*\*/\*.png"


def damage_lost_label(root):
    (root / "label/000002.png").unlink()
    return r"1 of 6 images have no label, the first is \S+/image/000002.png without \S+/label/000002.png"


@pytest.mark.parametrize("damage", [damage_missing_folder, damage_no_image, damage_lost_label])
def test_a_damaged_folder_is_told_when_it_is_opened(tmp_path, damage):
    message = damage(streets_tree(tmp_path))
    with pytest.raises(UserError, match=message):
        open_tree("streets", tmp_path)


def damage_truncated_image(root):
    file = root / "image/000001.png"
    file.write_bytes(file.read_bytes()[:200])
    return r"image/000001.png is cut off after 200 bytes: copy or unpack the file again"


def damage_empty_label(root):
    (root / "label/000001.png").write_bytes(b"")
    return r"label/000001.png is empty: copy or unpack the file again"


def damage_label_size(root):
    save(root / "label/000001.png", np.zeros((16, 48), np.uint8))
    return r"label/000001.png is 16x48 but its image \S+/image/000001.png is 32x48"


def damage_unknown_id(root):
    label = np.zeros((32, 48), np.uint8)
    label[3, 4] = 77
    save(root / "label/000001.png", label)
    return r"label/000001.png has the unknown label id 77: is it of streets\?"


def damage_colour_label(root):
    save(root / "label/000001.png", np.zeros((32, 48, 3), np.uint8))
    return r"label/000001.png is not an 8-bit single-channel label"


def damage_deep_label(root):
    save(root / "label/000001.png", np.zeros((32, 48), np.uint16))
    return r"label/000001.png is not an 8-bit single-channel label but grey of 16 bits: instance ids or depth"


FILE_DAMAGES = [
    damage_truncated_image,
    damage_empty_label,
    damage_label_size,
    damage_unknown_id,
    damage_colour_label,
    damage_deep_label,
]


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_damaged_file_is_named(tmp_path, damage):
    message = damage(streets_tree(tmp_path))
    with pytest.raises(UserError, match=message):
        open_tree("streets", tmp_path).read(1)


def test_damage_in_other_encodings_is_named(tmp_path):
    deep = synthia_tree(tmp_path / "a", np.full((8, 8), 300, np.uint16))
    with pytest.raises(UserError, match=r"0000000.png has the unknown label id 300: is it of SYNTHIA"):
        open_tree("synthia", deep).read(0)
    flat = synthia_tree(tmp_path / "b", np.zeros((8, 8), np.uint16))
    save(flat / "GT/LABELS/0000000.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=r"0000000.png is not a SYNTHIA label"):
        open_tree("synthia", flat).read(0)
    colour = gta_tree(tmp_path / "c", np.zeros((8, 8), np.uint8))
    save(colour / "labels/00001.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"00001.png is not a label with 8-bit ids but a picture of colours of 8 bits"):
        open_tree("gta", colour).read(0)
    (colour / "labels/00001.png").write_bytes(b"PNG")
    with pytest.raises(UserError, match=r"00001.png cannot be read as an image"):
        open_tree("gta", colour).read(0)


def test_a_file_that_vanished_is_named(tmp_path):
    data = open_tree("streets", streets_tree(tmp_path))
    data.image_path(0).unlink()
    with pytest.raises(UserError, match=r"image/000000.png cannot be opened: No such file"):
        data.read(0)


@pytest.mark.parametrize("dataset", ["gta", "synthia", "cityscapes", "camvid"])
def test_a_data_set_without_a_root_says_what_to_set_and_run(dataset):
    settings = DataSettings(name="some2other")
    with pytest.raises(UserError) as error:
        open_domain(DomainSettings(dataset), settings, CITYSCAPES, "data.source", labeled=True)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("data.source.root is not set: set data.source.root=FOLDER of")
    assert line.endswith("then run python -m uda_seg.prepare data=some2other")
    assert SPECS[dataset].images.format(split="train") in line


def test_settings_that_cannot_be_are_told(tmp_path):
    settings = DataSettings()
    cases = [
        (DomainSettings("kitti"), "data.target.dataset=kitti is unknown; choose one of streets, camvid"),
        (DomainSettings("streets"), r"streets needs data.target.domain, data.target.count and data.target.size"),
        (DomainSettings("gta", str(tmp_path), split="val"), "data.target.split=val: GTA has train only"),
        (DomainSettings("gta", str(tmp_path / "no")), "no folder .*/no/images: set data.target.root .*uda_seg.prepare"),
    ]
    for domain, message in cases:
        with pytest.raises(UserError, match=message):
            open_domain(domain, settings, CITYSCAPES, "data.target", labeled=False)


@pytest.mark.parametrize(
    ("packed", "first"), [("01_images.zip", ""), ("RAND_CITYSCAPES.rar", "unpack RAND_CITYSCAPES.rar")]
)
def test_packed_files_are_found(tmp_path, packed, first):
    (tmp_path / packed).write_bytes(b"")
    domain = DomainSettings("synthia", str(tmp_path))
    with pytest.raises(UserError, match=rf"holds packed files only: {first}.*run python -m uda_seg\.prepare data=a2b"):
        open_domain(domain, DataSettings(name="a2b"), CITYSCAPES, "data.source", labeled=True)


def test_a_label_that_pil_has_cut_to_eight_bits_is_told(tmp_path):
    root = synthia_tree(tmp_path, np.full((8, 8), 3, np.uint8))
    save(root / "GT/LABELS/0000000.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"0000000\.png is not a SYNTHIA label: it is uint8, not 16-bit"):
        open_tree("synthia", root).read(0)


class _Reads:
    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return read_image(self.path)


def test_a_line_survives_the_way_out_of_a_worker(tmp_path):
    loader = DataLoader(_Reads(tmp_path / "lost.png"), batch_size=None, num_workers=1)
    with pytest.raises(UserError) as error:
        next(iter(loader))
    assert "\n" in str(error.value)  # torch put the worker's traceback around it
    expected = f"{tmp_path}/lost.png cannot be opened: No such file or directory"
    assert str(user_error(error.value)) == expected
    assert str(user_error(UserError(expected))) == expected
    assert user_error(ValueError(expected)) is None


def test_trees_are_what_they_claim(tmp_path):
    """The fixtures themselves: 16 bits and three channels, and a palette that OpenCV would turn into colours."""
    synthia_tree(tmp_path / "s", np.ones((4, 4), np.uint8))
    label = cv2.imread(str(tmp_path / "s/GT/LABELS/0000000.png"), cv2.IMREAD_UNCHANGED)
    assert (label.dtype, label.shape) == (np.uint16, (4, 4, 3))
    gta_tree(tmp_path / "g", np.ones((4, 4), np.uint8))
    assert cv2.imread(str(tmp_path / "g/labels/00001.png"), cv2.IMREAD_UNCHANGED).ndim == 3
