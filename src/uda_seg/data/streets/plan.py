"""Ground plan of a street: lanes, kerbs, pavements, crossings and junctions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.streets.styles import Style, draw

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS,
 TRAIN, MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip
FAR = 120.0  # length of the street in metres
PARKING = 2.1  # width in metres of the parking lane along the kerb
NONE = 2 * FAR  # position of a crossing that does not exist


@dataclass(frozen=True)
class Layout:
    """Ground plan. Lengths in metres; `x` is relative to the centre line of the road.

    Attributes:
        road: half width of the road.
        parking: true if cars park along the kerbs.
        lanes: lanes per direction.
        verge: width of the grass strip between kerb and pavement (0: none).
        pavement: width of the pavement.
        garden: width of the garden between pavement and houses (0: none).
        bend: curvature; the centre line is at x = bend * z^2.
        crossing: (start, end) of the crossing street, beyond the far end if there is none.
        arms: whether the crossing street continues to the left and to the right; a T-junction has one arm.
        ends: true if the street itself ends at the crossing: a T-junction seen from its stem.
        hand: -1 for right-hand traffic (oncoming cars on the left), +1 for left-hand traffic.
        rails: x of a tram track, or None.
    """

    road: float
    parking: bool
    lanes: int
    lane_width: float
    verge: float
    pavement: float
    garden: float
    bend: float
    crossing: tuple[float, float]
    arms: tuple[bool, bool]
    ends: bool
    hand: int
    rails: float | None

    @property
    def kerb(self) -> float:
        """Inner edge of the pavement, behind the grass strip."""
        return self.road + self.verge

    @property
    def front(self) -> float:
        """Distance of the house fronts from the centre line."""
        return self.kerb + self.pavement + self.garden

    @property
    def far(self) -> float:
        """Distance of the street's far end."""
        return self.crossing[1] if self.ends else FAR

    def middle(self, z: float) -> float:
        """Compute x of the centre line at distance z."""
        return self.bend * z * z

    def in_crossing(self, z: float, side: int, margin: float = 0.0) -> bool:
        """Return whether the crossing street is at z on a side (-1 left, 1 right)."""
        arm = self.arms[0] if side < 0 else self.arms[1]
        return arm and self.crossing[0] - margin < z < self.crossing[1] + margin

    def off_road(self, across: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the distance from the kerb, positive off the road, including the corners of a crossing."""
        beside = np.abs(across)
        beside -= np.float32(self.road)
        if self.crossing[0] < FAR:
            outside = np.maximum(np.float32(self.crossing[0]) - z, z - np.float32(self.crossing[1]))
            if not all(self.arms):  # the other side has no corners
                np.copyto(outside, np.float32(np.inf), where=across > 0 if self.arms[0] else across <= 0)
            np.minimum(beside, outside, out=beside)
        return np.maximum(beside, z - np.float32(self.far)) if self.ends else beside


def draw_layout(style: Style, rng: np.random.Generator) -> Layout:
    """Sample the plan of a street."""
    lane_width, lanes = draw(rng, style.lane_width), int(rng.choice([1, 2], p=[0.85, 0.15]))
    rails = None
    if rng.random() < 0.55:
        rails = float(rng.choice([-1, 1])) * lane_width * (lanes - 0.5)
    parking = bool(rng.random() < 0.5)
    start = float(rng.uniform(18, 55)) if rng.random() < 0.6 else NONE
    arms = ((True, True), (True, False), (False, True))[int(rng.integers(3))]  # a crossing or a T-junction
    ends = start < NONE and arms == (True, True) and bool(rng.random() < 0.4)
    return Layout(
        road=lanes * lane_width + (PARKING if parking else 0.3),
        parking=parking,
        lanes=lanes,
        lane_width=lane_width,
        verge=max(0.0, draw(rng, style.verge_width)),
        pavement=draw(rng, style.pavement_width),
        garden=max(0.0, draw(rng, style.setback)),
        bend=0.0 if ends else draw(rng, style.curvature),
        crossing=(start, start + float(rng.uniform(9, 13))),
        arms=arms,
        ends=ends,
        hand=1 if rng.random() < style.left_hand[0] else -1,
        rails=rails,
    )
