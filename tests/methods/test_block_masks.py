"""Masked blocks and the patches of vision transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from uda_seg.methods.masking import mask_blocks
from uda_seg.methods.options.self_training import MaskingOptions
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.hrda import HRDASegmentor
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.small import ResidualEncoder


def network(kind, patch, **options):
    encoder = ResidualEncoder(widths=(2, 2, 2, 2), blocks=(1, 1, 1, 1))
    encoder.patch = patch
    return kind(encoder, partial(DAFormerHead, width=2), 3, **options)


def masked_image(make_plan, segmentor, size):
    torch.manual_seed(0)
    plan = replace(make_plan(), crop=(112, 112))
    return mask_blocks(torch.ones(1, 3, *size), segmentor, plan, MaskingOptions(mask_block=0.0625))


def edges(image):
    """Rows at which blocks of [1, 3, H, W] begin."""
    return (image[0, 0].diff(dim=0) != 0).any(dim=1).nonzero().flatten() + 1


@pytest.mark.parametrize(
    ("patch", "rows", "side"), [(1, 112, 7), (14, 112, 14), (4, 112, 8), (16, 112, 16), (14, 121, 14)]
)
def test_blocks_are_whole_patches(make_plan, patch, rows, side):
    """A sixteenth of a crop of 112 rows is 7 pixels, or the nearest multiple of the patch that there is."""
    changes = edges(masked_image(make_plan, network(Segmentor, patch), (rows, 112)))
    assert len(changes) > 3
    assert {int(row) % side for row in changes} == {0}
    assert int(changes.diff().min()) == side


@pytest.mark.parametrize(("patch", "scale"), [(14, 0.5), (4, 0.75), (16, 0.5)])
def test_blocks_are_whole_patches_at_both_resolutions(make_plan, patch, scale):
    segmentor = network(HRDASegmentor, patch, context_scale=scale, attention_width=2)
    size = (4 * segmentor.patch, 3 * segmentor.patch)
    masked = masked_image(make_plan, segmentor, size)
    changes = edges(masked)
    assert len(changes) > 1
    assert {int(row) % patch for row in changes} == {0}
    assert all((int(row) * scale) % patch == 0 for row in changes)
    context = segmentor.encoder_input(masked)[0, 0]  # zero where masked, at the low resolution, and above 1 elsewhere
    tokens = context.unfold(0, patch, patch).unfold(1, patch, patch).flatten(2).abs() < 1e-3
    assert (tokens.all(2) | ~tokens.any(2)).all()
    assert 0 < tokens.all(2).sum() < tokens.shape[0] * tokens.shape[1]


def test_random_windows_begin_with_a_patch_of_the_image():
    segmentor = network(HRDASegmentor, 14, detail=(56, 56), attention_width=2)
    torch.manual_seed(0)
    boxes = [segmentor.views(torch.zeros(1, 3, 224, 224))[1].box for _ in range(10)]
    assert len({(box.top, box.left) for box in boxes}) > 3
    assert {side % step for box in boxes for side in (box.top, box.left) for step in (8, 14)} == {0}
