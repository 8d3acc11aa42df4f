"""Style from one image, content from another: Fourier and colour-statistics transfer between plain images."""

from __future__ import annotations

import torch
from torch import Tensor


def window_of(size: tuple[int, int], beta: float) -> int:
    """Compute the half width b = floor(beta * min(H, W)) of the swapped window: 5 at 512 rows and beta 0.01."""
    shorter = min(size)
    return min(int(beta * shorter + 1e-9), (shorter - 1) // 2)


def fourier_transfer(content: Tensor, style: Tensor, beta: float = 0.01, strength: Tensor | None = None) -> Tensor:
    """Replace low-frequency amplitudes by the style image's (FDA, Yang and Soatto, CVPR 2020).

    Every channel keeps its phase; within the centred square of 2b + 1 by 2b + 1 frequencies, border included, the
    amplitude is the style image's. Apply it before normalisation.

    Args:
        content: float32 [B, C, H, W].
        style: float32 [B, C, H, W].
        beta: half width of the window as a share of the shorter side, below 0.5.
        strength: [B] in [0, 1], interpolation from the content's amplitudes (0) to the style's (1); None means 1.

    Returns:
        float32 [B, C, H, W]; may slightly exceed the content's range.
    """
    height, width = content.shape[-2:]
    half = window_of((height, width), beta)
    spectrum, wanted = torch.fft.rfft2(content), torch.fft.rfft2(style)
    # Negative row frequencies come last; rfft2 omits negative columns, the conjugates of the positive ones.
    for rows in (slice(0, half + 1), slice(height - half, height)):
        low = spectrum[..., rows, : half + 1]
        amplitude = wanted[..., rows, : half + 1].abs()
        if strength is not None:
            amplitude = torch.lerp(low.abs(), amplitude, strength.view(-1, 1, 1, 1))
        spectrum[..., rows, : half + 1] = torch.polar(amplitude, low.angle())
    translated: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return translated


def match_statistics(content: Tensor, style: Tensor, strength: Tensor | None = None) -> Tensor:
    """Give each channel of the content the style image's mean and standard deviation (after Reinhard et al. 2001).

    Args:
        content: float32 [B, C, H, W].
        style: float32 [B, C, H, W].
        strength: as in `fourier_transfer`.

    Returns:
        float32 [B, C, H, W]; may exceed the content's range.
    """
    deviation, mean = torch.std_mean(content, (2, 3), keepdim=True)
    wanted_deviation, wanted_mean = torch.std_mean(style, (2, 3), keepdim=True)
    matched = (content - mean) * (wanted_deviation / deviation.clamp_min(1e-5)) + wanted_mean
    return matched if strength is None else torch.lerp(content, matched, strength.view(-1, 1, 1, 1))
