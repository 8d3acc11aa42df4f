"""Training on several ranks: what they compute together, and what becomes of a run when one of them stops."""

from __future__ import annotations

import functools
import math
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from test_train import assert_same_training, checkpoint, metrics
from torch import Tensor, nn
from torch.utils.data import DataLoader

from command_line import NETWORK, configured, forked, in_process_of_its_own, small_run
from numerics import LEFT, assert_same_sums, in_float64
from ranks import SharedDraws, free_port, on_ranks
from uda_seg import train as command
from uda_seg.callbacks.ema import TeacherEMA
from uda_seg.config.schema import CONF
from uda_seg.config.settings import Config, TrainerSettings
from uda_seg.data.batch import DomainBatch
from uda_seg.data.sampling import positions
from uda_seg.errors import UserError
from uda_seg.launch import ranks as launch
from uda_seg.launch.ranks import on_all_ranks
from uda_seg.methods.options.self_training import SelfTrainingOptions
from uda_seg.methods.options.source_only import SourceOnlyOptions
from uda_seg.methods.self_training import SelfTraining
from uda_seg.methods.settings import OptimizerSettings, Plan, TeacherSettings
from uda_seg.methods.source_only import SourceOnly
from uda_seg.methods.step import Loss, StepModule
from uda_seg.models.small import ResidualEncoder
from uda_seg.runs import build
from uda_seg.runs.build import instantiate_module, strategy

Batches = list[dict[str, DomainBatch]]

METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
# Options with batch-level quantities of their own.
VARIANTS = {
    "dacs": ["mix_classes=batch"],
    "bicl": [
        "_target_=uda_seg.methods.released.bicl.ReleasedBiCL", "entropy_weight=0.4", "transfer_absent=masked",
        "dynamic_threshold=0.06",
    ],
    "corda": ["depth_weight=batch_mean"],
    "t2sda_mic": ["proxy=source_iou", "prototype_momentum=0.5", "translated_weight=0.5"],
}  # fmt: skip
# All that these do together on ranks is in the others: source_only's loss, and of lcmsm distance, masks and mixes.
IN_OTHERS = {"adabn", "adabn_strong", "dacs", "daformer", "mic", "source_only_strong", "t2sda_dacs", "t2sda_mic"}
CASES = [
    *(pytest.param(name, [], id=name, marks=[pytest.mark.slow] * (name in IN_OTHERS)) for name in METHODS),
    *(pytest.param(name, options, id=f"{name} otherwise") for name, options in VARIANTS.items()),
]
# What makes every term count in two steps of a tiny network: no class fills its cells.
DISTANCE = ["feature_distance=0.5", "feature_distance_ratio=0.05"]
PULL = ["queries=4", "negatives=8", "proxy_momentum=0.5", "fourier_beta=0.1"]
SMALL = {
    "bicl": ["warmup=0", "dynamic_threshold=0.06", "calibration_momentum=0.6", "temperature=0.5"],
    "t2sda_dacs": PULL,
    "t2sda": [*PULL, *DISTANCE],
    "t2sda_mic": [*PULL, *DISTANCE],
    "corda": ["source_depth=1", "mixed_depth=1", "depth_start=1"],
    **dict.fromkeys(("daformer", "mic", "lcmsm"), DISTANCE),
}
RANK_IMAGES = {"source": 3, "target": 5}  # no other dimension of a draw is as long


def without_batch_norm(module: nn.Module) -> None:
    """Group norm in the place of batch norm, and no dropout: an image's forward does not depend on the others."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        elif isinstance(child, nn.Dropout2d):
            child.p = 0.0
        without_batch_norm(child)


def share_of(batch: dict[str, DomainBatch], rank: int, world: int) -> dict[str, DomainBatch]:
    """Every `world`-th image from `rank` on: how ranks share a domain's stream."""
    return {name: domain._each(lambda tensor: tensor[rank::world].clone()) for name, domain in batch.items()}


def fit_on_ranks(module: StepModule, batches: Batches, world: int) -> None:
    """A step on each of this rank's batches."""
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy=strategy(TrainerSettings(accelerator="cpu", devices=world)),
        max_steps=len(batches), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=[TeacherEMA()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))


def trained(config: Config, plan: Plan, batches: Batches) -> tuple[dict[str, Tensor], dict[str, float]]:
    """State and last logged values of this rank after a step on each batch; all draws are those of all ranks.

    In float64: what is left between the ranks and the joined batch is then not the order of sums.
    """
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ResidualEncoder.pretrained = True  # the feature distance is on
    with in_float64():
        torch.manual_seed(0)
        module = instantiate_module(config, plan)
        module.setup("fit")
        module.double()  # the class text comes from a file
        without_batch_norm(module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("conv_seg.weight"):  # it starts near zero, and with it all other gradients
                    parameter.mul_(30)
        if getattr(module, "reference", None) is not None:
            without_batch_norm(module.reference.encoder)
        SharedDraws({len(domain.image) // world for domain in batches[0].values()}, rank, world).install()
        fit_on_ranks(module, [share_of(batch, rank, world) for batch in batches], world)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}, module.recorded


def batches_for(method: str, make_batch) -> Batches:
    """Two batches for two ranks, with what the method reads, and classes shared unequally between the ranks."""
    batches = []
    for seed in range(2):
        domains = {
            n: make_batch(seed, batch=2 * images, depth=method == "corda")[n] for n, images in RANK_IMAGES.items()
        }
        domains["source"].label[::2, :16] = 255  # the first rank knows less
        if method == "bicl":
            pseudo = torch.cat([domains["source"].label, domains["source"].label])[: 2 * RANK_IMAGES["target"]]
            domains["target"].pseudo = pseudo.roll(1, 0)
            domains["target"].pseudo[:, :8] = 255
        batches.append(domains)
    return batches


@pytest.mark.parametrize(("method", "options"), CASES)
def test_two_ranks_train_as_one_process_with_the_joined_batch(method, options, make_plan, make_batch):
    plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=0.1))
    config = configured(*NETWORK, "pretrained=null", f"method={method}")
    config.method |= dict(OmegaConf.from_dotlist([*SMALL.get(method, []), *options]))
    batches = batches_for(method, make_batch)
    [(joined, logged)] = on_ranks(1, trained, config, plan, batches)
    ranks = on_ranks(2, trained, config, plan, batches)
    for state, recorded in ranks:
        assert state.keys() == joined.keys()
        for name, tensor in joined.items():
            assert_same_sums(state[name], tensor, name, LEFT)
        losses = {name: value for name, value in logged.items() if name.startswith("train/")}
        assert {name: recorded[name] for name in losses} == pytest.approx(losses, rel=1e-6, abs=1e-9)


def seen_statistics(make_segmentor, make_plan, batch, world: int) -> tuple[dict[str, Tensor], ...]:
    """Batch norm's buffers of this rank's network after one step, and what its own images alone would have left."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    module = SelfTraining(
        make_segmentor(), make_plan(teacher=TeacherSettings(alpha=0.9, batch_norm="train")), SelfTrainingOptions()
    )
    alone = {}

    def before_reduction(optimizer) -> None:
        alone.update({name: buffer.clone() for name, buffer in module.named_buffers()})
        StepModule.reduce_gradients(module, optimizer)

    module.reduce_gradients = before_reduction
    fit_on_ranks(module, [share_of(batch, rank, world)], world)
    return alone, {name: buffer.clone() for name, buffer in module.named_buffers()}


def test_after_a_step_all_ranks_have_the_mean_of_their_batch_norm_statistics(make_segmentor, make_plan, make_batch):
    ranks = on_ranks(2, seen_statistics, make_segmentor, make_plan, make_batch(batch=4), 2)
    (alone_0, first), (alone_1, second) = ranks
    running = [name for name in first if name.endswith(("running_mean", "running_var"))]
    assert {name.split(".")[0] for name in running} == {"segmentor", "teacher"}
    for name in running:
        torch.testing.assert_close(first[name], (alone_0[name] + alone_1[name]) / 2)
        assert torch.equal(first[name], second[name])
    assert any(not torch.equal(alone_0[name], alone_1[name]) for name in running)


def step_with_a_bad_loss(make_segmentor, make_plan, batch) -> tuple[str, bool]:
    """The error of a step in which rank 1 alone has an infinite loss, and whether the weights stayed."""
    rank = int(os.environ["LOCAL_RANK"])
    module = SourceOnly(make_segmentor(), make_plan(), SourceOnlyOptions())
    losses = module.losses

    def sometimes_bad(batch):
        for loss in losses(batch):
            # The gradient stays finite, so that only the flag can tell the other rank.
            yield Loss(loss.name, loss.value + (math.inf if rank == 1 else 0.0))

    module.losses = sometimes_bad
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(UserError) as raised:
        fit_on_ranks(module, [batch], 2)
    return str(raised.value), all(torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))


def test_a_bad_loss_on_one_rank_masks_the_step_of_all(make_segmentor, make_plan, make_batch):
    for said, kept in on_ranks(2, step_with_a_bad_loss, make_segmentor, make_plan, make_batch()):
        assert said.startswith("source/ce is not finite at step 0")
        assert kept


def test_ranks_read_what_one_process_would():
    """Image b of rank r is number b * world + r of the joined batch, in every step."""
    for step in range(3):
        joined = list(positions(step, 6))
        for rank in range(2):
            assert list(positions(step, 3, rank, 2)) == joined[rank::2]


# ---------------------------------------------------------------------- whole runs


def overrides_on(ranks: int, data: Path, steps: int = 4) -> list[str]:
    """Of a small run on CPU ranks."""
    run = [o for o in small_run(data, steps) if o != "trainer=cpu"]
    return [*run, "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}"]


@pytest.fixture(autouse=True)
def ranks_are_forked(monkeypatch):
    """From this process, which has imported everything already."""
    monkeypatch.setattr(launch, "START_METHOD", "fork")


@pytest.fixture
def train(camvid, tmp_path):
    """`train(folder, ranks, *overrides)`: what the command does once the command line is read."""

    def train(folder: str, ranks: int, *overrides: str) -> float:
        chosen = overrides_on(ranks, camvid) if ranks > 1 else small_run(camvid)
        return on_all_ranks(command.train)(configured(*chosen, *overrides), tmp_path / folder)

    return train


def counted(config: Config, data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """What a validation counts, by an untrained network: in all, and by image with their indices."""
    torch.manual_seed(0)
    module = build.build_module(config, loaders := build.build_data(config))
    trainer = build.new_trainer(config, data, 4, [], [])
    trainer.validate(module, datamodule=loaders, verbose=False)
    scores = module.scores["target"]
    assert scores.images is not None
    return scores.confusion, scores.images.confusion, torch.tensor(scores.images.ids)


def test_validation_on_several_ranks_counts_every_image_once(camvid):
    """Five images in batches of two: on three ranks, one has fewer than the others; on six, one has none."""

    def on(world: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        config = configured(*overrides_on(world, camvid), "method=source_only", "data.val_batch=2")
        return on_ranks(world, counted, config, camvid)

    [alone] = on(1)
    total, by_image, index = alone
    assert total.sum() > 0
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(by_image.sum(0), total)
    for found in (rank for world in (3, 6) for rank in on(world)):
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))


def test_two_ranks_label_a_round_as_one_process_does(train, tmp_path):
    labels = []
    for ranks in (1, 2):
        train(f"on{ranks}", ranks, "method=bicl", "method.warmup=0", "steps=1", "method.class_share=0.3")
        labels.append(np.load(tmp_path / f"on{ranks}" / "pseudo_labels" / "round_000.npy"))
    assert (labels[0] != 255).any()
    assert np.array_equal(*labels)


def test_stopping_and_going_on_changes_nothing_on_two_ranks(train, tmp_path, caplog):
    common = ("method=bicl", "steps=4", "method.warmup=0.25", "method.rounds=2", "data.rare_class.enabled=false")
    common = (*common, "optimizer.scale_lr=true", "optimizer.lr=0.001")

    def rate() -> float:
        return checkpoint(tmp_path / "parts")["optimizer_states"][0]["param_groups"][0]["base_lr"]

    train("whole", 2, *common)
    train("parts", 2, *common, "trainer.max_steps=2")
    train("parts", 2, *common, "resume=last")
    assert_same_training(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    assert metrics(tmp_path / "whole") | {"wall_s": 0} == metrics(tmp_path / "parts") | {"wall_s": 0}
    assert metrics(tmp_path / "whole")["source_images"] == 4 * 2 * 2
    assert rate() == 0.002
    train("parts", 1, *common, "steps=5", "resume=last")
    assert rate() == 0.001
    assert "differ from here on; the learning rate is 1 times optimizer.lr" in caplog.text
    assert "resumed with 2 source images per step instead of 4" in caplog.text
    assert "resumed on 1 rank(s) instead of 2" in caplog.text


@pytest.mark.parametrize("end", ["raise", "kill", pytest.param("stand still", marks=pytest.mark.slow)])
def test_a_rank_that_ends_stops_the_others_and_is_heard_once(end, cli, camvid, monkeypatch):
    losses = SourceOnly.losses

    def failing(self, batch):
        if self.global_rank == 1 and self.trainer.global_step == 1:
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if end == "stand still":
                os.kill(os.getpid(), signal.SIGSTOP)
            raise UserError("the disk of rank 1 is gone")
        return losses(self, batch)

    monkeypatch.setattr(SourceOnly, "losses", failing)
    started = time.perf_counter()
    timeout = 8 if end == "stand still" else 60
    said = cli(command.main, *overrides_on(2, camvid), "method=source_only", f"trainer.timeout={timeout}").error
    begins = {
        "raise": "the disk of rank 1 is gone",
        "kill": "rank 1 was killed",
        "stand still": "the ranks cannot communicate",
    }
    assert said.startswith(f"error: {begins[end]}")
    assert time.perf_counter() - started < 60


def test_jobs_of_a_sweep_have_ranks_of_their_own(cli, camvid, tmp_path):
    """The first fails, for want of depth; the others go on without it, and the table is written."""
    before = dict(os.environ)
    jobs = ["method=corda,source_only", "steps=1", "hydra.sweep.dir=sweep"]
    subdir = "hydra.sweep.subdir=${hydra:runtime.choices.method}"
    finished = cli(command.main, "-m", *overrides_on(2, camvid), *jobs, subdir)
    assert "1 job(s) failed: sweep/corda: " in finished.error
    assert "depth" in finished.error
    run = tmp_path / "sweep" / "source_only"
    assert metrics(run)["source_images"] == 2 * 2
    assert "global batch: 4 source and 0 target images per step" in (run / "train.log").read_text()
    assert (tmp_path / "sweep" / "table.md").read_text().count("\n| ") == 3
    changed = {name for name, value in os.environ.items() if before.get(name) != value}
    assert changed <= {"PYTORCH_NVML_BASED_CUDA_CHECK", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"}
    assert not torch.distributed.is_initialized()


def test_hardware_that_is_not_there(train, monkeypatch):
    def said(*more: str) -> str:
        with pytest.raises(UserError) as raised:
            train("run", 2, "method=source_only", *more)
        return str(raised.value)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "trainer.accelerator=gpu, but this machine has no GPU" in said("trainer.accelerator=gpu")
    assert "trainer.devices=none is no number of devices" in said("trainer.devices=none")
    assert "trainer.sync_batchnorm=true needs GPUs" in said("trainer.sync_batchnorm=true")
    assert "needs MASTER_ADDR, MASTER_PORT, NODE_RANK in the environment" in said("trainer.num_nodes=2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "this machine has 1 GPU(s), none is number 1" in said("trainer.accelerator=gpu")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        assert "Address already in use; choose another port" in said()
    for port in ("0", "65536", "http", "-1"):
        monkeypatch.setenv("MASTER_PORT", port)
        assert f"MASTER_PORT={port} in the environment is no number from 1 to 65535" in said()
    for name, value in {"MASTER_PORT": "29500", "MASTER_ADDR": "no such host", "NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "MASTER_ADDR=no such host is not known here" in said("trainer.num_nodes=2")
    monkeypatch.setenv("NODE_RANK", "2")
    assert "NODE_RANK=2 in the environment is no number from 0 to 1" in said("trainer.num_nodes=2")


def around(config: Config, folder: Path) -> dict[str, str | None]:
    """What a rank finds in its environment."""
    assert not SLURMEnvironment.detect()
    return {name: os.environ.get(name) for name in ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "WORLD_SIZE")}


def test_what_a_cluster_has_set_is_no_hindrance_to_ranks_of_one_machine(camvid, tmp_path, monkeypatch):
    """A batch script's own process is SLURM's one task, and other programs' variables are not meant for us."""
    for name, value in {"NODE_RANK": "1", "MASTER_ADDR": "elsewhere", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    found = on_all_ranks(around)(configured(*overrides_on(2, camvid)), tmp_path)
    assert found == {"LOCAL_RANK": "0", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}


STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("ranks", "environment", "said"),
    [
        (2, TORCHRUN, r"4 ranks were started, but trainer.devices x trainer.num_nodes is 2: .* torchrun --nnodes"),
        (1, TORCHRUN, "4 ranks were started, but trainer.devices x trainer.num_nodes is 1"),
        (2, {"SLURM_NTASKS": "4"}, "4 ranks were started, .* srun --nodes=N --ntasks-per-node=D"),
        (4, {"SLURM_NTASKS": "1", **TORCHRUN}, None),  # torchrun, once on each machine of SLURM's
        (4, {"SLURM_NTASKS": "4", **STEP}, None),
        (
            4,
            {"SLURM_NTASKS": "4"},
            "SLURM starts the ranks, but this process is not one of its tasks: .* srun --nodes=N",
        ),
        (1, {"SLURM_NTASKS": "1"}, None),  # in a shell that SLURM gave
        (
            4,
            {"SLURM_NTASKS": "4", **STEP, "SLURM_PROCID": "4"},
            "SLURM_PROCID=4 in the environment is no number from 0",
        ),
        (4, {"SLURM_NTASKS": "many"}, "SLURM_NTASKS=many in the environment is no number from 1"),
        (4, {**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment is no number from 1"),
        (4, {**TORCHRUN, "RANK": "-1"}, "RANK=-1 in the environment is no number from 0 to 3"),
        (4, {**TORCHRUN, "MASTER_PORT": "0"}, "MASTER_PORT=0 in the environment is no number from 1 to 65535"),
        (4, {"LOCAL_RANK": "x"}, "LOCAL_RANK=x in the environment is no number from 0"),
    ],
)
def test_ranks_of_others_are_those_that_were_asked_for(ranks, environment, said, camvid, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    job, config = on_all_ranks(lambda *_: "here"), configured(*overrides_on(ranks, camvid))
    if said is None:
        assert job(config, tmp_path) == "here"
        return
    with pytest.raises(UserError, match=said):
        job(config, tmp_path)


def test_ranks_of_torchrun_are_its_own_also_under_srun(camvid, tmp_path, monkeypatch):
    """Of both launchers torchrun, the inner one, has numbered them: srun's numbers are of machines."""
    for name, value in {**TORCHRUN, "LOCAL_RANK": "3", "RANK": "3", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    trainer = build.new_trainer(configured(*overrides_on(4, camvid)), tmp_path, 4, [], [])
    assert (trainer.world_size, trainer.local_rank) == (4, 3)


def test_a_sweep_is_not_started_by_every_rank(cli, camvid, monkeypatch, tmp_path):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    said = cli(command.main, "-m", *overrides_on(4, camvid), "method=dacs", "hydra.sweep.dir=sweep").error
    assert "a multirun starts each job's ranks itself: call it without torchrun, or use sweep=slurm" in said


def test_a_sweep_on_two_machines_is_summed_up_on_the_first(cli, camvid, monkeypatch, tmp_path):
    """The second machine's part alone: its ranks are replaced."""
    monkeypatch.setattr(launch.Ranks, "run", lambda *_: 0.5)
    sweep = ["-m", *overrides_on(1, camvid), "trainer.num_nodes=2", "method=dacs", "hydra.sweep.dir=sweep"]
    for name, value in {"NODE_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert cli(command.main, *sweep).code == 0
    assert not (tmp_path / "sweep" / "table.md").exists()


@pytest.mark.parametrize(
    ("ranks", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)]
)  # as they are called, and passed on
def test_a_signal_saves_the_run_and_ends_it(ranks, number, train, tmp_path):
    overrides = ("method=dacs", "steps=8", "callbacks.checkpoints=1")
    train("whole", ranks, *overrides)
    process = forked(functools.partial(train, "stopped", ranks, *overrides))
    log = tmp_path / "stopped" / "metrics.csv"
    while process.is_alive() and not log.exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert 0 < checkpoint(tmp_path / "stopped")["global_step"] < 8
    train("stopped", ranks, *overrides, "resume=last")
    assert_same_training(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "stopped"))


def as_slurm_task(train, port: int, stops: bool, run: Path, **more: str) -> int:
    """A run as `srun` starts it; SLURM's signal comes in its second step. No rank ends before the result is written."""
    write = command.write_json
    command.write_json = lambda *given: (time.sleep(0.5), write(*given))  # in a process of its own
    rank = os.environ.pop("LOCAL_RANK")
    for name in ("NODE_RANK", "WORLD_SIZE", "MASTER_PORT"):
        del os.environ[name]
    os.environ |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_JOB_ID": "123"}
    os.environ |= {"SLURM_STEP_ID": "0", "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"}
    os.environ |= {"MASTER_PORT": str(port), **more}
    rank_zero_only.rank = int(rank)
    losses = SourceOnly.losses

    def signalled(self, batch):
        if stops and self.trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return losses(self, batch)

    SourceOnly.losses = signalled  # in a process of its own
    try:
        train("run", "method=source_only", "trainer=slurm", "trainer.accelerator=cpu")
    except SystemExit as end:
        return int(end.code)
    return 0 if (run / "metrics.json").exists() else 1


def test_slurm_saves_a_run_that_it_stops_and_goes_on_with_it(camvid, tmp_path, monkeypatch):
    chosen = [o for o in small_run(camvid) if not o.startswith("trainer")]

    def train(folder: str, *overrides: str) -> float:
        return on_all_ranks(command.train)(configured(*chosen, *overrides), tmp_path / folder)

    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    configured(*chosen, "method=source_only", "trainer=slurm")  # composed here, and not by every rank
    assert on_ranks(2, as_slurm_task, train, free_port(), True, tmp_path / "run") == [128 + signal.SIGUSR1] * 2
    assert (tmp_path / "asked").read_text() == "requeue 123\n"
    assert checkpoint(tmp_path / "run")["global_step"] == 2
    again = functools.partial(as_slurm_task, SLURM_RESTART_COUNT="1")
    assert on_ranks(2, again, train, free_port(), False, tmp_path / "run") == [0, 0]
    assert metrics(tmp_path / "run")["step"] == 4


@pytest.mark.slow  # half a minute of starting processes; what it joins is tested piece by piece
def test_the_command_itself(camvid, tmp_path):
    """As a person starts it, twice: ranks from a fork server, in a sweep."""
    jobs = ["-m", *overrides_on(2, camvid), "method=source_only,dacs", "steps=1", "callbacks.progress=true"]
    finished = in_process_of_its_own(tmp_path, "uda_seg.train", *jobs)
    assert finished.code == 0, finished.err
    runs = sorted(tmp_path.glob("outputs/streets2camvid/*/seed0"))
    assert [run.parent.name.split("_daformer")[0] for run in runs] == ["dacs", "source_only"]
    assert all(metrics(run)["source_images"] == 2 * 2 for run in runs)
    said = [line for line in finished.err.splitlines() if line.startswith("step 1/1")]
    assert len(said) == 2, "one rank of each job speaks"
    assert "Warning" not in finished.err
    assert not (tmp_path / "multirun").exists()
