"""Pinhole camera geometry: depth to points, rigid motion, and warping between views.

Integer coordinates (u, v) are pixel centres, so the image spans [0, W - 1] x [0, H - 1]: the convention of
`grid_sample(align_corners=True)`. Camera axes: x right, y down, z forward. All products are in float32, also under
autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """Compute a @ b in float32 even under autocast: bfloat16 has 8 bits, too few for pixel coordinates."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def disparity_to_depth(disparity: Tensor, nearest: float = 0.1, farthest: float = 100.0) -> Tensor:
    """Map sigmoid output in [0, 1] to depth between `farthest` (0) and `nearest` (1), linearly in inverse depth.

    Monodepth2 (Godard et al., ICCV 2019). Depth is in units of the camera's motion, not metres.
    """
    return 1.0 / (1.0 / farthest + (1.0 / nearest - 1.0 / farthest) * disparity)


def pixel_grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Build homogeneous pixel coordinates (u, v, 1), float32 [3, H * W] in row-major order."""
    v, u = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([u, v, torch.ones_like(u)]).flatten(1)


def back_project(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Lift pixels with depth [B, 1, H, W] and intrinsics [B, 3, 3] to points [B, 3, H * W] in the camera frame."""
    inverse: Tensor = torch.linalg.inv_ex(intrinsics).inverse  # `inv` would synchronise with the device
    return product(inverse, pixel_grid(depth.shape[2], depth.shape[3], depth.device)) * depth.flatten(2)


def project(points: Tensor, intrinsics: Tensor, motion: Tensor) -> Tensor:
    """Project points [B, 3, N] to pixel coordinates [B, 2, N] of a camera moved by `motion` [B, 4, 4].

    `motion` maps points from the first camera's frame to the second's. Points on or behind the second camera's plane
    project far outside the image.
    """
    moved = product(motion[:, :3, :3], points) + motion[:, :3, 3:]
    pixels = product(intrinsics, moved)
    depth = pixels[:, 2:]
    # A clamp, not depth + 1e-7: a small negative depth would mirror the point into the image.
    return torch.where(depth > 1e-3, pixels[:, :2] / depth.clamp_min(1e-3), torch.full_like(depth, -1e4))


def warp(image: Tensor, depth: Tensor, intrinsics: Tensor, motion: Tensor) -> Tensor:
    """Warp the other view into this one by sampling it where this view's pixels project.

    Args:
        image: [B, C, H, W], the other view.
        depth: [B, 1, H, W], depth of this view's pixels.
        intrinsics: [B, 3, 3] in pixels, shared by both views.
        motion: [B, 4, 4], from this camera's frame to the other's.

    Returns:
        [B, C, H, W], the image as seen from this view; bilinear, with border padding.
    """
    height, width = depth.shape[-2:]
    u, v = project(back_project(depth, intrinsics), intrinsics, motion).view(-1, 2, height, width).unbind(1)
    grid = torch.stack([u / max(width - 1, 1), v / max(height - 1, 1)], dim=-1) * 2 - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def rotation_matrix(axis_angle: Tensor) -> Tensor:
    """Convert axis-angle vectors v [B, 3] to rotations [B, 3, 3] by |v| radians (Rodrigues); differentiable at 0."""
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    angle = (axis_angle.square().sum(-1) + 1e-12).sqrt().view(-1, 1, 1)
    half = torch.sin(angle / 2) / angle  # 1 - cos a = 2 sin^2(a / 2), without the cancellation
    return torch.eye(3, device=cross.device) + torch.sin(angle) / angle * cross + 2 * half**2 * product(cross, cross)


def motion_matrix(axis_angle: Tensor, translation: Tensor, invert: bool = False) -> Tensor:
    """Build the rigid motion [B, 4, 4] x -> R x + t from [B, 3] and [B, 3], or its inverse x -> R^T (x - t)."""
    rotation, shift = rotation_matrix(axis_angle), translation.unsqueeze(-1)
    if invert:
        rotation = rotation.transpose(1, 2)
        shift = product(-rotation, shift)
    last = torch.zeros_like(rotation[:, :1])
    corner = torch.ones_like(shift[:, :1])
    return torch.cat([torch.cat([rotation, shift], dim=2), torch.cat([last, corner], dim=2)], dim=1)


def stereo_motion(offset: Tensor) -> Tensor:
    """Build the motion [B, 4, 4] to a parallel camera `offset` [B] to the right (negative: to the left)."""
    translation = torch.stack([-offset, torch.zeros_like(offset), torch.zeros_like(offset)], dim=1)
    motion = torch.eye(4, device=offset.device).repeat(len(offset), 1, 1)
    motion[:, :3, 3] = translation
    return motion


def crop_intrinsics(intrinsics: Tensor, top: int, left: int) -> Tensor:
    """Adapt intrinsics [B, 3, 3] to a crop whose first pixel is (left, top) by shifting the principal point."""
    shift = torch.zeros_like(intrinsics)
    shift[:, 0, 2], shift[:, 1, 2] = left, top
    return intrinsics - shift


def flip_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """Adapt skew-free intrinsics [B, 3, 3] to a horizontal flip: c_x -> W - 1 - c_x."""
    mirrored = intrinsics.clone()
    mirrored[:, 0, 2] = width - 1 - intrinsics[:, 0, 2]
    return mirrored


def scale_intrinsics(intrinsics: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Adapt intrinsics [B, 3, 3] to a resize from (H, W) to (H', W') with half-pixel centres."""
    y, x = after[0] / before[0], after[1] / before[1]
    change = torch.tensor([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]], device=intrinsics.device)
    return product(change, intrinsics)
