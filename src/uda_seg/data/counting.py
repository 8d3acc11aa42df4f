"""Pixel counts of the ids in a label."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

RawIds = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
_EXACT = 2**24  # OpenCV returns counts as float32, which are exact up to here


def count_ids(label: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the pixels of each id in a label uint8 [..., W], int64 [256].

    OpenCV's histogram releases the GIL and is 3 (crops) to 30 times (whole labels) faster than NumPy's, which first
    converts every pixel to int64.
    """
    label = label.reshape(-1, label.shape[-1])
    rows = max(1, _EXACT // max(1, label.shape[1]))
    counts = np.zeros(256, np.int64)
    for top in range(0, label.shape[0], rows):
        counts += cv2.calcHist([label[top : top + rows]], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return counts


def present_ids(raw: RawIds) -> dict[int, int]:
    """Count the pixels of each id that occurs in a label [H, W]."""
    if raw.dtype == np.uint8 or raw.max(initial=0) < 256:
        counts = count_ids(raw.astype(np.uint8, copy=False))
        return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    ids, numbers = np.unique(raw, return_counts=True)
    return {int(i): int(n) for i, n in zip(ids, numbers, strict=True)}
