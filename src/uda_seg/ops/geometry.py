"""The pinhole camera between frames: depth to points, motion, and images warped from one view into another.

Pixel (u, v) is the point with exactly these coordinates, its centre; so the image spans [0, W - 1] x [0, H - 1], which
is what `align_corners=True` means to `grid_sample`. Camera axes: x right, y down, z ahead. All products are in float32,
under autocast too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """Compute a @ b in float32 whatever autocast wants: bfloat16 has eight bits for a pixel's place in its row."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def disparity_to_depth(disparity: Tensor, nearest: float = 0.1, farthest: float = 100.0) -> Tensor:
    """Sigmoid output in [0, 1] -> depth between `farthest` (at 0) and `nearest` (at 1), linear in inverse depth.

    Monodepth2 (Godard et al., ICCV 2019). Depth is in units of the camera's motion, not metres.
    """
    return 1.0 / (1.0 / farthest + (1.0 / nearest - 1.0 / farthest) * disparity)


def pixel_grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Homogeneous pixel coordinates (u, v, 1), float32 [3, H * W], row by row."""
    v, u = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([u, v, torch.ones_like(u)]).flatten(1)


def back_project(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points [B, 3, H * W] in the camera frame of pixels with depth [B, 1, H, W] and intrinsics [B, 3, 3]."""
    inverse: Tensor = torch.linalg.inv_ex(intrinsics).inverse  # `inv` would wait for the device to check its success
    return product(inverse, pixel_grid(depth.shape[2], depth.shape[3], depth.device)) * depth.flatten(2)


def project(points: Tensor, intrinsics: Tensor, motion: Tensor) -> Tensor:
    """Pixel coordinates [B, 2, N] that points [B, 3, N] have in a camera moved by `motion` [B, 4, 4].

    `motion` takes points of the first camera's frame to the second's. Points in or behind the second camera's plane
    project far outside the image.
    """
    moved = product(motion[:, :3, :3], points) + motion[:, :3, 3:]
    pixels = product(intrinsics, moved)
    depth = pixels[:, 2:]
    # Not depth + 1e-7: a small negative depth would mirror the point into the image.
    return torch.where(depth > 1e-3, pixels[:, :2] / depth.clamp_min(1e-3), torch.full_like(depth, -1e4))


def warp(image: Tensor, depth: Tensor, intrinsics: Tensor, motion: Tensor) -> Tensor:
    """Look the other view's colours up where this view's pixels lie in it.

    Args:
        image: [B, C, H, W], the other view.
        depth: [B, 1, H, W], depth of this view's pixels.
        intrinsics: [B, 3, 3] in pixels, of both views.
        motion: [B, 4, 4], from this camera's frame to the other's.

    Returns:
        [B, C, H, W], the image as seen from this view, bilinear, its border repeated outside.
    """
    height, width = depth.shape[-2:]
    u, v = project(back_project(depth, intrinsics), intrinsics, motion).view(-1, 2, height, width).unbind(1)
    grid = torch.stack([u / max(width - 1, 1), v / max(height - 1, 1)], dim=-1) * 2 - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def rotation_matrix(axis_angle: Tensor) -> Tensor:
    """Rotations [B, 3, 3] about v / |v| by |v| radians, v [B, 3] (Rodrigues); differentiable at zero."""
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    angle = (axis_angle.square().sum(-1) + 1e-12).sqrt().view(-1, 1, 1)
    half = torch.sin(angle / 2) / angle  # 1 - cos a = 2 sin^2(a / 2), without the cancellation
    return torch.eye(3, device=cross.device) + torch.sin(angle) / angle * cross + 2 * half**2 * product(cross, cross)


def motion_matrix(axis_angle: Tensor, translation: Tensor, invert: bool = False) -> Tensor:
    """Rigid motion [B, 4, 4] x -> R x + t from [B, 3] and [B, 3], or its inverse x -> R^T (x - t)."""
    rotation, shift = rotation_matrix(axis_angle), translation.unsqueeze(-1)
    if invert:
        rotation = rotation.transpose(1, 2)
        shift = product(-rotation, shift)
    last = torch.zeros_like(rotation[:, :1])
    corner = torch.ones_like(shift[:, :1])
    return torch.cat([torch.cat([rotation, shift], dim=2), torch.cat([last, corner], dim=2)], dim=1)


def stereo_motion(offset: Tensor) -> Tensor:
    """Motion [B, 4, 4] to a camera that stands `offset` [B] to the right (negative: left) and looks the same way."""
    translation = torch.stack([-offset, torch.zeros_like(offset), torch.zeros_like(offset)], dim=1)
    motion = torch.eye(4, device=offset.device).repeat(len(offset), 1, 1)
    motion[:, :3, 3] = translation
    return motion


def crop_intrinsics(intrinsics: Tensor, top: int, left: int) -> Tensor:
    """Intrinsics [B, 3, 3] of the window whose first pixel is (left, top): the principal point moves against it."""
    shift = torch.zeros_like(intrinsics)
    shift[:, 0, 2], shift[:, 1, 2] = left, top
    return intrinsics - shift


def flip_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """Intrinsics [B, 3, 3], without skew, of images mirrored left-right: c_x -> W - 1 - c_x."""
    mirrored = intrinsics.clone()
    mirrored[:, 0, 2] = width - 1 - intrinsics[:, 0, 2]
    return mirrored


def scale_intrinsics(intrinsics: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Intrinsics [B, 3, 3] after a resize from (H, W) to (H', W'): pixel centres stay on their half-pixel places."""
    y, x = after[0] / before[0], after[1] / before[1]
    change = torch.tensor([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]], device=intrinsics.device)
    return product(change, intrinsics)
