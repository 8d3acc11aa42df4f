"""Containers of a decoded sample and of a batch of one domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uda_seg.errors import UserError

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """A decoded image with its per-pixel maps.

    Args:
        image: uint8 [H, W, 3], RGB.
        label: uint8 [H, W], train ids, 255 = ignore; None if labels are not read.
        valid: uint8 [H, W], 1 where pseudo-labels may be used; None: everywhere.
        depth: float32 [H, W], inverse depth, exactly 1.0 = invalid; None if depth is not read.
        window: (top, left, mirrored): position of the sample in the resized image, and whether it is flipped (0 or 1).
    """

    image: Array
    label: Array | None = None
    valid: Array | None = None
    depth: NDArray[np.float32] | None = None
    window: tuple[int, int, int] = (0, 0, 0)

    def map(self, image: Callable[[Array], Array], plane: Callable[[Any], Any]) -> Sample:
        """Apply `image` to the image and `plane`, which keeps the dtype, to all per-pixel maps."""
        return Sample(
            image(self.image),
            None if self.label is None else plane(self.label),
            None if self.valid is None else plane(self.valid),
            None if self.depth is None else plane(self.depth),
            self.window,
        )


@dataclass
class TensorBatch:
    """Base class of batches whose fields are tensors with a leading B, or None."""

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(t) for name, t in values.items() if t is not None})

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """Copy to `device`; asynchronously only to a GPU, because the host could read incomplete memory."""
        asynchronous = non_blocking and torch.device(device).type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def part(self, index: int, parts: int) -> Self:
        """Return micro-batch `index` of `parts` nearly equal ones, as views."""
        return self._each(lambda tensor: tensor.tensor_split(parts)[index])

    def pin_memory(self) -> Self:
        """Copy to page-locked memory (called by the loader for a GPU)."""
        return self._each(Tensor.pin_memory)


@dataclass
class DomainBatch(TensorBatch):
    """Images of one domain.

    Args:
        image: uint8 [B, 3, H, W], RGB.
        label: uint8 [B, H, W], train ids, 255 = ignore; None if labels are not read (the target in training). In
            validation it has the size of the label on disk, which may differ from the image's.
        index: int64 [B], indices of the images in the sorted data set; those of several are numbered on from one to
            the next.
        valid: bool [B, H, W], false in padding, and in margins if pseudo-labels are ignored there.
        depth: float32 [B, 1, H, W], inverse depth, exactly 1.0 = invalid; None for methods without depth.
        pseudo: uint8 [B, H, W], stored pseudo-labels with the image's crop and flip; None without any.
        window: int64 [B, 3], top, left and flip of each image, as in `Sample`; None if unknown.
    """

    image: Tensor
    label: Tensor | None
    index: Tensor
    valid: Tensor
    depth: Tensor | None = None
    pseudo: Tensor | None = None
    window: Tensor | None = None


def collate(samples: Sequence[Sample], indices: Sequence[int]) -> DomainBatch:
    """Stack samples into a batch; raises UserError if the sizes of their images or labels differ."""
    labels = [sample.label for sample in samples if sample.label is not None]
    for what, arrays in (("images", [sample.image for sample in samples]), ("labels", labels)):
        sizes = sorted({array.shape[:2] for array in arrays})
        if len(sizes) > 1:
            raise UserError(f"{what} of the sizes {sizes} cannot share a batch: set data.val_batch=1")
    images = np.stack([sample.image for sample in samples])
    valid = [np.ones(s.image.shape[:2], np.uint8) if s.valid is None else s.valid for s in samples]
    depths = [sample.depth for sample in samples if sample.depth is not None]
    return DomainBatch(
        image=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        label=torch.from_numpy(np.stack(labels)) if labels else None,
        index=torch.tensor(indices, dtype=torch.int64),
        valid=torch.from_numpy(np.stack(valid)).bool(),
        depth=torch.from_numpy(np.stack(depths))[:, None] if depths else None,
        window=torch.tensor([sample.window for sample in samples], dtype=torch.int64),
    )
