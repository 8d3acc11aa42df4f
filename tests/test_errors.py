"""Whatever goes wrong, whichever library notices it: one line with the cure, or that says where the frames are."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
import wandb
from omegaconf import OmegaConf
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader

from command_line import in_process_of_its_own, small_run
from uda_seg import evaluate, train
from uda_seg.errors import RankLost, UserError, outlive_readers
from uda_seg.errors.known import LOG, told, user_error
from uda_seg.methods.source_only import SourceOnly


def raised(work) -> BaseException:
    """What a library raises, as it raises it."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        work()
    return caught.value


class Ends(torch.utils.data.Dataset):
    """Items whose loader is killed, or fails."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if self.error is not None:
            raise self.error
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def loaded(error: BaseException | None = None) -> list[object]:
    return list(DataLoader(Ends(error), num_workers=1))


def no_space(file: str = "/runs/last.ckpt") -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)


def write_into(path) -> None:
    (path / "below").mkdir(parents=True)


CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.1 GiB of which 3 MiB is free."
BUS = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
SHM = "unable to open shared memory object </torch_7_1> in read-write mode: No space left on device (28)"
WANDB_KEY = "api_key not configured (no-tty). call wandb.login(key=[your_api_key])"
WANDB_NET = "Run initialization has timed out after 90.0 sec. Please try increasing the timeout with the `init_timeout`"
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5000"
SWIN = {"img_size": 64, "patch_size": 4, "embed_dim": 8, "depths": (1,), "num_heads": (1,), "window_size": 4}


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1)), ["[1, 2, 1, 1]", "data.crop", "optimizer.accumulate"]),
        (lambda: nn.InstanceNorm2d(2)(torch.zeros(1, 2, 1, 1)), ["[1, 2, 1, 1]", "data.crop larger"]),
        (lambda: SwinTransformer(**SWIN)(torch.zeros(1, 3, 32, 32)), ["images of 64 pixels", "data.crop=[64,64]"]),
        (
            lambda: VisionTransformer(img_size=32, embed_dim=8, depth=1, num_heads=1)(torch.zeros(1, 3, 64, 64)),
            ["images of 32 pixels", "evaluator=slide", "model.encoder.name"],
        ),
        (
            lambda: VisionTransformer(img_size=32, embed_dim=8, depth=1, num_heads=1, dynamic_img_size=True)(
                torch.zeros(1, 3, 33, 32)
            ),
            ["does not accept images of this size (Input height (33) should be divisible by patch size (16))"],
        ),
        (lambda: pl.Trainer(accelerator="cpu", devices=[0, 1]), ["trainer: `devices` selected with `CPUAccelerator`"]),
        (
            lambda: timm.create_model("test_maxvit")(torch.zeros(1, 3, 32, 32)),
            ["does not accept images of this size (height (8) must be divisible by window (5))", "data.crop"],
        ),
        (lambda: nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 2, 2)), ["too small for the network", "make data.crop larger"]),
        (lambda: torch.empty(2**50), ["main memory is full", "data.workers=N", "data.cache=none"]),
        (lambda: np.empty(2**50), ["main memory is full", "data.cache=none"]),
        (
            lambda: loaded(),
            ["a loader's process has ended (DataLoader worker", "main memory ran out", "data.workers=N"],
        ),
        (lambda: loaded(no_space()), ["/runs/last.ckpt cannot be written", "make room", "hydra.run.dir"]),
        (lambda: loaded(PermissionError(13, "Permission denied", "it's")), ["it's: Permission denied: allow it"]),
        (lambda: __import__("no_such_package"), ["no_such_package is not installed: pip install"]),
        (
            lambda: OmegaConf.create({"a": "${oc.env:NO_SUCH}"}).a,
            ["configuration: KeyError raised", "Environment variable 'NO_SUCH'"],
        ),
    ],
)
def test_what_libraries_raise_is_told_in_a_line_with_its_cure(work, said):
    line = str(user_error(raised(work)))
    assert "\n" not in line
    assert len(line) < 800
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(CUDA),
            ["optimizer.accumulate=2", "model.activation_checkpointing=true", "data.crop", "20.00 MiB"],
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), ["the GPU's memory is full"]),
        (MemoryError(), ["main memory is full"]),
        (RuntimeError(BUS + "shared memory."), ["/dev/shm", "data.workers=N"]),
        (RuntimeError(SHM), ["/dev/shm", "--shm-size"]),
        (RuntimeError("received 0 items of ancdata"), ["/dev/shm"]),
        (OSError(24, "Too many open files"), ["ulimit -n", "data.workers"]),
        (BlockingIOError(11, "Resource temporarily unavailable"), ["ulimit -u", "data.workers"]),
        (RuntimeError("can't start new thread"), ["data.workers"]),
        (RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly"), ["data.workers=N", "resume=last"]),
        (OSError(2, "No such file or directory", "/proc/run"), ["/proc/run: No such file", "hydra.run.dir"]),
        (OSError(30, "Read-only file system", "/mnt/run"), ["/mnt/run: Read-only file system", "hydra.run.dir"]),
        (OSError(122, "Disk quota exceeded", "/home/run"), ["/home/run cannot be written", "make room"]),
        (no_space(), ["/runs/last.ckpt cannot be written", "UDA_SEG_CACHE"]),
        (OSError(28, "No space left on device"), ["a file cannot be written ([Errno 28] No space left on device)"]),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), ["make room"]),
        (OSError(5, "Input/output error", "/mnt/x.png"), ["/mnt/x.png: Input/output error", "does not answer"]),
        (wandb.errors.UsageError(WANDB_KEY), ["logger.mode=offline", "wandb login"]),
        (wandb.errors.CommError(WANDB_NET), ["W&B: Run initialization has timed out", "logger.mode=offline"]),
        (RuntimeError("You set `--ntasks=2` in your SLURM bash script, but"), ["srun --nodes=N --ntasks-per-node=D"]),
        (
            torch.distributed.DistNetworkError("The client socket has timed out after 1s"),
            ["MASTER_ADDR", "trainer.tim"],
        ),
        (RuntimeError(GLOO), ["the ranks cannot communicate", "trainer.timeout"]),
        (RuntimeError("CUDA error: no kernel image is available for execution"), ["build of torch", "trainer=cpu"]),
        (RuntimeError("adaptive_max_pool2d does not have a deterministic implementation"), ["deterministic=warn"]),
        (RuntimeError("set CUBLAS_WORKSPACE_CONFIG=:4096:8"), ["CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"]),
    ],
)
def test_what_needs_another_machine_is_told_by_its_words(error, said):
    line = str(user_error(error))
    assert "\n" not in line
    for part in said:
        assert part in line


def test_a_rank_that_hears_no_other_is_no_cause():
    assert isinstance(user_error(RuntimeError(GLOO)), RankLost)
    assert not isinstance(user_error(RuntimeError(SHM)), RankLost)


def test_the_cause_below_another_error_is_found():
    outer = RuntimeError("Error in call to target")
    outer.__cause__ = torch.OutOfMemoryError(CUDA)
    assert "the GPU's memory is full" in str(user_error(outer))
    outer.__cause__ = UserError("the cause")
    assert str(user_error(outer)) == "the cause"


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError("d"), AssertionError(), RuntimeError("shared memory")]
)
def test_what_nobody_foresaw_keeps_its_frames(error, tmp_path, capsys):
    assert user_error(error) is None
    line = str(told(raised(lambda: (_ for _ in ()).throw(error)), tmp_path))
    assert "\n" not in line
    assert line.startswith(type(error).__name__)
    assert f"its traceback is in {tmp_path / LOG}" in line
    assert "HYDRA_FULL_ERROR=1" in line
    assert "Traceback" in (tmp_path / LOG).read_text()
    told(error, tmp_path)
    assert (tmp_path / LOG).read_text().count("python ") == 2  # of both
    assert capsys.readouterr().err == ""
    told(error, tmp_path, loud=True)
    assert type(error).__name__ in capsys.readouterr().err


def test_frames_go_elsewhere_where_the_folder_takes_none(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    assert f"in {tmp_path}/uda_seg-" in str(told(KeyError("x"), tmp_path / "file"))


def test_output_that_nobody_reads_and_names_that_are_no_text_end_nothing(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w", encoding="ascii"))
    outlive_readers()
    outlive_readers()
    print("caf\udce9.png ±", flush=True)
    assert os.read(read, 100) == b"caf\\udce9.png \\xb1\n"
    os.close(read)
    print("to nobody", flush=True)
    log = logging.StreamHandler(sys.stdout)
    log.emit(logging.makeLogRecord({"msg": "to nobody"}))
    sys.stdout.close()


# ---------------------------------------------------------------------- through the commands


@pytest.fixture
def failing(monkeypatch):
    """`failing(work)`: in the second step of source-only training `work` is done."""

    def failing(work) -> None:
        losses = SourceOnly.losses

        def instead(self, batch):
            if self.trainer.global_step == 1:
                work()
            return losses(self, batch)

        monkeypatch.setattr(SourceOnly, "losses", instead)

    return failing


def division() -> float:
    return 1 / int("0")


def test_an_error_in_training_is_a_line_and_a_file(cli, camvid, failing, tmp_path, monkeypatch):
    failing(division)
    given = (*small_run(camvid), "method=source_only", "hydra.run.dir=run")
    said = cli(train.main, *given).error
    assert said.startswith("error: ZeroDivisionError: division by zero; ")
    assert f"{tmp_path / 'run' / LOG}" in said
    assert "in division" in (tmp_path / "run" / LOG).read_text()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    finished = cli(train.main, *given, "overwrite=true")
    assert finished.code == 1
    assert "in division" in finished.err
    assert finished.err.count("error: ZeroDivisionError") == 1
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_known_error_in_training_is_a_line(cli, camvid, failing):
    failing(lambda: (_ for _ in ()).throw(torch.OutOfMemoryError(CUDA)))
    said = cli(train.main, *small_run(camvid), "method=source_only").error
    assert "model.activation_checkpointing=true" in said
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_job_of_a_sweep_that_fails_so_leaves_no_frames_in_the_log(cli, camvid, failing, tmp_path):
    failing(division)
    finished = cli(train.main, "-m", *small_run(camvid), "method=source_only", "seed=0,1", "hydra.sweep.dir=sweep")
    assert finished.error.startswith("error: 2 job(s) failed: ")
    assert len(list((tmp_path / "sweep").rglob(LOG))) == 2


def test_ctrl_c_saves_the_run_after_the_step(cli, camvid, failing, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    failing(lambda: os.kill(os.getpid(), signal.SIGINT))
    finished = cli(train.main, *small_run(camvid), "method=source_only", "hydra.run.dir=run")
    assert finished.code == 130
    assert "Traceback" not in finished.err + finished.out
    assert "stopped by SIGINT after step 2 and saved its state; continue with resume=last" in finished.err
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_does_not_wait(cli, camvid, failing, monkeypatch):
    monkeypatch.setattr("uda_seg.callbacks.stop.ONE_KEY_S", -1.0)
    failing(lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    finished = cli(train.main, *small_run(camvid), "method=source_only")
    assert finished.code == 130
    assert re.fullmatch(
        r"interrupted: .*/seed0/checkpoints/last.ckpt is saved, continue with resume=last", last_line(finished)
    )


def last_line(finished) -> str:
    return finished.err.splitlines()[-1]


def test_ctrl_c_before_training_is_a_line(cli, camvid, monkeypatch):
    monkeypatch.setattr(train, "build_data", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    finished = cli(train.main, *small_run(camvid), "method=source_only")
    assert (finished.code, finished.err) == (130, "interrupted\n")


def test_a_folder_that_cannot_be_made_is_said(cli, camvid):
    (cli.folder / "file").touch()
    said = cli(train.main, *small_run(camvid), "method=source_only", "hydra.run.dir=file/run").error
    assert "file/run: Not a directory" in said or "file: Not a directory" in said
    assert "hydra.run.dir" in said


@pytest.fixture
def with_timm(cli, camvid, monkeypatch):
    """What training says of a timm encoder before its first step."""
    monkeypatch.setattr(SourceOnly, "losses", lambda *_: pytest.fail("a step was begun"))

    def with_timm(name: str, *more: str) -> str:
        small = [o for o in small_run(camvid) if not o.startswith("model")]
        network = ["model=timm", f"model.encoder.name={name}", "model.head.width=4", "pretrained=null"]
        return cli(train.main, *small, *network, "method=source_only", *more).error

    return with_timm


@pytest.mark.parametrize("given", [["data.source_batch=1", "data.target_batch=1"], ["optimizer.accumulate=2"]])
def test_too_few_values_for_batch_norm_are_told_before_training(given, with_timm):
    assert "normalisation has a single value of a channel to work with (a map of [1, " in with_timm("resnet10t", *given)


def test_an_image_that_the_encoder_refuses_is_told_before_training(with_timm):
    said = with_timm("test_maxvit", "data.crop=[32,32]")
    assert "does not accept images of this size (height (8) must be divisible by window (5))" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu"),
        ("trainer.accelerator=mps", "no GPU of Apple's"),
        ("trainer.accelerator=cuda", "this machine has no GPU"),
        ("trainer.devices=[0,1]", "numbers of GPUs, and this run is on none: give how many processes"),
        ("trainer.devices=-2", "is no number of devices"),
        ("trainer.devices=100000", "trainer.devices=100000: so many processes for"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_hardware_that_is_not_there(given, said, cli, camvid):
    assert said in cli(train.main, *small_run(camvid), "trainer.accelerator=auto", "method=source_only", given).error


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_all_devices_of_a_cpu_are_one(cli, camvid):
    given = ["trainer.accelerator=auto", "trainer.devices=-1", "method=source_only", "trainer.max_steps=1"]
    done = cli(train.main, *small_run(camvid), *given, "hydra.run.dir=run")
    assert done.code == 0, done
    checkpoint = f"checkpoint={cli.folder / 'run/checkpoints/last.ckpt'}"
    assert "this machine has no GPU" in cli(evaluate.main, checkpoint, "trainer.accelerator=gpu").error


@pytest.mark.slow
def test_wandb_without_a_key_is_a_line_and_the_run_is_kept(camvid, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = ("method=source_only", "logger=wandb", "hydra.run.dir=run")
    done = in_process_of_its_own(tmp_path, "uda_seg.train", *small_run(camvid), *run)
    assert done.code == 0, done
    [line] = [line for line in (done.out + done.err).splitlines() if "logger.mode=offline" in line]
    assert "wandb login" in line
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert [*(tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")]


@pytest.mark.slow
def test_output_that_nobody_reads_any_more_ends_nothing(camvid, tmp_path):
    script = f"{sys.executable} -m uda_seg.train method=source_only {' '.join(small_run(camvid))} hydra.run.dir=run"
    pipe = f"set -o pipefail; ({script}) 2>&1 | head -1"
    assert os.waitstatus_to_exitcode(os.system(f"cd {tmp_path} && bash -c '{pipe}'")) == 0
    assert (tmp_path / "run/metrics.json").is_file()
