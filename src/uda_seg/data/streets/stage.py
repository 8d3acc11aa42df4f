"""Building blocks of a street: textured parallelograms and functions to place them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from uda_seg.data.streets.bank import Bank
from uda_seg.data.streets.plan import PERSON, POLE, VEGETATION, draw_layout
from uda_seg.data.streets.styles import Colour, Style, colour, draw
from uda_seg.data.streets.textures import Mips, flat
from uda_seg.data.streets.vehicles import Vehicle

Vector = tuple[float, float, float]
SHADOW = 254  # darkens the surface below and has no label
WHITE: Colour = (1.0, 1.0, 1.0)
FLAT = flat(WHITE)
EYE = (0.0, -1.6, 0.0)  # approximate camera position


@dataclass
class Quads:
    """Parallelograms origin + s u + r v; r grows downwards in the texture. `velocity` is in metres per frame."""

    origin: list[Vector] = field(default_factory=list)
    u: list[Vector] = field(default_factory=list)
    v: list[Vector] = field(default_factory=list)
    velocity: list[Vector] = field(default_factory=list)
    texture: list[Mips] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    tint: list[Colour] = field(default_factory=list)
    solid: list[bool] = field(default_factory=list)

    def add(
        self,
        origin: Vector,
        u: Vector,
        v: Vector,
        texture: Mips,
        label: int,
        tint: Colour = WHITE,
        *,
        light: float = 1.0,
        solid: bool = False,
        velocity: Vector = (0.0, 0.0, 0.0),
    ) -> None:
        """Append a parallelogram; `light` scales its tint, `solid` also labels its holes."""
        self.origin.append(origin)
        self.u.append(u)
        self.v.append(v)
        self.velocity.append(velocity)
        self.texture.append(texture)
        self.label.append(label)
        self.tint.append((tint[0] * light, tint[1] * light, tint[2] * light))
        self.solid.append(solid)


class Stage:
    """An empty street, with an occupancy list against overlapping objects.

    Places are given as (offset, z): metres to the right of the centre line, and along the street.
    """

    def __init__(self, style: Style, bank: Bank, rng: np.random.Generator) -> None:
        self.style, self.bank, self.rng = style, bank, rng
        self.layout = draw_layout(style, rng)
        self.quads = Quads()
        self.sun_side = int(rng.choice([-1, 1]))
        self.contrast = draw(rng, style.sun)
        self.bare = rng.random() < style.bare_trees[0]
        self.taken: list[tuple[float, float, float, float]] = []

    def free(self, offset: float, z: float, width: float, length: float) -> bool:
        """Claim a rectangle of ground (starting at z, centred at offset) and return true, if it is free."""
        left, right, end = offset - width / 2, offset + width / 2, z + length
        for x0, x1, z0, z1 in self.taken:
            if z < z1 and z0 < end and left < x1 and x0 < right:
                return False
        self.taken.append((left, right, z, end))
        return True

    def facing(self, side: int) -> float:
        """Return the light on a surface on `side` that faces the road."""
        return 1.0 - 0.45 * self.contrast * (0.35 if side != self.sun_side else 1.0)

    def x(self, offset: float, z: float) -> float:
        """Compute world x of an offset from the centre line."""
        return self.layout.middle(z) + offset

    def panel(
        self, start: tuple[float, float], end: tuple[float, float], height: float, texture: Mips, label: int,
        light: float, *, solid: bool = False,
    ) -> None:  # fmt: skip
        """Add an upright surface over the line from `start` to `end`; its texture's left edge is at `start`."""
        x0, x1 = self.x(*start), self.x(*end)
        along = (x1 - x0, 0.0, end[1] - start[1])
        self.quads.add(
            (x0, -height, start[1]), along, (0.0, height, 0.0), texture, label, light=light, solid=solid
        )  # fmt: skip

    def board(
        self, offset: float, z: float, width: float, height: float, kind: str, label: int,
        tint: Colour = WHITE, *, base: float = 0.0, turn: float = 0.0, velocity: Vector = (0.0, 0.0, 0.0),
    ) -> None:  # fmt: skip
        """Add an upright picture, rotated by `turn` from facing the camera, `base` metres above the ground."""
        x, c, d = self.x(offset, z), width * math.cos(turn), width * math.sin(turn)
        self.quads.add(
            (x - c / 2, -base - height, z - d / 2), (c, 0.0, d), (0.0, height, 0.0), self.bank.pick(kind, self.rng),
            label, tint, light=1 - 0.2 * self.contrast, velocity=velocity,
        )  # fmt: skip

    def shadow(self, offset: float, z: float, width: float, length: float, velocity: Vector = (0.0, 0.0, 0.0)) -> None:
        """Add the shadow under an object, starting at z."""
        x, strength = self.x(offset, z), 0.4 + 0.35 * self.contrast
        self.quads.add(
            (x - width / 2, -0.02, z + length), (width, 0.0, 0.0), (0.0, 0.0, -length), self.bank.blob, SHADOW,
            (strength,) * 3, velocity=velocity,
        )  # fmt: skip

    def post(self, offset: float, z: float, height: float, radius: float, tint: Colour) -> None:
        """Add a round post as two flat strips, one of them darker."""
        x = self.x(offset, z)
        for i, shade in enumerate((1.0, 0.7)):
            self.quads.add(
                (x + (i - 1) * radius, -height, z),
                (radius, 0.0, 0.0),
                (0.0, height, 0.0),
                FLAT,
                POLE,
                tint,
                light=shade,
            )

    def tree(self, offset: float, z: float, planted: bool = True) -> None:
        """Add a trunk with a crown; planted trees claim their place."""
        if planted and not self.free(offset, z, 1.0, 1.0):
            return
        trunk, size = float(self.rng.uniform(1.8, 2.8)), float(self.rng.uniform(3.5, 6.5))
        bark = colour(self.rng, ((0.05, 0.1), (0.2, 0.45), (0.2, 0.36)))
        x, radius = self.x(offset, z), float(self.rng.uniform(0.13, 0.24))
        far = z > 35.0  # fewer pieces at a distance
        for i, shade in enumerate((0.85,) if far else (1.0, 0.7)):
            width = 2 * radius if far else radius
            self.quads.add(
                (x - radius + i * width, -trunk, z), (width, 0.0, 0.0), (0.0, trunk, 0.0), FLAT, VEGETATION, bark,
                light=shade,
            )  # fmt: skip
        kind, tone = ("bare" if self.bare else "crown"), float(self.rng.uniform(0.8, 1.15))
        skin = self.bank.pick(kind, self.rng)
        for dz in (0.0,) if self.bare or far else (0.3, -0.3):
            width = size * float(self.rng.uniform(0.85, 1.0))
            top = trunk + size * (0.95 if self.bare else 0.8)
            self.quads.add(
                (x - width / 2, -top, z + dz), (width, 0.0, 0.0), (0.0, size * (0.97 if self.bare else 1.0), 0.0), skin,
                VEGETATION, (tone, tone, tone), light=1 - 0.15 * self.contrast,
            )  # fmt: skip
        if not self.bare and planted and not far:
            self.shadow(offset + 0.6 * self.sun_side, z - 1.5, size * 0.8, 3.0)

    def pedestrian(self, offset: float, z: float) -> None:
        """Add a person, sometimes a child."""
        height = float(self.rng.uniform(1.8, 2.15)) if self.rng.random() < 0.88 else float(self.rng.uniform(1.2, 1.5))
        if self.free(offset, z, 0.6, 0.5):
            velocity = (float(self.rng.uniform(-0.08, 0.08)), 0.0, float(self.rng.uniform(-0.1, 0.1)))
            self.shadow(offset, z - 0.25, 0.8, 0.5, velocity)
            mirror = 1.0 if self.rng.random() < 0.5 else -1.0
            self.board(offset, z, mirror * height / 2, height, "person", PERSON, velocity=velocity)

    def vehicle(self, car: Vehicle, label: int, offset: float, z: float, heading: float, speed: float) -> None:
        """Add a vehicle centred on a place, with `heading` in radians (0: away from the camera)."""
        heading += math.atan(2 * self.layout.bend * z)
        sine, cosine, x = math.sin(heading), math.cos(heading), self.x(offset, z)
        velocity, gain = (sine * speed, 0.0, cosine * speed), float(self.rng.uniform(0.85, 1.1))

        def turned(across: float, up: float, ahead: float) -> Vector:
            return cosine * across + sine * ahead, -up, cosine * ahead - sine * across

        for skin, corner, along, drop, mirrored in car.faces:
            place, u, v = turned(*corner), turned(*along), turned(*drop)
            origin = (x + place[0], place[1], z + place[2])
            inward = (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
            size = max(math.hypot(*inward), 1e-9) * (-1 if mirrored else 1)
            nx, ny, nz = (component / size for component in inward)
            right, down, away = (o + a / 2 - e for o, a, e in zip(origin, u, EYE, strict=True))
            if right * nx + down * ny + away * nz > -1.5:  # skip faces that point away from the cameras
                light = gain * self.sheen(nx, ny, nz)
                self.quads.add(origin, u, v, skin, label, light=light, velocity=velocity)
        wide, long = car.body.width + 0.5, car.length + 0.4
        if abs(sine) > 0.7:
            wide, long = long, wide
        self.shadow(offset, z - long / 2, wide, long, velocity)

    def sheen(self, x: float, y: float, z: float) -> float:
        """Compute the light on a vehicle's face from its inward normal; faces that point up are brightest."""
        if y > 0.6:
            return 1.05
        if y > 0.2:
            return 0.95
        return 0.93 if abs(z) > 0.7 else self.facing(-1 if x > 0 else 1)
