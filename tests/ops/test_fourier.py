"""Fourier translation against the published recipe in numpy and scipy: shift, replace a square, shift back."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uda_seg.ops.fourier import fourier_transfer, match_statistics, window_of

# Of values up to 1 after a Fourier transform and its inverse: eps log2(n), twice; a grey level is 400 times as much.
ROUNDING = 1e-5


def fda(content, style, half, strength=1.0):
    """One image [C, H, W] in float64, with the whole spectrum centred."""
    result = np.empty_like(content)
    for c in range(content.shape[0]):
        mine, theirs = (scipy.fft.fftshift(scipy.fft.fft2(x[c])) for x in (content, style))
        amplitude, phase = np.abs(mine), np.angle(mine)
        row, column = content.shape[1] // 2, content.shape[2] // 2
        square = (slice(row - half, row + half + 1), slice(column - half, column + half + 1))
        amplitude[square] = (1 - strength) * amplitude[square] + strength * np.abs(theirs)[square]
        result[c] = scipy.fft.ifft2(scipy.fft.ifftshift(amplitude * np.exp(1j * phase))).real
    return result


@settings(deadline=None, max_examples=25)
@given(st.integers(5, 14), st.integers(5, 14), st.floats(0, 0.45), st.integers(0, 99))
def test_equals_scipy(height, width, beta, seed):
    rng = np.random.default_rng(seed)
    content, style = rng.random((2, 3, height, width)), rng.random((2, 3, height, width))
    half = window_of((height, width), beta)
    strength = rng.random(2).astype(np.float32)
    ours = fourier_transfer(torch.from_numpy(content).float(), torch.from_numpy(style).float(), beta)
    part = fourier_transfer(
        torch.from_numpy(content).float(), torch.from_numpy(style).float(), beta, torch.from_numpy(strength)
    )
    for b in range(2):
        np.testing.assert_allclose(ours[b].numpy(), fda(content[b], style[b], half), atol=2 * ROUNDING)
        np.testing.assert_allclose(part[b].numpy(), fda(content[b], style[b], half, strength[b]), atol=2 * ROUNDING)


WINDOWS = [
    ((512, 1024), 0.01, 5),
    ((1052, 1914), 0.005, 5),
    ((128, 128), 0.01, 1),
    ((100, 100), 0.29, 29),
    ((16, 16), 0.49, 7),
    ((9, 9), 0.0, 0),
]


@pytest.mark.parametrize(("size", "beta", "half"), WINDOWS)
def test_window(size, beta, half):
    assert window_of(size, beta) == half


def test_an_image_in_its_own_style_is_itself():
    image = torch.rand(1, 3, 12, 17)
    torch.testing.assert_close(fourier_transfer(image, image, 0.2), image, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(match_statistics(image, image), image, atol=ROUNDING, rtol=0)


def test_at_window_zero_only_the_mean_moves():
    content, style = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    moved = fourier_transfer(content, style, 0.0) - content
    expected = (style.mean((2, 3), keepdim=True) - content.mean((2, 3), keepdim=True)).expand_as(moved)
    torch.testing.assert_close(moved, expected, atol=ROUNDING, rtol=0)


def test_statistics_are_the_styles():
    content, style = torch.rand(2, 3, 8, 9), 0.3 * torch.rand(2, 3, 8, 9) + 0.5
    matched = match_statistics(content, style)
    torch.testing.assert_close(matched.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(matched.std((2, 3)), style.std((2, 3)))
    half = match_statistics(content, style, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(half[0], content[0])
    torch.testing.assert_close(half[1], (content[1] + matched[1]) / 2)
    assert torch.isfinite(match_statistics(torch.zeros(1, 3, 4, 4), style[:1, :, :4, :4])).all()
