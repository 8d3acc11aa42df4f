"""Devices of this machine that `trainer` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from uda_seg.config.settings import TrainerSettings
from uda_seg.data.parallel import cores
from uda_seg.errors import UserError

MOST_RANKS = 16  # processes that a CPU with fewer cores may be asked to start, to try something out


def on_gpu(settings: TrainerSettings) -> bool:
    """Return whether `trainer.accelerator` resolves to CUDA here, asking the driver without creating a context."""
    return settings.accelerator in ("gpu", "cuda") or (settings.accelerator == "auto" and torch.cuda.device_count() > 0)


def local_ranks(settings: TrainerSettings) -> int:
    """Return the number of ranks on this machine, one per device.

    Raises:
        UserError: missing devices, or an option that needs other devices.
    """
    chosen = devices(settings)
    return chosen if isinstance(chosen, int) else len(chosen)


def devices(settings: TrainerSettings) -> int | list[int]:
    """Return Lightning's `devices` on this machine: a number, or the indices of selected GPUs.

    Raises:
        UserError: missing devices, or an option that needs other devices.
    """
    gpus, cuda = torch.cuda.device_count(), on_gpu(settings)
    if cuda and gpus == 0:
        raise UserError(f"trainer.accelerator={settings.accelerator}, but this machine has no GPU: use trainer=cpu")
    if settings.accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("trainer.accelerator=mps, but this machine has no GPU of Apple's: use trainer=cpu")
    chosen = _devices(settings.devices, gpus if cuda else 1)
    if cuda and (beyond := [device for device in chosen if device >= gpus]):
        raise UserError(
            f"trainer.devices={settings.devices}: this machine has {gpus} GPU(s), none is number {beyond[0]}"
        )
    if not cuda and not isinstance(chosen, range):
        raise UserError(
            f"trainer.devices={settings.devices} are numbers of GPUs, and this run is on none: give how many processes "
            f"shall train, trainer.devices={len(chosen)}"
        )
    if not cuda and len(chosen) > (most := max(MOST_RANKS, cores())):
        raise UserError(
            f"trainer.devices={settings.devices}: so many processes for {cores()} cores: give at most {most}"
        )
    if settings.sync_batchnorm and not cuda:
        raise UserError("trainer.sync_batchnorm=true needs GPUs: leave it out on a CPU")
    return len(chosen) if isinstance(chosen, range) else list(chosen)


def one_device(settings: TrainerSettings) -> torch.device:
    """Return the device of a command that uses a single one.

    Raises:
        UserError: it does not exist.
    """
    chosen = devices(settings)
    if on_gpu(settings):
        return torch.device("cuda", chosen[0] if isinstance(chosen, list) else 0)
    return torch.device("mps" if settings.accelerator == "mps" else "cpu")


def _devices(asked: Any, there: int) -> Sequence[int]:
    """Resolve `trainer.devices` (auto, -1, a number, or a list of indices) to indices."""
    try:
        if asked in ("auto", -1, "-1"):
            return range(there)
        if isinstance(asked, int | str) and "," not in str(asked):
            numbers: Sequence[int] = range(int(asked))
        else:
            numbers = [int(number) for number in (asked.split(",") if isinstance(asked, str) else asked)]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers) or isinstance(asked, bool):
        raise UserError(f"trainer.devices={asked} is no number of devices: give a number, a list of them, or auto")
    return numbers
