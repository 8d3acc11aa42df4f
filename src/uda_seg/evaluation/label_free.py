"""Label-free scores of a network, or of the networks of several runs, on a fixed sample of unlabelled images."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uda_seg.errors import Damaged
from uda_seg.evaluation.evaluator import confusion_matrix, iou
from uda_seg.ops.label_free import (
    ensemble_labels,
    information_maximization,
    neighbourhood_density,
    pixel_entropy,
)
from uda_seg.storage.files import read_bytes, write_whole

SCORES = ("infomax", "snd", "masked_agreement")  # of one network; of all, higher is better
PIXELS = 512  # of each image whose softmax is kept
NEIGHBOURS = 2048  # of these, compared by `snd` over all images (paper: 1 to 4 thousand)
FILE = "label_free.npz"  # in a run's folder
_CURE = "train the run to its end again with resume=last"


@dataclass(frozen=True)
class Predicted:
    """Statistics of the predictions of N images that the scores need; an image's part does not depend on the others.

    Attributes:
        mean: float32 [N, K], mean over pixels of the softmax.
        entropy: float32 [N], mean over pixels of its entropy in nats.
        sample: float32 [N, PIXELS, K], the softmax at random pixels, which are an image's own.
        confusion: int64 [N, K, K], pixels by the class of the clean (row) and of the masked image (column); zero if
            nothing was masked.
        checksum: int64 [N], CRC-32 of the image's pixels.
    """

    mean: Tensor
    entropy: Tensor
    sample: Tensor
    confusion: Tensor
    checksum: Tensor

    @classmethod
    def empty(cls, images: int, classes: int, device: torch.device | str = "cpu") -> Self:
        """Build the sums' neutral element: zeros, to which every image adds its part."""
        return cls(
            torch.zeros(images, classes, device=device),
            torch.zeros(images, device=device),
            torch.zeros(images, PIXELS, classes, device=device),
            torch.zeros(images, classes, classes, dtype=torch.int64, device=device),
            torch.zeros(images, dtype=torch.int64, device=device),
        )

    def add(self, place: int, probability: Tensor, checksum: int, agreement: Tensor | None = None) -> None:
        """Enter an image's softmax [K, H, W], its checksum and, if it was masked as well, its counts [K, K]."""
        pixels = probability.flatten(1).T
        self.mean[place] = pixels.mean(0)
        self.entropy[place] = pixel_entropy(pixels).mean()
        self.sample[place] = pixels[_chosen(checksum, len(pixels)).to(pixels.device)]
        self.checksum[place] = checksum
        if agreement is not None:
            self.confusion[place] = agreement

    def scores(self, names: Sequence[str], reference: NDArray[np.float64]) -> dict[str, float]:
        """Compute scores by name, in float64 and in the images' order, so that nothing depends on batches or ranks.

        Args:
            names: among `SCORES`.
            reference: float64 [K], the classes' shares on the source.
        """
        of = {
            "infomax": lambda: information_maximization(
                self.mean.double().mean(0), self.entropy.double().mean(), torch.from_numpy(reference)
            ),
            "snd": lambda: neighbourhood_density(self._neighbours().double()),
            "masked_agreement": lambda: iou(self.confusion.sum(0)).nanmean(),
        }
        return {name: float(of[name]()) for name in names}

    def _neighbours(self) -> Tensor:
        each = max(2, min(PIXELS, NEIGHBOURS // len(self.sample)))
        return self.sample[:, :each].flatten(0, 1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every field."""
        return type(self)(*(function(getattr(self, field.name)) for field in fields(self)))


def class_shares(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn counts or shares [K] into positive shares; a class that never occurs gets a millionth of the pixels."""
    total = pixels.sum()
    shares = (pixels / total if total > 0 else np.zeros_like(pixels, dtype=float)) + 1e-6
    result: NDArray[np.float64] = shares / shares.sum()
    return result


def _chosen(seed: int, pixels: int) -> Tensor:
    """Draw the pixels of an image to keep, with replacement, by the image alone: equal in every run."""
    return torch.randint(pixels, (PIXELS,), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- over the runs of a sweep


@dataclass(frozen=True)
class Candidate:
    """A run's predictions on the sample, as its folder keeps them.

    Attributes:
        probability: float32 [N, PIXELS, K], the softmax rounded to 1/255.
        images: int64 [N], checksums of the images.
        classes: names of the K classes.
        step: step of the network.
    """

    probability: Tensor
    images: tuple[int, ...]
    classes: tuple[str, ...]
    step: int


def write_predictions(folder: Path, predicted: Predicted, classes: Sequence[str], step: int) -> None:
    """Write `label_free.npz`, some hundred kilobytes, from which `ensemble_agreement` compares runs."""
    content = io.BytesIO()
    np.savez_compressed(
        content,
        probability=(255 * predicted.sample).round().to(torch.uint8).numpy(),
        images=predicted.checksum.numpy(),
        classes=np.array(list(classes), dtype=np.str_),
        step=np.int64(step),
    )
    write_whole(folder / FILE, content.getvalue())


def read_predictions(folder: Path) -> Candidate | None:
    """Read a run's `label_free.npz`; None if it has none.

    Raises:
        Damaged: the file cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(read_bytes(path, _CURE)), allow_pickle=False) as file:
            probability, images, classes = file["probability"], file["images"], file["classes"]
            step = int(file["step"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} cannot be read ({type(error).__name__}); {_CURE}") from error
    shape = (len(images), PIXELS, len(classes)) if images.ndim == classes.ndim == 1 else None
    if probability.dtype != np.uint8 or probability.shape != shape or images.dtype != np.int64:
        raise Damaged(f"{path} holds no predictions; {_CURE}")
    names = tuple(str(name) for name in classes)
    return Candidate(torch.from_numpy(probability).float() / 255, tuple(images.tolist()), names, step)


def ensemble_agreement(candidates: Mapping[str, Candidate]) -> dict[str, float]:
    """Score each of several networks by its agreement with their ensemble (EnsV, Hu et al., NeurIPS 2024).

    The ensemble averages the softmax; the score is the mIoU of a network's labels with the ensemble's, over the classes
    that occur in either.

    Args:
        candidates: at least two networks by name. They can be compared if they have the same classes and images.

    Returns:
        Scores in [0, 1] by name; empty for fewer than two candidates.

    Raises:
        ValueError: they have other classes or other images.
    """
    if len(candidates) < 2:
        return {}
    if len({(c.images, c.classes) for c in candidates.values()}) > 1:
        raise ValueError("the networks were not run on the same images with the same classes")
    probabilities = [c.probability for c in candidates.values()]
    labels, classes = ensemble_labels(probabilities), probabilities[0].shape[-1]
    return {
        name: float(iou(confusion_matrix(c.probability.argmax(-1), labels, classes)).nanmean())
        for name, c in candidates.items()
    }
