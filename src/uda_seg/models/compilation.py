"""`model.compile=true`: the network's parts through `torch.compile`, in place, so that its state keeps its names.

What runs in every step is compiled: the encoder and the heads' methods, each as one graph. The sizes of a step are few
(crops, HRDA's two resolutions, the teacher's sliding windows), so each gets a graph of its own, and none has to be
general. What runs between steps, validation above all, runs as it is written: there every image size would have
to be compiled for a few images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from uda_seg.errors import UserError
from uda_seg.models.segmentor import Backend, Head, Segmentor

# Graphs of one piece of code: sizes times batch-norm modes times what the student and the teacher differ in.
GRAPHS = 64


def check_compiler(backend: Backend, device: torch.device) -> None:
    """Compile a sum, before minutes of work rest on it.

    Raises:
        UserError: it cannot be done here: no C++ compiler for a CPU, no Triton for a GPU.
    """
    try:
        torch.compile(_sum, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds, most of them private
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"model.compile=true: {backend} does not work on this machine ({reason}): install g++ (CPU) or "
            "Triton (GPU), or leave it out"
        ) from error


def _sum(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).sum()


def compile_network(network: Segmentor) -> None:
    """Compile a segmentor's parts in place, if it is to be; copies that are made of it later are not compiled.

    Args:
        network: with all of its heads attached.
    """
    if network.backend is None:
        return
    compile_module(network.encoder, network.backend)
    for name, head in network.heads.items():
        parts = [module for module in head.modules() if isinstance(module, Head)]
        for part in parts:
            part.compile_parts(backend=network.backend, dynamic=False)
        if not parts:
            compile_module(network.heads[name], network.backend)


def compile_module(module: nn.Module, backend: Backend) -> None:
    """Compile a module's `forward` in place, a graph for each size."""
    from torch import _dynamo

    _dynamo.config.recompile_limit = max(GRAPHS, _dynamo.config.recompile_limit)
    # It would cut graphs where DDP all-reduces during the backward pass; ours does so once, after it.
    _dynamo.config.optimize_ddp = False
    module.compile(backend=backend, dynamic=False)


@contextmanager
def as_written(network: Segmentor) -> Iterator[None]:
    """Within the block nothing is compiled and nothing compiled runs."""
    if network.backend is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
