"""Comparison of an exported graph with the network that it came from, on images of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.exporting.graph import Output, Size, predictions
from uda_seg.models.segmentor import Segmentor, resize
from uda_seg.storage.files import first_line

AGREEMENT = 0.999  # share of pixels with the same class; others are ties up to rounding

Run = Callable[[Tensor], Tensor]  # images [N, 3, H, W] -> output of the graph


@dataclass(frozen=True)
class Difference:
    """Difference between graph and network on one batch.

    Attributes:
        shape: (N, H, W) of the batch.
        agreement: share of the pixels with the same class.
        probability: largest difference of a probability; 0 where the graph gives labels alone.
    """

    shape: tuple[int, int, int]
    agreement: float
    probability: float

    def __str__(self) -> str:
        """Say it in words."""
        batch = " x ".join(map(str, self.shape))
        return (
            f"{batch}: {100 * self.agreement:.3f} % of the pixels have the same class, probabilities differ by up to "
            f"{self.probability:.1e}"
        )


def batches(images: Sequence[Tensor], smallest: int, size: Size | None) -> list[Tensor]:
    """Build the batches [N, 3, H, W] to compare on: all images together, one alone at odd sides, two smaller.

    Args:
        images: [3, H, W] in [0, 1], of any sizes.
        smallest: minimum side for the network.
        size: the only size that the graph takes; None: any.
    """

    def batch(chosen: Sequence[Tensor], height: int, width: int) -> Tensor:
        return torch.cat([resize(image[None], (height, width)) for image in chosen])

    if size is not None:
        return [batch(images[:1], *size), batch(images, *size)]
    height, width = (max(smallest, side) for side in images[0].shape[-2:])
    smaller = [max(smallest | 1, 3 * side // 4 | 1) for side in (height, width)]
    odd = [max(smallest | 1, side - 2 | 1) for side in (height, width)]
    return [batch(images, height, width), batch(images[-1:], *odd), batch(images[:2], *smaller)]


@torch.no_grad()
def difference(network: Segmentor, run: Run, batch: Tensor, output: Output) -> Difference:
    """Compare a graph with the network on one batch.

    Raises:
        UserError: the graph cannot run on the batch.
    """
    shape = (batch.shape[0], batch.shape[2], batch.shape[3])
    expected = predictions(network(batch), "labels" if output == "labels" else "probabilities")
    try:
        found = run(batch)
    except Exception as error:  # a runtime's errors are its own
        raise UserError(
            f"the exported graph fails on {' x '.join(map(str, shape))} images ({first_line(error)}), nothing is "
            "written: give one size with export.size=[HEIGHT,WIDTH]"
        ) from error
    if found.dtype != (torch.uint8 if output == "labels" else torch.float32) or found.shape[-2:] != batch.shape[-2:]:
        raise UserError(f"the exported graph gives {found.dtype} {list(found.shape)}, nothing is written")
    if output == "labels":
        return Difference(shape, _share(found, expected), 0.0)
    probabilities = found.softmax(1) if output == "logits" else found
    worst = float((probabilities - expected).abs().nan_to_num(nan=1.0).max())
    return Difference(shape, _share(found.argmax(1), expected.argmax(1)), worst)


def _share(found: Tensor, expected: Tensor) -> float:
    return float((found == expected).float().mean())


def check(differences: Sequence[Difference], tolerance: float) -> str:
    """Return a line about all differences.

    Raises:
        UserError: one is larger than allowed.
    """
    allowed = f"allowed: at least {100 * AGREEMENT:.1f} %, and up to {tolerance:g}"
    for each in differences:
        if not (each.agreement >= AGREEMENT and each.probability <= tolerance):
            raise UserError(f"the exported graph is not the network, nothing is written: on {each} ({allowed})")
    worst = Difference(
        differences[0].shape, min(d.agreement for d in differences), max(d.probability for d in differences)
    )
    said = str(worst).partition(": ")[2]
    sizes = ", ".join(" x ".join(map(str, d.shape)) for d in differences)
    return f"the same as the network on batches of {sizes}: {said} ({allowed})"
