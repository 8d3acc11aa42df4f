"""Block masks: which blocks, how many, what colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import block_mask
from uda_seg.ops.masking import draw_block_mask, mask_image


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(5, 40), st.integers(5, 40)),
    st.integers(2, 12),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_pixel_asks_its_block(size, block, ratio, seed):
    mask = draw_block_mask(2, size, block, ratio, torch.Generator().manual_seed(seed))
    assert mask.shape == (2, 1, *size)
    assert mask.dtype == torch.bool
    grid = (max(1, round(size[0] / block)), max(1, round(size[1] / block)))
    draws = torch.rand(2, *grid, generator=torch.Generator().manual_seed(seed)).numpy()
    for b in range(2):
        assert np.array_equal(mask[b, 0].numpy(), block_mask(draws[b], size, ratio))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_expected_share_is_visible(ratio):
    mask = draw_block_mask(64, (128, 128), 8, ratio, torch.Generator().manual_seed(0))
    assert mask.float().mean().item() == pytest.approx(1 - ratio, abs=0.01)


def test_blocks_are_whole():
    mask = draw_block_mask(4, (64, 96), 16, 0.5, torch.Generator().manual_seed(1))
    blocks = mask.view(4, 4, 16, 6, 16).transpose(2, 3).flatten(3)
    assert torch.equal(blocks.any(-1), blocks.all(-1))


def test_hidden_pixels_take_the_fill_colour_and_no_other_changes():
    image = torch.rand(2, 3, 8, 8)
    visible = draw_block_mask(2, (8, 8), 2, 0.5, torch.Generator().manual_seed(2))
    fill = torch.tensor([0.485, 0.456, 0.406])
    masked = mask_image(image, visible, fill)
    shown = visible.expand_as(image)
    assert torch.equal(masked[shown], image[shown])
    for channel in range(3):
        assert (masked[:, channel][~visible[:, 0]] == fill[channel]).all()
