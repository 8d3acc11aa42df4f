"""Order of images in the infinite training stream, as pure functions of (seed, domain, position).

Position p of a stream belongs to step s, batch index b and rank r of W: p = (s B + b) W + r. So ranks never draw the
same position, one pass over N images covers each exactly once, and a resumed run needs only its step. Several domains
share a stream's positions (`DomainOrder`), and each counts its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
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
    DOMAIN = 5
    LABELLED = 6


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


def quotas(shares: Sequence[float], longest: int = 10_000) -> tuple[int, ...]:
    """Convert shares to positions per period: the smallest whole numbers in their ratio, 5, 3 and 2 for 0.5, 0.3, 0.2.

    Ratios whose period would be longer than `longest` are rounded to it; each domain keeps at least one position.
    """
    exact = [Fraction(str(share)) for share in shares]
    parts = [share / sum(exact) for share in exact]
    period = min(math.lcm(*(part.denominator for part in parts)), longest)
    return tuple(max(1, round(part * period)) for part in parts)


@dataclass(frozen=True)
class DomainOrder:
    """Division of a stream's positions among domains.

    Of every sum(quotas) positions in a row, domain k has exactly `quotas[k]`, in random order. So its positions so far
    are known without drawing the earlier ones, and it passes over its images as if it were alone.

    Args:
        quotas: Positions of each domain per period.
        seed: Seed of the run.
        domain: Id of the stream.
    """

    quotas: tuple[int, ...]
    seed: int
    domain: int

    def place(self, position: int) -> tuple[int, int]:
        """Return the domain at `position`, and how many earlier positions are its own."""
        number, place = divmod(position, sum(self.quotas))
        domains, earlier = _period(self.quotas, self.seed, self.domain, number)
        domain = int(domains[place])
        return domain, number * self.quotas[domain] + int(earlier[place])


@functools.lru_cache(maxsize=4)
def _period(
    quotas: tuple[int, ...], seed: int, domain: int, number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the domain of each position of a period, and the number of its own positions before in the period."""
    domains = np.repeat(np.arange(len(quotas)), quotas)
    domains = generator(seed, domain, Draw.DOMAIN, number).permutation(domains)
    earlier = np.zeros_like(domains)
    for k, quota in enumerate(quotas):
        earlier[domains == k] = np.arange(quota)
    return domains, earlier


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
