"""Images with temporal neighbours, stereo partner and camera intrinsics."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from uda_seg.data.batch import TensorBatch
from uda_seg.data.depth import DepthFiles
from uda_seg.data.depth_layouts import find_depth
from uda_seg.data.domains import open_domain
from uda_seg.data.images import read_image
from uda_seg.data.labels import ClassSet
from uda_seg.data.sampling import ShuffledOrder, positions
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.transforms import fit_inside
from uda_seg.errors import Damaged, UserError
from uda_seg.ops.depth import INVALID, Z_SCALE
from uda_seg.ops.geometry import scale_intrinsics
from uda_seg.storage.files import read_json

log = logging.getLogger(__name__)

VIEWS = {"stereo": ("right",), "monocular": ("previous", "next"), "both": ("previous", "next", "right")}
KEEP_BYTES = 2**30  # limit in bytes of samples kept in memory
_CURE = "it belongs to the images next to it, fetch or render them again"


@dataclass
class SequenceBatch(TensorBatch):
    """Images and the views to warp into them.

    Args:
        image: uint8 [B, 3, H, W], RGB: the left camera at the current frame.
        views: uint8 [B, V, 3, H, W], in the order of `VIEWS`.
        intrinsics: float32 [B, 3, 3] in pixels; integer coordinates are pixel centres.
        baseline: float32 [B], metres from the left to the right camera; 0 = unknown.
        depth: float32 [B, 1, H, W], exact depth in metres, 0 = unknown; None if not available.
    """

    image: Tensor
    views: Tensor
    intrinsics: Tensor
    baseline: Tensor
    depth: Tensor | None = None


@dataclass(frozen=True)
class Camera:
    """Intrinsics [3, 3] in pixels of the original image, and the stereo baseline in metres (0 = unknown)."""

    intrinsics: Tensor
    baseline: float


def pinhole(fx: float, fy: float, cx: float, cy: float, baseline: float) -> Camera:
    """Build a camera from its focal lengths and principal point in pixels."""
    return Camera(torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), baseline)


@dataclass(frozen=True)
class SequenceLayout:
    """Functions that locate views and cameras from root, split and the image's relative name."""

    view: Callable[[Path, str, str, str], Path]
    camera: Callable[[Path, str, str], Camera]
    wanted: str
    calibrated: tuple[int, int] | None = None  # (H, W) that intrinsics refer to; None: the size on disk
    broken: tuple[str, ...] = ()  # images known to be damaged, skipped also as neighbours


def _streets_view(root: Path, split: str, name: str, view: str) -> Path:
    return root / f"image_{view}" / name


def _streets_camera(root: Path, split: str, name: str) -> Camera:
    path, world = root / "camera" / Path(name).with_suffix(".json"), root / "world.json"
    content, said = _read_json(path), _read_json(world)
    try:
        camera = Camera(torch.tensor(content["intrinsics"], dtype=torch.float32), float(said["baseline"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Damaged(f"{path} or {world} holds no intrinsics or baseline: {_CURE}") from error
    return _possible(camera, path)


@functools.lru_cache(maxsize=4096)
def _read_json(path: Path) -> Any:
    return read_json(path, _CURE)


def _possible(camera: Camera, path: Path) -> Camera:
    """Return the camera if its values are plausible, as a damaged text file can still be parsed."""
    k, flat = camera.intrinsics, camera.intrinsics.shape == (3, 3)
    if not (flat and k.isfinite().all() and k[0, 0] > 0 and k[1, 1] > 0 and 0 <= camera.baseline < math.inf):
        raise Damaged(f"{path} describes no camera: {_CURE}")
    return camera


def _cityscapes_view(root: Path, split: str, name: str, view: str) -> Path:
    if view == "right":
        return root / "rightImg8bit" / split / name.replace("_leftImg8bit", "_rightImg8bit")
    found = re.fullmatch(r"(.*_)(\d{6})(_leftImg8bit\.png)", name)
    if found is None:
        return root / "leftImg8bit_sequence" / split / name  # does not exist
    frame = int(found[2]) + (1 if view == "next" else -1)
    return root / "leftImg8bit_sequence" / split / f"{found[1]}{frame:06d}{found[3]}"


def _cityscapes_camera(root: Path, split: str, name: str) -> Camera:
    path = root / "camera" / split / name.replace("_leftImg8bit.png", "_camera.json")
    if not path.is_file():  # the most frequent calibration of the data set
        return pinhole(2262.52, 2265.3017905988554, 1096.98, 513.137, 0.209313)
    content = _read_json(path)
    try:
        inner, outer = content["intrinsic"], content["extrinsic"]
        fx, fy, cx, cy = (float(inner[key]) for key in ("fx", "fy", "u0", "v0"))
        return _possible(pinhole(fx, fy, cx, cy, float(outer["baseline"])), path)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path} holds no intrinsic and extrinsic calibration: unpack it again") from error


def _viper_view(root: Path, split: str, name: str, view: str) -> Path:
    """Locate a view of VIPER, which has one camera: `img/<sequence>/<sequence>_<frame>.jpg`."""
    return root / split / "img" / _neighbour(name, view)


def _viper_camera(root: Path, split: str, name: str) -> Camera:
    # As in CorDA: focal lengths relative to width and height, central principal point.
    return pinhole(1.206285 * 1920, 2.144507 * 1080, (1920 - 1) / 2, (1080 - 1) / 2, 0.0)


def _synthia_view(root: Path, split: str, name: str, view: str) -> Path:
    """Locate a view of SYNTHIA-SEQS: `<sequence>/RGB/Stereo_Left/Omni_F/<frame>.png`, its partner in Stereo_Right."""
    if view == "right":
        return root / name.replace("/Stereo_Left/", "/Stereo_Right/")
    return root / _neighbour(name, view)


def _synthia_camera(root: Path, split: str, name: str) -> Camera:
    # Focal length as in CorDA; the baseline of 0.8 m is documented by the data set.
    return pinhole(532.740352, 532.740352, (1280 - 1) / 2, (760 - 1) / 2, 0.8)


def _neighbour(name: str, view: str) -> str:
    """Return the name of the previous or next frame, which may not exist."""
    found, step = re.fullmatch(r"(.*?)(\d+)(\.\w+)", name), {"previous": -1, "next": 1}.get(view)
    if found is None or step is None:
        return f"{name}.{view}"
    stem, digits, suffix = found.groups()
    return f"{stem}{int(digits) + step:0{len(digits)}d}{suffix}"


LAYOUTS = {
    "streets": SequenceLayout(_streets_view, _streets_camera, "image_right/, image_previous/ and image_next/"),
    "cityscapes": SequenceLayout(
        _cityscapes_view,
        _cityscapes_camera,
        "rightImg8bit/ (stereo) and leftImg8bit_sequence/ (monocular)",
        calibrated=(1024, 2048),
    ),
    "viper": SequenceLayout(
        _viper_view,
        _viper_camera,
        "the frames before and after in img/ (it has no stereo)",
        calibrated=(1080, 1920),
        broken=("052/052_00064.jpg",),
    ),
    "synthia_seqs": SequenceLayout(
        _synthia_view,
        _synthia_camera,
        "RGB/Stereo_Right/ (stereo) and the frames before and after (monocular)",
        calibrated=(760, 1280),
    ),
}


class SequenceDataset:
    """Images of a domain that have all required views, decoded and resized with their cameras.

    Args:
        domain: Settings of the domain; images are resized to fit inside `size`.
        settings: The whole `data` node.
        classes: Unused for depth, but required to open the data set.
        option: Key of `domain` in the configuration.
        views: Required views.
        depth: Read exact depth if the data set has it.

    Raises:
        UserError: the data set has no sequences, no image has its views, or splits are joined.
    """

    def __init__(
        self,
        domain: DomainSettings,
        settings: DataSettings,
        classes: ClassSet,
        option: str,
        views: Sequence[str],
        depth: bool = False,
    ) -> None:
        self.layout = LAYOUTS.get(domain.dataset)
        if self.layout is None:
            raise UserError(
                f"{option}.dataset={domain.dataset} has no sequences: use one of {', '.join(LAYOUTS)}, or leave "
                f"{option.rpartition('.')[2]} out of depth.domains"
            )
        if "+" in domain.split:
            raise UserError(
                f"{option}.split={domain.split}: sequences are read of one split at a time: give one of them, and "
                "export maps of both afterwards with checkpoint="
            )
        if domain.rendered and views:
            _render_views(domain, settings, views)
        images = open_domain(domain, settings, classes, option, labeled=False)
        self.root, self.split, self.image_root, self.size = images.root, domain.split, images.image_root, domain.size
        self.bits = images.bits
        broken = {self.image_root / name for name in self.layout.broken} if self.split == "train" else set()
        shown = {name: [self.image_root / name, *(self._view(name, view) for view in views)] for name in images.names}
        self.names = [n for n, paths in shown.items() if all(p not in broken and p.is_file() for p in paths)]
        self.views, self.depth = tuple(views), None
        if not self.names:
            raise UserError(
                f"{option}: no image under {self.image_root} has its {' and '.join(views)}: {images.spec.title} needs "
                f"{self.layout.wanted}; choose another depth.supervision or fetch them"
            )
        if len(self.names) < len(images.names):
            log.info(
                "%s: %d of %d images have no %s and are left out", option, len(images.names) - len(self.names),
                len(images.names), " and ".join(views),
            )  # fmt: skip
        if depth:
            own = replace(domain, depth=None, depth_encoding=None)  # exact depth, not a network's
            self.depth = find_depth(own, settings, images.root, self.names, images.spec.image_suffix, option)
        self._kept: dict[int, SequenceBatch] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def in_memory(self) -> bool:
        """True if all samples fit in memory."""
        first = self[0]
        return (first.image.nbytes + first.views.nbytes) * len(self) <= KEEP_BYTES

    def _view(self, name: str, view: str) -> Path:
        assert self.layout is not None
        return self.layout.view(self.root, self.split, name, view)

    def __getitem__(self, index: int) -> SequenceBatch:
        """Return a sample as a batch of one."""
        if index not in self._kept:
            sample = self._decode(index)
            if (sample.image.nbytes + sample.views.nbytes) * len(self) > KEEP_BYTES:
                return sample
            self._kept[index] = sample
        return self._kept[index]

    def _decode(self, index: int) -> SequenceBatch:
        assert self.layout is not None
        name = self.names[index]
        camera = self.layout.camera(self.root, self.split, name)
        whole = read_image(self.image_root / name, self.bits)
        before = (whole.shape[0], whole.shape[1])
        after = before if self.size is None else fit_inside(before, (self.size[0], self.size[1]))
        pictures = [whole]
        for view in self.views:
            path = self._view(name, view)
            picture = read_image(path, self.bits)
            if picture.shape != whole.shape:
                raise UserError(f"{path} has another size than {self.image_root / name}, whose view it should be")
            pictures.append(picture)
        if after != before:
            pictures = [
                np.asarray(cv2.resize(p, after[::-1], interpolation=cv2.INTER_AREA), np.uint8) for p in pictures
            ]
        stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return SequenceBatch(
            image=stack[:1],
            views=stack[None, 1:],
            intrinsics=scale_intrinsics(camera.intrinsics[None].float(), self.layout.calibrated or before, after),
            baseline=torch.tensor([camera.baseline]),
            depth=None if self.depth is None else _metres(self.depth, index, after),
        )


def _metres(files: DepthFiles, index: int, size: tuple[int, int]) -> Tensor:
    """Read depth [1, 1, H, W] in metres, 0 = unknown."""
    z = torch.from_numpy(files.read(index, size))[None, None]
    return torch.where(z == INVALID, torch.zeros_like(z), Z_SCALE / z - 0.01)


def _render_views(domain: DomainSettings, settings: DataSettings, views: Sequence[str]) -> None:
    from uda_seg.data.streets.cache import ensure_rendered  # only needed for streets

    if domain.domain is not None and domain.count is not None and domain.size is not None:
        size, names = (domain.size[0], domain.size[1]), ("left", *views)
        ensure_rendered(settings.world_seed, domain.domain, domain.split, domain.count, size, views=names)


def stack(samples: Sequence[SequenceBatch]) -> SequenceBatch:
    """Concatenate samples into a batch; raises UserError if their sizes differ."""
    sizes = sorted({tuple(sample.image.shape[-2:]) for sample in samples})
    if len(sizes) > 1:
        raise UserError(f"images of the sizes {sizes} cannot share a batch: give the domains one data.*.size")
    depths = [sample.depth for sample in samples if sample.depth is not None]
    return SequenceBatch(
        torch.cat([sample.image for sample in samples]),
        torch.cat([sample.views for sample in samples]),
        torch.cat([sample.intrinsics for sample in samples]),
        torch.cat([sample.baseline for sample in samples]),
        torch.cat(depths) if depths else None,
    )


class SequenceSteps(torch.utils.data.Dataset[SequenceBatch]):
    """Training batches as functions of the step: item `step` mixes the domains' samples in shuffled passes.

    Args:
        domains: Data sets, sampled in proportion to their sizes.
        batch: Images per step and rank.
        steps: Length of the run.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of ranks.
    """

    def __init__(
        self, domains: Sequence[SequenceDataset], batch: int, steps: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.samples = [(domain, index) for domain in domains for index in range(len(domain))]
        self.order = ShuffledOrder(len(self.samples), seed, domain=0)
        self.batch, self.steps, self.rank, self.world_size = batch, steps, rank, world_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> SequenceBatch:
        picks = [
            self.samples[self.order.pick(p).image] for p in positions(step, self.batch, self.rank, self.world_size)
        ]
        return stack([domain[index] for domain, index in picks])
