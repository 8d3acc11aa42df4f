"""Forwards of images in batches that fit in memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from uda_seg.errors import UserError
from uda_seg.prediction.outputs import Pixels
from uda_seg.runs.trained import TrainedSegmentor

log = logging.getLogger(__name__)

LARGEST = 32  # images in a batch chosen by memory; more of them are not faster
SHARE = 0.6  # of the free memory that a batch may take: its peak was measured with one image alone
_FULL = re.compile(r"out of memory|can't allocate memory|not enough memory|Unable to allocate", re.IGNORECASE)


class Batches:
    """Logits of images of one size, as many at a time as memory allows.

    On a CPU a batch is one image, as more are not faster. On a GPU the first image is predicted alone, and its peak of
    memory tells how many fit. If memory is full, the batch is halved, for the rest of the session.

    Args:
        model: the network.
        size: images in a batch; None chooses as above.
    """

    def __init__(self, model: TrainedSegmentor, size: int | None = None) -> None:
        self.model, self._given = model, size
        self._most = size or (LARGEST if model.device.type == "cuda" else 1)
        self._bytes_per_pixel: float | None = None

    def room(self, image: Pixels) -> int:
        """Return the number of images of this size for the next batch."""
        if self._given is not None or self._most == 1:
            return self._most
        if self._bytes_per_pixel is None:
            return 1
        height, width = image.shape[:2]
        free = torch.cuda.mem_get_info(self.model.device)[0]
        return max(1, min(self._most, int(SHARE * free / (self._bytes_per_pixel * height * width))))

    def logits(self, images: Sequence[Pixels]) -> Iterator[Tensor | UserError]:
        """Yield the logits [K, H, W] of each image [H, W, 3], or the error of one for which memory is too small."""
        done = 0
        while done < len(images):
            size = min(len(images) - done, self._most)
            try:
                found = self._measured(images[done : done + size])
            except (MemoryError, RuntimeError) as error:
                if not is_full(error):
                    raise
                shrunk = self._smaller(size, images[done])
                if shrunk is None:
                    continue
                yield shrunk
                done += 1
                continue
            yield from found
            done += size

    def _measured(self, images: Sequence[Pixels]) -> Tensor:
        """Predict a batch, and measure the memory of the first one on a GPU."""
        device = self.model.device
        if device.type != "cuda" or self._bytes_per_pixel is not None:
            return self.model.batch_logits(images)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        found = self.model.batch_logits(images)
        peak = torch.cuda.max_memory_allocated(device) - before
        self._bytes_per_pixel = peak / sum(image.shape[0] * image.shape[1] for image in images)
        return found

    def _smaller(self, size: int, image: Pixels) -> UserError | None:
        """Halve the batch after memory was full; return the error if it was a single image."""
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if size > 1:
            self._most = size // 2
            log.info("memory is full with %d images at once: going on with %d", size, self._most)
            return None
        height, width = image.shape[:2]
        return UserError(
            f"memory is full with one image of {width} x {height} pixels: predict it in windows, evaluator=slide "
            "evaluator.windows_per_batch=1, or at a smaller size, predict.size=[H,W]"
        )


def is_full(error: BaseException) -> bool:
    """Return whether an error says that memory is full."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _FULL.search(str(error)) is not None
