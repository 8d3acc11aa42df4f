"""EoMT: a plain vision transformer whose last blocks also run queries for masks (Kerssies et al., CVPR 2025).

A query votes for a class wherever its mask is; the votes of all queries make the logits of a pixel. So cross-entropy on
pixels trains it and every method can use it. Ours beside the paper's: no matching of queries to segments, no losses of
earlier blocks and no masked attention, and pixels are embedded by the encoder's pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from uda_seg.errors import UserError
from uda_seg.models.daformer import LinearEmbedding
from uda_seg.models.segmentor import Encoder, Features, Head, HeadBuilder, Segmentor, resize
from uda_seg.models.vit import ViTEncoder
from uda_seg.models.vit_neck import SimplePyramid
from uda_seg.models.vit_trunk import global_attention
from uda_seg.ops.queries import log_mixture
from uda_seg.options.constraints import Blocks, Channels, Count


@dataclass
class QueryFeatures(Features):
    """Stages of the encoder, and the tokens [B, Q, C] of the queries that ran with them."""

    queries: Tensor


class EoMTHead(Head):
    """Classes and masks of queries, as logits per pixel.

    Args:
        channels: channels of the encoder's stages; the coarsest have the C channels of its tokens.
        num_classes: K.
        queries: number of queries Q (paper: 100 for semantic segmentation).
        blocks: last blocks of the encoder that the queries run through (paper: 3 of 12, 4 of 24).
        width: channels of pixel and mask embeddings (paper: C).
    """

    undecayed = ("queries",)

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        queries: Count = 100,
        blocks: Blocks = 3,
        width: Channels = 256,
    ) -> None:
        super().__init__()
        self.width, self.blocks, tokens = width, blocks, channels[-1]
        self.queries = nn.Parameter(torch.randn(queries, tokens))
        self.embed_layers = nn.ModuleList(LinearEmbedding(inputs, width) for inputs in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = LayerNorm2d(width)
        self.class_layer = nn.Linear(tokens, num_classes + 1)  # the last: no object
        self.mask_layers = nn.Sequential(
            nn.Linear(tokens, tokens), nn.GELU(), nn.Linear(tokens, tokens), nn.GELU(), nn.Linear(tokens, width)
        )

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Embed pixels: sum the stages' embeddings at the finest resolution, [B, width, h, w]."""
        size = stages[0].shape[-2:]
        embedded = [resize(embed(x), size) for embed, x in zip(self.embed_layers, stages, strict=True)]
        pixels: Tensor = self.norm(self.smooth(torch.stack(embedded).sum(0)))
        return pixels

    def classify(self, fused: Tensor, queries: Tensor | None = None) -> Tensor:
        """Compute logits [B, K, h, w] from pixels [B, width, h, w] and the queries' tokens [B, Q, C]."""
        assert queries is not None  # EoMT.decode passes them
        masks = torch.einsum("bqd,bdhw->bqhw", self.mask_layers(queries), fused)
        return log_mixture(self.class_layer(queries), masks)


class EoMT(Segmentor):
    """A Segmentor that lets the main head's queries run through the last blocks of its vision transformer.

    Other heads, which methods attach, read the same stages. An encoder copied by itself (the reference of DAFormer's
    feature distance) runs without queries.

    Args:
        encoder: a plain vision transformer.
        head: builder of `EoMTHead`.
        num_classes: number of output classes K.
        options: those of Segmentor.

    Raises:
        UserError: another encoder, or one with fewer blocks than the queries run through.
    """

    def __init__(self, encoder: Encoder, head: HeadBuilder, num_classes: int, **options: Any) -> None:
        if not (isinstance(encoder, ViTEncoder) and global_attention(encoder.trunk)):
            raise UserError(
                "model.encoder: queries run through the blocks of a plain vision transformer with global attention: "
                "choose ViT, DINOv2, DINOv3, EVA02, CLIP or SigLIP in model=vit_eomt, or another head"
            )
        if not isinstance(encoder.neck, SimplePyramid):
            raise UserError("model.encoder.neck: queries go with neck=simple alone")
        super().__init__(encoder, head, num_classes, **options)
        blocks, depth = self.main.blocks, len(encoder.trunk.blocks)
        if blocks > depth:
            raise UserError(f"model.head.blocks={blocks}: the encoder runs {depth} blocks")

    @property
    def main(self) -> EoMTHead:
        """The head whose queries run through the encoder."""
        return cast(EoMTHead, self.heads["main"])

    def features(self, image: Tensor) -> QueryFeatures:
        """Encode RGB images in [0, 1], [B, 3, H, W] float, together with the queries."""
        *stages, tokens = self.encoder(self.encoder_input(image), self.main.queries, self.main.blocks)
        return QueryFeatures(stages, tokens)

    def decode(self, features: Features, head: str = "main", **context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute logits [B, K, h, w] and fused map [B, D, h, w] of one head."""
        if head == "main":
            context["queries"] = cast(QueryFeatures, features).queries
        return super().decode(features, head, **context)
