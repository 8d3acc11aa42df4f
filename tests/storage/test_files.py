"""Files are written whole or not at all."""

import errno
import os
import shutil
import zipfile

import cv2
import numpy as np
import pytest

from uda_seg.errors import UserError
from uda_seg.storage.files import save_png, write_text, write_zip


def ids(first: int, kind: type = np.uint8) -> np.ndarray:
    return np.arange(first, first + 12, dtype=kind).reshape(3, 4)


def test_saved_picture_reads_back_and_leaves_no_part(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "panels" / "a.png"
    save_png(path, picture)
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], picture)
    assert os.listdir(path.parent) == ["a.png"]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_saved_planes_read_back(kind, tmp_path):
    save_png(tmp_path / "ids.png", ids(0, kind))
    assert np.array_equal(cv2.imread(str(tmp_path / "ids.png"), cv2.IMREAD_UNCHANGED), ids(0, kind))


def test_full_disk_is_one_line_and_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, ids(1))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.png: No space left on device") as caught:
        save_png(path, ids(4))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_the_disk_refuses_leaves_nothing_and_tells_the_cure(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file/a\.md: .*; stand aside$"):
        write_text(tmp_path / "file" / "a.md", "text", cure="stand aside")
    assert os.listdir(tmp_path) == ["file"]


def test_an_archive_holds_the_files_and_is_written_whole(tmp_path, monkeypatch):
    members = {"a/one.png": tmp_path / "1", "two.png": tmp_path / "2"}
    for i, path in enumerate(members.values()):
        path.write_bytes(bytes([i]) * 1000)
    path = tmp_path / "out" / "all.zip"
    write_zip(path, members)
    before = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: file.read_bytes() for name, file in members.items()
        }
    write_zip(path, members)
    assert path.read_bytes() == before

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"cannot write .*all\.zip: No space left on device; make room"):
        write_zip(path, members)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["all.zip"]
