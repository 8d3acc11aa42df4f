"""Plain vision transformers as encoders with four scales: ViT, DINOv2, DINOv3, EVA02, CLIP, SigLIP and SAM."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uda_seg.errors import UserError
from uda_seg.models.segmentor import Encoder
from uda_seg.models.timm_weights import created, describe_images
from uda_seg.models.trunk import adapt
from uda_seg.models.vit_adapter import Adapter
from uda_seg.models.vit_neck import SimplePyramid, onto_image
from uda_seg.models.vit_trunk import check_plain, embed, insert, patches_of, with_patches, without_position
from uda_seg.options.constraints import CountOrZero, FilePath, FractionBelowOne, Interval, Length, Text


class ViTEncoder(Encoder):
    """A plain vision transformer of timm with maps at strides 4, 8, 16 and 32.

    Images are padded to a multiple of the patch by repeating their last row and column, and the maps are cut (or, where
    cells do not fit, interpolated) to cover the image alone. Mean and standard deviation of the images are those that
    timm states for the weights.

    The maps come from the patches' tokens after some blocks, the taps. Every tap has a layer norm of its own, which
    starts as the model's final norm if it has one: blocks differ in scale too much to share one, and own norms can
    learn where the trunk is frozen. Blocks after the last tap are left out.

    Args:
        name: a timm model, optionally with the tag of its weights: "vit_large_patch14_reg4_dinov2.lvd142m".
        weights: see `timm_weights.created`.
        allow_missing: names of the timm model's tensors or modules that the file may lack.
        taps: zero-based blocks, one for all four scales (-1: the last) or one for each; None: evenly spaced, the
            last block the last (5, 11, 17 and 23 of 24).
        neck: `simple` (ViTDet's pyramid of the taps), or `adapter` (a convolutional stem that exchanges detail with the
            trunk after each group of blocks that ends with a tap; in the spirit of ViT-Adapter).
        pad: pad images whose sides are not multiples of the patch; otherwise they are refused.
        drop_path: rate of stochastic depth in the last block, less in those before.
        freeze: true: nothing of the trunk is trained; a number: its embeddings and first blocks are not.
        lora: adapters, see `models.lora`; the rest of the trunk is frozen.

    Attributes:
        trunk: the timm model, without its head and final norm.
        norms: one per tap.
        neck: the pyramid or the adapter.

    Raises:
        UserError: no such model or no plain ViT, taps out of range, or weights that are unavailable or do not fit.
    """

    strides = (4, 8, 16, 32)
    first_stage = ("trunk.patch_embed",)

    def __init__(
        self,
        name: Text,
        weights: FilePath | Path | None = None,
        allow_missing: Sequence[Text] = (),
        taps: Annotated[Sequence[Annotated[int, Interval(-1, 1000)]], Length(1, 4)] | None = None,
        neck: Literal["simple", "adapter"] = "simple",
        pad: bool = True,
        drop_path: FractionBelowOne = 0.0,
        freeze: bool | CountOrZero = False,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        cure = "choose a vision transformer as model.encoder.name"
        trunk: Any = created(name, weights, allow_missing, cure, num_classes=0, drop_path_rate=drop_path)
        check_plain(name, trunk)
        self.pretrained, self.loaded_from = weights is not None, None if weights is None else str(weights)
        describe_images(self, trunk)
        self.patch, self.pad = trunk.patch_embed.patch_size[0], pad
        self.taps = _taps(taps, len(trunk.blocks))
        self.width = trunk.embed_dim
        self.norms = nn.ModuleList(_tap_norm(trunk) for _ in self.taps)
        self.trunk = _without_rest(trunk, self.taps[-1])
        self.neck: SimplePyramid | Adapter
        if neck == "adapter":
            self.neck = Adapter(self.width, self.patch, len(set(self.taps)))
            self.untrained = "the stem of model.encoder.neck=adapter"
        else:
            self.neck = SimplePyramid(self.width, self.patch)
        self.channels = self.neck.channels
        adapt(self, freeze, lora)

    def forward(self, x: Tensor, queries: Tensor | None = None, blocks: int = 0) -> list[Tensor]:
        """Encode images into four maps.

        Args:
            x: normalised, [B, 3, H, W].
            queries: [Q, C], which run with the tokens through the last blocks (EoMT; with the simple pyramid).
            blocks: number of these blocks.

        Returns:
            Maps [B, C_i, ceil(H / stride_i), ceil(W / stride_i)]; after them the normalised tokens [B, Q, C] of the
            queries, if there are any.
        """
        size, x = x.shape[-2:], self.padded(x)
        told: list[Tensor] = []
        if not isinstance(self.neck, SimplePyramid):
            maps = self._adapted(self.neck, x)
        elif queries is None:
            maps = self.neck(self.tapped(x))
        else:
            tapped, tokens = self._asked(x, queries, blocks)
            maps, told = self.neck(tapped), [tokens]
        fitted = zip(maps, self.neck.cells, self.strides, strict=True)
        return [*(onto_image(each, cell, size, stride) for each, cell, stride in fitted), *told]

    def padded(self, x: Tensor) -> Tensor:
        """Pad images [B, 3, H, W] to multiples of the patch on the right and below.

        Raises:
            UserError: padding is switched off and needed.
        """
        height, width = x.shape[-2:]
        below, beside = -height % self.patch, -width % self.patch
        if torch.compiler.is_exporting():  # without a decision about the size, and without negative numbers
            whole = ((side + self.patch - 1) // self.patch * self.patch for side in (height, width))
            below, beside = (padded - side for padded, side in zip(whole, (height, width), strict=True))
            return F.pad(x, (0, beside, 0, below), mode="replicate")
        if (below or beside) and not self.pad:
            raise UserError(
                f"images of {height} x {width} pixels are no multiple of the patch, {self.patch}: choose such "
                "data.crop, evaluator.window and sizes, or say model.encoder.pad=true"
            )
        return F.pad(x, (0, beside, 0, below), mode="replicate") if below or beside else x

    def tapped(self, x: Tensor) -> list[Tensor]:
        """Run the trunk on padded images and return a normalised map [B, C, h, w] of patches for each scale."""
        tokens, extras = embed(self.trunk, x)
        seen = {}
        for index, (block, extra) in enumerate(zip(self.trunk.blocks, extras, strict=True)):
            tokens = self.through(block, tokens, *extra)
            if index in self.taps:
                seen[index] = patches_of(self.trunk, tokens)
        return self._maps(seen, x)

    def _asked(self, x: Tensor, queries: Tensor, blocks: int) -> tuple[list[Tensor], Tensor]:
        """Run the trunk like `tapped`, with queries [Q, C] in the last blocks, whose tokens [B, Q, C] come second."""
        tokens, extras = embed(self.trunk, x)
        first, count = len(extras) - blocks, len(queries)
        seen = {}
        for index, (block, extra) in enumerate(zip(self.trunk.blocks, extras, strict=True)):
            if index == first:
                tokens = insert(self.trunk, tokens, queries)
            tokens = self.through(block, tokens, *(without_position(extra, count) if index >= first else extra))
            if index in self.taps:
                seen[index] = patches_of(self.trunk, tokens)[:, count if index >= first else 0 :]
        return self._maps(seen, x), self.norms[-1](patches_of(self.trunk, tokens)[:, :count])

    def _adapted(self, neck: Adapter, x: Tensor) -> list[Tensor]:
        """Run the trunk on padded images, exchanging detail with the adapter's stem around each group of blocks."""
        grid, detail = neck.patches(x), neck.stem(x)
        found, levels = detail.tokens, detail.levels
        tokens, extras = embed(self.trunk, x)
        seen: dict[int, Tensor] = {}
        first = 0
        for injector, extractor, tap in zip(neck.injectors, neck.extractors, sorted(set(self.taps)), strict=True):
            patches = self.through(injector, patches_of(self.trunk, tokens), grid, found, levels)
            tokens = with_patches(self.trunk, tokens, patches)
            for index in range(first, tap + 1):
                tokens = self.through(self.trunk.blocks[index], tokens, *extras[index])
            seen[tap], first = patches_of(self.trunk, tokens), tap + 1
            found = self.through(extractor, found, levels, seen[tap], grid)
        return neck(replace(detail, tokens=found), self._maps(seen, x))  # type: ignore[no-any-return]

    def _maps(self, seen: Mapping[int, Tensor], image: Tensor) -> list[Tensor]:
        """Normalise the tapped patches [B, N, C] of padded images into a map [B, C, h, w] for each of four scales."""
        grid = (image.shape[-2] // self.patch, image.shape[-1] // self.patch)
        maps = [
            norm(seen[tap]).transpose(1, 2).unflatten(2, grid) for norm, tap in zip(self.norms, self.taps, strict=True)
        ]
        return maps * (4 // len(maps))


def _taps(given: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return the blocks to tap, evenly spaced unless given."""
    if given is None:
        return tuple(math.ceil(depth * part / 4) - 1 for part in (1, 2, 3, 4))
    taps = tuple(depth - 1 if tap == -1 else tap for tap in given)
    if len(taps) not in (1, 4) or list(taps) != sorted(taps) or not 0 <= taps[0] <= taps[-1] < depth:
        raise UserError(
            f"model.encoder.taps={list(taps)}: give one block or four in ascending order, of 0 to {depth - 1}"
        )
    return taps


def _tap_norm(trunk: Any) -> nn.Module:
    final = getattr(trunk, "norm", None)
    if final is None or isinstance(final, nn.Identity):  # SAM, and EVA02, which normalises the mean of its tokens
        return nn.LayerNorm(trunk.embed_dim, eps=1e-6)
    norm: nn.Module = copy.deepcopy(final)
    return norm


def _without_rest(trunk: Any, last: int) -> Any:
    """Remove what comes after block `last`."""
    trunk.blocks = trunk.blocks[: last + 1]
    for name in ("norm", "fc_norm", "head", "neck"):
        if hasattr(trunk, name):
            setattr(trunk, name, nn.Identity())
    if hasattr(trunk, "attn_pool"):
        trunk.attn_pool = None
    return trunk
