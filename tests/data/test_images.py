"""Photographs of every kind, held on their side, of 10 to 16 bits, and files that are none: one rule for all."""

from __future__ import annotations

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from trees import blocks, image_of, noise, save

from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.domains import open_domain
from uda_seg.data.images import decode, frames, kind_of, orientation_of, read_image, stored_size, upright
from uda_seg.data.integrity import check_image_file
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.prepare.check import check_domain
from uda_seg.data.prepare.repair import set_aside
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.specs import SPECS
from uda_seg.data.storage.disk_cache import find_cache, write_cache
from uda_seg.data.storage.packing import index_shards, pack
from uda_seg.data.storage.shards import open_shards
from uda_seg.data.stream import SampleReader
from uda_seg.data.transforms import Resize
from uda_seg.errors import Damaged, UserError

LOSSLESS = {"PNG": {}, "WebP": {"lossless": True}, "TIFF": {}}
IDS = [*range(19), 255]


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels whose photograph, shown by its orientation, is `array`: each case by its own words."""
    return {
        1: array,
        2: array[:, ::-1],  # mirrored left-right
        3: np.rot90(array, 2),
        4: array[::-1],  # mirrored up-down
        5: array.swapaxes(0, 1),
        6: np.rot90(array, 1),  # to be turned clockwise
        7: np.rot90(array, 2).swapaxes(0, 1),
        8: np.rot90(array, -1),
    }[orientation]


def save_turned(path, array, orientation, **options):
    """A picture whose EXIF says how its camera was held."""
    exif = Image.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(turned(array, orientation))).save(path, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", LOSSLESS)
def test_photographs_are_read_as_they_are_shown(tmp_path, kind, orientation):
    file, shown = tmp_path / f"photo.{kind.lower()}", noise(1, (6, 10))
    save_turned(file, shown, orientation, **LOSSLESS[kind])
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(Image.open(file))), shown)  # the oracle agrees
    np.testing.assert_array_equal(read_image(file), shown)
    assert check_image_file(file) == (6, 10)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_read_as_it_is_shown(tmp_path, orientation):
    """Its container turns it; so do PIL, which writes that, and the oracle."""
    shown = np.kron(noise(1, (3, 5)), np.ones((16, 16, 1), np.uint8))  # blocks, which compression leaves alone
    try:
        save_turned(tmp_path / "a.avif", shown, orientation, quality=100, subsampling="4:4:4")
    except (KeyError, OSError):
        pytest.skip("this PIL writes no AVIF")
    assert np.abs(np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.avif")), int) - shown).mean() < 4
    assert np.abs(read_image(tmp_path / "a.avif").astype(int) - shown).mean() < 4
    assert check_image_file(tmp_path / "a.avif") == (48, 80)


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_is_none_is_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(noise(1)).save(tmp_path / "a.jpg", exif=exif)
    assert orientation_of((tmp_path / "a.jpg").read_bytes()) == 1
    damaged = (tmp_path / "a.jpg").read_bytes().replace(b"Exif\0\0", b"Exif\0\0\xff\xff")
    assert orientation_of(damaged) == 1


def test_both_directions_of_an_orientation(tmp_path):
    shown = noise(2, (3, 5))
    for orientation in range(1, 9):
        stored = turned(shown, orientation)
        assert stored_size((3, 5), orientation) == stored.shape[:2]
        np.testing.assert_array_equal(upright(stored, orientation), shown)


# ---------------------------------------------------------------------- labels of photographs that are turned


def photographs(root, orientations, drawn, size=(24, 32)):
    """Streets whose photographs were held so, with labels drawn on the shown or on the stored pixels."""
    for i, orientation in enumerate(orientations):
        label = blocks(i, size, IDS)
        save_turned(root / f"image/{i:06d}.png", image_of(label, i), orientation)
        save(root / f"label/{i:06d}.png", np.ascontiguousarray(turned(label, orientation if drawn == "stored" else 1)))
    return root


def open_streets(root, labeled=True, **options):
    return SegmentationDataset(SPECS["streets"], root, "train", CITYSCAPES, labeled=labeled, **options)


@pytest.mark.parametrize("drawn", ["shown", "stored"])
def test_a_photograph_and_its_label_are_turned_alike_by_every_reader(tmp_path, drawn):
    """The red channel of each image is its label."""
    root = photographs(tmp_path / "tree", (6, 1, 8, 3, 5, 7, 4, 2), drawn)
    data, resize = open_streets(root), Resize((12, 16))
    for index in range(8):
        sample = data.read(index)
        np.testing.assert_array_equal(sample.image[..., 0], sample.label)
        np.testing.assert_array_equal(sample.label, blocks(index, (24, 32), IDS))
    report = check_domain(open_streets(root, labeled=False), "data.source", tmp_path / "cache", labels="needed")
    assert report.problems == []
    assert report.shapes.tolist() == [[24, 32]] * 8
    write_cache(data, resize, tmp_path / "cache", report.shapes.tolist())
    stored, plain = find_cache(data, resize, tmp_path / "cache"), SampleReader(data, resize)
    assert stored is not None
    for index in range(8):
        for one, other in (
            (stored.sample(index).image, plain[index].image),
            (stored.sample(index).label, plain[index].label),
        ):
            np.testing.assert_array_equal(one, other)
    pack(data, tmp_path / "shards", images=3)
    settings = DataSettings(reader="shards", target=DomainSettings("streets", str(tmp_path / "shards")))
    assert settings.target is not None
    shards = open_shards(settings.target, settings, "data.target")
    for index in range(8):
        np.testing.assert_array_equal(shards.read(index).image, data.read(index).image)


def test_where_no_size_tells_the_shown_pixels_are_taken_and_it_is_said(tmp_path, caplog):
    data = open_streets(photographs(tmp_path, (1, 3), "shown"))
    np.testing.assert_array_equal(data.read(1).label, blocks(1, (24, 32), IDS))
    assert "no size tells whether labels lie on the stored or on the shown pixels" in caplog.text


def test_a_label_that_fits_neither_way_is_told(tmp_path):
    root = photographs(tmp_path / "tree", (6,), "shown")
    save(root / "label/000000.png", np.zeros((24, 24), np.uint8))
    said = r"000000.png is 24x24 but its image \S+ is 24x32, stored as 32x24 \(EXIF orientation 6\)"
    with pytest.raises(UserError, match=said):
        open_streets(root).read(0)
    report = check_domain(open_streets(root, labeled=False), "data.source", tmp_path / "cache", labels="needed")
    assert [problem.kind for problem in report.problems] == ["size"]


# ---------------------------------------------------------------------- bits


def deep_tree(root, bits, count=4, size=(16, 24)):
    """Photographs whose 16 bits a channel hold values of `bits` bits, the brightest in the second."""
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 2 ** (bits - 1), (*size, 3)).astype(np.uint16)
        values[0, 0] = 2**bits - 1 if i == 1 else 0
        save(root / f"image/{i:06d}.png", values)
        save(root / f"label/{i:06d}.png", np.zeros(size, np.uint8))
    return root


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_as_many_bits_as_a_set_uses_are_read_by_every_reader(tmp_path, caplog, bits):
    caplog.set_level("INFO")
    data = open_streets(deep_tree(tmp_path / "tree", bits))
    for index in range(4):
        stored = cv2.imread(str(data.image_path(index)), cv2.IMREAD_UNCHANGED)[..., ::-1].astype(float)
        np.testing.assert_array_equal(data.read(index).image, np.floor(stored * 256 / 2**bits))
        np.testing.assert_array_equal(data.read_image(index), data.read(index).image)
    assert f"data.source.bits={bits}: images have 16 bits per channel" in caplog.text
    write_cache(data, None, tmp_path / "cache", [(16, 24)] * 4)
    stored = find_cache(data, None, tmp_path / "cache")
    assert stored is not None
    np.testing.assert_array_equal(stored.sample(2).image, data.read(2).image)
    pack(data, tmp_path / "shards", images=3)
    settings = DataSettings(reader="shards", target=DomainSettings("streets", str(tmp_path / "shards")))
    assert settings.target is not None
    np.testing.assert_array_equal(
        open_shards(settings.target, settings, "data.target").read(2).image, data.read(2).image
    )
    if bits == 16:
        np.testing.assert_array_equal(data.read(2).image, cv2.imread(str(data.image_path(2)))[..., ::-1])
    else:
        again = open_streets(tmp_path / "tree", bits=16)
        assert find_cache(again, None, tmp_path / "cache") is None
        assert again.read(1).image.max() < data.read(1).image.max() == 255


def test_bits_can_be_said_and_values_beyond_them_are_told(tmp_path):
    root = deep_tree(tmp_path, 14)
    domain = DomainSettings("streets", str(root), bits=12)
    data = open_domain(domain, DataSettings(), CITYSCAPES, "data.source", labeled=True)
    with pytest.raises(UserError, match=r"000001.png has values up to 16383, more than the 12 bits .*bits=14"):
        data.read(1)


def test_bits_that_do_not_fit_are_found_before_training(tmp_path):
    root = deep_tree(tmp_path / "tree", 14)
    told = [(f"{root}/image/{i:06d}.png", "set the domain's bits=14") for i in range(4)]
    for bits, bad in ((None, []), (12, told)):
        report = check_domain(open_streets(root, labeled=False, bits=bits), "data.source", tmp_path, labels="none")
        assert [(p.file, p.cure) for p in report.problems if p.kind == "bits"] == bad
    assert set_aside(report) == []


def test_training_and_validation_images_of_one_folder_are_to_be_scaled_alike(tmp_path, caplog):
    deep_tree(tmp_path, 12)
    for i in range(4):
        save(tmp_path / f"dark/{i:06d}.png", np.full((16, 24, 3), 600, np.uint16))
        save(tmp_path / f"dark_label/{i:06d}.png", np.zeros((16, 24), np.uint8))
    custom = {"images": "dark", "labels": "dark_label"}
    domain = DomainSettings("streets", str(tmp_path))
    settings = DataSettings(
        crop=[8, 8],
        source=domain,
        target=domain,
        validation={"target": DomainSettings("custom", str(tmp_path), custom=custom)},
    )
    data = UDADataModule(settings, steps=1, seed=0)
    data.find()
    data.setup()
    assert "data.target uses 12 of 16 bits per channel, data.validation.target uses 10" in caplog.text
    assert data.bits == 12


def test_a_deep_image_among_shallow_ones_is_told(tmp_path):
    save(tmp_path / "a.png", np.full((4, 4, 3), 300, np.uint16))
    with pytest.raises(UserError, match=r"a.png has 16 bits per channel, unlike the images .*bits=16"):
        read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 12).tolist() == np.full((4, 4, 3), 18).tolist()


def test_floating_point_is_told(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tiff"), np.zeros((4, 4, 3), np.float32))
    with pytest.raises(UserError, match=r"a.tiff holds float32 values: save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tiff")
    for kind in (np.float32, np.int32):  # which OpenCV leaves to PIL
        Image.fromarray(np.full((4, 4), 0.5 if kind is np.float32 else 300, kind)).save(tmp_path / "grey.tiff")
        with pytest.raises(UserError, match=r"grey.tiff holds .* values: save it with 8 or 16 bits"):
            read_image(tmp_path / "grey.tiff")
        with pytest.raises(UserError, match=r"grey.tiff holds .* values: save it with 8 or 16 bits"):
            check_image_file(tmp_path / "grey.tiff")


def test_decoders_add_no_line_of_their_own(tmp_path):
    """OpenCV reads how much it says as it is loaded, so in a process of its own."""
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "grey.tiff")
    code = "import sys, uda_seg, cv2; print(cv2.imread(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, "grey.tiff"], cwd=tmp_path, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"None\n", b"")


# ---------------------------------------------------------------------- kinds


KINDS = {
    "grey": ("L", "a.png"), "grey and alpha": ("LA", "a.png"), "alpha": ("RGBA", "a.png"), "palette": ("P", "a.png"),
    "bits": ("1", "a.png"), "cmyk": ("CMYK", "a.jpg"), "cmyk tiff": ("CMYK", "a.tif"), "gif": ("P", "a.gif"),
    "bmp": ("RGB", "a.bmp"), "ppm": ("RGB", "a.ppm"), "pgm": ("L", "a.pgm"), "tiff": ("RGB", "a.tiff"),
    "webp": ("RGB", "a.webp"), "jpeg": ("RGB", "a.jpeg"), "jp2": ("RGB", "a.jp2"), "avif": ("RGB", "a.avif"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read_under_any_name(tmp_path, kind):
    mode, name = KINDS[kind]
    ramp = np.linspace(0, 255, 32 * 48).reshape(32, 48).astype(np.uint8)
    picture = Image.fromarray(np.dstack([ramp, ramp[::-1], ramp[:, ::-1]])).convert(mode)
    try:
        picture.save(tmp_path / name)
    except (KeyError, OSError):
        pytest.skip(f"this PIL writes no {name}")
    (tmp_path / name).rename(tmp_path / "photo")
    expected = np.asarray(Image.open(tmp_path / "photo").convert("RGB"), int)
    found = read_image(tmp_path / "photo")
    assert found.shape == (32, 48, 3)
    # Two decoders of a lossy kind may round apart, and convert CMYK by formulas of their own; the channels' order and
    # inverted ones would show.
    assert np.abs(found - expected).mean() < (16 if mode == "CMYK" else 2)
    assert kind_of((tmp_path / "photo").read_bytes()) is not None
    assert check_image_file(tmp_path / "photo") == (32, 48)
    content = (tmp_path / "photo").read_bytes()
    (tmp_path / "photo").write_bytes(content[: len(content) // 2])
    with pytest.raises(Damaged, match=r"photo .*: copy or unpack the file again"):
        check_image_file(tmp_path / "photo")


def test_of_a_moving_picture_the_first_is_read(tmp_path):
    pictures = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (10, 200)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    assert frames((tmp_path / "a.gif").read_bytes()) == 2
    assert read_image(tmp_path / "a.gif").max() == 10


STRANGE = {
    "video": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "is a video, not an image: extract its frames first"),
    "movie": (b"RIFF\0\0\0\0AVI LIST", "is a video"),
    "matroska": (b"\x1aE\xdf\xa3\x01", "is a video"),
    "telephone": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC photograph, which is not read: convert it"),
    "zip": (b"PK\3\4\x14\0", "is an archive, not an image: unpack it"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "page": (b"\n<!DOCTYPE html>", "is a web page, not an image: the download failed"),
    "pdf": (b"%PDF-1.7", "is a PDF"),
    "empty": (b"", "is empty: copy or unpack"),
    "text": (b"BMW and P1 are words", "cannot be read as an image: copy or unpack"),
    "raw": (b"II*\0", "is a raw photograph"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_file_that_is_no_image_is_told_for_what_it_is(tmp_path, what):
    content, said = STRANGE[what]
    name = "a.dng" if what == "raw" else "a.png"
    (tmp_path / name).write_bytes(content + bytes(100 if content and what != "text" else 0))
    with pytest.raises(UserError) as error:
        read_image(tmp_path / name)
    assert f"{tmp_path}/{name} {said}" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_image_too_large_is_not_called_damaged():
    header = b"P6\n40000 40000\n255\n"
    with pytest.raises(UserError, match=r"huge\.ppm has more pixels than can be decoded: cut it"):
        decode(header + bytes(1000), "huge.ppm")


def test_a_file_of_many_pixels_or_few_is_read(tmp_path):
    for size in ((1, 1), (3, 640), (640, 1)):
        Image.fromarray(noise(0, size)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), noise(0, size))


def test_shards_of_other_kinds_are_indexed_and_clutter_is_not(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.webp", "2.gif", "3.PNG", "._3.png", "__MACOSX/4.png", "5.json"):
            content = io.BytesIO()
            if "_" in name or name.endswith("json"):
                content.write(b"nothing")
            else:
                Image.fromarray(noise(3)).save(content, name[2:].upper(), **({"lossless": True} if "w" in name else {}))
            info = tarfile.TarInfo(name)
            info.size = content.tell()
            content.seek(0)
            tar.addfile(info, content)
    assert [shard.images for shard in index_shards(str(tmp_path))] == [3]
    settings = DataSettings(reader="shards", target=DomainSettings("streets", str(tmp_path)))
    assert settings.target is not None
    data = open_shards(settings.target, settings, "data.target")
    for index in (0, 2):
        np.testing.assert_array_equal(data.read(index).image, noise(3))
