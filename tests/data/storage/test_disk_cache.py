from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import blocks, gta_tree, image_of, save, streets_tree

from uda_seg.data import datasets
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.depth import DepthFiles
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.specs import SPECS
from uda_seg.data.storage import disk_cache
from uda_seg.data.storage.disk_cache import find_cache, planes, write_cache
from uda_seg.data.stream import SampleReader
from uda_seg.data.transforms import CropRule, RareClass, Resize, training_crop
from uda_seg.errors import UserError
from uda_seg.storage.lock import FolderLock
from uda_seg.storage.owner import Owner

SIZES = [(36, 48), (30, 48), (36, 50), (40, 40)]


def mixed_tree(root):
    """Images of several sizes, as GTA has them, with depth."""
    for i, size in enumerate(SIZES):
        label = blocks(i, size, [*range(19), 255])
        save(root / f"image/{i}.png", image_of(label, i))
        save(root / f"label/{i}.png", label)
        metres = blocks(i, size, [10, 15, 0]) + np.linspace(40, 0, size[0])[:, None]  # near below
        save(root / f"depth/{i}.png", (256 * metres).astype(np.uint16))
    return root


def open_tree(root, labeled=True, depth=False, option="data.source"):
    def find(names):
        return DepthFiles([root / "depth" / name for name in names], "metres", option)

    return SegmentationDataset(
        SPECS["streets"], root, "train", CITYSCAPES, labeled=labeled, depth=find if depth else None
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return mixed_tree(tmp_path_factory.mktemp("tree"))


def same(a, b):
    for name in ("image", "label", "valid", "depth"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    assert a.window == b.window


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_cropped_from_disk_and_decoded_are_the_same_bits(tree, tmp_path_factory, data):
    resize = data.draw(
        st.none()
        | st.builds(
            Resize,
            st.tuples(st.integers(8, 60), st.integers(8, 60)),
            st.booleans(),
            st.sampled_from(["nearest", "bilinear"]),
        )
    )
    labeled, depth = data.draw(st.booleans()), data.draw(st.booleans())
    margins = data.draw(st.none() | st.just((3, 5, 0, 2)))
    dataset, cache = open_tree(tree, labeled, depth), tmp_path_factory.mktemp("cache")
    write_cache(dataset, resize, cache, SIZES)
    stored = find_cache(dataset, resize, cache)
    assert stored is not None
    ours = SampleReader(dataset, resize, margins=margins, stored=stored)
    plain = SampleReader(dataset, resize, margins=margins)
    rule = CropRule((data.draw(st.integers(4, 20)), data.draw(st.integers(4, 20))), 0.75)
    rare = RareClass(3, 5.0) if labeled else None
    for index in range(len(SIZES)):
        same(ours[index], plain[index])
        crops = [training_crop(reader[index], rule, np.random.default_rng(index), rare) for reader in (ours, plain)]
        same(*crops)


def test_a_crop_is_a_view_into_the_file_not_a_copy(tree, tmp_path):
    dataset = open_tree(tree)
    write_cache(dataset, None, tmp_path, SIZES)
    stored = find_cache(dataset, None, tmp_path)
    window = training_crop(
        SampleReader(dataset, None, stored=stored)[1], CropRule((8, 8), flip=False), np.random.default_rng(0)
    )
    assert np.shares_memory(window.image, stored.files["image"]._bytes)
    assert not window.image.flags.writeable
    assert len(pickle.dumps(stored)) < 5000  # without the pixels
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stored)).sample(1).image, stored.sample(1).image)


def test_nothing_is_decoded_where_there_is_a_cache(tree, tmp_path, monkeypatch):
    dataset = open_tree(tree)
    write_cache(dataset, None, tmp_path, SIZES)
    reader = SampleReader(dataset, None, stored=find_cache(dataset, None, tmp_path))
    monkeypatch.setattr(dataset, "read", lambda index: pytest.fail("decoded"))
    assert reader[2].image.shape == (36, 50, 3)


def test_changed_files_and_other_sizes_ask_for_another_cache(tmp_path):
    root, cache = streets_tree(tmp_path / "tree", 3), tmp_path / "cache"
    sizes, resize = [(32, 48)] * 3, Resize((16, 24))
    write_cache(open_tree(root), resize, cache, sizes)
    assert find_cache(open_tree(root), resize, cache) is not None
    assert find_cache(open_tree(root, labeled=False), resize, cache) is not None
    assert find_cache(open_tree(root), Resize((16, 20)), cache) is None
    assert find_cache(open_tree(root), Resize((16, 24), keep_ratio=False), cache) is None
    assert find_cache(open_tree(root), Resize((16, 24), filter="pil_bicubic"), cache) is None
    assert find_cache(open_tree(root), None, cache) is None
    save(root / "label/000001.png", np.zeros((32, 48), np.uint8))
    assert find_cache(open_tree(root), resize, cache) is None
    assert find_cache(open_tree(root, labeled=False), resize, cache) is not None  # the images are the same


def test_an_interrupted_cache_goes_on_and_is_the_same(tmp_path, monkeypatch):
    root = streets_tree(tmp_path / "tree", 8)
    dataset, sizes, resize = open_tree(root), [(32, 48)] * 8, Resize((16, 24))
    write_cache(dataset, resize, tmp_path / "whole", sizes)
    monkeypatch.setattr(disk_cache, "SYNC", 2)
    monkeypatch.setattr(disk_cache, "in_threads", lambda work, items, title: map(work, items))
    real, decoded, limit = datasets.read_image, [], [3]

    def read(path, bits):
        if len(decoded) >= limit[0]:
            raise KeyboardInterrupt
        decoded.append(path.name)
        return real(path, bits)

    monkeypatch.setattr(datasets, "read_image", read)
    cache = tmp_path / "cache"
    for limit[0] in (3, 5, 6):
        with pytest.raises(KeyboardInterrupt):
            write_cache(dataset, resize, cache, sizes)
        assert find_cache(dataset, resize, cache) is None
    limit[0] = 99
    write_cache(dataset, resize, cache, sizes)
    assert len(decoded) < 8 + 4  # each stop costs the images since the last settled ones, at most
    for made in (tmp_path / "whole/resized").iterdir():
        assert (cache / "resized" / made.name / "data.bin").read_bytes() == (made / "data.bin").read_bytes()
    assert not list((cache / "resized").glob(".*"))


def test_a_killed_writer_leaves_what_the_next_one_continues(tmp_path):
    """A process ended by SIGKILL in the middle, as by a scheduler."""
    import multiprocessing
    import os
    import signal

    root, cache = streets_tree(tmp_path / "tree", 6), tmp_path / "cache"
    sizes = [(32, 48)] * 6

    def work():
        disk_cache.SYNC = 1
        disk_cache.in_threads = lambda work, items, title: map(work, items)
        real = datasets.read_image
        datasets.read_image = lambda path, bits: (
            os.kill(os.getpid(), signal.SIGKILL) if path.stem == "000003" else real(path, bits)
        )
        write_cache(open_tree(root), None, cache, sizes)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert find_cache(open_tree(root), None, cache) is None
    (part,) = (cache / "resized").glob(".*image*.part")
    assert list((part / "done").read_bytes()) == [1, 1, 1, 0, 0, 0]
    write_cache(open_tree(root), None, cache, sizes)
    plain, stored = SampleReader(open_tree(root), None), find_cache(open_tree(root), None, cache)
    for index in range(6):
        same(stored.sample(index), plain[index])


def test_a_damaged_cache_is_told(tree, tmp_path):
    dataset = open_tree(tree, labeled=False)
    write_cache(dataset, None, tmp_path, SIZES)
    (folder,) = (tmp_path / "resized").iterdir()
    content = (folder / "data.bin").read_bytes()
    for name, broken in (("data.bin", content[:-1]), ("index.json", b"{"), ("index.json", b"{}")):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(broken)
        with pytest.raises(
            UserError, match=r"the cache .* cannot be read: move it away, then run python -m uda_seg.prep"
        ):
            find_cache(dataset, None, tmp_path)
        (folder / name).write_bytes(whole)
    assert find_cache(dataset, None, tmp_path) is not None


def test_writing_makes_a_damaged_cache_anew(tree, tmp_path, caplog):
    dataset = open_tree(tree, labeled=False)
    write_cache(dataset, None, tmp_path, SIZES)
    (folder,) = (tmp_path / "resized").iterdir()
    for name in ("data.bin", "index.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-9])
        caplog.clear()
        write_cache(dataset, None, tmp_path, SIZES)
        assert f"the cache {folder} cannot be read: it is made anew" in caplog.text
        assert (folder / name).read_bytes() == whole
    assert find_cache(dataset, None, tmp_path) is not None


def test_an_image_that_is_damaged_in_the_cache_is_decoded_from_its_file(tree, tmp_path, caplog):
    dataset = open_tree(tree)
    write_cache(dataset, None, tmp_path, SIZES)
    stored, plain = find_cache(dataset, None, tmp_path), SampleReader(dataset, None)
    file = stored.files["label"].folder / "data.bin"
    content = bytearray(file.read_bytes())
    content[stored.files["label"].offsets[2] + 5] ^= 1
    file.write_bytes(bytes(content))
    reader = SampleReader(dataset, None, stored=stored)
    for index in (*range(len(SIZES)), 2):
        same(reader[index], plain[index])
    (told,) = [message for message in caplog.messages if "is damaged" in message]
    assert told.startswith(f"image 2 of the cache {file.parent} is damaged: move it away, then run")


def test_a_cache_of_an_earlier_version_without_checksums_is_read(tree, tmp_path):
    dataset = open_tree(tree, labeled=False)
    write_cache(dataset, None, tmp_path, SIZES)
    (index,) = tmp_path.rglob("index.json")
    content = json.loads(index.read_text())
    index.write_text(json.dumps({key: content[key] for key in ("shapes", "disk")}))
    stored, plain = find_cache(dataset, None, tmp_path), SampleReader(dataset, None)
    same(stored.sample(1), plain[1])


def test_a_full_disk_is_told_before_and_while_writing(tree, tmp_path, monkeypatch):
    dataset = open_tree(tree, labeled=False)
    usage = disk_cache.shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(disk_cache.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"room for 0\.0 GB, the cache of resized images needs .*UDA_SEG_CACHE"):
            write_cache(dataset, None, tmp_path, SIZES)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk_cache.os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*No space left on device; make room or set UDA_SEG_CACHE"):
            write_cache(dataset, None, tmp_path, SIZES)
    assert find_cache(dataset, None, tmp_path) is None
    write_cache(dataset, None, tmp_path, SIZES)
    assert find_cache(dataset, None, tmp_path) is not None


def test_a_palette_label_is_kept_as_train_ids(tmp_path):
    root = gta_tree(tmp_path / "gta", np.full((8, 8), 26, np.uint8))
    dataset = SegmentationDataset(SPECS["gta"], root, "train", CITYSCAPES, labeled=True)
    write_cache(dataset, None, tmp_path / "cache", [(8, 8)])
    assert np.unique(find_cache(dataset, None, tmp_path / "cache").sample(0).label).tolist() == [13]


@pytest.mark.parametrize("resize", [None, Resize((16, 24))])
def test_labels_of_another_size_than_their_image_are_the_same_with_and_without_a_cache(tmp_path, resize):
    root = mixed_tree(tmp_path / "tree")
    for name, size in (("0", (37, 48)), ("3", (80, 82))):
        save(root / f"image/{name}.png", image_of(blocks(7, size, [1, 2])))
    data = open_tree(root)
    sizes = [data.read(i).image.shape[:2] for i in range(len(data))]
    write_cache(data, resize, tmp_path / "cache", sizes)
    stored = find_cache(data, resize, tmp_path / "cache")
    for i in range(len(data)):
        same(SampleReader(data, resize, stored=stored)[i], SampleReader(data, resize)[i])
        assert data.read(i).label.shape == sizes[i]


def test_labels_cached_beside_images_of_another_size_are_not_used(tmp_path):
    root = mixed_tree(tmp_path / "tree")
    write_cache(open_tree(root), None, tmp_path / "cache", SIZES)
    save(root / "image/0.png", image_of(blocks(7, (72, 96), [1, 2])))
    data, sizes = open_tree(root), [(72, 96), *SIZES[1:]]
    write_cache(open_tree(root, labeled=False), None, tmp_path / "cache", sizes)
    assert find_cache(data, None, tmp_path / "cache") is None
    write_cache(data, None, tmp_path / "cache", sizes)
    same(SampleReader(data, None, stored=find_cache(data, None, tmp_path / "cache"))[0], SampleReader(data, None)[0])


def test_one_process_writes_a_cache(tree, tmp_path):
    dataset, resize = open_tree(tree), Resize((16, 16))
    [first, *_] = planes(dataset, resize, tmp_path)
    lock = FolderLock(tmp_path / "resized", Owner("a prepare"), "wait", f".{first.folder.name}.lock")
    with lock, pytest.raises(UserError, match="is in use by a prepare on "):
        write_cache(dataset, resize, tmp_path, SIZES)
    write_cache(dataset, resize, tmp_path, SIZES)
    assert find_cache(dataset, resize, tmp_path) is not None
    assert not list((tmp_path / "resized").glob(".*"))
