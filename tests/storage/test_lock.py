"""One process in a folder: whoever is second is told who is first, and a dead one is no hindrance."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from command_line import forked
from uda_seg.errors import UserError
from uda_seg.storage import lock as locks
from uda_seg.storage import owner as owners
from uda_seg.storage.lock import NAME, SILENT_S, FolderLock
from uda_seg.storage.owner import Owner

ME = Owner("a test")
FAR = replace(ME, host="far", machine="00000000", pid=7, born="1")


def lock(folder: Path, owner: Owner = ME) -> FolderLock:
    return FolderLock(folder, owner, "choose another folder")


def held_by(folder: Path, owner: Owner, silent: float = 0.0) -> Path:
    """The file of a process that does not give it back, and gave a sign of life so many seconds ago."""
    folder.mkdir(exist_ok=True)
    file = folder / NAME
    file.write_text(json.dumps(asdict(owner) | {"key": "theirs"}))
    os.utime(file, (time.time() - silent,) * 2)
    return file


def test_a_folder_is_given_back_also_after_an_error(tmp_path):
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        held = lock(tmp_path / "run")
        with pytest.raises(error), held:
            raise error
        assert json.loads(held.content)["pid"] == os.getpid()
        assert not list((tmp_path / "run").iterdir())


def hold(folder: Path) -> None:
    with lock(folder, Owner("a test")):
        signal.pause()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    process = forked(lambda: hold(tmp_path))
    while not (tmp_path / NAME).exists():
        time.sleep(0.01)
    with pytest.raises(UserError) as told, lock(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert f"{tmp_path} is in use by a test on {ME.host}, process {process.pid}, since 2" in str(told.value)
    assert "\n" not in str(told.value)
    with lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "dead",
    [
        replace(ME, born="1"),  # another process had the number
        replace(ME, pid=2**22 - 1),
        replace(FAR, job="17", restarts=0),
    ],
    ids=["number given anew", "no such process", "SLURM ended it"],
)
def test_what_a_dead_process_left_is_taken_over(dead, tmp_path):
    held_by(tmp_path, dead)
    with lock(tmp_path, replace(ME, job="17", restarts=1)) as mine:
        assert (tmp_path / NAME).read_bytes() == mine.content


@pytest.mark.parametrize(
    "other", [FAR, replace(ME, machine="00000000"), replace(FAR, job="18"), replace(FAR, job="17", restarts=1)]
)
def test_a_process_on_another_machine_lives_as_long_as_it_says_so(other, tmp_path):
    file = held_by(tmp_path, other, silent=SILENT_S - 30)
    with pytest.raises(UserError) as told, lock(tmp_path, replace(ME, job="17", restarts=1)):
        pass
    assert f"on {other.host}, process {other.pid}" in str(told.value)
    assert f"if it has died, delete {file} or wait until {SILENT_S:.0f} s have passed" in str(told.value)
    held_by(tmp_path, other, silent=SILENT_S + 30)
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe"])
def test_a_file_that_says_nothing_counts_by_its_age(content, tmp_path):
    file = tmp_path / NAME
    file.write_bytes(content)
    with pytest.raises(UserError, match="by a process that does not say its name"), lock(tmp_path):
        pass
    os.utime(file, (0, 0))
    with lock(tmp_path):
        pass


def test_signs_of_life_are_given_and_a_folder_that_is_taken_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    with lock(tmp_path) as mine:
        os.utime(mine.path, (0, 0))
        wait_until(lambda: mine.path.stat().st_mtime > 0)
        mine.raise_if_taken()
        held_by(tmp_path, FAR)
        wait_until(lambda: mine.taken)
        with pytest.raises(UserError, match="was taken over by another process"):
            mine.raise_if_taken()
    assert mine.path.exists(), "another one's was deleted"


def wait_until(true) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    pytest.fail("it does not come")


@pytest.mark.parametrize("claimed", [False, True])
def test_of_many_that_find_a_dead_ones_file_one_gets_the_folder(tmp_path, request, claimed):
    """Threads stand for processes: that of each is told apart by its number, which lives on another machine.

    With `claimed`, another dead process had begun to take the folder over.
    """
    won, lost, start = [], [], threading.Barrier(8)
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-5)  # they come between each other at every step, as processes do

    def run(number: int) -> None:
        mine = lock(tmp_path, replace(FAR, pid=number))
        start.wait()
        try:
            mine.__enter__()
            won.append(mine)
        except UserError:
            lost.append(number)

    for _ in range(40):
        file = held_by(tmp_path, FAR, silent=SILENT_S + 30)
        if claimed:
            claim = tmp_path / f"{NAME}.{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.tmp"
            claim.write_text(json.dumps(asdict(replace(FAR, pid=99)) | {"key": "another"}))
            os.utime(claim, (1, 1))
        won.clear()
        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert (tmp_path / NAME).read_bytes() == won[0].content
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
        won[0]._ended.set()


def test_a_disk_without_links_locks_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    with lock(tmp_path) as mine:
        assert mine.path.read_bytes() == mine.content
        with pytest.raises(UserError, match="is in use by a test"), lock(tmp_path):
            pass


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot write into .*/file/run: Not a directory; choose"),
        lock(tmp_path / "file" / "run"),
    ):
        pass


def test_where_the_system_shows_no_processes_their_numbers_count(monkeypatch):
    monkeypatch.setattr(owners, "Path", lambda path: Path("/nowhere" + path))
    assert replace(ME, born="").lives()
    assert not replace(ME, born="", pid=2**22 - 1).lives()
