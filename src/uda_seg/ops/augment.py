"""Strong augmentation of mixed and masked images: colour jitter and blur (DACS, Tranheden et al. 2021).

Everything is batched, with one factor per image. Parameters are drawn on the host, so that neither the order of the
operations nor the on/off switches force a device synchronisation.

DACS and its successors draw parameters per mixed image, MIC and LC-MSM per masked batch, hence `own_order` and
`own_sigma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from uda_seg.ops.image import upload


@dataclass(frozen=True)
class StrongDraw:
    """Parameters of one strong augmentation: switches are per batch, orders and factors per image.

    Attributes:
        jitter: whether colours are jittered.
        blur: whether the image is blurred.
        order: names of the four colour operations of each image, in the order in which they are applied.
        brightness: float32 [B], added.
        contrast: float32 [B], multiplies the raw value (no mean is subtracted).
        saturation: float32 [B], multiplies the S of HSV.
        hue: float32 [B], added to the H of HSV, in turns (1.0 = 2 pi).
        sigma: float32 [B], standard deviation of the blur in pixels.
        radius: half width of the blur's kernel in pixels.
    """

    jitter: bool
    blur: bool
    order: tuple[tuple[str, ...], ...]
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    sigma: Tensor
    radius: int

    def of(self, image: int) -> StrongDraw:
        """Return the draw of a single image of the batch, by its index."""
        one = slice(image, image + 1)
        factors = {name: getattr(self, name)[one] for name in (*COLOUR_OPERATIONS, "sigma")}
        return replace(self, order=self.order[one], **factors)


def draw_strong(
    batch: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    strength: float = 0.2,
    jitter_probability: float = 0.8,
    blur_probability: float = 0.5,
    sigma: tuple[float, float] = (0.15, 1.15),
    own_order: bool = False,
    own_sigma: bool = True,
) -> StrongDraw:
    """Draw one strong augmentation for a batch.

    The blur reaches ceil(3 sigma) pixels: 4 at the default. The released code takes 51 taps at a 512 crop;
    the weight beyond 4 pixels is 6e-5 per axis at most, far under one grey level (1/255).

    Args:
        batch: number of images B.
        generator: on the CPU whatever the device; None = the default CPU generator.
        device: of the returned factors.
        strength: half width of the four uniform draws.
        jitter_probability: of colour jitter (the released "0.2" is a threshold, hence 0.8).
        blur_probability: of blur.
        sigma: range of the blur's standard deviation in pixels.
        own_order: draw the order of colour operations per image instead of per batch.
        own_sigma: draw the blur's standard deviation per image instead of per batch.
    """
    use_jitter, use_blur = torch.rand(2, generator=generator).tolist()
    names = tuple(COLOUR_OPERATIONS)
    orders = [
        tuple(names[i] for i in torch.randperm(len(names), generator=generator).tolist())
        for _ in range(batch if own_order else 1)
    ]
    shift = (2.0 * torch.rand(4, batch, generator=generator) - 1.0) * strength
    drawn = torch.rand(1, batch if own_sigma else 1, generator=generator).expand(1, batch)
    sigmas = sigma[0] + (sigma[1] - sigma[0]) * drawn
    offset = torch.tensor([0.0, 1.0, 1.0, 0.0]).unsqueeze(1)
    brightness, contrast, saturation, hue, sigmas = upload(torch.cat([shift + offset, sigmas]), device)
    return StrongDraw(
        jitter=use_jitter < jitter_probability,
        blur=use_blur < blur_probability,
        order=tuple(orders if own_order else orders * batch),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        sigma=sigmas,
        radius=math.ceil(3.0 * sigma[1]),
    )


def strong_augment(image: Tensor, draw: StrongDraw) -> Tensor:
    """Apply a draw: colour jitter in its order, then blur.

    The four colour operations are those of kornia 0.5 (today's `ColorJiggle`): additive brightness, contrast
    without a mean, saturation and hue in HSV, each clamped to [0, 1].

    Args:
        image: float32 [B, 3, H, W], RGB in [0, 1]; H and W larger than the blur's radius.
        draw: of `draw_strong(B, ...)`.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    if draw.jitter:
        image = jitter(image, draw)
    return gaussian_blur(image, draw.sigma, draw.radius) if draw.blur else image


def jitter(image: Tensor, draw: StrongDraw) -> Tensor:
    """Apply the colour operations of a draw, in one pass over the batch if its images share an order."""
    if len(set(draw.order)) > 1:
        return torch.cat([jitter(image[i : i + 1], draw.of(i)) for i in range(len(image))])
    for name in draw.order[0]:
        factor: Tensor = getattr(draw, name)
        image = COLOUR_OPERATIONS[name](image, factor.view(-1, 1, 1, 1))
    return image


def adjust_brightness(image: Tensor, shift: Tensor) -> Tensor:
    """Add `shift` [B, 1, 1, 1] to every value of the image [B, 3, H, W] and clamp to [0, 1]."""
    return (image + shift).clamp_(0.0, 1.0)


def adjust_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply every value of the image [B, 3, H, W] by `factor` [B, 1, 1, 1] and clamp to [0, 1]."""
    return (image * factor).clamp_(0.0, 1.0)


def adjust_saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply the S of HSV by `factor` [B, 1, 1, 1], at most up to S = 1; hue and value stay.

    At fixed H and V every channel's distance from V is proportional to S, so no conversion to HSV is needed.
    """
    value = image.amax(1, keepdim=True)
    distance = value - image
    full = value / distance.amax(1, keepdim=True).clamp_min(1e-8)  # the factor that reaches S = 1
    return value - distance * torch.minimum(factor, full)


def adjust_hue(image: Tensor, turns: Tensor) -> Tensor:
    """Rotate the H of HSV by `turns` [B, 1, 1, 1] (1.0 = 2 pi); saturation and value stay."""
    red, green, blue = image.unsqueeze(2).unbind(1)
    value, chroma = image.amax(1, keepdim=True), image.amax(1, keepdim=True) - image.amin(1, keepdim=True)
    safe = chroma.clamp_min(1e-8)  # grey has zero chroma and an undefined hue
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    # Red, green and blue are the same curve over the hue circle, shifted by 5, 3 and 1 sextants.
    sextant = sextant + 6.0 * turns
    position = torch.cat([sextant + 5.0, sextant + 3.0, sextant + 1.0], dim=1).remainder_(6.0)
    return value - chroma * torch.minimum(position, 4.0 - position).clamp_(0.0, 1.0)


def gaussian_blur(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each image with its own Gaussian, separably, with reflected borders (the edge pixel not repeated).

    Args:
        image: float [B, C, H, W], H and W > radius.
        sigma: [B], standard deviation in pixels, > 0.
        radius: the kernel has 2 radius + 1 taps, normalised to sum 1.

    Returns:
        float [B, C, H, W].
    """
    batch, channels, height, width = image.shape
    offset = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    kernel = torch.softmax(-0.5 * (offset / sigma.float().unsqueeze(1)) ** 2, dim=1).to(image.dtype)
    kernel = kernel.repeat_interleave(channels, dim=0, output_size=batch * channels).unsqueeze(1)
    # One depthwise convolution over B * C planes gives every image its own kernel. bfloat16 would lose grey levels.
    with torch.autocast(image.device.type, enabled=False):
        planes = F.pad(image.reshape(1, batch * channels, height, width), (radius,) * 4, mode="reflect")
        planes = F.conv2d(planes, kernel.unsqueeze(2), groups=batch * channels)
        planes = F.conv2d(planes, kernel.unsqueeze(3), groups=batch * channels)
    return planes.view(batch, channels, height, width)


COLOUR_OPERATIONS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
