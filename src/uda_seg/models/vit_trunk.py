"""Plain vision transformers of timm, driven block by block on images of any size.

timm's own `forward_intermediates` runs all blocks at once; an adapter has to look in between, and activations are
recomputed block by block. What timm computes is unchanged, up to rounding in the resampling of position embeddings.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed_nhwc
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from uda_seg.errors import UserError

Grid = tuple[int, int]  # rows and columns of patches


def check_plain(name: str, trunk: nn.Module) -> None:
    """Raise UserError if a timm model is not a plain vision transformer with square patches."""
    plain = isinstance(trunk, (VisionTransformer, Eva, VisionTransformerSAM))
    patches = getattr(trunk, "patch_embed", None)
    if not plain or not isinstance(patches, PatchEmbed) or len(set(patches.patch_size)) > 1:
        raise UserError(
            f"model.encoder.name={name}: timm's {type(trunk).__name__} is no plain vision transformer (ViT, DINOv2, "
            "DINOv3, EVA02, CLIP, SigLIP, SAM): for a network of several scales say model=timm"
        )


def embed(trunk: Any, image: Tensor) -> tuple[Tensor, list[tuple[Any, ...]]]:
    """Embed images as the input of the first block.

    Args:
        trunk: a model that `check_plain` accepts.
        image: normalised, [B, 3, H, W], sides multiples of the patch.

    Returns:
        Tokens, and for every block its arguments besides the tokens. Tokens are [B, P + h * w, C] with P prefix tokens
        (class, registers), SAM's are a map [B, h, w, C].
    """
    x = trunk.patch_embed(image)  # [B, h, w, C]
    grid = (x.shape[1], x.shape[2])
    count = len(trunk.blocks)
    if isinstance(trunk, VisionTransformerSAM):
        x = x if trunk.pos_embed is None else x + resampled(trunk.pos_embed, grid)
        return trunk.norm_pre(trunk.pos_drop(x)), [()] * count
    x = trunk.norm_pre(trunk.pos_drop(_with_positions(trunk, x, grid)))
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return x, [(None,) if isinstance(trunk, Eva) else ()] * count
    angles = rope.get_embed(shape=grid)
    return x, [(angles[block] if getattr(trunk, "rope_mixed", False) else angles,) for block in range(count)]


def patches_of(trunk: Any, tokens: Tensor) -> Tensor:
    """Return the patches' tokens [B, h * w, C], without prefix tokens."""
    if isinstance(trunk, VisionTransformerSAM):
        return tokens.flatten(1, 2)
    return tokens[:, trunk.num_prefix_tokens :]


def with_patches(trunk: Any, tokens: Tensor, patches: Tensor) -> Tensor:
    """Return tokens like `tokens`, with other patches [B, h * w, C]."""
    if isinstance(trunk, VisionTransformerSAM):
        return patches.view(tokens.shape)
    return torch.cat([tokens[:, : trunk.num_prefix_tokens], patches], dim=1)


def global_attention(trunk: nn.Module) -> bool:
    """Return whether tokens are a sequence in which all see each other (SAM's are a map, seen in windows)."""
    return not isinstance(trunk, VisionTransformerSAM)


def insert(trunk: Any, tokens: Tensor, queries: Tensor) -> Tensor:
    """Insert queries [Q, C] between the prefix tokens and the patches, to [B, P + Q + h * w, C]."""
    prefix = trunk.num_prefix_tokens
    return torch.cat([tokens[:, :prefix], queries.expand(tokens.shape[0], -1, -1), tokens[:, prefix:]], dim=1)


def without_position(extra: tuple[Any, ...], queries: int) -> tuple[Any, ...]:
    """Extend a block's rotary embeddings [..., h * w, 2 * D] by queries in front, which are rotated by the angle 0."""
    if not extra or extra[0] is None:
        return extra
    sine, cosine = extra[0][..., :1, :].chunk(2, -1)
    still = torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
    return (torch.cat([still.expand(*still.shape[:-2], queries, -1), extra[0]], dim=-2), *extra[1:])


def _with_positions(trunk: Any, x: Tensor, grid: Grid) -> Tensor:
    """Prepend the prefix tokens to patches [B, h, w, C] and add the position embeddings."""
    names = ("cls_token", "dist_token", "reg_token")
    found = [getattr(trunk, name, None) for name in names]
    prefix = [token.expand(x.shape[0], -1, -1) for token in found if token is not None]
    positions, x = trunk.pos_embed, x.flatten(1, 2)
    if positions is None:
        return torch.cat([*prefix, x], dim=1)
    own = 0 if trunk.no_embed_class else trunk.num_prefix_tokens  # embeddings of prefix tokens come first
    spatial = positions[:, own:].unflatten(1, trunk.patch_embed.grid_size)
    positions = torch.cat([positions[:, :own], resampled(spatial, grid).flatten(1, 2)], dim=1)
    if trunk.no_embed_class:
        return torch.cat([*prefix, x + positions], dim=1)
    embedded: Tensor = torch.cat([*prefix, x], dim=1) + positions
    return embedded


def resampled(embedding: Tensor, grid: Grid) -> Tensor:
    """Resample position embeddings [1, h, w, C] to a grid (h', w') as timm does: bicubic with anti-aliasing.

    The resampling is linear, so its weights are cached (per size, type and device) and the gradient reaches the
    embedding.
    """
    height, width = embedding.shape[1:3]
    if torch.compiler.is_exporting():
        rows, columns = (_bicubic_in_graph(*sizes, embedding) for sizes in ((height, grid[0]), (width, grid[1])))
        return torch.einsum("ih,bhwc,jw->bijc", rows, embedding, columns)
    if (height, width) == grid:
        return embedding
    if torch.compiler.is_compiling():  # the graph has constants of its own
        whole: Tensor = resample_abs_pos_embed_nhwc(embedding, list(grid))
        return whole
    exact, device = torch.promote_types(embedding.dtype, torch.float32), embedding.device
    rows, columns = (_bicubic(*sizes, exact, device) for sizes in ((height, grid[0]), (width, grid[1])))
    with _full_precision(device):
        return torch.einsum("ih,bhwc,jw->bijc", rows, embedding.to(exact), columns).to(embedding.dtype)


@lru_cache(maxsize=64)
def _bicubic(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Compute the weights [new, old] of a resampling along one axis."""
    with torch.inference_mode(False), torch.no_grad():  # they also serve forwards with gradients
        one_hot = torch.eye(old, dtype=dtype, device=device)[None, None]  # a column per old position
        return F.interpolate(one_hot, (new, old), mode="bicubic", align_corners=False, antialias=True)[0, 0]


def _bicubic_in_graph(old: int, new: int, like: Tensor) -> Tensor:
    """Compute `_bicubic` by its formula, for a graph in which `new` is a variable.

    The kernel is Keys' with a = -0.5, widened where the grid becomes coarser (anti-aliasing), as PyTorch's is.
    """
    one = torch.ones(1, dtype=like.dtype, device=like.device)
    step = one * old / new
    centres = (torch.arange(new, device=like.device) + 0.5) * step
    far = ((torch.arange(old, device=like.device) + 0.5) - centres[:, None]).abs() / step.clamp(min=1)
    near = (1.5 * far - 2.5) * far * far + 1
    tail = ((-0.5 * far + 2.5) * far - 4) * far + 2
    weights = torch.where(far < 1, near, torch.where(far < 2, tail, torch.zeros_like(far)))
    return weights / weights.sum(1, keepdim=True)


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
