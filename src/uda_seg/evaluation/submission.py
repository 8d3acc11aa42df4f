"""Prediction files for test servers: written atomically, resumed after a stop, and packed at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uda_seg.data.batch import Sample
from uda_seg.data.checksums import check_sums
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.integrity import read_file
from uda_seg.data.labels import ClassSet
from uda_seg.data.transforms import Resize
from uda_seg.errors import Damaged, UserError
from uda_seg.evaluation.servers import Server, raw_ids
from uda_seg.models.inference import Inference, resized_argmax
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.image import to_float
from uda_seg.storage.files import save_png, write_text, write_zip

Item = tuple[Tensor, int, tuple[int, int]]


class Images(Dataset[Item]):
    """A subset of images: uint8 [3, H, W] at the network's size, index, and (height, width) on disk.

    Args:
        dataset: the data set; labels are not read.
        resize: resize to the network's size; None: as on disk.
        places: indices of the images.
    """

    def __init__(self, dataset: SegmentationDataset, resize: Resize | None, places: Sequence[int]) -> None:
        self.dataset, self.resize, self.places = dataset, resize, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Item:
        place = self.places[index]
        sample = Sample(self.dataset.read(place).image)
        size = (sample.image.shape[0], sample.image.shape[1])
        image = sample.image if self.resize is None else self.resize(sample).image
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), place, size


class Submission:
    """Predictions of one network on one split: a folder and an archive next to it.

    Existing files are kept if `submission.json` records the same network and settings; otherwise the folder is cleared.

    Args:
        server: the benchmark.
        folder: folder of the files; the archive is `<folder>.zip`.
        images: names of the images, in the data set's order.
        classes: classes of the predictions.
        made_by: plain values that determine the predictions.

    Raises:
        UserError: an image's name does not match the benchmark, or two images have the same name.
    """

    RECORD = "submission.json"

    def __init__(
        self, server: Server, folder: Path, images: Sequence[str], classes: ClassSet, made_by: Mapping[str, Any]
    ) -> None:
        self.server, self.folder = server, folder
        self.files = [server.files(image) for image in images]
        first: dict[str, str] = {}
        for image, (labels, _) in zip(images, self.files, strict=True):
            if first.setdefault(labels[0], image) != image:
                raise UserError(f"{first[labels[0]]} and {image} would both be {labels[0]}: name the images apart")
        self.table = raw_ids(classes) if server.raw else np.arange(256, dtype=np.uint8)
        self._keep(json.dumps(made_by, indent=2, sort_keys=True) + "\n")

    def _keep(self, record: str) -> None:
        path = self.folder / self.RECORD
        if path.is_file() and path.read_bytes() == record.encode():
            return
        # Delete the record first, so that leftovers of an interrupted deletion are never taken for this network's.
        for stale in (path, self.archive, *(self.folder / inside for inside in self._inside())):
            try:
                stale.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"cannot replace {stale}: {error.strerror or error}; move it away") from error
        write_text(path, record)

    @property
    def archive(self) -> Path:
        """The file to submit."""
        return self.folder.with_name(f"{self.folder.name}.zip")

    def missing(self) -> list[int]:
        """List the indices of images without predictions or with damaged files."""
        return [place for place, files in enumerate(self.files) if not all(map(self._is_whole, _names(files)))]

    def _is_whole(self, inside: str) -> bool:
        path = self.folder / inside
        try:
            check_sums(read_file(path), str(path))
        except Damaged:
            return False
        return True

    def write(self, place: int, label: NDArray[np.uint8], confidence: NDArray[np.uint16] | None) -> None:
        """Write an image's files.

        Args:
            place: index of the image.
            label: [H, W] train ids.
            confidence: [H, W], if the server requires it.
        """
        labels, certain = self.files[place]
        if certain is not None and confidence is not None:
            save_png(self.folder / certain, confidence)
        for path in reversed(labels):
            save_png(self.folder / path, self.table[label])

    def pack(self) -> Path:
        """Write all files to the archive and return its path."""
        write_zip(self.archive, {path: self.folder / path for path in sorted(self._inside())})
        return self.archive

    def _inside(self) -> list[str]:
        return [path for files in self.files for path in _names(files)]


def _names(files: tuple[list[str], str | None]) -> list[str]:
    """List all files of an image."""
    labels, certain = files
    return [*labels, *([] if certain is None else [certain])]


@dataclass
class Job:
    """A network and its submission."""

    network: Segmentor
    submission: Submission


class Writer(pl.LightningModule):
    """Predicts images and writes the files (through Lightning, with the same device and precision as validation).

    Args:
        jobs: networks, each of which predicts what its submission lacks.
        infer: inference settings.
    """

    def __init__(self, jobs: Sequence[Job], infer: Inference) -> None:
        super().__init__()
        self.jobs, self.infer = jobs, infer
        self.networks = torch.nn.ModuleList(job.network for job in jobs)
        self.missing = [set(job.submission.missing()) for job in jobs]

    def loader(self, dataset: SegmentationDataset, resize: Resize | None, workers: int) -> DataLoader[Item]:
        """Load the images that any job lacks, one at a time because they may differ in size."""
        places = sorted(set().union(*self.missing))
        return DataLoader(Images(dataset, resize, places), batch_size=None, num_workers=workers)

    def predict_step(self, item: Item, batch_idx: int) -> None:
        """Write one image's files (Lightning hook)."""
        image, place, size = item
        for job, missing in zip(self.jobs, self.missing, strict=True):
            if place in missing:
                label, confidence = self._predict(job, to_float(image[None]), size)
                job.submission.write(place, label, confidence)

    def _predict(
        self, job: Job, image: Tensor, size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
        if job.submission.server.confidence is None:
            return self.infer.label(job.network, image, size)[0].cpu().numpy(), None
        logits = self.infer(job.network, image, size)
        # The largest softmax value, without the whole softmax.
        certain = (logits.amax(1) - logits.logsumexp(1)).exp()[0].clamp_(0, 1)
        label = resized_argmax(logits, size)[0].cpu().numpy()
        return label, (65535 * certain).round().cpu().numpy().astype(np.uint16)
