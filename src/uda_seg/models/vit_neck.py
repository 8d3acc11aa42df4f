"""Feature pyramids from the single-scale maps of a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

Pair = tuple[float, float]


class SimplePyramid(nn.Module):
    """Four scales from a plain ViT's maps by deconvolution and pooling (ViTDet, Li et al., ECCV 2022, section 3).

    Maps become four times and twice as fine, stay, and become half as fine. ViTDet reduces all to 256 channels
    afterwards, which our heads do themselves, and pools by the maximum; the mean is ours.

    Args:
        width: channels of the maps.
        patch: side of the maps' cells in pixels.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.channels = (width // 4, width // 2, width, width)
        self.cells = (patch / 4, patch / 2, float(patch), patch * 2.0)
        self.finest = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        )
        self.fine = nn.ConvTranspose2d(width, width // 2, 2, 2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Scale four maps [B, C, h, w], one per scale."""
        first, second, third, fourth = maps
        return [self.finest(first), self.fine(second), third, F.avg_pool2d(fourth, 2, ceil_mode=True)]


def onto_image(x: Tensor, cell: float, size: Sequence[int], stride: int) -> Tensor:
    """Give a map exactly the cells of an image, removing the padding on its right and below.

    Args:
        x: [B, C, h, w], whose cells begin at the image's upper left corner and cover at least the image.
        cell: side of the map's cells in pixels.
        size: (H, W) of the image.
        stride: of the result.

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)], whose cells together cover the image and no more; cut out of the map
        where its cells fit, else interpolated.
    """
    # Without negative numbers, whose quotients are rounded otherwise in some runtimes of exported graphs.
    cells = ((size[0] + stride - 1) // stride, (size[1] + stride - 1) // stride)
    if torch.compiler.is_exporting():
        return gathered(x, cell, (size[0], size[1]), cells)
    return onto(x, cell, (size[0] / cells[0], size[1] / cells[1]), cells)


def onto(x: Tensor, cell: float, target: Pair, cells: tuple[int, int]) -> Tensor:
    """Resample a map bilinearly onto another grid with the same upper left corner.

    Args:
        x: [B, C, h, w].
        cell: side of its cells in pixels.
        target: height and width of the other grid's cells in pixels.
        cells: rows and columns of the other grid; beyond the map's border its outermost values are repeated.

    Returns:
        [B, C, *cells].
    """
    if torch.compiler.is_exporting():
        return gathered(x, cell, (target[0] * cells[0], target[1] * cells[1]), cells)
    height, width = x.shape[-2:]
    if target == (cell, cell) and height >= cells[0] and width >= cells[1]:
        return x[..., : cells[0], : cells[1]]
    # On a CPU, equal numbers of cells are taken for equal cells, whatever the scale.
    if height == cells[0] or width == cells[1]:
        x = F.pad(x, (0, int(width == cells[1]), 0, int(height == cells[0])), mode="replicate")
    # `interpolate` would compute either the scale from the numbers of cells or the numbers from the scale.
    scale = (cell / target[0], cell / target[1])
    resampled: Tensor = torch.ops.aten.upsample_bilinear2d(x, list(cells), False, *scale)
    return resampled


def gathered(x: Tensor, cell: float, extent: Pair, cells: tuple[int, int]) -> Tensor:
    """Resample like `onto` without a decision about sizes, for a graph that takes all of them.

    `onto` cuts where cells fit, and `interpolate` with scales of its own is not in every runtime's operators.

    Args:
        x: [B, C, h, w].
        cell: side of its cells in pixels.
        extent: height and width in pixels that the other grid covers.
        cells: rows and columns of the other grid.

    Returns:
        [B, C, *cells].
    """
    for axis, (whole, count) in zip((-2, -1), zip(extent, cells, strict=True), strict=True):
        last = x.shape[axis] - 1
        place = ((torch.arange(count, device=x.device) + 0.5) * whole / count / cell - 0.5).clamp(min=0)
        first = place.floor().clamp(max=last)
        below, above = first.long(), (first.long() + 1).clamp(max=last)
        share = (place - first).clamp(max=1).to(x.dtype)
        share = share[:, None] if axis == -2 else share
        low, high = x.index_select(axis, below), x.index_select(axis, above)
        x = low + share * (high - low)
    return x
