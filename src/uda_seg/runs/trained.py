"""Python API for trained networks: `uda_seg.load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.ExifTags import Base
from PIL.Image import Image
from torch import Tensor

from uda_seg.config.commands import ExportConfig, PredictConfig
from uda_seg.config.compose import composed
from uda_seg.config.replay import replay
from uda_seg.data.batch import Sample
from uda_seg.data.custom import classes_of
from uda_seg.data.labels import ClassSet
from uda_seg.data.readers import resize_of
from uda_seg.data.settings import DomainSettings
from uda_seg.data.transforms import Resize
from uda_seg.errors import UserError
from uda_seg.methods.base import Plan
from uda_seg.models.inference import Inference
from uda_seg.models.segmentor import Segmentor
from uda_seg.runs.build import inference, instantiate_module
from uda_seg.runs.checkpoint import load_trained, read_checkpoint
from uda_seg.runs.published import is_published

Pixels = NDArray[np.uint8]
Output = Literal["labels", "probabilities", "logits"]


@dataclass(frozen=True)
class TrainedSegmentor:
    """A trained network with the pre-processing of its images.

    Attributes:
        network: the Segmentor: tensors in, logits out.
        classes: predicted classes, in the order of their ids.
        fit: resize of validation images in training; None for no resize.
        infer: inference settings: whole images or sliding windows, at one or more scales.
    """

    network: Segmentor
    classes: ClassSet
    fit: Resize | None
    infer: Inference

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by id."""
        return self.classes.names

    @property
    def palette(self) -> Pixels:
        """RGB colours of the classes by id, uint8 [K, 3]: `palette[labels]` is a picture."""
        return np.array(self.classes.palette, np.uint8)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.mean.device

    def to(self, device: torch.device | str) -> Self:
        """Move the network, in place."""
        self.network.to(device)
        return self

    @overload
    def predict(self, image: Tensor, output: Output = "labels") -> Tensor: ...

    @overload
    def predict(self, image: Image, output: Output = "labels") -> NDArray[Any]: ...

    @overload
    def predict(self, image: Pixels, output: Output = "labels") -> NDArray[Any]: ...

    def predict(self, image: Tensor | Image | Pixels, output: Output = "labels") -> Tensor | NDArray[Any]:
        """Segment an RGB image of any size, or a batch of them as a tensor.

        Args:
            image: uint8 [H, W, 3], a PIL image, or a tensor [3, H, W] or [B, 3, H, W], uint8 or float in [0, 1]; floats
                are rounded to 8 bits, as images are read in training.
            output: `labels` (class ids), `probabilities` or `logits`.

        Returns:
            At the image's own size, uint8 [H, W] or float32 [K, H, W], of a batch with a leading B; a tensor, on the
            device of the given one, for a tensor, and an array for anything else.

        Raises:
            ValueError: another shape, type or range, or an unknown output.
        """
        if output not in ("labels", "probabilities", "logits"):
            raise ValueError(f"output={output!r}: give labels, probabilities or logits")
        if not isinstance(image, Tensor):
            found: NDArray[Any] = self._predict(_pixels(image), output).cpu().numpy()
            return found
        if image.ndim == 4:
            return torch.stack([self.predict(each, output) for each in image])
        return self._predict(_pixels_of_tensor(image), output).to(image.device)

    @torch.no_grad()
    def _predict(self, image: Pixels, output: Output) -> Tensor:
        logits = self.logits(image)
        if output == "logits":
            return logits
        if output == "probabilities":
            return logits.softmax(0)
        return logits.argmax(0).to(torch.uint8)  # probabilities may tie where logits do not

    @torch.no_grad()
    def logits(self, image: Pixels) -> Tensor:
        """Predict float32 logits [K, H, W], on the network's device, for an RGB image [H, W, 3]."""
        return self.batch_logits([image])[0]

    @torch.no_grad()
    def batch_logits(self, images: Sequence[Pixels]) -> Tensor:
        """Predict float32 logits [B, K, H, W], on the network's device, for RGB images [H, W, 3] of one size."""
        height, width = images[0].shape[:2]
        if self.fit is not None:
            images = [self.fit(Sample(image)).image for image in images]
        tensor = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() / 255
        return self.infer(self.network, tensor, (height, width))


def _pixels(image: Image | Pixels) -> Pixels:
    """Convert an image to a contiguous, writable array [H, W, 3]."""
    if isinstance(image, Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"the image's mode is {image.mode}: scale it to 8 bits a channel first")
        if image.getexif().get(Base.Orientation, 1) != 1:
            raise ValueError("the image is stored turned (EXIF): give PIL.ImageOps.exif_transpose(image)")
        image = np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"the image is {array.dtype} {list(array.shape)}: give uint8 [H, W, 3], RGB")
    return np.array(array)


def _pixels_of_tensor(image: Tensor) -> Pixels:
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"the image is a tensor of {list(image.shape)}: give [3, H, W] or [B, 3, H, W], RGB")
    if image.is_floating_point():
        low, high = image.aminmax()
        if not (low >= 0 and high <= 1):  # NaN is refused too
            raise ValueError(f"the image's values lie between {low:g} and {high:g}: give floats in [0, 1], or uint8")
        image = (image.float() * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ValueError(f"the image is a tensor of {image.dtype}: give uint8, or floats in [0, 1]")
    return np.ascontiguousarray(image.detach().permute(1, 2, 0).cpu().numpy())


def load(
    checkpoint: str | Path, *overrides: str, teacher: bool = False, device: torch.device | str = "auto"
) -> TrainedSegmentor:
    """Load a trained network, ready to predict.

    Args:
        checkpoint: a checkpoint, such as a run's `last.ckpt`; the folder of a published network; or
            `hub:owner/repository[@revision]`, one on the Hugging Face hub.
        overrides: overrides of its configuration, as on the command line: `evaluator=slide`, `predict.size=[512,1024]`;
            for a method of another package `hydra.searchpath=[file://FOLDER/conf]`.
        teacher: load the EMA teacher instead of the student.
        device: device of the network; `auto` selects a GPU if there is one.

    Raises:
        UserError: a missing or damaged file, another program's, or a method that is not installed.
    """
    path = Path(checkpoint).expanduser()
    if not is_published(path) and not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    content = read_checkpoint(path)
    config = composed(replay(content, list(overrides), PredictConfig), PredictConfig)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return trained(config, content, path, teacher=teacher).to(chosen)


def trained(
    config: PredictConfig | ExportConfig, content: Mapping[str, Any], path: Path, *, teacher: bool
) -> TrainedSegmentor:
    """Build the network of a checkpoint and fill it.

    Args:
        config: configuration composed from the checkpoint.
        content: result of `read_checkpoint`.
        path: for messages.
        teacher: load the EMA teacher instead of the student.

    Raises:
        UserError: classes, method or network differ, or there is no teacher.
    """
    classes = classes_of(config.data)
    eval_classes = classes.subset(config.data.eval_classes)
    plan = Plan(steps=config.steps, seed=config.seed, classes=classes, eval_classes=eval_classes, crop=(1, 1))
    network = load_trained(instantiate_module(config, plan), content, path, teacher=teacher)
    return TrainedSegmentor(network, classes, input_resize(config), inference(config))


def trained_domain(config: PredictConfig | ExportConfig) -> DomainSettings:
    """Return the domain that the network is scored on, or else adapted to or trained on."""
    return next(iter(config.data.validation.values()), config.data.target or config.data.source)


def input_resize(config: PredictConfig | ExportConfig) -> Resize | None:
    """Build the resize of images: as in validation, or to `predict.size`; None for no resize."""
    domain = trained_domain(config)
    return resize_of(domain if config.predict.size == "auto" else replace(domain, size=config.predict.size))
