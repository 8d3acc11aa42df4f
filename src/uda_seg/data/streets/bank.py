"""Texture banks shared by the scenes of a world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets import figures, textures
from uda_seg.data.streets.styles import Style
from uda_seg.data.streets.textures import RNG, Mips, Texture, mips
from uda_seg.data.streets.vehicles import Vehicle, paint_vehicle

VARIANTS = {"person": 12, "crown": 6, "bare": 4, "fence": 5, "sign": 10}  # 8 for all others
STOCK = {"car": 14, "truck": 4, "bus": 4, "train": 2}
PAINTERS: dict[str, Callable[[Style, RNG], Texture]] = {
    "facade": textures.facade, "masonry": textures.masonry, "fence": textures.fence, "crown": textures.crown,
    "bare": textures.bare, "hedge": textures.hedge, "light": textures.traffic_light, "sign": textures.sign,
    "person": figures.person, "bicycle": figures.bicycle, "motorcycle": figures.motorcycle,
    "cyclist": figures.cyclist, "motorist": figures.motorist,
}  # fmt: skip


@dataclass(frozen=True)
class Bank:
    """Textures by kind and variant, painted vehicles by kind, and the ground's noise."""

    kinds: dict[str, tuple[Mips, ...]]
    vehicles: dict[str, tuple[Vehicle, ...]]
    blob: Mips
    grain: NDArray[np.float32]

    def pick(self, kind: str, rng: RNG) -> Mips:
        """Pick a random variant."""
        variants = self.kinds[kind]
        return variants[int(rng.integers(len(variants)))]


def build_bank(style: Style, rng: RNG) -> Bank:
    """Draw several variants of every kind of surface."""
    kinds = {
        kind: tuple(mips(paint(style, rng)) for _ in range(VARIANTS.get(kind, 8))) for kind, paint in PAINTERS.items()
    }
    vehicles = {kind: tuple(paint_vehicle(rng, kind, i, style) for i in range(count)) for kind, count in STOCK.items()}
    return Bank(kinds, vehicles, mips(textures.blob()), textures.ground_grain(rng))
