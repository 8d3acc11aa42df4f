"""Files that are put aside: a kill between any two steps loses none."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from uda_seg.errors import UserError
from uda_seg.storage.aside import Aside

OLD = {"a.txt": "1", "deep/b.txt": "2", "deep/er/c.txt": "3"}


def filled(folder: Path) -> Aside:
    for name, text in OLD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "deep" / "mine.txt").write_text("of somebody else")
    return Aside(folder, "old")


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


class Killed(BaseException):
    """As a kill: nothing after it is done."""


def killed_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """From the call of this number on, nothing more is changed on disk."""
    count = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count > calls:
                raise Killed
            return real(*args, **kwargs)

        return call

    for where, name in ((os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink"), (os, "mkdir")):
        monkeypatch.setattr(where, name, counted(getattr(where, name)))


@pytest.mark.parametrize("calls", range(0, 40))
def test_what_is_put_aside_comes_back_whenever_it_was_stopped(calls, tmp_path, monkeypatch):
    aside = filled(tmp_path)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        killed_after(patch, calls)
        try:
            aside.put([tmp_path / "a.txt", tmp_path / "deep/b.txt", tmp_path / "deep/er"])
            (tmp_path / "a.txt").write_text("new")
            aside.bring_back([tmp_path / "a.txt"])
        except Killed:
            pass
    if aside.state:
        aside.bring_back([tmp_path / "a.txt"])
    aside.put([])  # whatever a first word that was not said has left is no hindrance
    aside.drop()
    assert contents(tmp_path) == before


def test_what_is_dropped_is_gone_whenever_it_was_stopped(tmp_path, monkeypatch):
    for calls in range(12):
        aside = filled(tmp_path)
        aside.put([tmp_path / "a.txt", tmp_path / "deep/er"])
        with monkeypatch.context() as patch:
            killed_after(patch, calls)
            with contextlib.suppress(Killed):
                aside.drop()
        if aside.state:
            assert aside.state in ("aside", "done")
            aside.drop()
        assert contents(tmp_path) == {"deep/b.txt": "2", "deep/mine.txt": "of somebody else"}


def test_a_folder_of_that_name_is_left_alone(tmp_path):
    aside = filled(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="old is in the way: move it"):
        aside.put([tmp_path / "a.txt"])
    assert contents(tmp_path)["a.txt"] == "1"


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    aside = filled(tmp_path)
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot set .* aside: No space left on device"):
        aside.put([tmp_path / "a.txt"])
