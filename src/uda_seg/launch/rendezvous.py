"""Rendezvous of ranks: those that torchrun or SLURM's srun has started, and the variables of those started here."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.config.settings import TrainerSettings
from uda_seg.errors import UserError

PORTS = 2**16


def started_by_others(wanted: int) -> bool:
    """Return whether this process is a rank started by torchrun or SLURM's srun.

    Args:
        wanted: number of ranks that `trainer` requires, on all machines.

    Raises:
        UserError: another number of ranks was started, or ranks of a sweep, whose jobs each need their own ranks.
    """
    if TorchElasticEnvironment.detect():
        started, cure = _number("WORLD_SIZE", 1), "torchrun --nnodes=N --nproc-per-node=D"
        _check_numbers({"RANK": started, "LOCAL_RANK": started, "MASTER_PORT": PORTS})
    elif SLURMEnvironment.detect():
        started, cure = _number("SLURM_NTASKS", 1), "srun --nodes=N --ntasks-per-node=D"
        if started == 1 < wanted:  # a script's single task, which may start the others
            return False
    else:
        if "LOCAL_RANK" in os.environ:
            _check_numbers({"WORLD_SIZE": None, "NODE_RANK": None, "LOCAL_RANK": None, "MASTER_PORT": PORTS})
        return "LOCAL_RANK" in os.environ
    if started != wanted:
        raise UserError(
            f"{started} ranks were started, but trainer.devices x trainer.num_nodes is {wanted}: start them with {cure}"
        )
    if not TorchElasticEnvironment.detect():
        _check_srun(started, cure)
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep and started > 1 and "SUBMITIT_EXECUTOR" not in os.environ:
        raise UserError(
            f"a multirun starts each job's ranks itself: call it without {cure.split()[0]}, or use sweep=slurm"
        )
    return True


def _number(name: str, least: int, below: int | None = None) -> int:
    """Read an integer from the environment.

    Raises:
        UserError: not an integer, or out of range.
    """
    said = os.environ[name]
    if not re.fullmatch(r"\d{1,9}", said) or int(said) < least or (below is not None and int(said) >= below):
        upper = "" if below is None else f" to {below - 1}"
        raise UserError(f"{name}={said} in the environment is no number from {least}{upper}: correct it, or unset it")
    return int(said)


def _check_numbers(below: Mapping[str, int | None]) -> None:
    """Raise UserError if one of these variables is set to anything but an integer below its bound; ports start at 1."""
    for name, bound in below.items():
        if name in os.environ:
            _number(name, 1 if name in ("MASTER_PORT", "WORLD_SIZE") else 0, bound)


def _check_srun(started: int, cure: str) -> None:
    """Raise UserError if SLURM allocated several tasks but this process was not started by `srun`."""
    numbers = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
    if started == 1:  # as in a shell of `salloc`
        os.environ.update({name: "0" for name in numbers if name not in os.environ})
    elif not os.environ.keys() >= {*numbers, "SLURM_STEP_ID"}:
        raise UserError(
            f"SLURM_NTASKS={started} indicates that SLURM starts the ranks, but this process is not one of its tasks: "
            f"call the command with {cure}, or unset SLURM_NTASKS"
        )
    _check_numbers({**dict.fromkeys(numbers, started), "MASTER_PORT": PORTS})


def this_rank() -> int:
    """Return the rank of this process; 0 for a single process or the one that starts the ranks."""
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]  # set when Lightning is imported


def first_machine(settings: TrainerSettings) -> bool:
    """Return whether this is the first machine, which reports for all of them."""
    return settings.num_nodes == 1 or os.environ.get("NODE_RANK", "0") == "0"


def environment(settings: TrainerSettings, ranks: int) -> dict[str, str]:
    """Build the rendezvous variables that PyTorch and Lightning read.

    Raises:
        UserError: several machines without a rendezvous address, or an occupied port.
    """
    if settings.num_nodes > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if missing:
            raise UserError(
                f"trainer.num_nodes={settings.num_nodes} needs {', '.join(missing)} in the environment: the same "
                "address and port on all machines, and each machine's own number from 0 on; or use trainer=slurm"
            )
    _check_numbers({"MASTER_PORT": PORTS})
    node, address = "0", "127.0.0.1"  # for a single machine, whatever a cluster has set
    if settings.num_nodes > 1:
        node, address = str(_number("NODE_RANK", 0, settings.num_nodes)), os.environ["MASTER_ADDR"]
        _check_address(address)
    port = os.environ.get("MASTER_PORT")
    if port is None:
        port = str(_free_port())
    elif node == "0":
        _check_port(port)
    world = str(ranks * settings.num_nodes)
    return {"MASTER_ADDR": address, "MASTER_PORT": port, "NODE_RANK": node, "WORLD_SIZE": world}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _check_address(address: str) -> None:
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"MASTER_ADDR={address} is not known here ({error}): give the name or address of the machine with "
            "NODE_RANK=0, as the others reach it"
        ) from error


def _check_port(port: str) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # despite TIME_WAIT of an earlier run
            probe.bind(("", int(port)))
    except OSError as error:
        raise UserError(f"MASTER_PORT={port}: {error}; choose another port, or unset it and one is chosen") from error
