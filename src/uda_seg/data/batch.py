"""What reaches the step: the images of one domain, and one decoded sample on its way there."""

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
    """One decoded image with what lies on its pixels.

    Args:
        image: uint8 [H, W, 3], RGB.
        label: uint8 [H, W], train ids, 255 = ignore; None where labels are not read.
        valid: uint8 [H, W], 1 where a pseudo-label may be trusted; None: everywhere.
        depth: float32 [H, W], inverse depth, exactly 1.0 = invalid; None where depth is not read.
        window: (top, left, mirrored): where in the resized image the sample lies, and whether it is mirrored (0 or 1).
    """

    image: Array
    label: Array | None = None
    valid: Array | None = None
    depth: NDArray[np.float32] | None = None
    window: tuple[int, int, int] = (0, 0, 0)

    def map(self, image: Callable[[Array], Array], plane: Callable[[Any], Any]) -> Sample:
        """Apply `image` to the image and `plane`, which keeps the type, to whatever lies on its pixels."""
        return Sample(
            image(self.image),
            None if self.label is None else plane(self.label),
            None if self.valid is None else plane(self.valid),
            None if self.depth is None else plane(self.depth),
            self.window,
        )


@dataclass
class TensorBatch:
    """A batch whose fields are tensors with a leading B, or None: how it travels to the step."""

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(t) for name, t in values.items() if t is not None})

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """A copy on `device`; asynchronous towards a GPU only, as the host would read half-written memory."""
        asynchronous = non_blocking and torch.device(device).type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def part(self, index: int, parts: int) -> Self:
        """Micro-batch `index` of `parts` nearly equal ones, as views."""
        return self._each(lambda tensor: tensor.tensor_split(parts)[index])

    def pin_memory(self) -> Self:
        """A copy in page-locked memory (the loader calls it when a GPU waits)."""
        return self._each(Tensor.pin_memory)


@dataclass
class DomainBatch(TensorBatch):
    """Images of one domain.

    Args:
        image: uint8 [B, 3, H, W], RGB.
        label: uint8 [B, H, W], train ids, 255 = ignore; None where labels are never read (the target in
            training). In validation it has the size of the label on disk, which may differ from the image's.
        index: int64 [B], the images' places in the sorted data set.
        valid: bool [B, H, W], false in padding and in the margins where pseudo-labels are not trusted.
        depth: float32 [B, 1, H, W], inverse depth, exactly 1.0 = invalid; None where the method reads none.
        pseudo: uint8 [B, H, W], stored pseudo-labels under the image's crop and flip; None: there are none.
        window: int64 [B, 3], top, left and mirroring of each image, as in `Sample`; None: not known.
    """

    image: Tensor
    label: Tensor | None
    index: Tensor
    valid: Tensor
    depth: Tensor | None = None
    pseudo: Tensor | None = None
    window: Tensor | None = None


def collate(samples: Sequence[Sample], indices: Sequence[int]) -> DomainBatch:
    """Stack samples of one size into a batch; different sizes are a UserError."""
    sizes = sorted({sample.image.shape[:2] for sample in samples})
    if len(sizes) > 1:
        raise UserError(f"images of the sizes {sizes} cannot share a batch: set data.val_batch=1")
    images = np.stack([sample.image for sample in samples])
    labels = [sample.label for sample in samples if sample.label is not None]
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
