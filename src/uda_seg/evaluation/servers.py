"""Submission formats of public test servers: encoding, names and folders of the files.

To add a server, add an entry to `SERVERS` under the data set's name in `uda_seg.data.specs.SPECS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from uda_seg.data.labels import CITYSCAPES_RAW, IGNORE, ClassSet
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.errors import UserError


@dataclass(frozen=True)
class Server:
    """A benchmark with a test server.

    Attributes:
        title: display name.
        image: pattern of image file names; its group `stem` becomes part of the prediction's name.
        name: file name of a prediction, with `{stem}`.
        labels: folders in the archive, each of which gets all labels; "" is the root.
        confidence: folder of 16-bit confidences, 65535 = certain; None if not required.
        raw: true for Cityscapes' label ids (7 = road), false for train ids (0 = road).
    """

    title: str
    image: str
    name: str
    labels: tuple[str, ...] = ("",)
    confidence: str | None = None
    raw: bool = False

    def files(self, image: str) -> tuple[list[str], str | None]:
        """Return the paths in the archive of an image's labels, and of its confidence.

        Args:
            image: the image's path; its folders are dropped, because file names are unique.

        Raises:
            UserError: the image's name does not match this benchmark.
        """
        match = re.fullmatch(self.image, PurePosixPath(image).name)
        if match is None:
            raise UserError(f"{image} is not named as the images of {self.title} are ({self.image})")
        name = self.name.format(stem=match["stem"])
        inside = [str(PurePosixPath(folder, name)) for folder in self.labels]
        return inside, None if self.confidence is None else f"{self.confidence}/{name}"


SERVERS: dict[str, Server] = {
    # Any folder: files are matched by <city>_<sequence>_<frame>*.png (cityscapesScripts,
    # evalPixelLevelSemanticLabeling).
    "cityscapes": Server(
        "Cityscapes", r"(?P<stem>\w+_\d{6}_\d{6})_leftImg8bit\.png", "{stem}_pred_labelIds.png", raw=True
    ),
    # As DAFormer, HRDA and MIC submit: folder `labelTrainIds`, named like the images.
    "acdc": Server("ACDC", r"(?P<stem>\w+_frame_\d{6}_rgb_anon)\.png", "{stem}.png", ("labelTrainIds",)),
    # The server of Sakaridis et al. also scores labels with invalid pixels (none here, so UIoU = IoU) and confidences;
    # it refuses an archive without the three folders.
    "darkzurich": Server(
        "Dark Zurich",
        r"(?P<stem>\w+_frame_\d{6}_rgb_anon)\.png",
        "{stem}.png",
        ("labelTrainIds", "labelTrainIds_invalid"),
        "confidence",
    ),
    # Like the published masks: train ids under the image's name.
    "bdd100k": Server("BDD100K", r"(?P<stem>[\w-]+)\.jpg", "{stem}.png"),
}


def raw_ids(classes: ClassSet) -> NDArray[np.uint8]:
    """Build a lookup table uint8 [256] from train ids to the data set's label ids."""
    table = np.arange(256, dtype=np.uint8)
    if classes.name == "cityscapes":
        for raw, train in CITYSCAPES_RAW.items():
            if train != IGNORE:
                table[train] = raw
    return table


def domains_of(server: str, data: DataSettings) -> dict[str, DomainSettings]:
    """Select the validation sets whose images a server scores, by name.

    Raises:
        UserError: there are none, or the network predicts other classes.
    """
    if data.classes != "cityscapes":
        raise UserError(
            f"submission={server}: {SERVERS[server].title} is scored on the 19 classes of Cityscapes, "
            f"data={data.name} has those of {data.classes}"
        )
    found = {name: domain for name, domain in data.validation.items() if domain.dataset == server}
    if not found:
        sets = ", ".join(f"{name} ({domain.dataset})" for name, domain in data.validation.items()) or "nothing"
        raise UserError(
            f"submission={server}: data={data.name} evaluates {sets}, which this server does not know: choose a data= "
            f"that evaluates {SERVERS[server].title}, or another server"
        )
    return found


def refuse_unlabelled(data: DataSettings) -> None:
    """Raise UserError for a split whose labels only a server has.

    Cityscapes publishes label files for its test split, but they are empty.
    """
    unlabelled = {
        name: domain
        for name, domain in data.validation.items()
        if "test" in domain.split.split("+") and domain.dataset in SERVERS
    }
    for name, domain in unlabelled.items():
        raise UserError(
            f"data.validation.{name}.split={domain.split}: {SERVERS[domain.dataset].title} publishes no labels of its "
            f"test split: evaluate with submission={domain.dataset} to write the files that its server scores"
        )
