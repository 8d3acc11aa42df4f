"""Scene generation: houses and greenery along a street, furniture, people and traffic on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uda_seg.data.streets.bank import Bank
from uda_seg.data.streets.plan import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    FAR,
    FENCE,
    LIGHT,
    MOTORCYCLE,
    PARKING,
    POLE,
    RIDER,
    SIGN,
    TRAIN,
    TRUCK,
    VEGETATION,
    WALL,
    Layout,
)  # fmt: skip
from uda_seg.data.streets.stage import FLAT, Quads, Stage
from uda_seg.data.streets.styles import Style, colour, draw

NUMBERS = {"car": CAR, "truck": TRUCK, "bus": BUS, "train": TRAIN}


@dataclass
class Scene:
    """A street with its objects, independent of the camera."""

    layout: Layout
    quads: Quads
    sun_side: int
    style: Style


class Builder(Stage):
    """Places objects on the stage."""

    # ------------------------------------------------------------------ houses and greenery

    def sides(self) -> None:
        """Add plots on both sides of the street, from behind the camera to the far end."""
        for side in (-1, 1):
            z = -12.0
            while z < self.layout.far:
                length = float(self.rng.uniform(8, 19))
                if self.layout.in_crossing(z, side, 1.0) or self.layout.in_crossing(z + length, side, 1.0):
                    start, end = self.layout.crossing
                    if z < start - 5 - self.layout.pavement:  # the corner house
                        length = start - self.layout.pavement - z
                        self.house(side, z, length)
                    z = end + self.layout.pavement
                    continue
                if self.rng.random() < draw(self.rng, self.style.open_share):
                    self.open_plot(side, z, length)
                else:
                    self.house(side, z, length)
                z += length
        self.closing_row()

    def house(self, side: int, z: float, length: float) -> None:
        """Add a house front along the street and an end wall facing the camera."""
        height = draw(self.rng, self.style.building_height)
        offset = side * (self.layout.front + max(0.0, float(self.rng.normal(0, 0.5))))
        skin, tone = self.bank.pick("facade", self.rng), float(self.rng.uniform(0.85, 1.12))
        start, end = (offset, z), (offset, z + length)
        if side > 0:  # the texture's left edge is at the far end
            start, end = end, start
        if self.layout.garden > 1.2 and self.rng.random() < 0.6:
            kind = str(self.rng.choice(["fence", "masonry"]))
            self.boundary(offset - side * self.layout.garden, z, length, kind, float(self.rng.uniform(0.9, 1.5)))
        self.panel(start, end, height, skin, BUILDING, tone * self.facing(side))
        left = offset - 14 if side < 0 else offset
        self.panel((left, z), (left + 14, z), height, skin, BUILDING, 0.8 * tone)

    def boundary(self, edge: float, z: float, length: float, kind: str, height: float) -> None:
        """Add a fence, wall or hedge along the street, in pieces that follow its bend."""
        label = {"fence": FENCE, "masonry": WALL, "hedge": VEGETATION}[kind]
        skin, light = self.bank.pick(kind, self.rng), self.facing(int(np.sign(edge)))
        for start in np.arange(z, z + length - 0.5, 5.0).tolist():
            end = min(start + 5.0, z + length)
            self.panel((edge, start), (edge, end), height, skin, label, light, solid=kind == "fence")

    def railings(self) -> None:
        """Add an occasional fence or low wall between road and pavement."""
        for side in (-1, 1):
            if self.rng.random() < 0.35:
                start, kind = float(self.rng.uniform(5, 22)), "fence" if self.rng.random() < 0.65 else "masonry"
                length = min(float(self.rng.uniform(6, 14)), self.layout.crossing[0] - start - 2)
                if length > 3:
                    height = float(self.rng.uniform(0.8, 1.1))
                    self.boundary(side * (self.layout.road + 0.25), start, length, kind, height)

    def open_plot(self, side: int, z: float, length: float) -> None:
        """Add trees behind a fence, wall or hedge."""
        edge = side * (self.layout.kerb + self.layout.pavement + 0.2)
        kind = str(self.rng.choice(["fence", "masonry", "hedge", "none"], p=[0.35, 0.35, 0.12, 0.18]))
        if kind != "none":
            self.boundary(edge, z, length, kind, float(self.rng.uniform(1.3, 2.4)))
        for _ in range(int(self.rng.integers(1, 4))):
            depth = float(self.rng.uniform(2, 7))
            self.tree(edge + side * depth, z + float(self.rng.uniform(0, length)), planted=False)
        back = side * (self.layout.front + 12)
        self.panel((back, z), (back, z + length), 6.0, self.bank.pick("hedge", self.rng), VEGETATION, 0.8)

    def closing_row(self) -> None:
        """Close the far end of the street and the arms of a crossing with houses."""
        layout = self.layout
        if layout.ends:
            x = -60.0
            while x < 60.0:
                width = float(self.rng.uniform(12, 22))
                self.end_wall(x, layout.far + layout.pavement + 1.0, width)
                x += width
            return
        for _ in range(5):
            self.end_wall(float(self.rng.uniform(-70, 70)), FAR + float(self.rng.uniform(2, 14)), 24.0)
        if layout.crossing[1] > FAR:
            return
        for side, arm in zip((-1, 1), layout.arms, strict=True):
            for i in range(3 if arm else 0):
                near = side * (layout.front + 1.0 + 15 * i)
                self.end_wall(near - 15 if side < 0 else near, layout.crossing[1] + layout.pavement + 1.0, 15.0)

    def end_wall(self, left: float, z: float, width: float) -> None:
        """Add a house facing the camera."""
        height = draw(self.rng, self.style.building_height)
        self.panel((left, z), (left + width, z), height, self.bank.pick("facade", self.rng), BUILDING, 0.88)

    def planting(self) -> None:
        """Add street trees along the kerb."""
        for side in (-1, 1):
            z, spacing = float(self.rng.uniform(4, 16)), draw(self.rng, self.style.tree_spacing)
            if self.rng.random() < 0.3:
                continue
            while z < min(90, self.layout.far):
                if not self.layout.in_crossing(z, side, 3.0):
                    self.tree(side * (self.layout.road + max(0.8, self.layout.verge / 2)), z)
                z += spacing * float(self.rng.uniform(0.8, 1.3))

    # ------------------------------------------------------------------ furniture

    def furniture(self) -> None:
        """Add lamp posts with signs along both kerbs, and traffic lights at the crossing."""
        for side in (-1, 1):
            z, spacing = float(self.rng.uniform(4, 12)), draw(self.rng, self.style.pole_spacing)
            while z < min(80, self.layout.far):
                offset = side * (self.layout.road + float(self.rng.uniform(0.4, 0.8)))
                if not self.layout.in_crossing(z, side, 1.5) and self.free(offset, z, 0.5, 0.6):
                    self.mast(offset, z, side)
                z += spacing * float(self.rng.uniform(0.7, 1.3))
        places = []
        if self.layout.crossing[0] < 70:
            places = [self.layout.crossing[0] - float(self.rng.uniform(0.8, 2.2)), self.layout.crossing[1] + 0.6]
        elif self.rng.random() < 0.5:  # a pedestrian crossing
            places = [float(self.rng.uniform(10, 25))]
        for z in places:
            for side in (-1, 1):
                self.signal(side, z)

    def mast(self, offset: float, z: float, side: int) -> None:
        """Add a lamp post, or a lower post with one or two signs."""
        metal = colour(self.rng, self.style.metal)
        if self.rng.random() < 0.45:
            height = float(self.rng.uniform(5.5, 8.0))
            self.post(offset, z, height, float(self.rng.uniform(0.11, 0.16)), metal)
            x, arm = self.x(offset, z), -side * 1.6
            self.quads.add((min(x, x + arm), -height, z), (abs(arm), 0.0, 0.0), (0.0, 0.15, 0.0), FLAT, POLE, metal)
            self.quads.add(
                (x + arm - 0.35, -height + 0.1, z), (0.7, 0.0, 0.0), (0.0, 0.18, 0.0), FLAT, POLE,
                (1.0, 0.95, 0.75), light=1.0 if self.style.lamp_light[1] == 0 else 3.0,
            )  # fmt: skip
            if self.rng.random() < 0.4:
                self.board(offset, z - 0.1, 0.95, 0.95, "sign", SIGN, base=2.3)
            return
        self.post(offset, z, 3.4, float(self.rng.uniform(0.08, 0.11)), metal)
        size = float(self.rng.uniform(0.85, 1.15))
        self.board(offset, z - 0.1, size, size, "sign", SIGN, base=2.4)
        if self.rng.random() < 0.3:
            self.board(offset, z - 0.1, 0.8, 0.8, "sign", SIGN, base=1.5)

    def signal(self, side: int, z: float) -> None:
        """Add a traffic light on a post, sometimes with a second one above the road."""
        offset, metal = side * (self.layout.road + 0.5), colour(self.rng, self.style.metal)
        glow = draw(self.rng, self.style.emission)
        tint = (glow, glow, glow)
        self.post(offset, z, 3.9, 0.11, metal)
        self.board(offset, z - 0.15, 0.6, 1.5, "light", LIGHT, tint, base=2.3)
        if self.rng.random() < 0.5:
            x, reach = self.x(offset, z), -side * 3.2
            self.post(offset, z + 0.1, 5.9, 0.12, metal)
            self.quads.add((min(x, x + reach), -5.9, z), (3.2, 0.0, 0.0), (0.0, 0.16, 0.0), FLAT, POLE, metal)
            self.board(offset + reach, z - 0.15, 0.6, 1.5, "light", LIGHT, tint, base=4.5)

    # ------------------------------------------------------------------ people and cycles

    def people(self) -> None:
        """Add pedestrians on pavements and crossing, riders on the road, and parked cycles."""
        rng, layout = self.rng, self.layout
        middle, spread = layout.kerb + layout.pavement / 2, layout.pavement / 2 - 0.3
        for _ in range(int(rng.integers(6, 16))):
            side, z = int(rng.choice([-1, 1])), float(rng.triangular(4, 7, 40))
            offset = side * (middle + float(rng.uniform(-spread, spread)))
            self.pedestrian(offset, z)
            if rng.random() < 0.3:
                self.pedestrian(offset + 0.8, z + 0.1)
        if rng.random() < 0.4:
            z = layout.crossing[0] - 2.4 if layout.crossing[0] < 35 else float(rng.uniform(9, 22))
            for _ in range(int(rng.integers(1, 4))):
                self.pedestrian(float(rng.uniform(-0.9, 0.9)) * layout.road, z + float(rng.uniform(-1, 1)))
        for _ in range(int(rng.integers(2, 6))):
            offset = int(rng.choice([-1, 1])) * (layout.road - float(rng.uniform(0.6, 2.8)))
            kind = "bicycle" if rng.random() < 0.5 else "motorcycle"
            self.cycle(offset, float(rng.triangular(5, 9, 32)), kind, ridden=True)
        for _ in range(int(rng.integers(0, 4))):
            offset = int(rng.choice([-1, 1])) * (layout.kerb + float(rng.uniform(0.3, 1.2)))
            kind, z = "bicycle" if rng.random() < 0.5 else "motorcycle", float(rng.triangular(4, 7, 22))
            for i in range(int(rng.integers(1, 3))):
                self.cycle(offset, z + 0.9 * i, kind, ridden=False)

    def cycle(self, offset: float, z: float, kind: str, ridden: bool) -> None:
        """Add a bicycle or motorcycle seen from the side, optionally with its rider."""
        if not self.free(offset, z, 1.9, 0.8):
            return
        motor, size = kind == "motorcycle", 2.1 * float(self.rng.uniform(1.0, 1.1))
        turn = float(self.rng.uniform(-0.9, 0.9)) + (np.pi if self.rng.random() < 0.5 else 0.0)
        speed = 0.35 if ridden else 0.0
        velocity = (speed * float(np.cos(turn)), 0.0, speed * float(np.sin(turn)))
        self.shadow(offset, z - 0.3, 1.7, 0.6, velocity)
        self.board(offset, z, size, size, kind, MOTORCYCLE if motor else BICYCLE, turn=turn, velocity=velocity)
        if ridden:
            who = "motorist" if motor else "cyclist"
            self.board(offset, z - 0.05, size, size, who, RIDER, turn=turn, velocity=velocity)

    # ------------------------------------------------------------------ vehicles

    def traffic(self) -> None:
        """Add parked cars along the kerbs, moving vehicles in the lanes, and sometimes a crossing one."""
        rng, layout = self.rng, self.layout
        far = min(75.0, layout.far - 6)
        if layout.parking:
            parked = draw(rng, self.style.parked_share)
            for side in (-1, 1):
                z = float(rng.uniform(5, 11))
                while z < far:
                    if rng.random() < parked and not layout.in_crossing(z, side, 8):
                        away = side == -layout.hand
                        self.moving("car", side * (layout.road - PARKING / 2), z, 0.0, away != (rng.random() < 0.1))
                    z += float(rng.uniform(5.4, 8.0))
        for direction in (-1, 1):
            for lane in range(layout.lanes):
                offset = -direction * layout.hand * (lane + 0.5) * layout.lane_width
                z = float(rng.uniform(12 if direction > 0 else 8, 30))
                while z < far:
                    kind = str(rng.choice(["car", "truck", "bus"], p=[0.62, 0.2, 0.18]))
                    self.moving(kind, offset, z, float(rng.uniform(0.3, 0.9)), direction > 0)
                    z += float(rng.uniform(13, 44))
        if layout.crossing[0] < 50 and any(layout.arms) and rng.random() < 0.5:
            side = -1 if layout.arms[0] else 1
            offset, z = side * float(rng.uniform(4, 14)), sum(layout.crossing) / 2
            car = self.bank.vehicles["car"][int(rng.integers(len(self.bank.vehicles["car"])))]
            if self.free(offset, z - 1, car.length, 2.0):
                self.vehicle(car, CAR, offset, z, float(rng.choice([-1, 1])) * np.pi / 2, 0.4)

    def moving(self, kind: str, offset: float, z: float, speed: float, away: bool) -> None:
        """Add a moving vehicle to its lane if there is room."""
        stock = self.bank.vehicles[kind]
        car = stock[int(self.rng.integers(len(stock)))]
        z += max(0.0, car.length / 2 - 2.2)  # align the rear of long vehicles with that of a car
        if self.free(offset, z - car.length / 2, car.body.width + 0.1, car.length + 0.6):
            wobble = 0.0 if kind == "train" else float(self.rng.normal(0.0, 0.015))
            self.vehicle(car, NUMBERS[kind], offset, z, (0.0 if away else np.pi) + wobble, speed)

    def tram(self) -> None:
        """Add a tram if there is a track."""
        if self.layout.rails is None:
            return
        away = self.layout.rails * self.layout.hand < 0
        for z in (float(self.rng.uniform(10 if not away else 14, 28)), float(self.rng.uniform(46, 60))):
            if self.rng.random() < 0.9 and z < self.layout.far - 15:
                self.moving("train", self.layout.rails, z, 0.4, away)


def build_scene(style: Style, bank: Bank, rng: np.random.Generator) -> Scene:
    """Build a street; the largest objects claim their place first."""
    builder = Builder(style, bank, rng)
    builder.tram()
    builder.traffic()
    builder.furniture()
    builder.planting()
    builder.railings()
    builder.people()
    builder.sides()
    return Scene(builder.layout, builder.quads, builder.sun_side, style)
