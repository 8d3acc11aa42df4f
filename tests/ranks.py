"""Several gloo processes that train together, forked from this one, so that none has to import anything again."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch._dynamo  # DistributedDataParallel imports it: here, once, and not in every rank
import torch.distributed as dist
from torch import Tensor


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_ranks(world: int, work: Callable[..., Any], *arguments: Any, seconds: float = 300) -> list[Any]:
    """What `work(*arguments)` returns on each of `world` processes, in the environment that Lightning reads ranks from.

    A rank that raises or hangs fails the test, and the others end with it.
    """
    context, port = multiprocessing.get_context("fork"), free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    ranks = [
        context.Process(target=_rank, args=(rank, world, port, pipes[rank][1], work, arguments), daemon=True)
        for rank in range(world)
    ]
    try:
        for process in ranks:
            process.start()
        results = []
        for rank, (answer, _) in enumerate(pipes):
            assert answer.poll(seconds), f"rank {rank} did not answer in {seconds} s"
            failed, result = torch.load(io.BytesIO(answer.recv_bytes()), weights_only=False)
            assert not failed, f"rank {rank}:\n{result}"
            results.append(result)
        return results
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _rank(rank: int, world: int, port: int, answer: Connection, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        message = (False, work(*arguments))
    except BaseException:
        message = (True, traceback.format_exc())
    said = io.BytesIO()  # tensors sent as they are would have to be fetched while this process lives
    torch.save(message, said)
    answer.send_bytes(said.getvalue())
    if dist.is_initialized():
        dist.destroy_process_group()
    os._exit(0)


class SharedDraws:
    """`torch.rand` and `torch.randperm` that draw for the images of all ranks and give each rank those of its own.

    A dimension as long as one of `images`, the numbers of images that a rank has of a domain, runs over images; image b
    of rank r is number b * world + r of all, as in the streams that ranks read. Draws without such a dimension are the
    batch's: all ranks get the same.
    """

    def __init__(self, images: set[int], rank: int, world: int) -> None:
        self.images, self.rank, self.world = images, rank, world
        self.calls = 0

    def generator(self) -> torch.Generator:
        self.calls += 1
        return torch.Generator().manual_seed(self.calls)

    def rand(self, *shape: Any, **_: Any) -> Tensor:
        size = list(shape[0] if shape and not isinstance(shape[0], int) else shape)
        over_images = next((i for i, length in enumerate(size) if length in self.images), None)
        if over_images is None:
            return RAND(size, generator=self.generator())
        size[over_images] *= self.world
        drawn = RAND(size, generator=self.generator())
        return drawn.index_select(over_images, torch.arange(self.rank, size[over_images], self.world))

    def randperm(self, number: int, **_: Any) -> Tensor:
        return RANDPERM(number, generator=self.generator())

    def install(self) -> None:
        """For good: only in a process of its own."""
        torch.rand, torch.randperm = self.rand, self.randperm


RAND, RANDPERM = torch.rand, torch.randperm
