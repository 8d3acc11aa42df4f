"""Per-pixel features that contrastive losses compare, by name."""

from __future__ import annotations

from torch import Tensor

from uda_seg.models.deeplab import DeepLabV2Head
from uda_seg.models.projection import attach_projection, project
from uda_seg.models.segmentor import Segmentor, Supervision


def attach_feature(segmentor: Segmentor, feature: str, width: int | None = None) -> int:
    """Attach the projection if it is the feature, and return the feature's channels D.

    Args:
        segmentor: the network.
        feature: `fused` (the map that the main classifier reads), `backbone` (the last stage), `projection` (of the
            fused map), or `logits`: those of DeepLab's branches, concatenated, or the plain ones of another head.
        width: channels of the projection; None: those of the fused map, at most 256.
    """
    if feature == "projection":
        return attach_projection(segmentor, width)
    if feature == "backbone":
        return segmentor.encoder.channels[-1]
    head = segmentor.head()
    if feature == "fused":
        return head.width
    return segmentor.num_classes * (len(head.dilations) if isinstance(head, DeepLabV2Head) else 1)


def select_feature(segmentor: Segmentor, feature: str, result: Supervision) -> Tensor:
    """Compute the feature, [B, D, h, w], from a supervised forward."""
    if feature == "projection":
        return project(segmentor, result.fused)
    if feature == "backbone":
        return result.features.stages[-1]
    if feature == "fused":
        return result.fused
    head = segmentor.head()
    return head.branches(result.fused).flatten(1, 2) if isinstance(head, DeepLabV2Head) else result.logits
