"""One street: everything that stands on it, as textured parallelograms in world coordinates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from uda_seg.data.streets.camera import Floats
from uda_seg.data.streets.styles import Colour, Style, colour, draw
from uda_seg.data.streets.textures import LEAN, Bank, Texture, mips, plain

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS,
 TRAIN, MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip
SHADOW = 254  # darkens what lies below and has no label of its own
FAR = 120.0  # metres of street
PARKING = 2.1  # metres between the outer lane and the kerb
WHITE: Colour = (1.0, 1.0, 1.0)
FLAT = mips(plain((255, 255, 255)))


@dataclass
class Quads:
    """Parallelograms origin + s u + r v; r grows downwards in the texture."""

    origin: list[Floats] = field(default_factory=list)
    u: list[Floats] = field(default_factory=list)
    v: list[Floats] = field(default_factory=list)
    texture: list[list[Texture]] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    tint: list[tuple[float, float, float]] = field(default_factory=list)
    solid: list[bool] = field(default_factory=list)
    velocity: list[Floats] = field(default_factory=list)

    def add(
        self,
        origin: tuple[float, float, float],
        u: tuple[float, float, float],
        v: tuple[float, float, float],
        texture: list[Texture],
        label: int,
        tint: Colour = WHITE,
        *,
        light: float = 1.0,
        solid: bool = False,
        speed: float = 0.0,
    ) -> None:
        """Append one; `light` scales its tint, `solid` labels holes too, `speed` is along the street in m per frame."""
        self.origin.append(np.array(origin, float))
        self.u.append(np.array(u, float))
        self.v.append(np.array(v, float))
        self.texture.append(texture)
        self.label.append(label)
        self.tint.append((tint[0] * light, tint[1] * light, tint[2] * light))
        self.solid.append(solid)
        self.velocity.append(np.array((0.0, 0.0, speed)))


@dataclass(frozen=True)
class Layout:
    """The plan of the ground. Lengths in metres; `x` is measured from the middle of the road.

    Attributes:
        road: half width of the road.
        lanes: lanes per direction.
        verge: width of the strip of grass between kerb and pavement (0: none).
        pavement: width of the pavement.
        garden: width of what lies between pavement and houses (0: none).
        bend: the street's middle is at x = bend * z^2.
        crossing: where another street crosses (start, end), behind everything if there is none.
        arms: whether the crossing street goes off to the left and to the right: a T-junction has one arm.
        hand: -1 where traffic keeps right (oncoming cars on the left), +1 where it keeps left.
        rails: x of a tram's track, or None.
    """

    road: float
    lanes: int
    lane_width: float
    verge: float
    pavement: float
    garden: float
    bend: float
    crossing: tuple[float, float]
    arms: tuple[bool, bool]
    hand: int
    rails: float | None

    @property
    def kerb(self) -> float:
        """Outer edge of grass strip: where the pavement starts."""
        return self.road + self.verge

    @property
    def front(self) -> float:
        """Where the houses stand."""
        return self.kerb + self.pavement + self.garden

    def middle(self, z: float) -> float:
        """The road's middle, as x, at distance z."""
        return self.bend * z * z

    def in_crossing(self, z: float, side: int, margin: float = 0.0) -> bool:
        """Whether the crossing street is at z on that side (-1 left, 1 right)."""
        arm = self.arms[0] if side < 0 else self.arms[1]
        return arm and self.crossing[0] - margin < z < self.crossing[1] + margin


@dataclass
class Scene:
    """A street with its things, before any camera looks at it."""

    layout: Layout
    quads: Quads
    sun_side: int
    style: Style


class Builder:
    """Fills a scene; an occupancy list keeps things from standing in one another."""

    def __init__(self, style: Style, bank: Bank, rng: np.random.Generator) -> None:
        self.style, self.bank, self.rng = style, bank, rng
        self.layout = draw_layout(style, rng)
        self.quads = Quads()
        self.sun_side = int(rng.choice([-1, 1]))
        self.contrast = draw(rng, style.sun)
        self.bare = rng.random() < style.bare_trees[0]
        self.taken: list[tuple[float, float, float, float]] = []

    def free(self, x: float, z: float, width: float, length: float) -> bool:
        """Claim a rectangle of ground (from z on, centred at x), unless something stands there."""
        for x1, z1, w1, l1 in self.taken:
            if abs(x - x1) < (width + w1) / 2 and z < z1 + l1 and z1 < z + length:
                return False
        self.taken.append((x, z, width, length))
        return True

    def facing(self, side: int) -> float:
        """Light on a surface that looks from `side` towards the road."""
        return 1.0 - 0.45 * self.contrast * (0.35 if side != self.sun_side else 1.0)

    def x(self, offset: float, z: float) -> float:
        """World x of a place beside the road's middle."""
        return self.layout.middle(z) + offset

    # ------------------------------------------------------------------ primitives

    def board(
        self, offset: float, z: float, width: float, height: float, kind: str, label: int,
        tint: Colour = WHITE, base: float = 0.0, speed: float = 0.0,
    ) -> None:  # fmt: skip
        """An upright picture that faces the camera, standing `base` metres above the ground."""
        x = self.x(offset, z)
        self.quads.add(
            (x - width / 2, -base - height, z), (width, 0, 0), (0, height, 0), self.bank.pick(kind, self.rng), label,
            tint, light=1 - 0.2 * self.contrast, speed=speed,
        )  # fmt: skip

    def shadow(self, offset: float, z: float, width: float, length: float, speed: float = 0.0) -> None:
        """The dark ground under a thing."""
        x, strength = self.x(offset, z), 0.35 + 0.35 * self.contrast
        shade = (1 - strength,) * 3
        self.quads.add(
            (x - width / 2, -0.02, z + length), (width, 0, 0), (0, 0, -length), FLAT, SHADOW, shade, speed=speed
        )

    def post(self, offset: float, z: float, height: float, radius: float, tint: Colour) -> None:
        """A round post, as a flat strip that is darker on one side."""
        x = self.x(offset, z)
        half = radius
        for i, shade in enumerate((1.0, 0.7)):
            self.quads.add(
                (x - half + i * half, -height, z), (half, 0, 0), (0, height, 0), FLAT, POLE, tint, light=shade
            )

    # ------------------------------------------------------------------ houses and greenery

    def sides(self) -> None:
        """Plots on both sides of the street, from behind the camera to the far end."""
        for side in (-1, 1):
            z = -12.0
            while z < FAR:
                length = float(self.rng.uniform(8, 19))
                if self.layout.in_crossing(z, side, 1.0) or self.layout.in_crossing(z + length, side, 1.0):
                    z = self.layout.crossing[1] + 1.0 if z > self.layout.crossing[0] - 20 else z + length
                    continue
                if self.rng.random() < draw(self.rng, self.style.open_share):
                    self.open_plot(side, z, length)
                else:
                    self.house(side, z, length)
                z += length
        self.closing_row()

    def house(self, side: int, z: float, length: float) -> None:
        """A front along the street and an end wall that looks at the camera."""
        height = draw(self.rng, self.style.building_height)
        offset = side * (self.layout.front + max(0.0, float(self.rng.normal(0, 0.5))))
        near, far = self.x(offset, z), self.x(offset, z + length)
        skin = self.bank.pick("facade", self.rng)
        tone = float(self.rng.uniform(0.85, 1.12))
        start, along = ((near, -height, z), (far - near, 0.0, length))
        if side > 0:  # the texture's left edge is the far one
            start, along = (far, -height, z + length), (near - far, 0.0, -length)
        if self.layout.garden > 1.2 and self.rng.random() < 0.6:
            kind = str(self.rng.choice(["fence", "masonry"]))
            self.boundary(offset - side * self.layout.garden, z, length, kind, float(self.rng.uniform(0.9, 1.5)))
        self.quads.add(start, along, (0, height, 0), skin, BUILDING, WHITE, light=tone * self.facing(side))
        left = near - 14 if side < 0 else near
        self.quads.add((left, -height, z), (14, 0, 0), (0, height, 0), skin, BUILDING, WHITE, light=0.8 * tone)

    def boundary(self, edge: float, z: float, length: float, kind: str, height: float) -> None:
        """A fence, a wall or a hedge along the street, in pieces that follow its bend."""
        label = {"fence": FENCE, "masonry": WALL, "hedge": VEGETATION}[kind]
        skin, light = self.bank.pick(kind, self.rng), self.facing(int(np.sign(edge)))
        for start in np.arange(z, z + length - 0.5, 5.0):
            end = min(start + 5.0, z + length)
            near, far = self.x(edge, start), self.x(edge, end)
            self.quads.add(
                (near, -height, start), (far - near, 0, end - start), (0, height, 0), skin, label,
                light=light, solid=kind == "fence",
            )  # fmt: skip

    def railings(self) -> None:
        """Now and then a fence or a low wall between road and pavement."""
        for side in (-1, 1):
            if self.rng.random() < 0.4:
                start, kind = float(self.rng.uniform(5, 22)), "fence" if self.rng.random() < 0.65 else "masonry"
                length = min(float(self.rng.uniform(8, 20)), self.layout.crossing[0] - start - 2)
                if length > 3:
                    self.boundary(
                        side * (self.layout.road + 0.25), start, length, kind, float(self.rng.uniform(0.9, 1.2))
                    )

    def open_plot(self, side: int, z: float, length: float) -> None:
        """Trees behind a fence, a wall or a hedge."""
        edge = side * (self.layout.kerb + self.layout.pavement + 0.2)
        kind = str(self.rng.choice(["fence", "masonry", "hedge"], p=[0.42, 0.42, 0.16]))
        self.boundary(edge, z, length, kind, float(self.rng.uniform(1.5, 2.6)))
        for _ in range(int(self.rng.integers(1, 4))):
            depth = float(self.rng.uniform(2, 7))
            self.tree(edge + side * depth, z + float(self.rng.uniform(0, length)), planted=False)
        back = side * (self.layout.front + 12)
        self.quads.add(
            (self.x(back, z), -6.0, z), (self.x(back, z + length) - self.x(back, z), 0, length), (0, 6, 0),
            self.bank.pick("hedge", self.rng), VEGETATION, light=0.8,
        )  # fmt: skip

    def closing_row(self) -> None:
        """What the street ends at, and what closes the arms of a crossing."""
        for _ in range(5):
            x, width = float(self.rng.uniform(-70, 70)), float(self.rng.uniform(14, 30))
            height = draw(self.rng, self.style.building_height) * float(self.rng.uniform(0.8, 1.4))
            z = FAR + float(self.rng.uniform(2, 14))
            skin = self.bank.pick("facade", self.rng)
            self.quads.add((x, -height, z), (width, 0, 0), (0, height, 0), skin, BUILDING, light=0.9)
        end = self.layout.crossing[1]
        if end > FAR:
            return
        for side, arm in zip((-1, 1), self.layout.arms, strict=True):
            reach = side * (self.layout.front + 1.0)
            for i in range(3 if arm else 0):
                height, near = draw(self.rng, self.style.building_height), self.x(reach + side * 15 * i, end + 1)
                left = near - 15 if side < 0 else near
                skin = self.bank.pick("facade", self.rng)
                self.quads.add((left, -height, end + 1.0), (15, 0, 0), (0, height, 0), skin, BUILDING, light=0.85)

    def tree(self, offset: float, z: float, planted: bool = True) -> None:
        """A trunk with a crown; planted ones claim their place."""
        if planted and not self.free(offset, z, 1.0, 1.0):
            return
        trunk, size = float(self.rng.uniform(1.8, 2.8)), float(self.rng.uniform(3.5, 6.5))
        bark = colour(self.rng, ((0.05, 0.1), (0.2, 0.45), (0.2, 0.36)))
        x, radius = self.x(offset, z), float(self.rng.uniform(0.13, 0.24))
        self.quads.add((x - radius, -trunk, z), (2 * radius, 0, 0), (0, trunk, 0), FLAT, VEGETATION, bark)
        kind, tone = ("bare" if self.bare else "crown"), float(self.rng.uniform(0.8, 1.15))
        skin = self.bank.pick(kind, self.rng)
        for dz in (0.0,) if self.bare else (0.3, -0.3):
            width = size * float(self.rng.uniform(0.85, 1.0))
            top = trunk + size * (0.95 if self.bare else 0.8)
            self.quads.add(
                (x - width / 2, -top, z + dz), (width, 0, 0), (0, size * (0.97 if self.bare else 1.0), 0), skin,
                VEGETATION, (tone, tone, tone), light=1 - 0.15 * self.contrast,
            )  # fmt: skip
        if not self.bare and planted:
            self.shadow(offset + 0.6 * self.sun_side, z - 1.5, size * 0.8, 3.0)

    def planting(self) -> None:
        """Street trees along the kerb."""
        for side in (-1, 1):
            z, spacing = float(self.rng.uniform(4, 16)), draw(self.rng, self.style.tree_spacing)
            if self.rng.random() < 0.3:
                continue
            while z < 90:
                if not self.layout.in_crossing(z, side, 3.0):
                    self.tree(side * (self.layout.road + 0.9), z)
                z += spacing * float(self.rng.uniform(0.8, 1.3))

    # ------------------------------------------------------------------ furniture

    def furniture(self) -> None:
        """Lamp posts with signs along both kerbs; traffic lights at the crossing."""
        for side in (-1, 1):
            z, spacing = float(self.rng.uniform(4, 12)), draw(self.rng, self.style.pole_spacing)
            while z < 80:
                offset = side * (self.layout.road + float(self.rng.uniform(0.4, 0.8)))
                if not self.layout.in_crossing(z, side, 1.5) and self.free(offset, z, 0.5, 0.6):
                    self.mast(offset, z, side)
                z += spacing * float(self.rng.uniform(0.7, 1.3))
        if self.layout.crossing[0] < 70:
            for side in (-1, 1):
                self.signal(side, self.layout.crossing[0] - float(self.rng.uniform(0.8, 2.2)))
                self.signal(side, self.layout.crossing[1] + float(self.rng.uniform(0.3, 1.2)))

    def mast(self, offset: float, z: float, side: int) -> None:
        """A lamp post, or a lower post with one or two signs."""
        metal = colour(self.rng, self.style.metal)
        if self.rng.random() < 0.45:
            height = float(self.rng.uniform(5.5, 8.0))
            self.post(offset, z, height, float(self.rng.uniform(0.1, 0.15)), metal)
            x, arm = self.x(offset, z), -side * 1.6
            self.quads.add((min(x, x + arm), -height, z), (abs(arm), 0, 0), (0, 0.14, 0), FLAT, POLE, metal)
            self.quads.add(
                (x + arm - 0.35, -height + 0.1, z), (0.7, 0, 0), (0, 0.16, 0), FLAT, POLE,
                (1.0, 0.95, 0.75), light=1 if self.style.lamp_light[1] == 0 else 2.0,
            )  # fmt: skip
            if self.rng.random() < 0.4:
                self.board(offset, z - 0.1, 0.95, 0.95, "sign", SIGN, base=2.3)
            return
        self.post(offset, z, 3.4, float(self.rng.uniform(0.07, 0.1)), metal)
        size = float(self.rng.uniform(0.85, 1.15))
        self.board(offset, z - 0.1, size, size, "sign", SIGN, base=2.4)
        if self.rng.random() < 0.3:
            self.board(offset, z - 0.1, 0.8, 0.8, "sign", SIGN, base=1.5)

    def signal(self, side: int, z: float) -> None:
        """A traffic light on its post, sometimes another one above the road."""
        offset, metal = side * (self.layout.road + 0.5), colour(self.rng, self.style.metal)
        glow = draw(self.rng, self.style.emission)
        self.post(offset, z, 3.9, 0.1, metal)
        self.board(offset, z - 0.15, 0.6, 1.5, "light", LIGHT, (glow, glow, glow), base=2.3)
        if self.rng.random() < 0.5:
            x, reach = self.x(offset, z), -side * 3.2
            self.post(offset, z + 0.1, 5.9, 0.11, metal)
            self.quads.add((min(x, x + reach), -5.9, z), (3.2, 0, 0), (0, 0.16, 0), FLAT, POLE, metal)
            self.board(offset + reach, z - 0.15, 0.6, 1.5, "light", LIGHT, (glow, glow, glow), base=4.5)

    # ------------------------------------------------------------------ people and cycles

    def people(self) -> None:
        """Pedestrians on the pavements and crossing, riders on the road, parked cycles."""
        pavement = self.layout.kerb + self.layout.pavement / 2
        for _ in range(int(self.rng.integers(6, 16))):
            side, z = int(self.rng.choice([-1, 1])), float(self.rng.triangular(4, 7, 40))
            spread = self.layout.pavement / 2 - 0.3
            offset = side * (pavement + float(self.rng.uniform(-spread, spread)))
            self.pedestrian(offset, z)
            if self.rng.random() < 0.3:
                self.pedestrian(offset + 0.7, z + 0.1)
        if self.rng.random() < 0.35:
            self.pedestrian(float(self.rng.uniform(-0.8, 0.8)) * self.layout.road, float(self.rng.uniform(9, 22)))
        for _ in range(int(self.rng.integers(2, 6))):
            side = int(self.rng.choice([-1, 1]))
            offset = side * (self.layout.road - float(self.rng.uniform(0.6, 3.2)))
            kind = "bicycle" if self.rng.random() < 0.5 else "motorcycle"
            self.cycle(offset, float(self.rng.triangular(5, 9, 32)), kind, ridden=True)
        for _ in range(int(self.rng.integers(0, 4))):
            side = int(self.rng.choice([-1, 1]))
            offset = side * (self.layout.kerb + float(self.rng.uniform(0.3, 0.9)))
            kind = "bicycle" if self.rng.random() < 0.5 else "motorcycle"
            self.cycle(offset, float(self.rng.triangular(4, 7, 22)), kind, ridden=False)

    def pedestrian(self, offset: float, z: float) -> None:
        """One person, sometimes a child."""
        height = float(self.rng.uniform(1.65, 2.0)) if self.rng.random() < 0.88 else float(self.rng.uniform(1.1, 1.4))
        if self.free(offset, z, 0.6, 0.5):
            speed = float(self.rng.uniform(-0.15, 0.15))
            self.shadow(offset, z - 0.25, 0.7, 0.5, speed)
            self.board(offset, z, 0.44 * height, height, "person", PERSON, speed=speed)

    def cycle(self, offset: float, z: float, kind: str, ridden: bool) -> None:
        """A bicycle or motorcycle, seen from the side; its rider sits above it in the same frame."""
        if not self.free(offset, z, 1.9, 0.8):
            return
        size, speed = (2.0, 0.0) if not ridden else (2.1, float(self.rng.uniform(-0.4, 0.4)))
        label = BICYCLE if kind == "bicycle" else MOTORCYCLE
        self.shadow(offset, z - 0.2, 1.7, 0.4, speed)
        self.board(offset, z, size, size, kind, label, speed=speed)
        if ridden:
            self.board(offset, z - 0.03, size, size, "rider", RIDER, speed=speed)

    # ------------------------------------------------------------------ vehicles

    def paint(self) -> Colour:
        """A car's colour: white, grey and black, or something bright."""
        if self.rng.random() < self.style.neutral_cars[0]:
            value = float(self.rng.choice([0.12, 0.3, 0.5, 0.72, 0.95]))
            return (value, value, value * float(self.rng.uniform(0.97, 1.05)))
        return colour(self.rng, self.style.paint)

    def traffic(self) -> None:
        """Parked cars along the kerbs, moving ones in the lanes, now and then something large."""
        parked = draw(self.rng, self.style.parked_share)
        for side in (-1, 1):
            z = float(self.rng.uniform(3, 9))
            while z < 70 and self.rng.random() < 0.95:
                if self.rng.random() < parked and not self.layout.in_crossing(z + 2, side, 6):
                    self.car(side * (self.layout.road - PARKING / 2), z, 0.0)
                z += float(self.rng.uniform(5.4, 8.0))
        for direction in (-1, 1):
            for lane in range(self.layout.lanes):
                z = float(self.rng.uniform(9 if direction > 0 else 5, 30))
                middle = (lane + 0.5) * self.layout.lane_width
                side = -direction * self.layout.hand
                while z < 75:
                    speed = direction * float(self.rng.uniform(0.3, 0.9))
                    self.vehicle(side * middle, z, speed)
                    z += float(self.rng.uniform(13, 44))

    def vehicle(self, offset: float, z: float, speed: float) -> None:
        """A moving car, truck, bus or motorcycle."""
        draw_kind = self.rng.random()
        if draw_kind < 0.66:
            self.car(offset, z, speed)
        elif draw_kind < 0.84:
            self.box(offset, z, (2.5, 3.3, 7.5), "truck", TRUCK, self.paint(), speed)
        else:
            self.box(offset, z, (2.55, 3.2, 11.0), "bus", BUS, self.paint(), speed)

    def tram(self) -> None:
        """A train of the tramway, if there is one."""
        if self.layout.rails is None:
            return
        livery = colour(self.rng, ((0.0, 1.0), self.style.paint[1], (0.5, 0.95)))
        for z in (float(self.rng.uniform(12, 30)), float(self.rng.uniform(46, 70))):
            if self.rng.random() < 0.85:
                self.box(self.layout.rails, z, (2.6, 3.7, 22.0), "train", TRAIN, livery, 0.4)

    def box(
        self, offset: float, z: float, size: tuple[float, float, float], kind: str, label: int, tint: Colour,
        speed: float,
    ) -> None:  # fmt: skip
        """A box-shaped vehicle: the end that looks at the camera, the side towards it, the dark below it."""
        width, height, length = size
        if not self.free(offset, z, width, length):
            return
        x, x_far = self.x(offset, z), self.x(offset, z + length)
        self.shadow(offset, z, width + 0.3, length, speed)
        end, side = self.bank.pick(f"{kind}_end", self.rng), self.bank.pick(f"{kind}_side", self.rng)
        self.quads.add(
            (x - width / 2, -height, z), (width, 0, 0), (0, height, 0), end, label, tint, light=0.92, speed=speed
        )
        for edge in (-1, 1):
            near, far = x + edge * width / 2, x_far + edge * width / 2
            light = self.facing(-edge)
            self.quads.add(
                (near, -height, z), (far - near, 0, length), (0, height, 0), side, label, tint, light=light, speed=speed
            )

    def car(self, offset: float, z: float, speed: float) -> None:
        """A lower body and a cabin with sloping windows, closed from every side the camera can see."""
        width, length, scale = 1.8, float(self.rng.uniform(3.9, 4.6)), float(self.rng.uniform(1.0, 1.12))
        if not self.free(offset, z, width + 0.2, length + 0.6):
            return
        tint, x, x_far = self.paint(), self.x(offset, z), self.x(offset, z + length)
        waist, roof, lean = 0.95 * scale, 1.5 * scale * float(self.rng.uniform(0.97, 1.12)), LEAN * width
        front, back = z + 0.17 * length, z + (0.97 if self.rng.random() < 0.5 else 0.8) * length
        self.shadow(offset, z - 0.1, width + 0.35, length + 0.2, speed)
        sides = [self.bank.pick(kind, self.rng) for kind in ("car_side", "cabin_side", "car_end", "window")]
        half = width / 2

        def add(origin: tuple[float, float, float], u: tuple[float, float, float], v: tuple[float, float, float],
                texture: list[Texture], light: float) -> None:  # fmt: skip
            self.quads.add(origin, u, v, texture, CAR, tint, light=light, speed=speed)

        for edge in (-1, 1):
            light, drift = self.facing(-edge), x_far - x
            add((x + edge * half, -waist, z), (drift, 0, length), (0, waist, 0), sides[0], light)
            top = x + edge * (half - lean)
            add((top, -roof, front + 0.3), (drift, 0, back - front), (edge * lean, roof - waist, -0.3), sides[1], light)
        add((x - half, -waist, z + length), (width, 0, 0), (0, 0, -length), FLAT, 1.05)  # bonnet and boot
        add((x - half, -waist, z), (width, 0, 0), (0, waist, 0), sides[2], 0.95)
        add((x - half, -roof, front + 0.3), (width, 0, 0), (0, roof - waist, -0.3), sides[3], 0.95)
        add((x - half + lean, -roof, back), (width - 2 * lean, 0, 0), (0, 0, front + 0.3 - back), FLAT, 1.1)  # roof


def draw_layout(style: Style, rng: np.random.Generator) -> Layout:
    """Draw the plan of a street."""
    lane_width, lanes = draw(rng, style.lane_width), int(rng.choice([1, 2], p=[0.75, 0.25]))
    rails = None
    if rng.random() < 0.35:
        rails = float(rng.choice([-1, 1])) * lane_width * (lanes - 0.5)
    start = float(rng.uniform(18, 55)) if rng.random() < 0.55 else 2 * FAR
    arms = ((True, True), (True, False), (False, True))[int(rng.integers(3))]  # a crossing or a T-junction
    return Layout(
        road=lanes * lane_width + PARKING,
        lanes=lanes,
        lane_width=lane_width,
        verge=max(0.0, draw(rng, style.verge_width)),
        pavement=draw(rng, style.pavement_width),
        garden=max(0.0, draw(rng, style.setback)),
        bend=draw(rng, style.curvature),
        crossing=(start, start + float(rng.uniform(9, 13))),
        arms=arms,
        hand=1 if rng.random() < style.left_hand[0] else -1,
        rails=rails,
    )


def build_scene(style: Style, bank: Bank, rng: np.random.Generator) -> Scene:
    """Draw a whole street; the largest things claim their place first."""
    builder = Builder(style, bank, rng)
    builder.tram()
    builder.traffic()
    builder.furniture()
    builder.planting()
    builder.railings()
    builder.people()
    builder.sides()
    return Scene(builder.layout, builder.quads, builder.sun_side, style)
