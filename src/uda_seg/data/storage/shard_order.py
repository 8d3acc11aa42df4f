"""The order of images in shards: each rank reads its own, a few at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.sampling import Draw, Pick, generator
from uda_seg.errors import UserError


@dataclass(frozen=True)
class ShardOrder:
    """Passes over the shards; each rank has its own shards and shuffles the images of `window` shards together.

    Position p belongs to rank p mod W (`uda_seg.data.sampling`), which reads every W-th shard of an order drawn once
    from the seed: no two ranks train on the same shard, and each machine's cache serves all passes. Every pass visits
    the rank's shards in a new order, `window` at a time, and the images of a window in random order, so that at most
    `window` shards are open. A rank whose shards contain fewer images starts its next pass earlier.

    Args:
        sizes: number of images of each shard.
        seed: seed of the run.
        domain: id of the domain.
        window: number of shards shuffled together.
    """

    sizes: tuple[int, ...]
    seed: int
    domain: int
    window: int

    def pick(self, position: int, world_size: int) -> Pick:
        """Return the image at `position` of the stream shared by `world_size` ranks.

        Raises:
            UserError: there are fewer shards than ranks.
        """
        local, rank = divmod(position, world_size)
        number, place = divmod(local, _own_shards(self, rank, world_size)[1])
        ends = _pass(self, rank, world_size, number)[1]
        window = int(np.searchsorted(ends, place, side="right"))
        return Pick(
            int(_window(self, rank, world_size, number, window)[place - (int(ends[window - 1]) if window else 0)])
        )


@functools.lru_cache(maxsize=64)
def _own_shards(order: ShardOrder, rank: int, world_size: int) -> tuple[NDArray[np.int64], int]:
    """Return a rank's shards and their number of images."""
    if len(order.sizes) < world_size:
        raise UserError(
            f"{len(order.sizes)} shards cannot be shared by {world_size} ranks: pack the images into more of them "
            "(pack.images=N for N images each)"
        )
    drawn = generator(order.seed, order.domain, Draw.SHARDS, 0).permutation(len(order.sizes))[rank::world_size]
    return drawn, sum(order.sizes[shard] for shard in drawn)


@functools.lru_cache(maxsize=8)
def _pass(order: ShardOrder, rank: int, world_size: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a rank's shards in the order of a pass, and the end of each window."""
    rng = generator(order.seed, order.domain, Draw.SHARDS, 1 + number * world_size + rank)
    shards = rng.permutation(_own_shards(order, rank, world_size)[0])
    ends = np.cumsum([order.sizes[s] for s in shards])
    last = np.minimum(np.arange(order.window, len(shards) + order.window, order.window), len(shards)) - 1
    return shards, ends[last]


@functools.lru_cache(maxsize=8)
def _window(order: ShardOrder, rank: int, world_size: int, number: int, window: int) -> NDArray[np.int64]:
    """Return the images of a window in order."""
    shards = _pass(order, rank, world_size, number)[0][window * order.window : (window + 1) * order.window]
    first = np.cumsum((0, *order.sizes))
    images = np.concatenate([np.arange(first[s], first[s] + order.sizes[s]) for s in shards])
    rng = generator(order.seed, order.domain, Draw.WINDOW, (number * world_size + rank) * len(order.sizes) + window)
    shuffled: NDArray[np.int64] = rng.permutation(images)
    return shuffled
