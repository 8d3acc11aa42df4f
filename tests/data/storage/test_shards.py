from __future__ import annotations

import errno
import functools
import http.server
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trees import streets_tree

from command_line import configured, forked
from uda_seg import prepare
from uda_seg.config.commands import PrepareConfig
from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import CAMVID, CITYSCAPES
from uda_seg.data.sampling import positions
from uda_seg.data.settings import DataSettings, DomainSettings, ShardSettings
from uda_seg.data.specs import SPECS
from uda_seg.data.storage.packing import index_shards, pack
from uda_seg.data.storage.shard_index import INDEX, contents
from uda_seg.data.storage.shard_order import ShardOrder
from uda_seg.data.storage.shards import ShardDataset
from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import part_of

open_folder = functools.partial(ShardDataset, option="data.target", count=None, cache_bytes=10**9, cure="prepare it")


@pytest.fixture
def files(tmp_path):
    root = streets_tree(tmp_path / "files", count=11)
    return SegmentationDataset(SPECS["streets"], root, "train", CITYSCAPES, labeled=False)


@pytest.fixture
def folder(files, tmp_path):
    pack(files, tmp_path / "shards", images=4)
    return tmp_path / "shards"


def test_packed_images_are_the_files_in_their_order(files, folder):
    shards = open_folder(str(folder))
    assert [shard.images for shard in shards.shards] == [4, 4, 3]
    assert len(shards) == len(files) == 11
    for index in range(11):
        np.testing.assert_array_equal(shards.read(index).image, files.read(index).image)
    with tarfile.open(folder / "images-000001.tar") as tar:
        member = tar.extractfile(tar.getmembers()[2])
        assert member is not None
        assert member.read() == files.image_path(6).read_bytes()


def test_webdataset_reads_what_was_packed(files, folder):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len({sample["__key__"] for sample in samples}) == 11
    assert [sample["png"] for sample in samples] == [files.image_path(i).read_bytes() for i in range(11)]


def test_foreign_shards_are_indexed_and_only_their_images_read(tmp_path):
    images = [np.random.default_rng(i).integers(0, 256, (8, 12, 3), np.uint8) for i in range(5)]
    for shard, members in (("a", [0, 1]), ("b-1", [2, 3, 4])):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i in members:
                png = io.BytesIO()
                Image.fromarray(images[i]).save(png, "PNG")
                for name, content in ((f"x/{i}.PNG", png.getvalue()), (f"x/{i}.json", b"{}")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    assert [(s.name, s.images) for s in index_shards(str(tmp_path))] == [("a.tar", 2), ("b-1.tar", 3)]
    read = open_folder(str(tmp_path))
    for i, image in enumerate(images):
        np.testing.assert_array_equal(read.read(i).image, image)


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name in members:
            png = io.BytesIO()
            Image.new("RGB", (4, 4)).save(png, "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(png.getvalue())
            tar.addfile(info, io.BytesIO(png.getvalue()))


def test_label_maps_in_a_shard_are_not_taken_for_photographs(tmp_path):
    write_shard(tmp_path / "a.tar", ["x/0.png", "y/0.png", "x/1.png", "x/1.seg.png"])
    with pytest.raises(UserError, match=r"a\.tar holds x/1\.png and x/1\.seg\.png, two images of one sample"):
        index_shards(str(tmp_path))
    write_shard(tmp_path / "a.tar", ["x/0.png", "y/0.png", "x/1.png", "x.1/1.png"])
    assert [shard.images for shard in index_shards(str(tmp_path))] == [4]


def test_an_index_of_another_tool_is_kept(folder, caplog):
    other = '{"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": []}'
    (folder / INDEX).write_text(other)
    with pytest.raises(UserError, match=r"index\.json is damaged.*move it away"):
        open_folder(str(folder))
    assert len(index_shards(str(folder))) == 3
    assert (folder / f"{INDEX}.other").read_text() == other
    assert f"it is kept as {INDEX}.other" in caplog.text
    assert len(open_folder(str(folder))) == 11


def test_a_shard_that_is_newer_than_the_index_is_read_again(folder):
    first = folder / "images-000000.tar"
    content = bytearray(first.read_bytes())
    content[contents(first)[1][1] + 40] ^= 1
    first.write_bytes(bytes(content))
    with pytest.raises(Damaged, match=rf"{first.name}: .*png is damaged"):
        index_shards(str(folder))


def test_a_file_that_changed_since_it_was_packed_is_told(files, folder):
    Image.new("RGB", files.read(5).image.shape[1::-1], "red").save(files.image_path(5))
    with pytest.raises(UserError, match=r"images-000001\.tar holds another content of .*: delete the shard"):
        pack(files, folder, images=4)
    (folder / "images-000001.tar").unlink()
    pack(files, folder, images=4)
    assert (open_folder(str(folder)).read(5).image == (255, 0, 0)).all()


def test_indexing_and_packing_go_on_where_they_were_interrupted(files, folder, monkeypatch):
    untouched = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    (folder / "images-000001.tar").unlink()
    (folder / INDEX).rename(folder / f".{INDEX}.part")
    pack(files, folder, images=4)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert times.pop("images-000001.tar") != untouched.pop("images-000001.tar")
    assert times == untouched
    monkeypatch.setattr("uda_seg.data.storage.packing.contents", lambda path: pytest.fail(f"{path} was read again"))
    assert len(index_shards(str(folder))) == 3
    assert not (folder / f".{INDEX}.part").exists()


def test_the_index_reads_again_what_has_another_size(folder):
    index = json.loads((folder / INDEX).read_text())
    index["shards"][0] |= {"images": 9, "bytes": 1}
    (folder / INDEX).write_text(json.dumps(index))
    assert [shard.images for shard in index_shards(str(folder))] == [4, 4, 3]


def test_a_count_takes_the_first_images(folder):
    shards = ShardDataset(str(folder), "data.target", count=6, cache_bytes=1, cure="")
    assert [shard.images for shard in shards.shards] == [4, 2]
    assert len(shards) == 6
    shards.read(5)


def test_workers_get_a_copy(folder):
    shards = open_folder(str(folder))
    expected = shards.read(7).image
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(shards)).read(7).image, expected)


# ---------------------------------------------------------------------- behind an address


@pytest.fixture
def served(folder, monkeypatch):
    """The address of the shards, and what was asked of it; an answer takes a while."""
    if shutil.which("curl") is None:
        pytest.skip("WebDataset fetches by curl")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            if self.path.endswith(".tar"):
                asked.append(self.path)
                time.sleep(0.1)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_shards_behind_an_address_are_fetched_once(folder, served):
    local, remote = open_folder(str(folder)), open_folder(served[0] + "/")
    for index in (5, 4, 6):
        np.testing.assert_array_equal(remote.read(index).image, local.read(index).image)
    assert served[1] == ["/images-000001.tar"]
    (folder / "images-000002.tar").unlink()
    with pytest.raises(UserError, match=r"images-000002\.tar cannot be fetched"):
        remote.read(9)


def test_processes_that_want_a_shard_at_once_fetch_it_once(served):
    remote = open_folder(served[0])
    workers = [forked(lambda order=order: [remote.read(i) for i in order]) for order in ((0, 4, 8), (1, 5, 9)) * 2]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(served[1]) == [f"/images-{i:06d}.tar" for i in range(3)]


def test_a_shard_that_is_deleted_before_it_is_open_is_fetched_again(served, monkeypatch):
    remote, opened, deleted = open_folder(served[0]), Path.open, []

    def open_after_deletion(path, mode):
        if mode == "rb" and len(deleted) < times:
            deleted.append(path.unlink())
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", open_after_deletion)
    times = 2
    remote.read(0)
    assert (len(deleted), len(served[1])) == (2, 3)
    times = 100
    with pytest.raises(
        UserError, match=r"images-000000\.tar was deleted to make room .* make data\.shards\.cache_gb larger"
    ):
        remote.read(0)


def test_the_shard_opened_longest_ago_makes_room(folder, served, tmp_path):
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.tar"))]
    remote = open_folder(served[0], cache_bytes=max(sizes[0] + sizes[1], sizes[0] + sizes[2]))
    for index in (0, 4, 1, 8, 2):
        remote.read(index)
        time.sleep(0.02)  # what files' times can tell apart
    assert served[1] == [f"/images-{i:06d}.tar" for i in (0, 1, 2)]
    assert {path.name for path in (tmp_path / "cache").rglob("?*.tar") if path.stat().st_size} == {
        "images-000000.tar", "images-000002.tar",
    }  # fmt: skip


def test_a_shard_that_is_being_fetched_is_not_deleted_to_make_room(folder, served, tmp_path):
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.tar"))]
    remote = open_folder(served[0], cache_bytes=sum(sizes[:2]))
    remote.read(0)
    [kept] = [path for path in (tmp_path / "cache").rglob("images-*.tar") if path.stat().st_size]
    part = part_of(kept.with_name("images-000007.tar"))  # as this process would write it
    part.write_bytes(bytes(10))
    os.utime(part, (0, 0))  # a download that has stalled
    remote.read(4)
    remote.read(8)
    assert part.exists()


def test_a_shard_that_changed_at_its_address_is_not_taken_for_the_one_in_the_index(files, folder, served):
    open_folder(served[0]).read(0)
    before = (folder / "images-000000.tar").stat().st_size
    shutil.rmtree(folder)
    pack(files, folder, images=9)
    assert (folder / "images-000000.tar").stat().st_size != before
    remote, local = open_folder(served[0]), open_folder(str(folder))
    np.testing.assert_array_equal(remote.read(4).image, local.read(4).image)
    (folder / "images-000001.tar").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"images-000001\.tar has 6 bytes, but its index says \d+"):
        remote.read(9)


def test_a_full_disk_is_said(served, monkeypatch):
    class Broken(io.BytesIO):
        def read(self, *args):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError("curl: exit 23")

    remote = open_folder(served[0])
    monkeypatch.setattr(sys.modules["webdataset.gopen"], "gopen", lambda address: Broken())
    with pytest.raises(UserError, match=r"cannot write .*images-000000\.tar: No space left .*UDA_SEG_CACHE"):
        remote.read(0)


def test_a_cache_that_cannot_hold_a_window_is_said(files, folder, served):
    given = settings(files, folder)
    given.target.root, given.shards.cache_gb = served[0], 1e-6
    with pytest.raises(UserError, match=r"cache_gb=1e-06 does not hold the data\.shards\.window=2 shards"):
        UDADataModule(given, steps=1, seed=0).find()


# ---------------------------------------------------------------------- order

orders = st.builds(
    ShardOrder,
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=12).map(tuple),
    seed=st.integers(0, 99),
    domain=st.just(1),
    window=st.integers(1, 5),
)
worlds = st.integers(1, 4)


def images_of(order: ShardOrder, shards: set[int]) -> list[int]:
    owner = np.repeat(np.arange(len(order.sizes)), order.sizes)
    return [i for i, shard in enumerate(owner) if shard in shards]


@given(orders, worlds)
def test_a_pass_of_a_rank_is_its_shards_and_all_ranks_are_all_images(order, world):
    owner = np.repeat(np.arange(len(order.sizes)), order.sizes)
    seen = []
    for rank in range(world):
        local = [order.pick(n * world + rank, world).image for n in range(2 * sum(order.sizes))]
        own = {int(owner[i]) for i in local}
        whole = images_of(order, own)
        assert sorted(local[: len(whole)]) == whole
        assert sorted(local[len(whole) : 2 * len(whole)]) == whole
        seen += whole
    assert sorted(seen) == list(range(sum(order.sizes)))


@given(orders, worlds)
def test_no_more_shards_are_open_than_the_window(order, world):
    owner = np.repeat(np.arange(len(order.sizes)), order.sizes)
    local = [int(owner[order.pick(n * world, world).image]) for n in range(sum(order.sizes))]
    own = set(local)
    length, at = len(images_of(order, own)), 0
    while at < length:  # the windows: as many shards as there may be, each to its last image
        window = set(local[at : at + 1])
        end = at
        while end < length and len(window | {local[end]}) <= order.window:
            window.add(local[end])
            end += 1
        assert end - at == len(images_of(order, window))
        at = end


def test_passes_seeds_and_ranks_differ_and_a_position_is_always_the_same():
    def read(seed: int, rank: int, steps: range) -> list[int]:
        order = ShardOrder((50, 50, 50, 50), seed, domain=1, window=2)
        return [order.pick(p, 2).image for s in steps for p in positions(s, 1, rank, 2)]

    first = read(0, 0, range(100))
    assert not set(first) & set(read(0, 1, range(100)))
    assert first != read(0, 0, range(100, 200))
    assert first != sorted(first)
    assert first != read(1, 0, range(100))
    assert first[70:75] == read(0, 0, range(70, 75))


# ---------------------------------------------------------------------- in training


def settings(files, folder, **given) -> DataSettings:
    root = str(files.root)
    return DataSettings(
        crop=[16, 24],
        source_batch=2,
        source=DomainSettings("streets", root),
        target=DomainSettings("streets", str(folder)),
        validation={"target": DomainSettings("streets", root)},
        reader="shards",
        shards=ShardSettings(window=2),
        **given,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_reads_its_target_from_shards(files, folder, workers):
    data = UDADataModule(settings(files, folder, workers=workers, cache="none"), steps=6, seed=0)
    data.find()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sorted(int(i) for b in batches[:5] for i in b["target"].index) == sorted(
        set(range(11)) - {int(batches[5]["target"].index[0])}
    )
    for batch in batches:
        assert batch["target"].label is None
        for image, index, window in zip(
            batch["target"].image, batch["target"].index, batch["target"].window, strict=True
        ):
            top, left, mirrored = (int(v) for v in window)
            crop = files.read(int(index)).image[top : top + 16, left : left + 24]
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), crop[:, ::-1] if mirrored else crop)
    whole = next(iter(data.target_images([[3, 9]])))
    np.testing.assert_array_equal(whole.image[1].permute(1, 2, 0).numpy(), files.read(9).image)


def test_ranks_share_the_shards_though_the_first_opens_them_before_there_is_a_trainer(files, tmp_path):
    pack(files, tmp_path / "fine", images=2)  # 6 shards
    seen = []
    for rank in (0, 1):
        data = UDADataModule(settings(files, tmp_path / "fine", workers=0), steps=6, seed=0)
        data.find()
        if rank == 0:  # as `train` has it
            data.prepare_data()
            data.setup()
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, num_devices=2, global_step=0, state=SimpleNamespace(fn="fit")
        )
        data.setup("fit")
        seen.append({int(i) for batch in data.train_dataloader() for i in batch["target"].index})
    assert seen[0].isdisjoint(seen[1])
    assert seen[0] | seen[1] == set(range(11))
    assert all({2 * (i // 2), min(2 * (i // 2) + 1, 10)} <= own for own in seen for i in own)  # whole shards


# ---------------------------------------------------------------------- bad input


def test_what_cannot_be_read_from_shards_is_said(files, folder):
    for wanted, words in (({"target_labels": True}, "labels of the target"), ({"needs_depth": True}, "depth")):
        with pytest.raises(UserError, match=rf"only images, and the method reads {words}"):
            UDADataModule(settings(files, folder), steps=1, seed=0, **wanted)
    with pytest.raises(UserError, match=r"3 shards cannot be shared by 4 ranks.*pack\.images"):
        ShardOrder((4, 4, 3), seed=0, domain=1, window=2).pick(0, 4)


@pytest.mark.parametrize("root", ["SHARDS", "https://127.0.0.1/shards"])
def test_validation_images_are_not_looked_for_among_shards(camvid, folder, root):
    config = configured("data=streets2camvid", f"data.target.root={root.replace('SHARDS', str(folder))}")
    data = replace(config.data, reader="shards")
    opened = functools.partial(open_domain, classes=CAMVID, option="data.validation.target", labeled=True)
    with pytest.raises(
        UserError, match=r"holds shards; validation images are files: set data\.validation\.target\.root="
    ):
        opened(data.validation["target"], data)
    # Their own folder is read, also where the shards lie in it.
    assert len(opened(replace(data.validation["target"], root=str(camvid)), data)) > 0
    data.target.root = str(camvid)
    assert len(opened(replace(data.validation["target"], root=str(camvid)), data)) > 0


def test_a_missing_or_strange_index_is_said(folder):
    (folder / INDEX).rename(folder / "kept")
    with pytest.raises(UserError, match=r"has no index\.json.*prepare it"):
        open_folder(str(folder))
    for text, words in (
        ("{", "is damaged"),
        ('{"shards": []}', "lists no shard"),
        ('{"shards": [{"name": "../x.tar", "images": 1, "bytes": 1}]}', r"'\.\./x\.tar', which is no name"),
        ('{"shards": [{"name": "pipe:x|.tar", "images": 1, "bytes": 1}]}', "which is no name"),
    ):
        (folder / INDEX).write_text(text)
        with pytest.raises(UserError, match=words):
            open_folder(str(folder))
    with pytest.raises(UserError, match="no folder"):
        open_folder(str(folder / "deeper"))
    with pytest.raises(UserError, match=r"s3://bucket/index\.json cannot be opened: .*give https://"):
        open_folder("s3://bucket")


def test_damaged_shards_are_named(folder, tmp_path):
    first, second, third = (folder / f"images-{i:06d}.tar" for i in range(3))
    whole = first.read_bytes()
    start = contents(first)[1][1]
    first.write_bytes(whole[: start + 40] + bytes(20) + whole[start + 60 :])
    (folder / INDEX).unlink()
    with pytest.raises(Damaged, match=rf"{first.name}: .*png is damaged"):
        index_shards(str(folder))
    first.write_bytes(whole)
    second.write_bytes(second.read_bytes()[:1500])
    with pytest.raises(Damaged, match=rf"{second.name} is no whole, uncompressed tar"):
        index_shards(str(folder))
    for path, text in ((second, "x"), (third, None)):
        path.unlink()
        if text:
            with tarfile.open(path, "w"):
                pass
    with pytest.raises(UserError, match=rf"{second.name} holds no image"):
        index_shards(str(folder))
    with pytest.raises(UserError, match=r"has no shard \*\.tar"):
        index_shards(str(tmp_path))


def test_a_shard_that_changed_since_it_was_indexed_is_named(files, folder):
    read = open_folder(str(folder))
    shutil.copy(folder / "images-000002.tar", folder / "images-000000.tar")
    with pytest.raises(UserError, match=r"images-000000\.tar holds 3 images, but index\.json says 4"):
        read.read(0)


def test_an_index_of_an_earlier_version_is_read_and_made_anew_with_checksums(files, folder):
    content = json.loads((folder / INDEX).read_text())
    old = {"shards": [{key: shard[key] for key in ("name", "images", "bytes")} for shard in content["shards"]]}
    (folder / INDEX).write_text(json.dumps(old))
    shards = open_folder(str(folder))
    np.testing.assert_array_equal(shards.read(10).image, files.read(10).image)
    assert all(shard.sums for shard in index_shards(str(folder)))
    assert json.loads((folder / INDEX).read_text()) == content


def test_a_header_that_is_damaged_in_the_middle_does_not_end_a_shard_in_silence(folder):
    first = folder / "images-000000.tar"
    start = contents(first)[2][1]
    content = bytearray(first.read_bytes())
    content[start - 512 + 150] ^= 1  # of the checksum of the third image's header
    first.write_bytes(bytes(content))
    (folder / INDEX).unlink()
    with pytest.raises(UserError, match=r"images-000000\.tar is (no whole|damaged)"):
        index_shards(str(folder))


def test_a_folder_with_other_shards_is_not_packed_into(files, folder):
    with pytest.raises(UserError, match=r"images-000002\.tar, which is not of this data"):
        pack(files, folder, images=6)
    (folder / "images-000002.tar").unlink()
    with pytest.raises(UserError, match="holds other images"):
        pack(files, folder, images=6)


def test_a_damaged_image_is_not_packed(files, tmp_path):
    path = files.image_path(5)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(Damaged, match=rf"{path.name} is cut off"):
        pack(files, tmp_path / "new", images=4)
    assert not (tmp_path / "new" / "images-000001.tar").exists()
    assert not (tmp_path / "new" / INDEX).exists()


def test_the_command_packs_the_target_and_indexes_shards(camvid, tmp_path, caplog):
    caplog.set_level("INFO")
    given = ["data=streets2camvid", f"data.target.root={camvid}", "trainer=cpu"]
    prepare.prepare(configured(*given, f"pack.out={tmp_path / 'tars'}", "pack.images=3", kind=PrepareConfig), tmp_path)
    assert "8 images in 3 shards" in caplog.text
    where = f"data.reader=shards data.target.root={tmp_path / 'tars'}"
    assert f"{where} data.validation.target.root={camvid}" in caplog.text
    (tmp_path / "tars" / INDEX).unlink()
    shards = ["data.reader=shards", f"data.target.root={tmp_path / 'tars'}", f"data.validation.target.root={camvid}"]
    source = [f"data.source.root={camvid}", "data.source.dataset=camvid", "data.source.domain=null"]
    prepare.prepare(configured(*given[:1], "trainer=cpu", *source, *shards, kind=PrepareConfig), tmp_path / "prepared")
    assert (tmp_path / "prepared" / "index.html").is_file()
    assert [shard.images for shard in open_folder(str(tmp_path / "tars")).shards] == [3, 3, 2]
    packed = configured(*given, "data.reader=shards", f"pack.out={tmp_path}", kind=PrepareConfig)
    with pytest.raises(UserError, match=r"needs data\.reader=files"):
        prepare.prepare(packed, tmp_path)
