"""Options of LC-MSM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from uda_seg.methods.options.self_training import MaskingOptions, SourceOptions
from uda_seg.models.language import KernelStart
from uda_seg.models.text import SOURCES
from uda_seg.options.constraints import Channels, FilePath, Fraction, LossWeight, OneOf, Temperature, Text


@dataclass(frozen=True, kw_only=True)
class LCMSMOptions(SourceOptions, MaskingOptions):
    """Options of LC-MSM, which masks source and mixed images, and always augments them."""

    text: Annotated[str, OneOf((*SOURCES, "none"))] = "openclip"
    """Source of the class embeddings: `openclip`, `file`, `shuffled` and `openclip-shuffled` (permuted so that no class
    keeps its own), `random`, or `none`: the control, the same head and budget without the correlation map."""

    text_model: Text = "ViT-H-14"
    """OpenCLIP's name of the model (released)."""

    text_tag: FilePath = "laion2b_s32b_b79k"
    """OpenCLIP's tag of the weights (released), or the path of a weights file."""

    text_file: FilePath | None = None
    """Embeddings by prompt, for `file` and `shuffled`; null: the file shipped with the package."""

    width: Channels | None = None
    """Channels of the language head and of the projected text; null: the width of a plain DAFormer head
    (released: 512 both), or 512 with any other head. Its dilations follow likewise."""

    temperature: Temperature = 0.07
    """Divisor of the cosine similarity (released)."""

    centre_text: bool = False
    """Subtract the mean over classes from the projected texts (ours; released: false). Texts of one prompt have a large
    common part, so that without it all correlations of a pixel are nearly one number, and where that is negative the
    spatial block's ReLU passes none."""

    spatial_start: KernelStart = "random"
    """Initial kernel of the spatial block: `random`, PyTorch's default (no other is known of the released code), or
    `identity` (ours). What differs between classes is scaled by the kernel's sum, twice, and a random one is near 0."""

    mask_weight: LossWeight = 1.0
    """Weight of the two masked terms (released); above 0, as they alone train the language head. Without masks:
    `mask_ratio=0`."""

    mask_ratio: Fraction = 0.5
    """Expected share of masked pixels (released)."""

    feature_distance: LossWeight = 0.005
    """Weight of DAFormer's feature distance (released; 0.009 in the first GTA configuration)."""
