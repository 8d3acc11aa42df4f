"""`model.compile=true`: compile the network's parts in place with `torch.compile`; names in the state dict stay.

The encoder and the heads' methods, which run in every step, are compiled as one graph each. A step has few input sizes
(crops, HRDA's two resolutions, the teacher's sliding windows), so every size gets a static graph. Validation and all
else between steps runs eagerly, because it would compile every image size for a few images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from uda_seg.errors import UserError
from uda_seg.models.segmentor import Backend, Head, Segmentor

# Limit of graphs per code object: sizes x batch-norm modes x differences between student and teacher.
GRAPHS = 64


def check_compiler(backend: Backend, device: torch.device) -> None:
    """Compile a trivial function, to find a missing compiler before minutes of work.

    Raises:
        UserError: compilation fails: no C++ compiler for a CPU, no Triton for a GPU.
    """
    try:
        torch.compile(_sum, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # of many types, most of them private
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"model.compile=true: {backend} does not work on this machine ({reason}): install g++ (CPU) or "
            "Triton (GPU), or leave it out"
        ) from error


def _sum(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).sum()


def compile_network(network: Segmentor) -> None:
    """Compile a segmentor's parts in place if its `compile` is set; later copies are not compiled.

    Args:
        network: a segmentor with all heads attached.
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
    """Compile a module's `forward` in place, one graph per input size."""
    from torch import _dynamo

    _dynamo.config.recompile_limit = max(GRAPHS, _dynamo.config.recompile_limit)
    # This option splits graphs where DDP all-reduces during the backward pass; we all-reduce once, after it.
    _dynamo.config.optimize_ddp = False
    module.compile(backend=backend, dynamic=False)


@contextmanager
def as_written(network: Segmentor) -> Iterator[None]:
    """Run everything within the block eagerly, without compiling."""
    if network.backend is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
