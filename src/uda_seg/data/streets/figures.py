"""People and two-wheelers as cut-outs. Canvases share a scale, so that a rider fits the cycle."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from uda_seg.data.streets.styles import Colour, Style, colour
from uda_seg.data.streets.textures import RNG, Texture, brightened, noise, rgb8

Joint = tuple[float, float]
SKIN: tuple[Colour, ...] = ((0.87, 0.68, 0.56), (0.72, 0.52, 0.4), (0.5, 0.34, 0.25), (0.32, 0.21, 0.16))
CANVAS = 160  # two-wheelers: square canvas of 2 m


class _Figure:
    """A canvas for limbs, in units of the figure's height."""

    def __init__(self, width: int, height: int, scale: float, centre: float) -> None:
        self.picture: Texture = np.zeros((height, width, 4), np.uint8)
        self.scale, self.centre, self.floor = scale, centre, height - 1

    def at(self, joint: Joint) -> tuple[int, int]:
        return round((self.centre + joint[0] * self.scale) * 8), round((self.floor - joint[1] * self.scale) * 8)

    def limb(self, joints: list[Joint], widths: list[float], ink: Colour, gain: float = 1.0) -> None:
        """Draw a chain of tapering capsules."""
        paint = (*rgb8(ink, gain), 255)
        for i, (a, b) in enumerate(pairwise(joints)):
            length = max(math.dist(a, b), 1e-6)
            x, y = (b[1] - a[1]) / length, (a[0] - b[0]) / length  # normal vector
            edge = ((a, widths[i]), (b, widths[i + 1]), (b, -widths[i + 1]), (a, -widths[i]))
            outline = np.array([self.at((p[0] + x * width, p[1] + y * width)) for p, width in edge])
            cv2.fillConvexPoly(self.picture, outline, paint, cv2.LINE_AA, 3)
        for joint, width in zip(joints, widths, strict=True):
            cv2.circle(self.picture, self.at(joint), round(width * self.scale * 8), paint, -1, cv2.LINE_AA, 3)

    def shape(self, joints: list[Joint], ink: Colour, gain: float = 1.0) -> None:
        outline = np.array([self.at(j) for j in joints])
        cv2.fillPoly(self.picture, [outline], (*rgb8(ink, gain), 255), cv2.LINE_AA, 3)

    def ellipse(self, joint: Joint, axes: Joint, ink: Colour, gain: float = 1.0) -> None:
        x, y = self.at(joint)
        size = (round(axes[0] * self.scale), round(axes[1] * self.scale))
        cv2.ellipse(self.picture, (x // 8, y // 8), size, 0, 0, 360, (*rgb8(ink, gain), 255), -1, cv2.LINE_AA)

    def finish(self, rng: RNG) -> Texture:
        """Shade the figure: light from one side, creases in the cloth."""
        height, width = self.picture.shape[:2]
        light = np.linspace(1.18, 0.78, width, dtype=np.float32)[None, :]
        folds = 0.1 * noise(rng, height, width, 10) + 0.07 * noise(rng, height, width, 28)
        return brightened(self.picture, np.asarray(light * (1 + folds), np.float32))


def _head(figure: _Figure, rng: RNG, x: float, y: float, skin: Colour, helmet: Colour | None = None) -> None:
    hair = (0.08, 0.06, 0.05) if rng.random() < 0.5 else tuple(c * 0.45 for c in skin)
    figure.limb([(x, y - 0.09), (x, y - 0.05)], [0.024, 0.024], skin, 0.85)
    figure.ellipse((x, y), (0.047, 0.062), skin)
    cap = helmet or (hair[0], hair[1], hair[2])
    figure.ellipse((x - 0.004, y + 0.027), (0.052, 0.045) if helmet else (0.05, 0.042), cap)
    if rng.random() < 0.6:  # seen from behind, or long hair
        figure.ellipse((x, y + 0.005), (0.049, 0.055), cap)


def person(style: Style, rng: RNG) -> Texture:
    """Draw a pedestrian [224, 112, 4]; the figure fills 92 % of the canvas's height."""
    figure, walking = _Figure(112, 224, 112.0 * 1.85, 56), bool(rng.random() < 0.6)
    skin = SKIN[int(rng.integers(len(SKIN)))]
    top, bottom, shoe = colour(rng, style.cloth), colour(rng, style.cloth), (0.1, 0.09, 0.09)
    bottom = (bottom[0] * 0.6, bottom[1] * 0.6, bottom[2] * 0.65)
    stride = rng.uniform(0.08, 0.15) if walking else 0.03
    hip, knee = 0.5, 0.27
    for sign, gain in ((-1, 0.72), (1, 1.0)):  # the far leg first
        foot = sign * stride
        lift = 0.02 if sign < 0 and walking else 0.0
        joints = [(sign * 0.03, hip), (foot * 0.55 + 0.02 * walking, knee), (foot, 0.04 + lift)]
        figure.limb(joints, [0.052, 0.042, 0.03], bottom, gain)
        figure.limb([(foot, 0.02 + lift), (foot + 0.045, 0.016 + lift)], [0.019, 0.015], shoe, gain)
    swing = -stride * 0.8
    figure.limb([(-0.085, 0.8), (-0.105 + swing, 0.64), (-0.08 + swing * 1.4, 0.5)], [0.034, 0.029, 0.02], top, 0.75)
    coat = rng.random()
    hem = 0.33 if coat < 0.25 else (0.44 if coat < 0.6 else 0.48)
    flare = 0.1 if coat < 0.25 else 0.088
    figure.shape([(-0.095, 0.82), (-0.04, 0.85), (0.04, 0.85), (0.095, 0.82), (0.08, 0.6), (flare, hem), (-flare, hem),
                  (-0.08, 0.6)], top)  # fmt: skip
    if coat > 0.85:
        figure.shape([(-0.075, 0.52), (0.075, 0.52), (0.11, 0.27), (-0.11, 0.27)], bottom, 1.1)
    if rng.random() < 0.3:  # bag
        figure.limb([(-0.11, 0.74), (-0.11, 0.58)], [0.045, 0.05], colour(rng, style.cloth), 0.7)
    arm = [(0.085, 0.8), (0.115 - swing * 0.6, 0.64), (0.1 - swing * 1.3, 0.5)]
    figure.limb(arm, [0.036, 0.03, 0.022], top, 1.06)
    figure.limb([arm[2], (arm[2][0], 0.475)], [0.02, 0.017], skin)
    _head(figure, rng, 0.0, 0.93, skin)
    return figure.finish(rng)


def _wheel(picture: Texture, x: int, y: int, radius: int, tyre: int) -> None:
    cv2.circle(picture, (x, y), radius, (22, 22, 24, 255), tyre, cv2.LINE_AA)
    for angle in np.arange(0, np.pi, np.pi / 5):
        dx, dy = round(radius * np.cos(angle)), round(radius * np.sin(angle))
        cv2.line(picture, (x - dx, y - dy), (x + dx, y + dy), (120, 120, 124, 200), 1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), 4, (70, 70, 72, 255), -1, cv2.LINE_AA)


def bicycle(style: Style, rng: RNG) -> Texture:
    """Draw a bicycle from the side [160, 160, 4]; the canvas is 2 m by 2 m, front on the right."""
    picture = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    back, front, radius = (38, 129), (122, 129), 28
    _wheel(picture, *back, radius, 5)
    _wheel(picture, *front, radius, 5)
    ink = (*rgb8(colour(rng, style.paint)), 255)
    crank, seat, bar = (76, 131), (66, 92), (110, 88)
    for a, b in (
        (back, crank),
        (back, (68, 98)),
        (crank, (68, 98)),
        (crank, (109, 96)),
        ((69, 98), (109, 94)),
        (bar, front),
    ):
        cv2.line(picture, a, b, ink, 6, cv2.LINE_AA)
    cv2.line(picture, (109, 86), (104, 80), (30, 30, 30, 255), 5, cv2.LINE_AA)
    cv2.line(picture, (100, 80), (114, 82), (30, 30, 30, 255), 5, cv2.LINE_AA)
    cv2.ellipse(picture, (seat[0], seat[1] - 2), (12, 4), 0, 0, 360, (28, 26, 24, 255), -1, cv2.LINE_AA)
    cv2.circle(picture, crank, 7, (60, 60, 62, 255), -1, cv2.LINE_AA)
    if rng.random() < 0.5:
        cv2.ellipse(picture, back, (32, 32), 0, 190, 300, (50, 50, 52, 255), 4, cv2.LINE_AA)
        cv2.rectangle(picture, (22, 93), (56, 98), (60, 58, 56, 255), -1)
    return picture


def motorcycle(style: Style, rng: RNG) -> Texture:
    """Draw a motorcycle or scooter from the side [160, 160, 4]; the canvas is 2.2 m by 2.2 m, front on the right."""
    picture = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    base = colour(rng, style.paint)
    ink, dark = (*rgb8(base), 255), (34, 34, 36, 255)
    for x in (34, 126):
        cv2.circle(picture, (x, 135), 19, (20, 20, 22, 255), 9, cv2.LINE_AA)
        cv2.circle(picture, (x, 135), 12, (110, 110, 114, 255), 3, cv2.LINE_AA)
        cv2.circle(picture, (x, 135), 5, (90, 90, 92, 255), -1, cv2.LINE_AA)
    cv2.line(picture, (126, 135), (108, 84), (140, 140, 145, 255), 6, cv2.LINE_AA)
    if rng.random() < 0.5:  # scooter
        shell = [(18, 112), (66, 104), (72, 134), (98, 134), (106, 86), (116, 90), (112, 142), (60, 144), (34, 126)]
        cv2.fillPoly(picture, [np.array(shell)], ink, cv2.LINE_AA)
    else:
        cv2.fillPoly(picture, [np.array([[56, 112], [98, 110], [100, 142], [58, 144]])], (70, 70, 74, 255), cv2.LINE_AA)
        cv2.fillPoly(
            picture, [np.array([[14, 104], [62, 106], [74, 94], [108, 88], [114, 102], [92, 116], [30, 118]])], ink, 16
        )
        cv2.line(picture, (60, 140), (18, 134), (170, 170, 174, 255), 7, cv2.LINE_AA)
    cv2.fillPoly(picture, [np.array([[20, 104], [70, 102], [66, 95], [24, 96]])], dark, cv2.LINE_AA)
    cv2.line(picture, (108, 84), (96, 76), dark, 6, cv2.LINE_AA)
    cv2.circle(picture, (117, 92), 8, (240, 238, 215, 255), -1, cv2.LINE_AA)
    return picture


def cyclist(style: Style, rng: RNG) -> Texture:
    """Draw the rider of a `bicycle`, on a canvas of the same scale, without the cycle."""
    return _rider(rng, style, motor=False)


def motorist(style: Style, rng: RNG) -> Texture:
    """Draw the rider of a `motorcycle`, on a canvas of the same scale, without the motorcycle."""
    return _rider(rng, style, motor=True)


def _rider(rng: RNG, style: Style, motor: bool) -> Texture:
    figure = _Figure(CANVAS, CANVAS, CANVAS / (2.2 if motor else 2.0) * 1.72, 0)
    k = figure.scale

    def on(x: float, y: float) -> Joint:
        return (x / k, (figure.floor - y) / k)

    skin = SKIN[int(rng.integers(len(SKIN)))]
    top, bottom = colour(rng, style.cloth), colour(rng, style.cloth)
    bottom = (bottom[0] * 0.6, bottom[1] * 0.6, bottom[2] * 0.65)
    hip, shoulder = (on(52, 92), on(70, 50)) if motor else (on(66, 86), on(80, 42))
    knee, foot = (on(84, 104), on(78, 138)) if motor else (on(92, 104), on(80, 140))
    hand = on(97, 76) if motor else on(102, 80)
    if not motor:
        figure.limb([hip, on(88, 112), on(72, 124)], [0.05, 0.04, 0.028], bottom, 0.65)
    figure.limb([hip, knee, foot], [0.056, 0.045, 0.03], bottom)
    figure.limb([foot, (foot[0] + 0.05, foot[1] - 0.01)], [0.022, 0.018], (0.1, 0.09, 0.09))
    figure.limb([hip, shoulder], [0.075, 0.085], top)
    figure.limb([shoulder, ((shoulder[0] + hand[0]) / 2, min(shoulder[1], hand[1] + 0.1) - 0.05), hand],
                [0.04, 0.033, 0.024], top, 0.85)  # fmt: skip
    helmet = colour(rng, style.paint) if motor or rng.random() < 0.5 else None
    head = (shoulder[0] + 0.04, shoulder[1] + 0.13)
    _head(figure, rng, *head, skin, helmet)
    if motor and helmet:
        figure.ellipse(head, (0.06, 0.065), helmet)
        figure.ellipse((head[0] + 0.03, head[1]), (0.028, 0.022), (0.1, 0.12, 0.14))
    return figure.finish(rng)
