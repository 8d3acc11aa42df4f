"""Folder layouts and encodings of the official data sets, as written by `export`.

Names, sizes, bit depths and id tables are the official ones; the images are rendered. The readers,
`uda_seg.data.dataset_files` and `uda_seg.data.depth_layouts`, never import this module: it is the independent
counterpart that they are tested against.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from uda_seg.data.labels import CITYSCAPES, CITYSCAPES_RAW, IGNORE, MAPILLARY_RAW, SYNTHIA_RAW, lookup_table
from uda_seg.data.streets.world import BASELINE, Frame
from uda_seg.ops.depth import Z_SCALE

Size = tuple[int, int]
Plane = NDArray[np.uint8] | NDArray[np.uint16]
Frames = Mapping[str, Frame]  # by view
Files = Iterator[tuple[str, bytes]]  # path under the root, content

MAP_SIZE = (512, 1024)  # size of CorDA's monocular disparity maps, regardless of the image size
FAR = 655.35  # metres: 65535 cm, SYNTHIA's sky


@dataclass(frozen=True)
class Layout:
    """Layout of a data set on disk.

    Args:
        title: display name.
        size: (H, W) of its images, or a common size if they vary.
        domains: Streets domains of its images, in turn.
        image: (split, index of the scene in it) -> path of its image.
        files: (split, index, frames) -> all other files of the scene.
        splits: splits with labels or sequences.
        views: views required by `files` besides the left one.
        needs_views: true if the data set is useless without them.
    """

    title: str
    size: Size
    domains: tuple[str, ...]
    image: Callable[[str, int], str]
    files: Callable[[str, int, Frames], Files]
    splits: tuple[str, ...] = ("train",)
    views: tuple[str, ...] = ()
    needs_views: bool = False

    def scene(self, split: str, index: int, frames: Frames) -> Files:
        """Yield all files of a scene, its image last."""
        yield from self.files(split, index, frames)
        path = self.image(split, index)
        yield path, (jpeg if path.endswith(".jpg") else png)(frames["left"].image)


# ---------------------------------------------------------------------- ids


def inverse(table: Mapping[int, int], void: int) -> NDArray[np.uint8]:
    """Build a table uint8 [256] from train ids to the first raw id of each class; ignore becomes `void`."""
    back: dict[int, int] = {}
    for raw, train in sorted(table.items()):
        back.setdefault(train, raw)
    return lookup_table(back | {IGNORE: void}, missing=void)


EGO_VEHICLE, SYNTHIA_VOID, MAPILLARY_EGO = 1, 0, 64
TO_CITYSCAPES = inverse(CITYSCAPES_RAW, EGO_VEHICLE)
TO_SYNTHIA = inverse(SYNTHIA_RAW, SYNTHIA_VOID)
TO_MAPILLARY = inverse(MAPILLARY_RAW, MAPILLARY_EGO)
TO_MAPILLARY[CITYSCAPES.names.index("sidewalk")] = 15  # the first id is curb


COUNTED = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")  # instances in Cityscapes


def instances(label: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Assign instance ids from 1 to connected persons and vehicles, [H, W]; 0 elsewhere, including lights and signs."""
    numbers, last = np.zeros(label.shape, np.uint16), 0
    for thing in map(CITYSCAPES.names.index, COUNTED):
        count, parts = cv2.connectedComponents((label == thing).astype(np.uint8))
        numbers[parts > 0] = (parts[parts > 0] + last).astype(np.uint16)
        last += count - 1
    return numbers


def colours(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Render the label in Cityscapes' colours, RGB; ignore is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(CITYSCAPES)] = CITYSCAPES.palette
    return np.asarray(table[label], np.uint8)


# ---------------------------------------------------------------------- files


def png(plane: Plane) -> bytes:
    """Encode uint8 or uint16, [H, W] or RGB(A), as PNG."""
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(plane.shape[2]) if plane.ndim == 3 else None  # OpenCV expects BGR
    stored = plane if order is None else plane[..., order]
    return bytes(cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes())


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image as JPEG."""
    return bytes(cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def palette_png(ids: NDArray[np.uint8], table: NDArray[np.uint8]) -> bytes:
    """Encode indices into a colour table [K, 3] as a palette PNG."""
    file, stream = Image.fromarray(ids), io.BytesIO()
    file.putpalette(table.ravel().tolist())
    file.save(stream, "PNG")
    return stream.getvalue()


def colour_table(raw: Mapping[int, int], count: int) -> NDArray[np.uint8]:
    """Build the colours [count, 3] of raw ids: those of their class, or black."""
    return colours(lookup_table(raw)[:count])


GTA_COLOURS = colour_table(CITYSCAPES_RAW, 35)
MAPILLARY_COLOURS = colour_table(MAPILLARY_RAW, 66)


def centimetres(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Convert metres to 16-bit centimetres; sky and unknown depth get the largest value."""
    metres = np.where(np.isfinite(depth) & (depth > 0), depth, FAR)
    return np.asarray(np.rint(100 * np.minimum(metres, FAR)), np.uint16)


def relative_disparity(depth: NDArray[np.float32], size: Size) -> NDArray[np.uint16]:
    """Build maps like CorDA's: z = raw / 256 + 1, never 0, with aspect ratio 2:1 regardless of the image's."""
    with np.errstate(divide="ignore"):
        z = np.where(depth > 0, Z_SCALE / (np.asarray(depth, np.float64) + 0.01), 1.0)
    raw = np.rint(256 * (z - 1)).clip(1, 65535).astype(np.uint16)
    return np.asarray(cv2.resize(raw, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint16)


def map_size(image: Size, official: Size) -> Size:
    """Compute (H, W) of such a map for an image that does not have the official size."""
    return max(1, round(MAP_SIZE[0] * image[0] / official[0])), max(1, round(MAP_SIZE[1] * image[1] / official[1]))


def sfsu(depth: NDArray[np.float32]) -> bytes:
    """Encode SFSU's MATLAB file: `depth_map`, metres as float64; infinite in the sky, 0 on the ego car."""
    stream = io.BytesIO()
    savemat(stream, {"depth_map": depth.astype(np.float64)}, do_compression=True)
    return stream.getvalue()


def camera_json(frame: Frame) -> dict[str, dict[str, float]]:
    """Build Cityscapes' calibration, in pixels of 2048 x 1024 regardless of the exported size."""
    height, width = frame.label.shape
    k, (y, x) = frame.intrinsics, (1024 / height, 2048 / width)
    inner = {"fx": k[0, 0] * x, "fy": k[1, 1] * y, "u0": (k[0, 2] + 0.5) * x - 0.5, "v0": (k[1, 2] + 0.5) * y - 0.5}
    outer = {"baseline": BASELINE, "pitch": 0.0, "roll": 0.0, "x": 0.0, "y": 0.0, "yaw": 0.0, "z": 0.0}
    return {"extrinsic": outer, "intrinsic": {name: float(value) for name, value in inner.items()}}


def stereo_disparity(frame: Frame) -> NDArray[np.uint16]:
    """Build Cityscapes' disparity: p = 256 d + 1, d in pixels of 2048 columns; 0 = unknown, 1 in the sky."""
    with np.errstate(divide="ignore"):
        pixels = camera_json(frame)["intrinsic"]["fx"] * BASELINE / np.asarray(frame.depth, np.float64)
    raw = np.rint(256 * pixels + 1)
    return np.where(raw < 65536, raw, 0).astype(np.uint16)


# ---------------------------------------------------------------------- data sets
# For each data set, the path of a scene's image, and the scene's other files.


def _gta_image(split: str, index: int) -> str:
    return f"images/{index + 1:05d}.png"


def gta(split: str, index: int, frames: Frames) -> Files:
    """Yield Playing for Data (Richter et al. 2016): palette PNGs with Cityscapes' ids; CorDA's disparity maps."""
    frame, name = frames["left"], f"{index + 1:05d}.png"
    yield f"disparity/{name}", png(relative_disparity(frame.depth, map_size(frame.label.shape, (1052, 1914))))
    yield f"labels/{name}", palette_png(TO_CITYSCAPES[frame.label], GTA_COLOURS)


def _synthia_image(split: str, index: int) -> str:
    return f"RGB/{index:07d}.png"


def synthia(split: str, index: int, frames: Frames) -> Files:
    """Yield SYNTHIA-RAND-CITYSCAPES (Ros et al. 2016): 16-bit PNGs, class in red, instance in green; depth in cm."""
    frame, name = frames["left"], f"{index:07d}.png"
    yield f"Depth/Depth/{name}", png(np.dstack([centimetres(frame.depth)] * 3))
    yield f"GT/COLOR/{name}", png(colours(frame.label))
    ids = TO_SYNTHIA[frame.label].astype(np.uint16)
    yield f"GT/LABELS/{name}", png(np.dstack([ids, instances(frame.label), np.zeros_like(ids)]))


def _urbansyn_image(split: str, index: int) -> str:
    return f"rgb/rgb_{index + 1:04d}.png"


def urbansyn(split: str, index: int, frames: Frames) -> Files:
    """Yield UrbanSyn (Gomez et al. 2023): labels in train ids, of which 19 is unlabelled."""
    label, number = frames["left"].label, f"{index + 1:04d}"
    yield f"ss_color/ss_color_{number}.png", png(colours(label))
    yield f"ss/ss_{number}.png", png(np.where(label == IGNORE, np.uint8(19), label))


CITIES = {"train": ("aachen", "bochum", "bremen", "cologne"), "val": ("frankfurt", "lindau", "munster")}


def _cityscapes_stem(split: str, index: int) -> str:
    city = CITIES[split][index % len(CITIES[split])]
    return f"{split}/{city}/{city}_{index // len(CITIES[split]):06d}"


def _cityscapes_image(split: str, index: int) -> str:
    return f"leftImg8bit/{_cityscapes_stem(split, index)}_000019_leftImg8bit.png"


def cityscapes(split: str, index: int, frames: Frames) -> Files:
    """Yield Cityscapes (Cordts et al. 2016) with stereo, sequence, camera and disparity packages, and SFSU's depth."""
    frame, stem = frames["left"], _cityscapes_stem(split, index)
    yield f"camera/{stem}_000019_camera.json", json.dumps(camera_json(frame), indent=2).encode()
    yield f"depth/{stem}_000019_depth_stereoscopic.mat", sfsu(frame.depth)
    yield f"disparity/{stem}_000019_disparity.png", png(stereo_disparity(frame))
    monocular = relative_disparity(frame.depth, map_size(frame.label.shape, (1024, 2048)))
    yield f"disparity/{stem}_000019_leftImg8bit.png", png(monocular)  # CorDA's maps, in a folder of the same name
    if "right" in frames:
        yield f"rightImg8bit/{stem}_000019_rightImg8bit.png", png(frames["right"].image)
        for view, number in (("previous", 18), ("left", 19), ("next", 20)):
            yield f"leftImg8bit_sequence/{stem}_{number:06d}_leftImg8bit.png", png(frames[view].image)
    raw, numbers = TO_CITYSCAPES[frame.label], instances(frame.label)
    single = np.where(numbers > 0, 1000 * raw.astype(np.uint16) + numbers % 1000, raw).astype(np.uint16)
    opaque = np.full_like(frame.label, 255)
    yield f"gtFine/{stem}_000019_gtFine_instanceIds.png", png(single)
    yield f"gtFine/{stem}_000019_gtFine_color.png", png(np.dstack([colours(frame.label), opaque]))
    yield f"gtFine/{stem}_000019_gtFine_labelIds.png", png(raw)


CONDITIONS = ("fog", "night", "rain", "snow")


def _acdc_stem(index: int) -> str:
    sequence = f"GOPR{475 + index // 4:04d}"
    return f"{sequence}/{sequence}_frame_{index + 1:06d}"


def _acdc_image(split: str, index: int) -> str:
    return f"rgb_anon/{CONDITIONS[index % 4]}/{split}/{_acdc_stem(index)}_rgb_anon.png"


def acdc(split: str, index: int, frames: Frames) -> Files:
    """Yield ACDC (Sakaridis et al. 2021): a folder per condition, and reference images, which must not be used."""
    condition, stem = CONDITIONS[index % 4], _acdc_stem(index)
    yield f"rgb_anon/{condition}/{split}_ref/{stem}_rgb_ref_anon.png", png(frames["left"].image)
    yield from _adverse_labels(f"gt/{condition}/{split}/{stem}", frames["left"])


def _darkzurich_stem(split: str, index: int) -> str:
    sequence = f"GOPR{(345 if split == 'train' else 356) + index // 8:04d}"
    return f"{sequence}/{sequence}_frame_{index + 1:06d}"


def _darkzurich_image(split: str, index: int) -> str:
    return f"rgb_anon/{split}/night/{_darkzurich_stem(split, index)}_rgb_anon.png"


def darkzurich(split: str, index: int, frames: Frames) -> Files:
    """Yield Dark Zurich (Sakaridis et al. 2019): training by day, at dusk and at night, labels for validation.

    Day and dusk are the same images here, in folders that must not be read.
    """
    image, stem = png(frames["left"].image), _darkzurich_stem(split, index)
    if split == "train":
        yield f"rgb_anon/train/day/{stem}_rgb_anon.png", image
        yield f"rgb_anon/train/twilight/{stem}_rgb_anon.png", image
    else:
        yield f"rgb_anon/val_ref/day/{stem}_rgb_ref_anon.png", image
        yield from _adverse_labels(f"gt/val/night/{stem}", frames["left"])


def _adverse_labels(stem: str, frame: Frame) -> Files:
    yield f"{stem}_gt_labelColor.png", png(colours(frame.label))
    yield f"{stem}_gt_labelIds.png", png(TO_CITYSCAPES[frame.label])
    yield f"{stem}_gt_labelTrainIds.png", png(frame.label)


def _bdd100k_stem(split: str, index: int) -> str:
    return f"{split}/{(2654435761 * (index + (split == 'val') * 7000 + 1)) % 2**32:08x}-00000000"


def _bdd100k_image(split: str, index: int) -> str:
    return f"images/10k/{_bdd100k_stem(split, index)}.jpg"


def bdd100k(split: str, index: int, frames: Frames) -> Files:
    """Yield BDD100K (Yu et al. 2020), the 10K images of semantic segmentation: JPEG, and labels in train ids."""
    frame, stem = frames["left"], _bdd100k_stem(split, index)
    yield f"labels/sem_seg/colormaps/{stem}.png", png(colours(frame.label))
    yield f"labels/sem_seg/masks/{stem}.png", png(frame.label)


def _mapillary_image(split: str, index: int) -> str:
    return f"{MAPILLARY_SPLITS[split]}/images/streets{index:014d}_.jpg"  # 22 characters


MAPILLARY_SPLITS = {"train": "training", "val": "validation"}


def mapillary(split: str, index: int, frames: Frames) -> Files:
    """Yield Mapillary Vistas 1.2 (Neuhold et al. 2017) as in its second release: palette PNGs of 66 ids."""
    frame, name = frames["left"], f"streets{index:014d}_.png"
    place, ids = f"{MAPILLARY_SPLITS[split]}/v1.2", TO_MAPILLARY[frame.label]
    single = 256 * ids.astype(np.uint16) + instances(frame.label) % 256
    yield f"{place}/instances/{name}", png(single.astype(np.uint16))
    yield f"{place}/labels/{name}", palette_png(ids, MAPILLARY_COLOURS)


def _viper_image(split: str, index: int) -> str:
    return f"{split}/img/{index + 1:03d}/{index + 1:03d}_00002.jpg"


def viper(split: str, index: int, frames: Frames) -> Files:
    """Yield VIPER (Richter et al. 2017), images only: a sequence of three frames per scene."""
    for number, view in ((1, "previous"), (3, "next")):
        yield f"{split}/img/{index + 1:03d}/{index + 1:03d}_{number:05d}.jpg", jpeg(frames[view].image)


def _synthia_seqs_image(split: str, index: int) -> str:
    return f"SYNTHIA-SEQS-{index + 1:02d}-SPRING/RGB/Stereo_Left/Omni_F/000001.png"


def synthia_seqs(split: str, index: int, frames: Frames) -> Files:
    """Yield SYNTHIA-SEQS, images and depth: a sequence of three frames per scene, the second with a right camera."""
    root = f"SYNTHIA-SEQS-{index + 1:02d}-SPRING"
    yield f"{root}/Depth/Stereo_Left/Omni_F/000001.png", png(np.dstack([centimetres(frames["left"].depth)] * 3))
    yield f"{root}/RGB/Stereo_Right/Omni_F/000001.png", png(frames["right"].image)
    for number, view in ((0, "previous"), (2, "next")):
        yield f"{root}/RGB/Stereo_Left/Omni_F/{number:06d}.png", png(frames[view].image)


BOTH, EVERY = ("train", "val"), ("right", "previous", "next")
LAYOUTS = {
    "gta": Layout("GTA", (1052, 1914), ("game",), _gta_image, gta),
    "synthia": Layout("SYNTHIA-RAND-CITYSCAPES", (760, 1280), ("random:0.3",), _synthia_image, synthia),
    "urbansyn": Layout("UrbanSyn", (1024, 2048), ("game:0.5",), _urbansyn_image, urbansyn),
    "cityscapes": Layout("Cityscapes", (1024, 2048), ("camera",), _cityscapes_image, cityscapes, BOTH, EVERY),
    # One domain per condition, in their order.
    "acdc": Layout(
        "ACDC", (1080, 1920), ("camera:0.8", "night_rain", "night_rain:0.5", "camera"), _acdc_image, acdc, BOTH
    ),
    "darkzurich": Layout("Dark Zurich", (1080, 1920), ("night_rain",), _darkzurich_image, darkzurich, BOTH),
    "bdd100k": Layout("BDD100K", (720, 1280), ("camera:0.6",), _bdd100k_image, bdd100k, BOTH),
    "mapillary": Layout("Mapillary Vistas", (2448, 3264), ("camera:0.4",), _mapillary_image, mapillary, BOTH),
    "viper": Layout("VIPER", (1080, 1920), ("game",), _viper_image, viper, views=EVERY[1:], needs_views=True),
    "synthia_seqs": Layout(
        "SYNTHIA-SEQS", (760, 1280), ("random:0.3",), _synthia_seqs_image, synthia_seqs, views=EVERY, needs_views=True
    ),
}
