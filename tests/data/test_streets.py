"""The street world: exact, deterministic, and as different between its domains as it promises."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from uda_seg.data.streets import DOMAINS, Frame, render, world
from uda_seg.data.streets.ground import ground_paint
from uda_seg.data.streets.styles import CAMERA, GAME, interpolate, style_of
from uda_seg.errors import UserError

SIZE = (96, 192)
ALL, STANDING = tuple(range(19)), (2, 3, 4, 5, 6, 7)  # houses, walls, fences, poles, lights, signs
ROAD, SKY, HOOD = 0, 10, 255


def digest(frame: Frame) -> str:
    planes = (frame.image, frame.label, frame.depth, frame.intrinsics, frame.pose)
    return hashlib.sha256(b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes)).hexdigest()


def project_into(source: Frame, target: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each pixel of `source` lands in `target` [H, W, 2], and its depth there; by 4x4 matrices, in float64."""
    height, width = source.label.shape
    v, u = np.mgrid[:height, :width].astype(np.float64)
    depth = np.where(np.isfinite(source.depth), source.depth, 1e6).astype(np.float64)
    points = np.linalg.inv(source.intrinsics) @ np.stack([u, v, np.ones_like(u)]).reshape(3, -1) * depth.ravel()
    points = np.linalg.inv(target.pose) @ source.pose @ np.vstack([points, np.ones((1, points.shape[1]))])
    pixels = target.intrinsics @ points[:3]
    pixels[2] = np.where(np.abs(pixels[2]) < 1e-9, 1e-9, pixels[2])
    return (pixels[:2] / pixels[2:]).T.reshape(height, width, 2), points[2].reshape(height, width)


def agreement(source: Frame, target: Frame, classes: tuple[int, ...], within: float = 1e3) -> tuple[float, int]:
    """Share of the pixels of some classes whose label and depth `target` confirms where they land, and how many."""
    where, depth = project_into(source, target)
    place = np.rint(np.clip(np.nan_to_num(where, nan=-1), -1, 1e4)).astype(int)
    height, width = source.label.shape
    inside = (place >= 0).all(2) & (place[..., 0] < width) & (place[..., 1] < height)
    inside &= np.isin(source.label, classes) & (source.depth < within) & (source.depth > 0)
    u, v = place[inside].T
    same = (target.label[v, u] == source.label[inside]) & (
        np.abs(target.depth[v, u] / depth[inside] - 1) < 0.015 + 0.002 * depth[inside]
    )
    return float(same.mean()), int(inside.sum())


@pytest.mark.parametrize("domain", DOMAINS)
def test_frame_has_valid_planes(domain: str) -> None:
    frame = render(0, domain, 3, SIZE)
    assert frame.image.shape == (*SIZE, 3)
    assert frame.image.dtype == np.uint8
    assert frame.label.shape == frame.depth.shape == SIZE
    assert set(np.unique(frame.label)) <= {*range(19), HOOD}
    assert np.array_equal(np.isinf(frame.depth), frame.label == SKY)
    assert np.array_equal(frame.depth == 0, frame.label == HOOD)
    assert frame.image.std() > 15, "a blank picture"
    assert np.allclose(frame.pose[:3, :3] @ frame.pose[:3, :3].T, np.eye(3))


def test_same_in_another_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_streets import SIZE, digest, render;"
        "render(5, 'camera', 0, SIZE); print(digest(render(5, 'camera', 1, SIZE)))"  # after another scene
    )
    folder = __file__.rpartition("/")[0]
    other = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(render(5, "camera", 1, SIZE))


def test_seed_domain_and_index_all_matter() -> None:
    frames = [render(0, "game", 0, SIZE), render(1, "game", 0, SIZE), render(0, "game", 1, SIZE)]
    frames.append(render(0, "camera", 0, SIZE))
    assert len({digest(frame) for frame in frames}) == 4


def test_road_depth_is_where_rays_meet_the_plane() -> None:
    frame = render(0, "game", 2, SIZE)
    rotation, origin = frame.pose[:3, :3], frame.pose[:3, 3]
    for v, u in np.argwhere(frame.label == ROAD)[::97]:
        ray = rotation @ np.linalg.solve(frame.intrinsics, np.array([u, v, 1.0]))
        assert frame.depth[v, u] == pytest.approx(-origin[1] / ray[1], rel=1e-3)


@pytest.mark.parametrize("domain", ["game", "camera"])
def test_stereo_partner_agrees_with_depth(domain: str) -> None:
    pairs = [(render(0, domain, i, SIZE), render(0, domain, i, SIZE, "right")) for i in range(3)]
    scores, counts = zip(*(agreement(left, right, ALL) for left, right in pairs), strict=True)
    assert min(counts) > SIZE[0] * SIZE[1] / 3
    assert np.mean(scores) > 0.85  # the rest: occlusion, and edges that fall between pixels
    left, right = pairs[0]
    assert np.allclose(left.pose[:3, :3].T @ (right.pose[:3, 3] - left.pose[:3, 3]), [world.BASELINE, 0, 0])


@pytest.mark.parametrize("view", ["previous", "next"])
def test_neighbouring_frames_agree_where_nothing_moves(view: str) -> None:
    here, there = render(0, "game", 1, SIZE), render(0, "game", 1, SIZE, view)
    ahead = (here.pose[:3, :3].T @ (there.pose[:3, 3] - here.pose[:3, 3]))[2]
    assert ahead == pytest.approx(world.STRIDE if view == "next" else -world.STRIDE)
    score, count = agreement(here, there, STANDING, within=30)
    astray, _ = agreement(here, replace(there, pose=here.pose), STANDING, within=30)
    assert count > 1000
    assert score > 0.8
    assert score > astray + 0.15, "the pose does not matter"


def test_traffic_moves_between_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "STRIDE", 0.0)
    before, after = render(0, "game", 5, SIZE, "previous"), render(0, "game", 5, SIZE, "next")
    assert (before.label != after.label).mean() > 0.002


def test_views_share_light_but_not_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "BASELINE", 0.0)
    left, right = render(0, "camera", 0, SIZE), render(0, "camera", 0, SIZE, "right")
    assert np.array_equal(left.label, right.label)
    difference = left.image.astype(int) - right.image
    assert difference.std() > 1
    assert abs(difference.mean()) < 0.5


@pytest.mark.parametrize("domain", ["game", "camera", "night_rain"])
def test_every_class_is_there_to_be_learnt(domain: str) -> None:
    labels = np.stack([render(0, domain, i, SIZE).label for i in range(24)])
    pixels = np.bincount(labels.ravel(), minlength=256)[:19] / labels.size
    images = np.array([(labels == k).reshape(24, -1).sum(1) >= 10 for k in range(19)]).mean(1)
    assert pixels.min() > 0.002, pixels.round(4)
    assert pixels[1] > 0.03  # pavement
    assert images.min() >= 0.12, images.round(2)


def test_source_and_target_differ_at_a_glance() -> None:
    def saturation(domain: str) -> float:
        images = [render(0, domain, i, SIZE).image.astype(float) for i in range(4)]
        return float(np.mean([image.max(2) - image.min(2) for image in images]))

    game, half, camera = saturation("game"), saturation("camera:0.5"), saturation("camera")
    assert game > 2 * camera
    assert game > half > camera


def test_in_alike_styles_only_context_tells_the_classes_of_the_ground_apart() -> None:
    def apart(domain: str, ground: int) -> float:
        """Distance between the mean colours of road and another ground, over the road's own deviation."""
        ratios = []
        for frame in (render(0, domain, i, SIZE) for i in range(6)):
            road, other = (frame.image[frame.label == k].astype(float) for k in (0, ground))
            if len(other) > 20:
                ratios.append(np.abs(road.mean(0) - other.mean(0)).max() / road.std(0).max())
        return float(np.median(ratios))

    for domain in ("game", "camera"):
        paint = ground_paint(style_of(f"{domain}_alike"), np.zeros((256, 256), np.float32), np.random.default_rng(0))
        assert np.allclose(paint.tones[:3], paint.tones[0], atol=1e-6)  # rounding of a float32 below 1
        assert np.allclose(paint.roughness[:3], paint.roughness[0], atol=1e-6)
        assert paint.joint == 0
        for ground in (1, 9):  # pavement, terrain
            assert apart(f"{domain}_alike", ground) < 0.5 * apart(domain, ground)
            assert apart(f"{domain}_alike", ground) < 0.5


def test_strength_interpolates_styles() -> None:
    assert style_of("camera:0") == GAME
    assert style_of("camera:1") == CAMERA
    middle = interpolate(GAME, CAMERA, 0.25)
    assert middle.field_of_view[0] == pytest.approx(0.75 * GAME.field_of_view[0] + 0.25 * CAMERA.field_of_view[0])
    assert middle.foliage[2][1] == pytest.approx(0.75 * GAME.foliage[2][1] + 0.25 * CAMERA.foliage[2][1])


@pytest.mark.parametrize("domain", ["moon", "camera:2", "camera:x", "camera:-0.1", ""])
def test_unknown_domain_is_told(domain: str) -> None:
    with pytest.raises(UserError, match="streets domain"):
        render(0, domain, 0, SIZE)


def test_unknown_view_is_told() -> None:
    with pytest.raises(UserError, match="left, right, previous, next"):
        render(0, "game", 0, SIZE, "up")
