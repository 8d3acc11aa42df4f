"""Mix Transformer (MiT), the hierarchical encoder of SegFormer (Xie et al., NeurIPS 2021, section 3.1).

Parameter names match the published ImageNet and segmentation checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from uda_seg.errors import UserError
from uda_seg.models.segmentor import Encoder
from uda_seg.models.weights import load_encoder
from uda_seg.options.constraints import Blocks, Channels, FilePath, FractionBelowOne, Length, OneOf, Text

DEPTHS = {
    "b0": (2, 2, 2, 2),
    "b1": (2, 2, 2, 2),
    "b2": (3, 4, 6, 3),
    "b3": (3, 4, 18, 3),
    "b4": (3, 8, 27, 3),
    "b5": (3, 6, 40, 3),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
# The published weights were trained with two epsilons: this one in blocks and after each stage, and PyTorch's 1e-5
# after patch embeddings and spatial reductions.
BLOCK_EPS = 1e-6


class MixVisionTransformer(Encoder):
    """Four stages of efficient self-attention at strides 4, 8, 16 and 32; no positional embedding.

    Args:
        variant: "b0" to "b5".
        dims: channels per stage, divisible by the heads (1, 2, 5, 8); default: the variant's.
        depths: blocks per stage; default: the variant's.
        drop_path: stochastic-depth rate of the last block, rising linearly from 0 at the first.
        weights: a file of ImageNet weights, or None for a random start.
        allow_missing: names of tensors or modules that the file may lack.

    Raises:
        UserError: `dims` not divisible by the heads, or weights that do not fit.
    """

    strides = (4, 8, 16, 32)
    smallest = 29  # gives the first stage, at stride 4, the 8 x 8 cells that its attention reduces to one
    first_stage = ("patch_embed1", "block1", "norm1")

    def __init__(
        self,
        variant: Annotated[str, OneOf(tuple(DEPTHS))] = "b5",
        dims: Annotated[Sequence[Channels], Length(4, 4)] | None = None,
        depths: Annotated[Sequence[Blocks], Length(4, 4)] | None = None,
        drop_path: FractionBelowOne = 0.1,
        weights: FilePath | Path | None = None,
        allow_missing: Sequence[Text] = (),
    ) -> None:
        super().__init__()
        if variant not in DEPTHS:
            raise ValueError(f"variant must be one of {', '.join(DEPTHS)}, not {variant!r}")
        self.channels = tuple(dims or ((32, 64, 160, 256) if variant == "b0" else (64, 128, 320, 512)))
        if any(dim % heads for dim, heads in zip(self.channels, HEADS, strict=True)):
            raise UserError(
                f"model.encoder.dims={list(self.channels)} must be multiples of the attention heads, {HEADS}"
            )
        depths = tuple(depths or DEPTHS[variant])
        starts = list(accumulate(depths, initial=0))
        last_block = max(starts[-1] - 1, 1)
        inputs = 3
        for stage, (dim, depth) in enumerate(zip(self.channels, depths, strict=True)):
            rates = [drop_path * block / last_block for block in range(starts[stage], starts[stage] + depth)]
            blocks = [Block(dim, HEADS[stage], REDUCTIONS[stage], rate) for rate in rates]
            kernel, stride = (7, 4) if stage == 0 else (3, 2)
            self.add_module(f"patch_embed{stage + 1}", PatchEmbed(inputs, dim, kernel, stride))
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(dim, eps=BLOCK_EPS))
            inputs = dim
        self.apply(_initialize)
        self.imagenet = f"mit_{variant}.pth"
        if weights is not None:
            load_encoder(self, weights, allow_missing)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode normalised images [B, 3, H, W] into four maps [B, C_i, ceil(H / stride), ceil(W / stride)]."""
        stages = []
        for stage in range(1, len(self.channels) + 1):
            tokens, size = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"block{stage}"):
                tokens = self.through(block, tokens, size)
            x = _as_map(getattr(self, f"norm{stage}")(tokens), size)
            stages.append(x)
        return stages


class PatchEmbed(nn.Module):
    """Overlapping patch embedding: a strided convolution, then a norm."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """Embed [B, C, H, W] as tokens [B, h * w, dim]; also returns the map's size (h, w)."""
        x = self.proj(x)
        tokens: Tensor = self.norm(x.flatten(2).transpose(1, 2))
        return tokens, x.shape[-2:]


class Block(nn.Module):
    """Pre-norm residual block: efficient attention, then Mix-FFN."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = EfficientAttention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = MixFFN(dim, 4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """Transform tokens [B, N, C] of a map of `size` (h, w), N = h * w."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens), size))
        return tokens


class EfficientAttention(nn.Module):
    """Self-attention with keys and values from a map reduced by `reduction` per side."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)  # rows: all of K, then all of V
        self.proj = nn.Linear(dim, dim)
        self.sr = nn.Conv2d(dim, dim, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(dim) if reduction > 1 else None

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """Tokens [B, N, C] -> [B, N, C]."""
        context = tokens
        if self.sr is not None and self.norm is not None:
            context = self.norm(self.sr(_as_map(tokens, size)).flatten(2).transpose(1, 2))
        key, value = self.kv(context).chunk(2, dim=-1)
        query, key, value = self._split(self.q(tokens)), self._split(key), self._split(value)
        out = F.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, tokens: Tensor) -> Tensor:
        batch, count, dim = tokens.shape
        return tokens.view(batch, count, self.heads, dim // self.heads).transpose(1, 2)


class MixFFN(nn.Module):
    """Feed-forward with a 3x3 depthwise convolution inside, which replaces positional embeddings."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)})
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """Tokens [B, N, C] -> [B, N, C]."""
        hidden = self.dwconv["dwconv"](_as_map(self.fc1(tokens), size)).flatten(2).transpose(1, 2)
        out: Tensor = self.fc2(F.gelu(hidden))
        return out


def _as_map(tokens: Tensor, size: torch.Size) -> Tensor:
    batch, _, dim = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, dim, *size)  # [B, N, C] -> [B, C, h, w]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
