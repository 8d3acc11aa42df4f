"""Sliding windows against a slow loop over pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uda_seg.models.inference import slide_logits, whole_logits


def predict(image: Tensor) -> Tensor:
    """Depends on the place inside the window, so that a window put elsewhere shows."""
    ramp = torch.arange(image.shape[-2])[:, None] * 100.0 + torch.arange(image.shape[-1])
    return torch.cat([image * ramp, image.mean(dim=(2, 3), keepdim=True) + ramp.expand(len(image), 1, -1, -1)], 1)


def slow(image: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    height, width = image.shape[-2:]
    h, w = min(crop[0], height), min(crop[1], width)
    total, count = torch.zeros(len(image), 6, height, width), torch.zeros(height, width)
    y, rows = 0, []
    while True:
        rows.append(min(y, height - h))
        if y + h >= height:
            break
        y += stride[0]
    x, columns = 0, []
    while True:
        columns.append(min(x, width - w))
        if x + w >= width:
            break
        x += stride[1]
    for y in rows:
        for x in columns:
            total[:, :, y : y + h, x : x + w] += predict(image[:, :, y : y + h, x : x + w])
            count[y : y + h, x : x + w] += 1
    return total / count


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    crop=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    step=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    windows=st.integers(1, 7),
    batch=st.integers(1, 2),
)
def test_slide_is_the_mean_over_windows(
    size: tuple[int, int], crop: tuple[int, int], step: tuple[int, int], windows: int, batch: int
) -> None:
    stride = (min(step[0], crop[0]), min(step[1], crop[1]))
    image = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slide_logits(predict, image, crop, stride, windows), slow(image, crop, stride))


@pytest.mark.parametrize(("windows", "forwards"), [(1, 3), (2, 2), (8, 1)])
def test_cityscapes_at_half_size_takes_three_windows(windows: int, forwards: int) -> None:
    seen: list[int] = []

    def count(image: Tensor) -> Tensor:
        assert image.shape[-2:] == (512, 512)
        seen.append(len(image))
        return image

    image = torch.rand(1, 3, 512, 1024)
    torch.testing.assert_close(slide_logits(count, image, (512, 512), (256, 256), windows), image)
    assert (len(seen), sum(seen)) == (forwards, 3)


def test_a_crop_as_large_as_the_image_is_the_whole_image() -> None:
    image = torch.rand(2, 3, 9, 7)
    assert torch.equal(slide_logits(predict, image, (9, 9), (3, 3)), whole_logits(predict, image))


def test_results_are_resized_bilinearly() -> None:
    image = torch.rand(1, 3, 8, 8)
    want = F.interpolate(predict(image), size=(16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole_logits(predict, image, (16, 24)), want)
    torch.testing.assert_close(slide_logits(predict, image, (8, 8), (4, 4), size=(16, 24)), want)
