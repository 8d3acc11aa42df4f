"""Depth files of every format, read as inverse depth z: z >= 1, exactly 1.0 where unknown (CorDA's convention).

Metric files give z = 655.36 / (metres + 0.01), so that 5, 10 and 50 metres become 130.8, 65.5 and 13.1, and 655.35 m
(the largest 16-bit value in centimetres: SYNTHIA's sky) becomes exactly 1.0. Disparity files give z = raw / 256 + 1:
our own trainer writes metric z that way if it knows the baseline; monocular disparity is only known up to scale.

A wrong format is detected by the median distance of a few files, and by whether distance grows towards the horizon
(`DepthFiles`). This misses scale factors that leave the median between 4 and 50 m: from 0.27 to 3.3 at the typical 15 m
of a street, such as 16-bit centimetres read in steps of 1/256 m (0.39) and vice versa. It also misses the scale of
disparity, which has no unit, and defects of single files.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from uda_seg.data.checksums import CURE, check_sums
from uda_seg.data.images import wrong_with
from uda_seg.data.integrity import read_file
from uda_seg.errors import Damaged, UserError
from uda_seg.ops.depth import INVALID, inverse_depth
from uda_seg.storage.files import first_line

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
SAMPLES = 9  # files of a data set whose scale is checked before training
INVERTED = 1.25  # depth is inverted if median z of the upper / lower image half exceeds it; rendered streets: 0.37
STRETCH = 1.15  # maximum change of aspect ratio between depth and image: 2:1 maps of GTA's 1.82:1 images
MOST_UNPACKED = 2**30  # limit in bytes of an unpacked MATLAB file: 64 times one of Cityscapes


@dataclass(frozen=True)
class DepthEncoding:
    """Format of depth files.

    Args:
        title: Description for messages.
        decode: Reads a file as z, float32 [H, W].
        median: Range of the median z of street scenes, outside of which the scale must be wrong.
        explain: Explanation of that range, for messages.
    """

    title: str
    decode: Callable[[Path], Floats]
    median: tuple[float, float]
    explain: str


def read_uint16(path: Path) -> NDArray[np.uint16]:
    """Read a 16-bit PNG [H, W]; three equal channels, as in SYNTHIA, are read as one."""
    content = read_file(path)
    check_sums(content, str(path))
    try:
        raw = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        raw = None
    if raw is None:
        raise UserError(f"{path} {wrong_with(content)}")
    if raw.dtype != np.uint16:
        raise UserError(
            f"{path} is {raw.dtype}, not 16-bit depth: a program saved it that cuts it (PIL), unpack it again"
        )
    if raw.ndim == 3:
        if (raw != raw[..., :1]).any():
            raise UserError(f"{path} has channels that differ: it is a picture, not depth; unpack it again")
        raw = raw[..., 0]
    return np.asarray(raw, np.uint16)


def read_metres(path: Path, unit: float) -> Floats:
    """Read a 16-bit PNG in steps of `unit` metres; 0 = unknown."""
    return metric(read_uint16(path).astype(np.float64) * unit)


def read_disparity(path: Path) -> Floats:
    """Read a 16-bit PNG with z = raw / 256 + 1; 0 = unknown."""
    return np.asarray(read_uint16(path) / 256 + 1, np.float32)


def read_sfsu(path: Path) -> Floats:
    """Read SFSU's completed stereo depth (Sakaridis et al. 2018) in metres: `depth_map` of a MATLAB file, float64.

    Values may be infinite or negative; as in CorDA, values below 0.1 m are unknown.
    """
    from scipy.io import loadmat  # only needed for this data set

    try:
        metres = np.asarray(
            loadmat(BytesIO(_inflated(read_file(path))), variable_names=["depth_map"])["depth_map"], np.float64
        )
    except KeyError as error:
        raise UserError(f"{path} holds no depth_map: is it SFSU's depth_stereoscopic?") from error
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise Damaged(f"{path} cannot be read as a MATLAB file ({first_line(error)}): {CURE}") from error
    if metres.ndim != 2:
        raise UserError(f"{path}: depth_map has the shape {metres.shape}, not height x width")
    return metric(np.where(metres < 0.1, 0.0, metres))


def _inflated(content: bytes) -> bytes:
    """Decompress the elements of a MATLAB 5 file and verify their checksums, which SciPy does not do for all.

    Other versions, such as 4 and 7.3, are returned unchanged. An element has a type and a length, 4 bytes each,
    followed by its data; type 15 is compressed by zlib (MAT-File Format, MathWorks, chapter 1).
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        return content
    parts, at, room = [content[:128]], 128, MOST_UNPACKED
    while at + 8 <= len(content):
        kind, length = struct.unpack(f"{order}II", content[at : at + 8])
        end = at + 8 + length
        if end > len(content):
            raise ValueError(f"it is cut off after {len(content)} bytes")
        if kind == 15:
            inflate = zlib.decompressobj()
            parts.append(inflate.decompress(content[at + 8 : end], max(room, 1)))
            room -= len(parts[-1])
            if not inflate.eof:
                raise ValueError("a part of it is cut off, or unpacks to far more than depth")
        else:
            parts.append(content[at:end])
        at = end
    return b"".join(parts)


def metric(metres: NDArray[np.float64]) -> Floats:
    """Convert metres to z."""
    return inverse_depth(torch.from_numpy(metres)).float().numpy()


_METRES = (13.1, 163.0)
_EXPLAIN = "the median distance would not lie between 4 and 50 metres"  # rendered streets: 15; single images 8 to 23
ENCODINGS = {
    "metres": DepthEncoding("16-bit PNG in 1/256 m", lambda path: read_metres(path, 1 / 256), _METRES, _EXPLAIN),
    "centimetres": DepthEncoding("16-bit PNG in cm", lambda path: read_metres(path, 0.01), _METRES, _EXPLAIN),
    "sfsu": DepthEncoding("SFSU .mat in metres", read_sfsu, _METRES, _EXPLAIN),
    "disparity": DepthEncoding(
        "16-bit PNG of disparity", read_disparity, (1.2, 240.0), "it should use the 16 bits: z = raw / 256 + 1"
    ),
}


class DepthFiles:
    """Depth files of a data set's images.

    Args:
        paths: One file per image, in the images' order.
        encoding: A name in `ENCODINGS`.
        option: The setting they come from, for messages.

    Raises:
        UserError: a sample of the files has an impossible scale or inverted depth.
    """

    def __init__(self, paths: Sequence[Path], encoding: str, option: str) -> None:
        self.paths, self.encoding, self.option = list(paths), ENCODINGS[encoding], option
        self._check_scale()

    def read(self, index: int, size: tuple[int, int]) -> Floats:
        """Read z of image `index`, float32 [H, W], resampled by nearest neighbour to the image's size (H, W)."""
        z = self.encoding.decode(self.paths[index])
        if not same_shape((z.shape[0], z.shape[1]), size):
            raise UserError(
                f"{self.paths[index]} is {z.shape[0]}x{z.shape[1]} but its image is {size[0]}x{size[1]} "
                "(height x width): another shape, so it is not of this image: copy, unpack or export it again"
            )
        if z.shape != size:
            z = np.asarray(cv2.resize(z, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.float32)
        return z

    def _check_scale(self) -> None:
        """Check the scale on the valid pixels of a sample of files together, as single images may be unusual.

        Refuse a median outside of the encoding's range, and an upper image half that is nearer than the lower one.
        """
        picked = {int(i) for i in np.linspace(0, len(self.paths) - 1, SAMPLES)}
        maps = [self.encoding.decode(self.paths[i]) for i in sorted(picked)]
        upper = _valid([z[: len(z) // 2] for z in maps])
        lower = _valid([z[len(z) // 2 :] for z in maps])
        pooled, (low, high) = np.concatenate([upper, lower]), self.encoding.median
        said = None
        if len(pooled) and not low <= (median := float(np.median(pooled))) <= high:
            said = (
                f"the median inverse depth would be {median:.4g}, not between {low:g} and {high:g}: "
                f"{self.encoding.explain}"
            )
        elif len(upper) and len(lower) and np.median(upper) > INVERTED * np.median(lower):
            said = "what is near would be far: the upper image halves would be nearer than the lower ones"
        if said is not None:
            raise UserError(
                f"{self.paths[0]}: as {self.encoding.title} {said}; set {self.option}_encoding to one of "
                f"{encoding_choices()}"
            )


def same_shape(plane: tuple[int, int], image: tuple[int, int]) -> bool:
    """Return whether a depth map or label (H, W) can belong to an image (H, W), at any resolution."""
    return 1 / STRETCH <= plane[1] / plane[0] * image[0] / image[1] <= STRETCH


def _valid(maps: Sequence[Floats]) -> Floats:
    """Concatenate the known values of several maps."""
    return np.concatenate([z[z != INVALID] for z in maps])


def encoding_choices() -> str:
    """List the encodings for a message."""
    return ", ".join(f"{name} ({encoding.title})" for name, encoding in ENCODINGS.items())
