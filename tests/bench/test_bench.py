"""The bench measures what it says: equal work on both sides, bytes that can be counted by hand, every phase."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from command_line import NETWORK, forked
from command_line import configured as configured_for
from data.trees import save, streets_tree
from uda_seg.bench import MEASUREMENTS, bench, busy, choose, phases, profile_table, rows_table
from uda_seg.bench.baselines import average_each, blend_classes, draw_half, paste_classes
from uda_seg.bench.measure import Pairs, Row, alternate
from uda_seg.bench.memory import SavedBytes, measure_memory
from uda_seg.bench.overhead import interleave, measure_methods
from uda_seg.bench.parts import measure_ema, measure_evaluator, measure_mixing, measure_render
from uda_seg.bench.phases import profile_step
from uda_seg.bench.reading import measure_reading
from uda_seg.bench.session import BICL, DACS, SOURCE_ONLY
from uda_seg.config.commands import BenchConfig
from uda_seg.errors import UserError
from uda_seg.methods.bicl import BiCL
from uda_seg.methods.lcmsm import LCMSM
from uda_seg.methods.options.bicl import BiCLOptions
from uda_seg.methods.options.t2sda import T2SDAOptions
from uda_seg.methods.pull_samples import Pixels
from uda_seg.methods.step import StepModule
from uda_seg.methods.t2sda import T2SDA
from uda_seg.ops.ema import ema_update
from uda_seg.ops.mixing import class_mask, class_mix, draw_classes

configured = partial(configured_for, kind=BenchConfig)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The default method on images of 32 x 48 and crops of 32 x 32."""
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(alternate, "__defaults__", (0.0,))  # a block is a call, however short
    root = streets_tree(tmp_path / "streets", count=4)
    domains = [
        f"data.{name}.{key}"
        for name in ("source", "target", "validation.target")
        for key in (f"root={root}", "size=[32,48]", "count=4")
    ]
    return configured(
        *NETWORK, *domains,
        "data.crop=[32,32]", "data.source_batch=2", "data.target_batch=2", "data.rare_class.enabled=false",
        "data.workers=0", "trainer=cpu", "pretrained=null", "bench.pairs=2", "bench.steps=2", "bench.scenes=2",
        "statistics_batches=1", f"bench.output={tmp_path}/out/bench.json",
    )  # fmt: skip


def test_what_has_been_measured_outlives_what_fails_and_what_was_there(tiny, tmp_path, monkeypatch):
    def failing(config):
        raise UserError("no GPU")

    path = tmp_path / "out" / "bench.json"
    tiny.bench.what = ["ema", "precision"]
    monkeypatch.setitem(MEASUREMENTS, "precision", failing)
    for _ in range(2):
        with pytest.raises(UserError, match="no GPU"):
            bench(tiny, tmp_path)
    assert json.loads(path.read_text())["rows"]
    assert json.loads((path.parent / "bench.json.earlier").read_text())["rows"]
    tiny.bench.output = str(tmp_path)
    with pytest.raises(UserError, match=r"bench\.output=.* is a folder"):
        bench(tiny, tmp_path)


def test_pairs_are_compared_pair_by_pair():
    """A neighbour that slows the last pair down tenfold leaves the ratio alone."""
    pairs = Pairs([1.0, 1.1, 10.0], [2.0, 2.2, 20.0])
    assert pairs.a_over_b == pytest.approx(0.5)
    assert pairs.b_over_a == pytest.approx(2.0)
    assert pairs.a_ms == pytest.approx(1100)


def test_a_and_b_take_turns():
    calls = []
    pairs = alternate(lambda: calls.append("a"), lambda: calls.append("b"), pairs=3, block=0.0)
    assert "".join(calls) == "aabb" + "ababab"  # once to warm up, once to see how often a block needs it
    assert len(pairs.a) == len(pairs.b) == 3


@pytest.mark.parametrize(
    ("bound", "ratio", "met"), [("at most", 1.04, True), ("at most", 1.06, False), ("at least", 1.06, True)]
)
def test_a_row_knows_whether_its_target_is_met(bound, ratio, met):
    row = Row("x", "ours", 1.0, "theirs", 2.0, "ms", ratio, 1.05, bound)
    assert row.met is met
    assert row.record()["target"] == f"{bound} 1.05"
    assert ("met" if met else "missed") in rows_table([row]).markdown()


def test_saved_bytes_count_each_storage_once():
    x = torch.rand(1000, requires_grad=True)
    with SavedBytes([x]) as memory:
        y = x.exp()  # keeps its result,
        z = y.sin()  # and this its argument: the same storage
        assert memory.live == 4000
        (z * z).sum().backward()  # z is kept twice, once per factor
    assert memory.peak == 8000
    assert memory.live == 0


def test_terms_one_after_the_other_need_the_memory_of_one():
    x = torch.rand(1000, requires_grad=True)

    def peak(together):
        with SavedBytes([x]) as memory:
            terms = (x.exp().sum() for _ in range(3))
            if together:
                sum(list(terms)).backward()
            else:
                for term in terms:
                    term.backward()
        return memory.peak

    assert peak(together=False) == 4000
    assert peak(together=True) == 12000


def test_mixing_baselines_mix_what_the_table_mixes():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (2, 8, 8), generator=generator, dtype=torch.uint8)
    source, target = torch.rand(2, 2, 3, 8, 8, generator=generator)
    keep = draw_classes(label, 5, generator=generator)
    chosen = [row.nonzero()[:, 0] for row in keep]
    expected = class_mix(source, target, class_mask(label, keep))
    assert torch.equal(blend_classes(source, target, label, chosen), expected)
    assert torch.equal(paste_classes(source, target, label, chosen), expected)
    half = draw_half(torch.where(label == 4, 255, label), 5)
    assert [len(classes) for classes in half] == [2, 2]
    assert all((classes < 4).all() for classes in half)


def test_ema_baseline_averages_alike(make_segmentor):
    student, one, other = make_segmentor(0), make_segmentor(1), make_segmentor(1)
    average_each(one, student, 0.9)
    ema_update(other.parameters(), student.parameters(), 0.9)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("method", [SOURCE_ONLY, DACS])
def test_bare_loop_does_the_work_of_the_module(tiny, method):
    turns = interleave(replace(tiny, method=method, teacher=replace(tiny.teacher, threshold=0.06)))
    assert len(turns.seconds) == 3 + 2 * 2  # warm-up, two pairs of blocks of two steps
    assert turns.bare.steps == 7
    # Adam divides by sqrt(v): a gradient that is rounding noise about zero has an arbitrary sign.
    assert turns.difference < 1e-4
    assert len(turns.pairs().a) == 2


def test_methods_are_measured_beside_dacs(tiny):
    """The bare loop takes DACS's steps: after them its teacher is not its student, which source-only has none of."""
    for i in range(4):
        save(Path(tiny.data.source.root) / f"depth/{i:06d}.png", np.full((32, 48), 256 * (10 + i), np.uint16))
    rows = measure_methods(tiny)
    assert [row.name for row in rows] == ["methods/bicl", "methods/t2sda", "methods/corda"]
    assert all(row.a_value > 0 and row.b == "dacs" and row.target == "at most 2" for row in rows)
    turns = interleave(replace(tiny, method=BICL), DACS)
    assert turns.bare.steps == 7
    assert turns.bare.teacher is not None
    assert turns.difference > 0


@pytest.mark.parametrize("term", ["forward and backward", "pull"])
def test_contrast_needs_memory_linear_in_pixels(term, make_segmentor, make_plan, monkeypatch):
    """Twice as high and wide: four times the bytes at most, and a little; pixels x pixels would be sixteen times."""
    monkeypatch.setattr(StepModule, "mean_over_ranks", lambda self, value: value)
    bicl = BiCL(make_segmentor(), make_plan(), BiCLOptions())
    t2sda = T2SDA(make_segmentor(), make_plan(), T2SDAOptions(queries=2, negatives=4))
    peaks = []
    for height, width in ((32, 64), (64, 128)):
        features = [torch.randn(2, 8, height, width, requires_grad=True) for _ in range(2)]
        labels = [torch.randint(0, 19, (2, height, width), dtype=torch.uint8) for _ in range(2)]
        with SavedBytes(features) as memory:
            if term == "pull":
                keys = [Pixels(f.detach(), label) for f, label in zip(features, labels, strict=True)]
                loss = t2sda.pull(features[0], *keys)
            else:
                terms = bicl.contrast(features[0], labels[0], features[1], labels[1], labels[1] < 255)
                loss = sum(term.value for term in terms)
            loss.backward()
        peaks.append(memory.peak)
    assert 0 < peaks[1] <= 4.2 * peaks[0]


def test_masked_consistency_needs_the_memory_of_source_only(tiny):
    """One graph at a time, and none for the teacher."""
    (row,) = measure_memory(tiny)
    assert row.b_value > 0
    assert row.met


def test_every_phase_of_a_step_is_timed(tiny):
    tiny.logger.log_every = 1
    profile = profile_step(tiny)
    terms = ("source/ce", "source/masked_ce", "mix/ce", "mix/masked_ce")
    assert {f"{way} {term}" for way in ("forward", "backward") for term in terms} <= set(profile.phases_ms)
    assert {"data", "transfer", "teacher", "mix + augment", "gradient norm", "optimiser", "EMA", "logging"} <= set(
        profile.phases_ms
    )
    assert profile.phases_ms["the rest"] > 0
    assert sum(profile.phases_ms.values()) == pytest.approx(profile.clocked_ms)
    assert profile.images_per_s == pytest.approx(4e3 / profile.step_ms)
    assert profile.steps_per_s == pytest.approx(1e3 / profile.step_ms)
    assert profile.method == "LCMSM"
    assert 0 < profile.matrix_ms < profile.step_ms


def test_a_step_that_is_timed_waits_for_nothing(tiny, monkeypatch):
    """Time passes, a second each, in waiting for the device alone: of the phases, not of the step."""
    now = [0.0]
    monkeypatch.setattr(phases, "synchronize", lambda: now.__setitem__(0, now[0] + 1))
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(phases, "matrix_ms", lambda config: 1.0)
    monkeypatch.setattr(phases, "saved_peak", lambda config: 1)
    profile = profile_step(tiny)
    assert profile.steps == 4
    assert profile.step_ms == 1e3 / 4  # one wait, at the end
    assert profile.clocked_ms > 2e3 * len(profile.phases_ms)  # two a phase, and some phases come twice
    assert profile.phases_ms["data"] == 1e3
    assert "it/s" in profile_table(profile).markdown()


def test_parts_are_measured(tiny):
    rows = [
        *measure_evaluator(tiny, size=(32, 64)),
        *measure_mixing(tiny, size=(32, 32)),
        *measure_ema(tiny),
    ]
    assert [row.name for row in rows] == ["evaluator", "mixing", "mixing/one_blend", "ema"]
    assert all(row.ratio > 0 for row in rows)


def test_rendering_is_measured(tiny):
    pytest.importorskip("uda_seg.data.streets.cache")
    rows = measure_render(tiny, size=(32, 64))
    assert {"render/game", "render/camera"} <= {row.name for row in rows}
    assert all(row.ratio == row.a_value > 0 for row in rows)


def alive(process: int) -> bool:
    """Whether a process is there and has not ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_step_is_timed_alone_and_beside_neighbours_that_end(tiny, monkeypatch):
    """By a clock that goes as many seconds a step as there are processes."""
    beside, started, now = 0, [], 0.0
    start, losses = busy.neighbours, LCMSM.losses

    @contextmanager
    def seen(count):
        nonlocal beside
        with start(count) as processes:
            started.append(processes)
            beside = sum(alive(process) for process in processes)
            yield processes
        assert not any(alive(process) for process in processes)

    def step(module, batch):
        nonlocal now
        now += 1 + beside
        return losses(module, batch)

    monkeypatch.setattr(busy, "neighbours", seen)
    monkeypatch.setattr(busy, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(LCMSM, "losses", step)
    rows = busy.measure_busy(tiny)
    assert [len(processes) for processes in started] == [0, 1, 2] * tiny.bench.pairs + [0]
    assert [(row.name, row.a_value, row.b_value, row.ratio, row.met) for row in rows] == [
        ("busy/1", 2000, 1000, 2.0, False),
        ("busy/2", 3000, 1000, 3.0, False),
    ]


def test_a_training_that_fails_leaves_no_neighbour(tiny, monkeypatch):
    started, start, losses = [], busy.neighbours, LCMSM.losses

    @contextmanager
    def seen(count):
        with start(count) as processes:
            started.extend(processes)
            yield processes

    def failing(module, batch):
        if started:
            raise RuntimeError("no more")
        return losses(module, batch)

    monkeypatch.setattr(busy, "neighbours", seen)
    monkeypatch.setattr(LCMSM, "losses", failing)
    with pytest.raises(RuntimeError, match="no more"):
        busy.measure_busy(tiny)
    assert len(started) == 1
    assert not any(alive(process) for process in started)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_neighbour_ends_with_who_started_it(how, tmp_path):
    def start():
        with busy.neighbours(1) as processes:
            (tmp_path / "started").write_text(str(processes[0]))
            time.sleep(60)

    parent, written = forked(start), tmp_path / "started"
    while parent.is_alive() and not (written.exists() and written.read_text()):
        time.sleep(0.01)
    os.kill(parent.pid, how)
    parent.join(60)
    ends = time.monotonic() + 60
    while alive(neighbour := int(written.read_text())):
        assert time.monotonic() < ends, f"{neighbour} goes on"
        time.sleep(0.01)


def test_command_writes_what_it_prints(tiny, tmp_path, monkeypatch, capsys):
    row = Row("mixing", "table", 1.0, "loop", 7.0, "ms", 7.0, 5.0)
    monkeypatch.setitem(MEASUREMENTS, "mixing", lambda config: [row])
    monkeypatch.setattr(phases, "matrix_ms", lambda config: 1.0)
    tiny.bench.what = ["phases", "mixing"]
    bench(tiny, tmp_path)
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert written["rows"] == [row.record()]
    assert written["step"]["phases_ms"]["teacher"] > 0
    assert {"date", "versions", "cpu", "gpu", "threads", "waiting"} <= set(written)
    assert written["float32"] == {"products": "ieee", "convolutions": "tf32"}
    assert written["classic_tf32"] is True
    printed = capsys.readouterr().out
    assert "met" in printed
    assert "teacher" in printed


def test_unknown_measurement_names_the_nearest():
    with pytest.raises(UserError, match="did you mean mixing"):
        choose(["mixin"])
    assert choose(["ema", "overhead"]) == ["overhead", "ema"]
    assert choose(["all"])[-1] == "phases"


def test_reading_compares_a_crop_with_a_picture(tiny):
    rows = measure_reading(tiny, size=(64, 128), crop=32)
    assert [row.name for row in rows] == [
        *(f"reading/{size}/{kind}" for size in ("full", "half") for kind in ("image", "image+label")),
        "reading/shard",
    ]
    assert [row.limit for row in rows] == [50] * 4 + [None]
    assert all(row.ratio > 0 for row in rows)
