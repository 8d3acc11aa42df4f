"""Prediction of many images: read, segmented in batches, written; a failing image costs no other."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from uda_seg.data.images import frames, image_of, read_bytes
from uda_seg.data.integrity import check_image
from uda_seg.errors import UserError
from uda_seg.prediction.batches import Batches
from uda_seg.prediction.journal import Journal, content_digest
from uda_seg.prediction.outputs import Outputs, Pixels, Segmented

log = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors that would affect all further pictures


class Read(NamedTuple):
    """An image that waits for its prediction: path, name of its pictures, digest of its content, pixels."""

    path: Path
    name: Path
    digest: str
    image: Pixels


@dataclass
class Predictor:
    """Predicts images.

    Attributes:
        batches: the network.
        outputs: files to write.
        journal: what is finished.
        bits: used bits per channel of 16-bit images; None without any.
        failed: images that failed.
        kept: number of images that were finished before.
    """

    batches: Batches
    outputs: Outputs
    journal: Journal
    bits: int | None
    failed: list[Path] = field(default_factory=list)
    kept: int = 0

    def run(self, images: Mapping[Path, Path], progress: bool = False) -> None:
        """Predict all images, path -> name of its pictures; log failures, and collect them in `failed`.

        Raises:
            UserError: files cannot be written.
        """
        waiting: list[Read] = []
        for read in self._read_all(images, progress):
            if waiting and read.image.shape != waiting[0].image.shape:
                self._predict(waiting)
                waiting = []
            waiting.append(read)
            if len(waiting) >= self.batches.room(read.image):
                self._predict(waiting)
                waiting = []
        if waiting:
            self._predict(waiting)

    def _read_all(self, images: Mapping[Path, Path], progress: bool) -> Iterator[Read]:
        """Yield all images that are to be predicted."""
        for path, name in track(images.items(), description="predict", disable=not progress):
            try:
                read = self._read(path, name)
            except Exception as error:  # a failing image must not stop the others
                self._note(path, error)
                continue
            if read is None:
                self.kept += 1
            else:
                yield read

    def _read(self, path: Path, name: Path) -> Read | None:
        """Read an image; None if it is finished.

        Raises:
            UserError: it is damaged, or another image's pictures have its name.
        """
        content = read_bytes(path)
        digest = content_digest(content, self.bits)
        if self.journal.has(name, digest):
            return None
        self.journal.refuse_namesake(name, digest, path)
        check_image(content, str(path))  # OpenCV would accept a truncated image
        if (count := frames(content)) > 1:
            log.warning("%s contains %d frames: only the first is read", path, count)
        return Read(path, name, digest, image_of(content, self.bits, str(path)))

    def _predict(self, waiting: list[Read]) -> None:
        """Predict images of one size, and write their files."""
        try:
            found = list(self.batches.logits([read.image for read in waiting]))
        except Exception as error:  # of one of them, which alone must fail
            if len(waiting) == 1:
                self._note(waiting[0].path, error)
            else:
                for read in waiting:
                    self._predict([read])
            return
        for read, logits in zip(waiting, found, strict=True):
            if isinstance(logits, UserError):
                self._note(read.path, UserError(f"{read.path}: {logits}"))
                continue
            try:
                segmented = Segmented.of(logits, self.outputs.needs_probabilities)
                self.journal.begin(read.name)
                self.outputs.write(read.name, read.image, segmented)
                self.journal.add(read.name, read.digest, read.path)
            except Exception as error:
                self._note(read.path, error)

    def _note(self, path: Path, error: Exception) -> None:
        """Log the failure of an image; raise it if all further ones would fail."""
        if isinstance(error, UserError):
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM:
                raise error
            log.error("%s", error)
        else:
            log.error("%s: %s: %s", path, type(error).__name__, str(error).partition("\n")[0])
        self.failed.append(path)
