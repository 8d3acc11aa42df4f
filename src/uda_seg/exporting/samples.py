"""Images that an exported graph is compared with its network on."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from uda_seg.data.batch import Sample
from uda_seg.data.folders import files_below
from uda_seg.data.images import HEAD, kind_of, read_bytes, read_image, spread
from uda_seg.data.streets.world import render
from uda_seg.data.transforms import Resize
from uda_seg.errors import UserError

log = logging.getLogger(__name__)

STREETS = (128, 256)  # height and width of the rendered images


def samples(source: Path | None, count: int, fit: Resize | None, bits: int | None = None) -> list[Tensor]:
    """Read images as the network gets them, [3, H, W] in [0, 1].

    Args:
        source: a folder of images or one image; None: images of the built-in streets.
        count: at most so many, spread over the folder.
        fit: resize of validation images in training; None for no resize.
        bits: used bits per channel of 16-bit images; None without any.

    Raises:
        UserError: there is no image, or one is damaged.
    """
    if source is None:
        size = STREETS if fit is None else fit.size(*STREETS)
        arrays = [render(0, "camera", index, size).image for index in range(count)]
    else:
        names = [source / name for name in files_below(source)] if source.is_dir() else [source]
        found = [path for path in names if kind_of(read_bytes(path, HEAD)) is not None]
        if not found:
            raise UserError(f"input={source} holds no image to check the graph on: name another, or leave it out")
        arrays = [read_image(path, bits) for path in spread(found, count)]
        arrays = arrays if fit is None else [fit(Sample(image)).image for image in arrays]
    return [torch.from_numpy(array).permute(2, 0, 1).float() / 255 for array in arrays]
