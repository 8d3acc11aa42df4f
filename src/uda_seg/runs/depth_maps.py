"""Export of depth maps of whole data sets for CorDA: 16-bit PNG with z = raw / 256 + 1."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from uda_seg.config.schema import Config
from uda_seg.data.custom import classes_of
from uda_seg.data.depth_layouts import DESCRIPTION, described
from uda_seg.data.domains import open_domain
from uda_seg.data.folders import twins, without_end
from uda_seg.data.parallel import progress_console
from uda_seg.data.settings import DomainSettings
from uda_seg.data.transforms import fit_inside
from uda_seg.errors import UserError
from uda_seg.methods.depth import SelfSupervisedDepth
from uda_seg.ops.depth import inverse_depth
from uda_seg.runs.record import write_json
from uda_seg.storage.files import save_png

log = logging.getLogger(__name__)


@dataclass
class Scale:
    """Unit of a depth network.

    Attributes:
        baselines: stereo baseline in metres, 0 = unknown, of every training domain of streets, or data set.
    """

    baselines: dict[str, float]

    @classmethod
    def read(cls, said: dict[str, Any]) -> Scale:
        """Read it from a checkpoint. Earlier versions wrote the first domain's baseline and the domains' names."""
        return cls(said["baselines"] if "baselines" in said else dict.fromkeys(said["domains"], said["baseline"]))

    def of(self, domain: str) -> float:
        """Return the baseline of a domain; of one that was not learnt from, that of the first that was."""
        return self.baselines.get(domain, next(iter(self.baselines.values())))


@torch.no_grad()
def export_domain(
    config: Config, module: SelfSupervisedDepth, domain: DomainSettings, option: str, folder: Path, scale: Scale
) -> None:
    """Write the missing maps of a domain, named like its images, and `depth.json` with their description.

    Raises:
        UserError: the folder contains maps of another network or of other images, or files cannot be written.
    """
    mine = domain.domain or domain.dataset
    learnt = ", ".join(scale.baselines)
    if mine not in scale.baselines:
        log.info("%s: no sequence of %s was learnt from: zero-shot from %s", option, mine, learnt)
    images = open_domain(domain, config.data, classes_of(config.data), option, labeled=False)
    said = {
        "encoding": "disparity",
        "z": "655.36 / (metres + 0.01)" if module.metric else "256 * disparity + 1, in no unit",
        "learnt_from": learnt + ("" if mine in scale.baselines else " (zero-shot)"),
        "weights": fingerprint(module),
        "images": _said_of_images(domain, config),
    }
    describe_maps(folder, said, config.overwrite)
    if (pair := twins(images.names, images.spec.image_suffix)) is not None:
        raise UserError(f"{images.image_root}: {pair[0]} and {pair[1]} would share one depth map: rename one of them")
    paths = [folder / (without_end(n, images.spec.image_suffix) + ".png") for n in images.names]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    hidden = not config.callbacks.progress
    for index in track(missing, f"depth of {option}", console=progress_console(), disable=hidden):
        image = images.read_image(index)
        if domain.size is not None:
            size = fit_inside((image.shape[0], image.shape[1]), (domain.size[0], domain.size[1]))
            image = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        tensor = torch.from_numpy(image).to(module.device).permute(2, 0, 1)[None].float() / 255
        raw = encode(module, tensor, scale.of(mine))
        save_png(paths[index], raw, "free some space and run it again")
    log.info("%d depth maps in %s, %d of them new", len(paths), folder, len(missing))


def encode(module: SelfSupervisedDepth, image: Tensor, baseline: float) -> NDArray[np.uint16]:
    """Encode an image's inverse depth as raw = 256 (z - 1), at least 1, because no prediction is invalid.

    16 bits represent distances from 2.55 m; nearer ones are clipped. Depth without a unit is written as by CorDA's
    authors, as 65535 times the network's disparity.
    """
    if module.metric:
        raw = 256 * (inverse_depth(module.depth(image, torch.tensor([baseline], device=image.device))) - 1)
    else:
        raw = 65535 * module.network.predict(image)
    return np.asarray(raw[0, 0].round().clamp(1, 65535).cpu().numpy(), np.uint16)


def describe_maps(folder: Path, said: dict[str, str], overwrite: bool) -> None:
    """Write `depth.json`, after checking that existing maps are of the same network and images, or removing them.

    Those of an earlier version do not say of which images they are.

    Raises:
        UserError: they are of another network or of other images, or not known to be maps of this command.
    """
    maps = list(folder.rglob("*.png"))
    if maps and not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} holds pictures that no {DESCRIPTION} of this command describes: move them away")
    if maps and not overwrite and {"images": said["images"], **described(folder)} != said:
        raise UserError(f"{folder} holds maps of another network or other images: replace them with overwrite=true")
    if overwrite:
        for path in maps:
            path.unlink()
    write_json(folder / DESCRIPTION, said)


def _said_of_images(domain: DomainSettings, config: Config) -> str:
    """Say which images maps are of, whatever their size: others may have the same names."""
    root = str(Path(domain.root or "").expanduser().absolute())
    place = f"world {config.data.world_seed}" if domain.rendered else root
    return ", ".join([domain.dataset, domain.split, place])


def fingerprint(module: SelfSupervisedDepth) -> str:
    """Compute a fingerprint of the weights."""
    return f"{sum(float(p.double().abs().sum()) for p in module.network.parameters()):.9g}"
