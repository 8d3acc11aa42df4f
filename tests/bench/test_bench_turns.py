"""Two trainings in turns, and the configurations that `against.KEY=VALUE` tells apart."""

from __future__ import annotations

import json
import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import DeviceType

from command_line import configured as configured_for
from command_line import small_run
from uda_seg import bench
from uda_seg.bench import choose, expand
from uda_seg.bench.against import beside, rival, split
from uda_seg.bench.baselines import BareLoop
from uda_seg.bench.classic import ClassicLoop
from uda_seg.bench.kernels import is_matrix, matrix_us
from uda_seg.bench.measure import Pairs
from uda_seg.bench.original import measure_classic
from uda_seg.bench.precision import losses, measure_precision, without_dropout
from uda_seg.bench.session import prepare, steps_of
from uda_seg.bench.tf32 import arithmetic, stepped
from uda_seg.bench.turns import Comparison, Looped, Trained, Turns
from uda_seg.config.commands import BenchConfig
from uda_seg.errors import UserError
from uda_seg.methods.step import StepModule

configured = partial(configured_for, kind=BenchConfig)

SHORT = ("bench.pairs=2", "bench.steps=2", "data.rare_class.enabled=false", "data.workers=0")


@pytest.fixture
def short(camvid, monkeypatch, tmp_path):
    """Overrides of a training of a few hundred weights."""
    monkeypatch.chdir(tmp_path)
    return [*small_run(camvid, steps=40), *SHORT]


def test_the_other_configuration_is_the_given_one_elsewhere():
    given = ["method=lcmsm", "method.temperature=0.1", "data.crop=[64,64]", "optimizer.lr=0.1", "bench.pairs=2"]
    assert rival(given, ["method=dacs", "optimizer.lr=0.2"]) == ["data.crop=[64,64]", "method=dacs", "optimizer.lr=0.2"]
    assert rival(given, ["method.temperature=0.2"]) == [*given[:1], *given[2:4], "method.temperature=0.2"]


def test_against_is_taken_apart_and_checked():
    given = ["method=lcmsm", "against.trainer.precision=bf16-mixed", "against.model.compile=true"]
    assert split(given) == (["method=lcmsm"], ["trainer.precision=bf16-mixed", "model.compile=true"])
    for wrong, hint in (
        ("against.methd=dacs", "against: methd is no key.*did you mean method"),
        ("against.method=dac", "against: method=dac.*did you mean dacs"),
        ("against.model.compil=true", "did you mean model.compile"),
        ("against=dacs", "against.method=NAME"),
    ):
        with pytest.raises(UserError, match=hint):
            split(["method=lcmsm", wrong])


def test_what_is_measured_follows_from_what_is_given():
    assert "bench.what=[against]" in expand(["against.method=dacs"])
    assert "bench.what=[classic]" in expand(["baseline=classic", "method=dacs"])
    assert not any(o.startswith("bench.what=[") for o in expand(["baseline=classic", "bench.what=all"]))
    assert not any("bench.what" in o for o in expand(["method=dacs"]))
    both = expand(["baseline=classic", "method=dacs", "against.method=lcmsm"])
    assert "bench.what=[against,classic]" in both
    assert not any("baseline" in o for o in both)
    for words in (["bench.what=[ema]", "against.method=dacs"], ["bench.what=all", "against.method=dacs"]):
        with pytest.raises(UserError, match="leaves out against"):
            expand(words)
    with pytest.raises(UserError, match="leaves out classic"):
        expand(["bench.what=[ema]", "baseline=classic"])
    with pytest.raises(UserError, match="did you mean classic"):
        expand(["baseline=clasic"])
    assert "against" not in choose(["all"])


def test_figures_of_a_comparison():
    rows = Comparison("x", "y", Pairs([0.1, 0.1], [0.2, 0.4]), (4, 8), (2**20, 2**21)).rows("n")
    assert [(row.name, row.unit) for row in rows] == [("n/step", "ms"), ("n/images", "images/s"), ("n/peak", "MiB")]
    assert [row.ratio for row in rows] == [pytest.approx(0.375), pytest.approx(1.5), 0.5]
    assert (rows[1].a_value, rows[1].b_value) == (pytest.approx(40), pytest.approx(8 / 0.3))
    faster = Comparison("x", "y", Pairs([0.1], [0.4]), (4, 4), (None, None)).rows("n", 3.0, faster=True)
    assert (faster[0].ratio, faster[0].met, len(faster)) == (4.0, True, 2)


def test_sides_take_turns_and_end(short, tmp_path):
    config = configured(*short)
    steps, network = [], nn.Linear(1, 1)
    with Turns() as turns, (tmp_path / "log").open("w") as log:
        turns.add(lambda: Trained(prepare(config, tmp_path, steps_of(config))))
        trainer = turns.sides[0].session.trainer
        turns.add(lambda: Looped(lambda: steps.append(trainer.global_step), network, 4, log))
        found = turns.compare(("a", "b"), 2, 2)
        threads = threading.active_count()
    assert steps == [3] * 3 + [5, 5, 7, 7]  # three steps of warm-up each, then two and two
    assert threading.active_count() == threads - 1
    assert trainer.global_step == 7
    assert len(found.pairs.a) == 2
    assert found.peak_bytes[0] > 0


def test_what_a_training_raises_is_raised(short, tmp_path):
    session = prepare(configured(*short), tmp_path, 9)
    session.module.finish_step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError), Turns() as turns:
        turns.add(lambda: Trained(session))


def test_a_training_that_ends_too_early_is_no_figure(short, tmp_path):
    with pytest.raises(RuntimeError, match="ended 1 steps before"), Turns() as turns:
        turns.add(lambda: Trained(prepare(configured(*short), tmp_path, 2)))


def test_two_configurations_are_compared(short):
    rows = beside(configured(*short), configured(*short, "method=dacs"), ("lcmsm", "dacs"))
    assert [row.name for row in rows] == ["against/step", "against/images", "against/peak"]
    assert all(row.ratio > 0 and (row.a, row.b) == ("lcmsm", "dacs") for row in rows)


def test_the_command_compares(cli, short, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.against, "beside", lambda a, b, labels: [_row(a, b, labels)])
    done = cli(
        bench.main, *short, "method=dacs", "against.method=source_only", "against.trainer.precision=bf16-mixed",
        "bench.output=b.json",
    )  # fmt: skip
    assert done.code == 0, done
    (row,) = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert row["a"] == "method=dacs: SelfTraining auto"
    assert row["b"] == "method=source_only, trainer.precision=bf16-mixed: SourceOnly bf16-mixed"
    assert "did you mean method" in cli(bench.main, *short, "against.methd=dacs").error


def _row(a, b, labels):
    names = [
        f"{label}: {c.method['_target_'].rpartition('.')[2]} {c.trainer.precision}"
        for label, c in zip(labels, (a, b), strict=True)
    ]
    return bench.Row("against/step", names[0], 1.0, names[1], 1.0, "ms", 1.0)


def test_classic_is_measured_in_its_own_float32(short, monkeypatch):
    """The bare loop's arithmetic is that of the classic loop beside it; ours is torch's own."""
    seen, usual = {}, arithmetic()
    for owner, name in ((ClassicLoop, "step"), (BareLoop, "step"), (StepModule, "training_step")):
        monkeypatch.setattr(owner, name, noting(getattr(owner, name), seen.setdefault(owner, [])))
    rows = {row.name: row for row in measure_classic(configured(*short, "method=dacs", "bench.tf32=false"))}
    assert {"classic/step", "classic/without_habits/step"} <= set(rows)
    assert rows["classic/without_habits/step"].target == "at most 1.1"
    assert rows["classic/step"].b == "classic (backward, ema, augment, item), no TF32"
    assert [len(found) for found in seen.values()] == [14, 7, 7]  # three to warm up, then two pairs of two
    full = {"products": "ieee", "convolutions": "ieee"}
    assert all(found == full for found in [*seen[ClassicLoop], *seen[BareLoop]])
    assert all(found == usual != full for found in [*seen[StepModule], arithmetic()])


def noting(work, found):
    def call(*args):
        found.append(arithmetic())
        return work(*args)

    return call


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_as_before_when_a_loop_fails(allowed):
    """So that whoever asks by torch's older names, which refuse a mixture of both, gets the answer of before."""
    before = arithmetic()
    assert before == {"products": "ieee", "convolutions": "tf32"}  # torch's own choice
    found = []
    with pytest.raises(ZeroDivisionError):
        stepped(noting(lambda: 1 / 0, found), allowed)()
    assert set(found[0].values()) == {"tf32" if allowed else "ieee"}
    assert arithmetic() == before
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, True)
    assert torch.get_float32_matmul_precision() == "highest"


def test_losses_of_two_precisions_are_compared(short):
    config = configured(*short, "method=dacs")
    full, again = losses(config, "32-true"), losses(config, "32-true")
    assert full == again
    assert len(full) == config.bench.steps
    rows = {row.name: row for row in measure_precision(config)}
    assert {"precision/source/ce", "precision/mix/ce", "precision/gradient_norm"} == set(rows)
    source = rows["precision/source/ce"]
    assert source.ratio == pytest.approx(1, abs=0.03)
    assert 0 < source.a_value <= source.b_value < 3


def test_nothing_is_dropped_any_more(make_segmentor):
    segmentor = make_segmentor()
    without_dropout(segmentor)
    x = torch.rand(1, 8, 4, 4)
    assert torch.equal(segmentor.head().dropout.train()(x), x)


def test_operators_that_multiply_matrices():
    yes = ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkldnn_convolution", "aten::convolution_backward",
           "aten::cudnn_convolution", "aten::_conv_depthwise2d", "mkldnn::_linear_pointwise", "triton_tem_fused_mm_7",
           "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_flash_attention_forward")  # fmt: skip
    no = ("aten::mul", "aten::native_batch_norm", "aten::add", "aten::upsample_bilinear2d", "aten::_foreach_lerp_",
          "Optimizer.step#AdamW.step", "aten::sum", "aten::layer_norm", "triton_red_fused_add_bmm_mm_mul_15",
          "triton_poi_fused_convolution_2")  # fmt: skip
    assert [name for name in yes if not is_matrix(name)] == [name for name in no if is_matrix(name)] == []


# Of an H200: operator (None: not recorded), the kernel it started, microseconds.
STARTED = (
    ("aten::mm", "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off"
                 "_kernel__5x_cublas", 100),
    ("aten::addmm", "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_bias_TNT", 200),
    ("aten::bmm", "ampere_sgemm_128x64_tn", 300),
    ("aten::convolution_backward", "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_256x64_32x4_nn_al"
                                   "ign8>(cutlass_80_tensorop_bf16_s16816gemm_bf16_256x64_32x4_nn_align8::Params)",
     400),
    ("aten::_flash_attention_forward", "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<"
                                       "64, 128, 128, 4>>(pytorch_flash::Flash_fwd_params)", 500),
    ("triton_tem_fused_mm_7", "triton_tem_fused_mm_7", 600),
    (None, "triton_tem_fused_addmm_1", 700),
)  # fmt: skip
OTHER = (
    ("aten::mul", "void at::native::vectorized_elementwise_kernel<4, at::native::BinaryFunctor<...>>", 1000),
    ("triton_red_fused_add_bmm_mm_mul_15", "triton_red_fused_add_bmm_mm_mul_15", 2000),
    (None, "triton_poi_fused_convolution_2", 4000),
)


def rows_of(started):
    """What `torch.profiler` makes of operators inside of others, each with 5 us of its own on the host."""
    found, options = [], {"use_device": "cuda", "stack": []}
    for i, (operator, kernel, device_us) in enumerate(started):
        begin = 20 * i
        if operator is not None:
            found.append(FunctionEvent(3 * i, "aten::linear", 0, begin, begin + 8, **options))
            found.append(FunctionEvent(3 * i + 1, operator, 0, begin + 3, begin + 8, **options))
            found[-1].append_kernel(kernel, 0, device_us)
        end = begin + device_us
        found.append(FunctionEvent(3 * i + 2, kernel, 7, begin, end, device_type=DeviceType.CUDA, **options))
    rows = EventList(found, use_device="cuda")
    rows._build_tree()
    return rows.key_averages()


def test_every_matrix_kernel_is_counted_once():
    """An operator's row and its kernel's are the same time; a fused kernel's name tells what is in it."""
    rows = rows_of(STARTED + OTHER)
    assert sum(row.self_device_time_total for row in rows) > 9000  # most kernels twice
    assert matrix_us(rows, gpu=True) == sum(us for *_, us in STARTED)
    assert matrix_us(rows_of(STARTED[:5]), gpu=False) == 5 * 8  # on the host: five operators and the linear about each
