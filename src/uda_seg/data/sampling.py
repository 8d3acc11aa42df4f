"""Order of images in the infinite training stream, as pure functions of (seed, domain, position).

Position p of a domain's stream belongs to step s, batch index b and rank r of W: p = (s B + b) W + r. So ranks never
draw the same position, one pass over N images covers each exactly once, and a resumed run needs only its step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Draw(IntEnum):
    """Purposes of generators, so that no two share random numbers."""

    PASS = 0
    RARE_CLASS = 1
    CROP = 2
    SHARDS = 3
    WINDOW = 4


class Pick(NamedTuple):
    """Index of an image and, with rare-class sampling, the train id it was drawn for."""

    image: int
    rare: int | None = None


class Order(Protocol):
    """Mapping from positions of the stream to images."""

    def pick(self, position: int, world_size: int) -> Pick:
        """Return the image at `position` >= 0 of a stream shared by `world_size` ranks."""
        ...


def generator(seed: int, domain: int, draw: Draw, number: int) -> np.random.Generator:
    """Create a generator for one purpose; `number` is the position or the pass."""
    return np.random.default_rng([seed, domain, draw, number])


def positions(step: int, batch: int, rank: int = 0, world_size: int = 1) -> range:
    """Return the `batch` positions of a domain's stream that `rank` of `world_size` reads at `step`."""
    first = step * batch * world_size + rank
    return range(first, first + batch * world_size, world_size)


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, domain: int, number: int) -> NDArray[np.int64]:
    return generator(seed, domain, Draw.PASS, number).permutation(length)


@dataclass(frozen=True)
class ShuffledOrder:
    """Passes over `length` images, each in a new random order."""

    length: int
    seed: int
    domain: int

    def pick(self, position: int, world_size: int = 1) -> Pick:
        """Return the image at `position`: entry p mod N of pass p // N, for any number of ranks."""
        number, place = divmod(position, self.length)
        return Pick(int(_permutation(self.length, self.seed, self.domain, number)[place]))


def rare_class_probabilities(pixels: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """Compute P(c) = softmax((1 - f_c) / T) over the classes that occur (DAFormer, Hoyer et al. 2022, eq. 7-8).

    Args:
        pixels: int64 [C], pixels of each class in the whole data set.
        temperature: T > 0.

    Returns:
        float64 [C], summing to 1; 0 for a class without a pixel.
    """
    frequency = pixels / pixels.sum()
    logits = np.where(pixels > 0, (1 - frequency) / temperature, -np.inf)
    weights = np.exp(logits - logits.max())
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


@dataclass(frozen=True)
class RareClassOrder:
    """Rare-class sampling: draw a class by its rarity, then uniformly an image with enough of it (DAFormer's RCS).

    Args:
        probabilities: float64 [C], P(c); 0 where `images[c]` is empty.
        images: Images to draw from, per class.
        seed: Seed of the run.
        domain: Id of the domain.
    """

    probabilities: NDArray[np.float64]
    images: Sequence[NDArray[np.int64]]
    seed: int
    domain: int

    def pick(self, position: int, world_size: int = 1) -> Pick:
        """Return the image at `position` and the class it was drawn for, for any number of ranks."""
        rng = generator(self.seed, self.domain, Draw.RARE_CLASS, position)
        rare = int(rng.choice(len(self.probabilities), p=self.probabilities))
        return Pick(int(rng.choice(self.images[rare])), rare)
