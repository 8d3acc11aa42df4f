"""Projection and warping against exact geometry and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from uda_seg.ops.geometry import (
    back_project,
    crop_intrinsics,
    disparity_to_depth,
    flip_intrinsics,
    motion_matrix,
    project,
    rotation_matrix,
    scale_intrinsics,
    stereo_motion,
    warp,
)

K = torch.tensor([[[20.0, 0, 7.3], [0, 21.0, 4.6], [0, 0, 1]]])


def test_rotations_are_scipys():
    vectors = torch.tensor([[0.3, -0.2, 0.5], [0.0, 0.0, 0.0], [2.0, 1.0, -1.0]])
    expected = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    np.testing.assert_allclose(rotation_matrix(vectors).numpy(), expected, atol=1e-6)
    zero = torch.zeros(1, 3, requires_grad=True)
    rotation_matrix(zero)[0, 0, 1].backward()
    assert torch.isfinite(zero.grad).all()
    assert zero.grad.abs().sum() > 0


def test_motion_and_its_inverse():
    axis, shift = torch.tensor([[0.1, 0.2, -0.1]]), torch.tensor([[0.5, 0.0, 1.0]])
    there, back = motion_matrix(axis, shift), motion_matrix(axis, shift, invert=True)
    torch.testing.assert_close(there @ back, torch.eye(4)[None], atol=1e-6, rtol=0)
    torch.testing.assert_close(there[0, :3, 3], shift[0])


def test_points_come_back_to_their_pixels():
    depth = 1 + 9 * torch.rand(1, 1, 6, 8)
    pixels = project(back_project(depth, K), K, torch.eye(4)[None]).view(2, 6, 8)
    torch.testing.assert_close(pixels[0], torch.arange(8.0).expand(6, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels[1], torch.arange(6.0)[:, None].expand(6, 8), atol=1e-4, rtol=0)


def test_a_point_behind_the_camera_is_outside():
    behind = torch.tensor([[[0.0], [0.0], [-1e-6]]])
    assert (project(behind, K, torch.eye(4)[None]) < -100).all()


def test_warp_with_the_identity_is_the_image_itself():
    """With align_corners wrong this would be off by up to half a pixel."""
    image = torch.rand(1, 3, 6, 8)
    torch.testing.assert_close(
        warp(image, torch.full((1, 1, 6, 8), 3.0), K, torch.eye(4)[None]), image, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("side", [1, -1])
def test_stereo_shifts_by_focal_length_times_baseline_over_depth(side):
    """A plane 4 m away, 0.4 m of baseline, f = 20: two pixels; the right camera sees things further left."""
    image = torch.rand(1, 1, 6, 8)
    motion = stereo_motion(torch.tensor([0.4 * side]))
    seen = warp(image, torch.full((1, 1, 6, 8), 4.0), K, motion)
    shifted = image[..., :-2] if side > 0 else image[..., 2:]
    inner = seen[..., 2:] if side > 0 else seen[..., :-2]
    torch.testing.assert_close(inner, shifted, atol=1e-4, rtol=0)


def test_warp_looks_up_bilinearly_where_the_point_lands():
    image, depth = torch.rand(1, 1, 5, 6), 2 + torch.rand(1, 1, 5, 6)
    motion = motion_matrix(torch.tensor([[0.02, -0.03, 0.05]]), torch.tensor([[0.1, 0.05, 0.2]]))
    result = warp(image, depth, K, motion)
    k, t = K[0].double().numpy(), motion[0].double().numpy()
    for v in range(5):
        for u in range(6):
            point = np.linalg.inv(k) @ [u, v, 1] * float(depth[0, 0, v, u])
            x, y, w = k @ (t[:3, :3] @ point + t[:3, 3])
            x, y = min(max(x / w, 0), 5), min(max(y / w, 0), 4)
            left, top = min(math.floor(x), 4), min(math.floor(y), 3)
            a, b = x - left, y - top
            patch = image[0, 0, top : top + 2, left : left + 2].numpy()
            expected = np.array([1 - b, b]) @ patch @ np.array([1 - a, a])
            assert result[0, 0, v, u].item() == pytest.approx(expected, abs=1e-4)


def test_disparity_to_depth():
    depth = disparity_to_depth(torch.tensor([0.0, 0.01, 1.0]))
    assert depth.tolist() == pytest.approx([100.0, 1 / 0.1099, 0.1], rel=1e-5)


def test_a_crop_a_flip_and_a_resize_keep_every_ray():
    """A pixel's ray, computed from the changed intrinsics at the pixel's new place, is the ray of before."""
    ray = torch.linalg.inv(K) @ torch.tensor([3.0, 2.0, 1.0])
    assert torch.allclose(torch.linalg.inv(crop_intrinsics(K, 1, 2)) @ torch.tensor([1.0, 1.0, 1.0]), ray)
    mirrored = torch.linalg.inv(flip_intrinsics(K, 8)) @ torch.tensor([4.0, 2.0, 1.0])  # column 3 of 8 is now 4
    assert torch.allclose(mirrored, ray * torch.tensor([-1.0, 1, 1]), atol=1e-6)
    doubled = torch.linalg.inv(scale_intrinsics(K, (6, 8), (12, 16))) @ torch.tensor([6.5, 4.5, 1.0])
    assert torch.allclose(doubled, ray, atol=1e-6)  # the centre of pixel 3 lies between the new pixels 6 and 7


def test_a_mirrored_pair_is_warped_to_the_mirrored_image():
    """Flip both images, the camera and the side of the partner: the warped image is flipped, nothing else."""
    image, depth = torch.rand(1, 3, 6, 8), 2 + 3 * torch.rand(1, 1, 6, 8)
    seen = warp(image, depth, K, stereo_motion(torch.tensor([0.3])))
    other = warp(image.flip(3), depth.flip(3), flip_intrinsics(K, 8), stereo_motion(torch.tensor([-0.3])))
    torch.testing.assert_close(other.flip(3), seen, atol=1e-4, rtol=0)


def test_autocast_does_not_move_a_pixel():
    """bfloat16 would round column 201 to 200 or 202, and a rotation to three digits."""
    image = torch.rand(1, 3, 4, 256)
    camera = torch.tensor([[[200.0, 0, 127.3], [0, 200.0, 1.6], [0, 0, 1]]])
    vectors = torch.tensor([[0.011, -0.003, 0.007]]), torch.tensor([[0.013, 0.005, 0.07]])

    def seen():
        motion = motion_matrix(*vectors, invert=True)
        return warp(image, torch.full((1, 1, 4, 256), 3.1), flip_intrinsics(camera, 256), motion)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = seen()
    assert torch.equal(under, seen())
