"""Rendered folders: complete, resumable, safe under two processes and on a full disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from uda_seg.data.domains import open_domain
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.streets import cache, render
from uda_seg.data.streets.cache import DEPTH_SCALE, FIRST_INDEX, SPLIT_SIZE, encode_depth, ensure_rendered
from uda_seg.errors import UserError
from uda_seg.storage import files

SIZE = (32, 64)


def rendered(folder: Path, count: int = 2, split: str = "train", domain: str = "game", **options: object) -> Path:
    return ensure_rendered(0, domain, split, count, SIZE, cache=folder, workers=1, progress=False, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def test_folder_holds_what_was_rendered(tmp_path: Path) -> None:
    folder = rendered(tmp_path, domain="camera:0.5", views=("left", "right"))
    frame = render(0, "camera:0.5", 1, SIZE)
    assert np.array_equal(read(folder / "image/000001.png")[..., ::-1], frame.image)
    assert np.array_equal(read(folder / "label/000001.png"), frame.label)
    depth, valid = read(folder / "depth/000001.png") / DEPTH_SCALE, np.isfinite(frame.depth) & (frame.depth < 255)
    assert np.abs(depth - frame.depth)[valid].max() <= 0.5 / DEPTH_SCALE + 1e-6
    assert (depth[~valid] == 0).all()
    right = render(0, "camera:0.5", 1, SIZE, "right")
    assert np.array_equal(read(folder / "image_right/000001.png")[..., ::-1], right.image)
    geometry = json.loads((folder / "camera_right/000001.json").read_text())
    assert np.array_equal(geometry["intrinsics"], right.intrinsics)
    assert np.array_equal(geometry["camera_to_world"], right.pose)
    facts = json.loads((folder / "world.json").read_text())
    assert (facts["world_seed"], facts["domain"], facts["size"]) == (0, "camera:0.5", list(SIZE))
    assert (facts["renderer"], facts["baseline"], facts["depth_scale"]) == (cache.VERSION, 0.5, DEPTH_SCALE)


def test_depth_that_does_not_fit_is_invalid() -> None:
    depth = np.array([[0.0, 1.5, 255.9, 300.0, np.inf]], np.float32)
    assert encode_depth(depth).tolist() == [[0, 384, 65510, 0, 0]]


def test_splits_never_share_scenes(tmp_path: Path) -> None:
    starts = sorted(FIRST_INDEX.values())
    assert min(b - a for a, b in pairwise(starts)) >= SPLIT_SIZE
    images = [
        read(rendered(tmp_path, 2, split) / f"image/{i:06d}.png").tobytes() for split in FIRST_INDEX for i in (0, 1)
    ]
    assert len(set(images)) == 6
    with pytest.raises(UserError, match="too many"):
        rendered(tmp_path, SPLIT_SIZE + 1)


def test_interrupted_rendering_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contents(rendered(tmp_path / "whole", 3))
    write, written = files.write_whole, 0

    def killed(path: Path, content: bytes, cure: str) -> None:
        nonlocal written
        written += 1
        if written == 8:  # in the middle of the second scene
            raise KeyboardInterrupt
        write(path, content, cure)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            rendered(tmp_path / "part", 3)
    drawn: list[int] = []

    def counted(*arguments: object) -> object:
        drawn.append(int(arguments[2]))  # type: ignore[call-overload]
        return render(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "render", counted)
    folder = rendered(tmp_path / "part", 3)
    assert drawn == [1, 2], "what was finished is not drawn again"
    assert contents(folder) == whole
    rendered(tmp_path / "part", 3)
    assert drawn == [1, 2]


def test_two_processes_at_once_leave_the_same_files(tmp_path: Path) -> None:
    alone = contents(rendered(tmp_path / "alone", 4))
    code = (
        "import sys; from pathlib import Path; from uda_seg.data.streets.cache import ensure_rendered;"
        f"ensure_rendered(0, 'game', 'train', 4, {SIZE}, cache=Path(sys.argv[1]), workers=1, progress=False)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "both")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(rendered(tmp_path / "both", 4)) == alone


def test_workers_draw_the_same_pictures_without_importing_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = ModuleType("__main__")
    program.__file__ = str(tmp_path / "program.py")
    Path(program.__file__).write_text("raise SystemExit('imported')")
    monkeypatch.setitem(sys.modules, "__main__", program)
    folder = ensure_rendered(0, "game", "train", 4, SIZE, cache=tmp_path / "two", workers=2, progress=False)
    assert contents(folder) == contents(rendered(tmp_path / "one", 4))


def test_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes, room = Path.write_bytes, [12_000]

    def full(path: Path, content: bytes) -> int:
        room[0] -= len(content)
        if room[0] < 0:
            write_bytes(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"streets.*No space left on device; .*UDA_SEG_CACHE"):
            rendered(tmp_path, 3)
    folder = tmp_path / "streets"
    assert not list(folder.rglob("*.tmp"))
    assert all(read(path).size for path in folder.rglob("*.png")), "every file that is there can be read"
    assert len(contents(rendered(tmp_path, 3))) == 3 * 4 + 1


def test_new_looks_never_meet_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = rendered(tmp_path, 1)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert rendered(tmp_path, 1) != old


def test_a_damaged_file_that_is_deleted_is_rendered_again(tmp_path: Path) -> None:
    folder = ensure_rendered(0, "game", "train", 1, (32, 48), cache=tmp_path, workers=1, progress=False)
    before = {path: path.read_bytes() for path in folder.rglob("000000.*")}
    assert len(before) == 4
    for path, content in before.items():
        path.unlink()
        ensure_rendered(0, "game", "train", 1, (32, 48), cache=tmp_path, workers=1, progress=False)
        assert path.read_bytes() == content


def test_a_damaged_file_is_rendered_again_as_it_is_read(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path))
    domain = DomainSettings("streets", domain="game", count=2, size=[32, 48])
    data = open_domain(domain, DataSettings(source=domain), CITYSCAPES, "data.source", labeled=True)
    whole, ids = data.read(1), data.label_ids(1)
    for path, again in ((data.image_path(1), data.read), (data.label_path(1), data.label_ids)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x40
        path.write_bytes(bytes(content))
        caplog.clear()
        again(1)
        assert f"{path} is damaged" in caplog.text
        assert caplog.text.strip().endswith("rendered again")
        assert np.array_equal(data.read(1).image, whole.image)
        assert data.label_ids(1) == ids
        assert len(caplog.records) == 1
    moved = replace(domain, root=str(data.root))  # a person's folder
    given = open_domain(moved, DataSettings(source=moved), CITYSCAPES, "data.source", labeled=True)
    given.image_path(0).write_bytes(b"")
    with pytest.raises(UserError, match="is empty: copy or unpack the file again"):
        given.read(0)
    assert given.image_path(0).exists()


def test_unknown_split_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train, val, test"):
        rendered(tmp_path, 1, "dev")
