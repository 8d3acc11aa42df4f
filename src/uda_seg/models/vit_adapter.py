"""An adapter that gives a plain vision transformer local detail, in the spirit of ViT-Adapter (Chen et al., ICLR 2023).

A small convolutional stem sees the image at strides 4 to 32. Between groups of the transformer's blocks, an injector
lets the patches look at the stem's maps, and an extractor lets the stem's maps look at the patches, both by deformable
attention (Zhu et al., ICLR 2021), here by `grid_sample` in place of a compiled operator. Where the paper's code uses
batch norm, this one uses group norm: the encoder has no running statistics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from uda_seg.models.vit_neck import onto

LEVELS = (8, 16, 32)  # strides of the stem's maps that interact with the patches
STEM = 64  # channels of the stem's finest map


@dataclass(frozen=True)
class Level:
    """Rows and columns of a map, and the side of its cells in pixels; maps begin at the image's upper left corner."""

    rows: int
    columns: int
    cell: int

    @property
    def count(self) -> int:
        """Number of cells."""
        return self.rows * self.columns

    def centres(self, device: torch.device) -> Tensor:
        """Return the centres (x, y) of the cells in pixels, float32 [rows * columns, 2]."""
        y, x = (torch.arange(n, device=device, dtype=torch.float32) for n in (self.rows, self.columns))
        return torch.cartesian_prod(y, x).flip(1).add(0.5).mul(self.cell)


@dataclass(frozen=True)
class Detail:
    """The stem's maps: the finest [B, C, h, w], and the tokens [B, N, C] of the others, level after level."""

    finest: Tensor
    tokens: Tensor
    levels: tuple[Level, ...]

    def maps(self) -> list[Tensor]:
        """Return the tokens as one map [B, C, h, w] per level."""
        parts = torch.split(self.tokens, [level.count for level in self.levels], dim=1)
        return [
            part.transpose(1, 2).reshape(part.shape[0], -1, level.rows, level.columns)
            for part, level in zip(parts, self.levels, strict=True)
        ]


class Adapter(nn.Module):
    """Stem, interactions and pyramid.

    Args:
        width: channels of the transformer.
        patch: side of its patches in pixels.
        interactions: number of groups of blocks.
    """

    cells = (4.0, 8.0, 16.0, 32.0)

    def __init__(self, width: int, patch: int, interactions: int) -> None:
        super().__init__()
        self.patch, self.channels = patch, (width,) * 4
        self.stem = DetailStem(width)
        self.injectors = nn.ModuleList(Injector(width) for _ in range(interactions))
        self.extractors = nn.ModuleList(Extractor(width) for _ in range(interactions))
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.norms = nn.ModuleList(LayerNorm2d(width) for _ in self.cells)

    def patches(self, image: Tensor) -> Level:
        """Return the grid of the patches of padded images [B, 3, H, W]."""
        return Level(image.shape[-2] // self.patch, image.shape[-1] // self.patch, self.patch)

    def forward(self, detail: Detail, taps: Sequence[Tensor]) -> list[Tensor]:
        """Add the transformer's maps [B, C, h, w], one per scale, to the stem's at strides 4, 8, 16 and 32."""
        own = detail.maps()
        finest = detail.finest + self.up(own[0])[..., : detail.finest.shape[-2], : detail.finest.shape[-1]]
        fused = []
        for mine, tap, cell, norm in zip([finest, *own], taps, self.cells, self.norms, strict=True):
            there = onto(tap, self.patch, (cell, cell), (mine.shape[-2], mine.shape[-1]))
            fused.append(norm(mine + there))
        return fused


class DetailStem(nn.Module):
    """Strided convolutions to strides 4, 8, 16 and 32, each projected to the transformer's channels."""

    undecayed = ("level",)

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (STEM, 2 * STEM, 4 * STEM, 4 * STEM)
        self.begin = nn.Sequential(
            *_convolution(3, STEM, 2), *_convolution(STEM, STEM), *_convolution(STEM, STEM), nn.MaxPool2d(3, 2, 1)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*_convolution(inputs, outputs, 2)) for inputs, outputs in itertools.pairwise(widths)
        )
        self.project = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in widths)
        self.level = nn.Parameter(torch.empty(len(LEVELS), width))
        nn.init.normal_(self.level, std=0.02)

    def forward(self, image: Tensor) -> Detail:
        """See normalised images [B, 3, H, W]; maps have ceil(side / stride) cells."""
        maps = [self.begin(image)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        finest, *rest = (project(x) for project, x in zip(self.project, maps, strict=True))
        levels = tuple(Level(x.shape[-2], x.shape[-1], cell) for x, cell in zip(rest, LEVELS, strict=True))
        tokens = [x.flatten(2).transpose(1, 2) + own for x, own in zip(rest, self.level, strict=True)]
        return Detail(finest, torch.cat(tokens, dim=1), levels)


class Injector(nn.Module):
    """Patches look at the stem's maps; a scale of zero leaves the pretrained transformer as it was at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm, self.value_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = DeformableAttention(width, len(LEVELS))
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, patches: Tensor, grid: Level, tokens: Tensor, levels: Sequence[Level]) -> Tensor:
        """Add what patches [B, N, C] see of the stem's tokens."""
        seen = self.attention(self.query_norm(patches), grid.centres(patches.device), self.value_norm(tokens), levels)
        added: Tensor = patches + self.scale * seen
        return added


class Extractor(nn.Module):
    """The stem's maps look at the patches; then a small feed-forward with a depthwise convolution on each map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm, self.value_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = DeformableAttention(width, 1)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.inner, self.outer = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        self.around = nn.Conv2d(width // 4, width // 4, 3, padding=1, groups=width // 4)

    def forward(self, tokens: Tensor, levels: Sequence[Level], patches: Tensor, grid: Level) -> Tensor:
        """Add what the stem's tokens [B, N, C] see of the patches."""
        centres = torch.cat([level.centres(tokens.device) for level in levels])
        tokens = tokens + self.attention(self.query_norm(tokens), centres, self.value_norm(patches), [grid])
        hidden = Detail(tokens, self.inner(self.norm(tokens)), tuple(levels)).maps()
        mixed = torch.cat([self.around(x).flatten(2).transpose(1, 2) for x in hidden], dim=1)
        added: Tensor = tokens + self.outer(F.gelu(mixed))
        return added


class DeformableAttention(nn.Module):
    """Every query takes a weighted mean of values at a few learnt points around its place, at every level.

    Points start on a ring around the query, one direction per head and one radius per point, with equal weights.

    Args:
        width: channels C.
        levels: number of maps to look at.
        points: per head and level.
    """

    def __init__(self, width: int, levels: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = max(1, width // 64), levels, points
        self.inner = self.heads * 32  # half of the channels, as in the paper
        self.value, self.out = nn.Linear(width, self.inner), nn.Linear(self.inner, width)
        self.offsets = nn.Linear(width, self.heads * levels * points * 2)
        self.weights = nn.Linear(width, self.heads * levels * points)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weights.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=1)[:, None, None]
        radii = torch.arange(1.0, points + 1)[:, None]
        with torch.no_grad():
            self.offsets.bias.copy_((ring * radii).expand(-1, levels, -1, -1).flatten())

    def forward(self, query: Tensor, places: Tensor, values: Tensor, levels: Sequence[Level]) -> Tensor:
        """Attend.

        Args:
            query: [B, Q, C].
            places: (x, y) of the queries in pixels, float32 [Q, 2].
            values: [B, N, C], level after level.
            levels: their grids.

        Returns:
            [B, Q, C].
        """
        batch, count = query.shape[:2]
        shape = (batch, count, self.heads, self.levels, self.points)
        offsets = self.offsets(query).float().view(*shape, 2)  # in cells; bf16 could not tell neighbouring cells apart
        weights = self.weights(query).float().view(*shape[:3], -1).softmax(-1).view(shape)
        seen = query.new_zeros((), dtype=torch.float32)
        parts = torch.split(self.value(values).float(), [level.count for level in levels], dim=1)
        for index, (part, level) in enumerate(zip(parts, levels, strict=True)):
            cells = places[:, None, None] / level.cell + offsets[:, :, :, index]  # [B, Q, heads, points, 2]
            extent = _extent(level, cells)
            sampled = F.grid_sample(
                part.transpose(1, 2).reshape(-1, self.inner // self.heads, level.rows, level.columns),
                (2 * cells / extent - 1).transpose(1, 2).flatten(0, 1),  # [B * heads, Q, points, 2]
                align_corners=False,
            )  # [B * heads, channels, Q, points]
            seen = seen + (sampled * weights[:, :, :, index].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        mixed = seen.view(batch, self.inner, count).transpose(1, 2)  # [B, Q, heads * channels]
        result: Tensor = self.out(mixed.to(query.dtype))
        return result


def _extent(level: Level, like: Tensor) -> Tensor:
    """Return columns and rows of a map as a tensor [2]."""
    if torch.compiler.is_exporting():  # where they are variables
        return torch.cat([like.new_ones(1) * level.columns, like.new_ones(1) * level.rows])
    return like.new_tensor([level.columns, level.rows])


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Build a 3x3 convolution with group norm (16 channels a group) and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.GroupNorm(outputs // 16, outputs), nn.ReLU(inplace=True)]
