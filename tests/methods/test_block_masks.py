"""Masked blocks and the patches of vision transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from uda_seg.methods.masking import mask_blocks
from uda_seg.methods.options.self_training import MaskingOptions
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.small import ResidualEncoder


@pytest.mark.parametrize(("patch", "side"), [(1, 7), (14, 14), (4, 8), (16, 16)])
def test_blocks_are_whole_patches(make_plan, patch, side):
    """A sixteenth of a crop of 112 rows is 7 pixels, or the nearest multiple of the patch that there is."""
    encoder = ResidualEncoder(widths=(2, 2, 2, 2), blocks=(1, 1, 1, 1))
    encoder.patch = patch
    segmentor = Segmentor(encoder, partial(DAFormerHead, width=2), 3)
    plan = replace(make_plan(), crop=(112, 112))
    torch.manual_seed(0)
    masked = mask_blocks(torch.ones(1, 3, 112, 112), segmentor, plan, MaskingOptions(mask_block=0.0625))
    changes = (masked[0, 0].diff(dim=0) != 0).any(dim=1).nonzero().flatten() + 1
    assert len(changes) > 3
    assert {int(row) % side for row in changes} == {0}
    assert int(changes.diff().min()) == side
