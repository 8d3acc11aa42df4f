"""How many threads PyTorch calculates on, and how they wait for each other."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import uda_seg
from uda_seg.data import parallel
from uda_seg.launch import threads as waiting
from uda_seg.launch.threads import Watch, needed, share_cores

SAY = "print(*(f'{name}={os.environ.get(name)}' for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')))"
OURS = "OMP_WAIT_POLICY=None GOMP_SPINCOUNT={GOMP_SPINCOUNT} KMP_BLOCKTIME={KMP_BLOCKTIME}".format(**uda_seg.WAITING)


def said(code: str, **environment: str) -> str:
    """What a new process prints that was given nothing about waiting but this."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", f"import os, sys; {code}"],
        env=clean | environment, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_how_threads_wait_is_said_before_torch_is_loaded():
    """Importing the package alone is enough, and cheap."""
    heavy = "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'hydra', 'cv2'}))"
    assert said(f"import uda_seg; {SAY}; {heavy}") == OURS
    # What processes that this one starts find, and with it OpenMP's library in them.
    child = f'import subprocess; subprocess.run([sys.executable, \'-c\', """import os; {SAY}"""])'
    assert said(f"import uda_seg; {child}") == OURS


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "infinite")]
)
def test_a_setting_of_the_user_wins(name, value):
    given = {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None, name: value}
    expected = " ".join(f"{n}={v}" for n, v in given.items())
    assert said(f"import uda_seg; {SAY}", **{name: value}) == expected


def test_where_torch_is_loaded_already_nothing_is_changed():
    """It would change nothing here, and how the user's own processes wait."""
    stand_in = "import types; sys.modules['torch'] = types.ModuleType('torch')"
    assert "GOMP_SPINCOUNT=None" in said(f"{stand_in}; import uda_seg; {SAY}")


# ---------------------------------------------------------------------- how many there are


@pytest.fixture
def threads(monkeypatch):
    """`threads(cores, processes)`: as how many PyTorch, which would take eight, is told to use."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(waiting, "_watch", lambda: None)

    def share(cores: int, processes: int) -> int:
        monkeypatch.setattr(waiting, "cores", lambda: cores)
        share_cores(processes)
        return told.pop()

    return share


def test_threads_are_a_process_s_share_of_the_cores_it_may_use(threads):
    assert [threads(cores, 1) for cores in (1, 2, 16)] == [1, 2, 8]  # never more than PyTorch would take
    assert [threads(8, ranks) for ranks in (2, 3, 16)] == [4, 2, 1]


def test_threads_that_the_user_chose_stay(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with pytest.raises(IndexError):  # nothing was told
        threads(2, 1)


# ---------------------------------------------------------------------- how they wait


@pytest.fixture
def watched(monkeypatch):
    """`watched(shares)`: how many idlers there are after periods of which threads waited for such shares."""

    class Fake:
        def __init__(self):
            self.ended = False

        def end(self):
            self.ended = True

    monkeypatch.setattr(waiting, "Idler", Fake)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(waiting, "affinity", lambda: 2)

    def run(*shares: float) -> list[int]:
        looks, clock, seen, watch = [0.0, *itertools.accumulate(shares)], [0.0], [], Watch()

        def queued():
            seen.append(len(watch.idlers))
            return looks.pop(0) if looks else None

        def sleep(seconds):
            clock[0] += 1.0

        monkeypatch.setattr(waiting, "queued", queued)
        monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
        watch.run()
        return seen[2:]  # after each period

    return run


def test_threads_sleep_while_others_want_their_cores_and_spin_again_once_they_are_gone(watched, caplog):
    with caplog.at_level("INFO"):
        assert watched(0.01, 0.5, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0) == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert caplog.text.count("other processes use these cores") == 1


@pytest.mark.parametrize("threads", [2, 3, 4, 24])
@pytest.mark.parametrize("cores", [1, 2, 4, 48, 64])
def test_idlers_make_more_threads_than_cores_and_no_more_of_them_than_that_takes(threads, cores):
    count = needed(threads, cores)
    assert threads + count * (threads - 1) > cores
    assert count == 1 or threads + (count - 1) * (threads - 1) <= cores


REAL = """
import os, time, torch
torch.set_num_threads(2)
from uda_seg.launch.threads import Watch, needed, queued
tasks = lambda: len(os.listdir('/proc/self/task'))
torch.zeros(1 << 20).exp_()
watch, before = Watch(), tasks()
torch.manual_seed(0)
x = torch.rand(3, 200, 300)
sums = [x.matmul(x.mT).sum().item()]
watch.sleep()
watch.sleep()
end = time.monotonic() + 60
while tasks() != before + 2 * needed(2, len(os.sched_getaffinity(0))) and time.monotonic() < end: time.sleep(0.01)
print(tasks() - before == 2 * needed(2, len(os.sched_getaffinity(0))), torch.get_num_threads())
sums.append(x.matmul(x.mT).sum().item())
watch.spin()
while tasks() != before and time.monotonic() < end: time.sleep(0.01)
print(tasks() - before, sums[0] == sums[1], queued() >= 0)
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="as Linux counts threads")
def test_idlers_have_openmp_threads_that_end_with_them():
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.split() == ["True", "2", "0", "True", "True"]


@pytest.mark.parametrize(
    ("environment", "threads", "watched"),
    [
        ({}, 2, True),
        ({}, 1, False),
        (uda_seg.WAITING, 2, True),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 2, False),
        ({"GOMP_SPINCOUNT": "7"}, 2, False),
    ],
)
def test_waiting_is_watched_unless_the_user_says_how(environment, threads, watched, monkeypatch):
    for name in ("OMP_WAIT_POLICY", *uda_seg.WAITING):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    begun = []
    monkeypatch.setattr(waiting, "_watch", lambda: begun.append(True))
    monkeypatch.setattr(waiting, "queued", lambda: 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    share_cores()
    assert begun == [True] * watched
    monkeypatch.setattr(waiting, "queued", lambda: None)
    share_cores()
    assert len(begun) == watched


# ---------------------------------------------------------------------- what a container is granted


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),  # the group around it
        ("0::/host/path\n", {"cpu.max": "400000 100000"}, 4.0),  # inside a container the path is the host's
        ("2:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_a_container_s_quota_counts(groups, files, expected, tmp_path, monkeypatch):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert parallel.quota(tmp_path) == expected
    monkeypatch.setattr(parallel, "quota", lambda: expected)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(3)), raising=False)
    assert parallel.cores() == min(3, max(1, math.ceil(min(expected, 3))))


def test_without_control_groups_nothing_limits(tmp_path):
    assert parallel.quota(tmp_path) == math.inf
