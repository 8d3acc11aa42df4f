"""Style translation of source images, T2S-DA's pseudo-target."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.models.style import RandomStyle
from uda_seg.ops.augment import draw_strong, strong_augment
from uda_seg.ops.fourier import fourier_transfer, match_statistics

Style = Literal["fourier", "statistics", "file"]


class Translation:
    """Translation of source images to the style of target images or, without a target, to random styles.

    Without a target the style comes from another image of the batch with a random strength (as in Xu et al., CVPR
    2021), and colours are jittered and blurred in addition: our choice for runs without the published weights.

    Args:
        style: `fourier` swaps low-frequency amplitudes, `statistics` matches the channels' means and standard
            deviations, `file` renders random styles with the weights of style augmentation.
        beta: half width of the Fourier window relative to the image's shorter side.
        weights: folder of the published files, for `file`.
        alpha: strength of `file`, interpolating from the image's own style.

    Raises:
        UserError: an unknown style, or `file` without its files.
    """

    def __init__(self, style: Style, beta: float, weights: str | None, alpha: float) -> None:
        self.style, self.beta = style, beta
        self.painter: RandomStyle | None = None
        if style == "file":
            if weights is None:
                raise UserError("method.style=file needs method.style_weights=FOLDER of the published style augmentor")
            self.painter = RandomStyle(weights, alpha)
        elif style not in ("fourier", "statistics"):
            raise UserError(f"method.style={style} is unknown: use fourier, statistics or file")

    def __call__(self, image: Tensor, target: Tensor | None) -> Tensor:
        """Translate images [B, 3, H, W] in [0, 1] towards target images of the same shape, or None."""
        if self.painter is not None:
            return self.painter(image)
        if target is not None:
            return self.transfer(image, target, None).clamp(0.0, 1.0)
        strength = torch.rand(len(image), device=image.device)
        painted = self.transfer(image, image.roll(1, 0), strength).clamp(0.0, 1.0)
        return strong_augment(painted, draw_strong(len(image), device=image.device))

    def transfer(self, image: Tensor, style: Tensor, strength: Tensor | None) -> Tensor:
        """Translate images to the style of others with strength [B] in [0, 1] (None: 1)."""
        if self.style == "fourier":
            return fourier_transfer(image, style, self.beta, strength)
        return match_statistics(image, style, strength)
