"""A data set with labels that YAML cannot describe: NumPy files of Cityscapes' train ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uda_seg import CITYSCAPES
from uda_seg.data.labels import CITYSCAPES_TRAIN
from uda_seg.data.specs import DatasetSpec, LabelEncoding
from uda_seg.errors import UserError


def read_numpy(path: Path) -> NDArray[np.uint8]:
    """Read the ids of a label file, uint8 [H, W]."""
    try:
        label = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no NumPy file: {error}") from error
    if label.ndim != 2 or label.dtype != np.uint8:
        raise UserError(f"{path} is not uint8 [H, W] but {label.dtype} {list(label.shape)}")
    return label


class NumpyStreets(DatasetSpec):
    """Images under `photos/<split>`, labels of the same names under `ids/<split>`.

    Args:
        image_suffix: suffix of image names.
    """

    def __init__(self, image_suffix: str = ".png") -> None:
        encoding = LabelEncoding(".npy", CITYSCAPES_TRAIN, read_numpy)
        super().__init__("NumPy streets", CITYSCAPES, "photos/{split}", "ids/{split}", image_suffix, (encoding,))
