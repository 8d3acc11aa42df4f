"""On-disk cache of rendered images: resumable, and safe to share between processes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from uda_seg.data.parallel import cores, progress_console
from uda_seg.data.streets.styles import style_of
from uda_seg.data.streets.world import BASELINE, STRIDE, VIEWS, render
from uda_seg.errors import UserError
from uda_seg.storage.files import CACHE, Picture, save_png, write_text
from uda_seg.storage.user_cache import user_cache

VERSION = 4  # renderer version, part of every folder's name, so that images of different versions never mix
DEPTH_SCALE = 256  # depth files hold round(256 * metres) as uint16; 0 = no depth (sky, ego car, or farther than 255 m)
# Splits are disjoint: each counts scenes from its own first index.
SPLIT_SIZE = 1_000_000
FIRST_INDEX = {"train": 0, "val": SPLIT_SIZE, "test": 2 * SPLIT_SIZE}


def ensure_rendered(
    world_seed: int,
    domain: str,
    split: str,
    count: int,
    size: tuple[int, int],
    *,
    cache: Path | None = None,
    workers: int | None = None,
    views: Sequence[str] = ("left",),
    progress: bool = True,
) -> Path:
    """Render the missing scenes of a split of a domain and return its folder.

    The folder contains `image/`, `label/` and `depth/` with PNG files `000000.png`, ... and `camera/000000.json`, ...
    with intrinsics and pose; other views add `image_right/`, `camera_right/` and so on; `world.json` records the
    settings. Every file is written under a temporary name and renamed, so an interrupted or concurrent rendering leaves
    no partial files and can be continued.

    Args:
        world_seed: seed of the world.
        domain: name of a style.
        split: train, val or test, which are disjoint.
        count: number of scenes.
        size: height and width in pixels.
        cache: folder to render into; default: `user_cache()`.
        workers: number of processes; default: one per core.
        views: views of every scene.
        progress: show a progress bar on standard error.

    Raises:
        UserError: unknown domain, split or view, or files that cannot be written.
    """
    style_of(domain)
    if split not in FIRST_INDEX:
        raise UserError(f"streets has no split '{split}': use one of {', '.join(FIRST_INDEX)}")
    if count > SPLIT_SIZE:
        raise UserError(f"streets has {SPLIT_SIZE} scenes in a split: count={count} is too many")
    name = f"v{VERSION}_seed{world_seed}_{domain.replace(':', '-')}_{size[0]}x{size[1]}"
    folder = (cache or user_cache()) / "streets" / name / split
    missing = [i for i in range(count) if not all(_is_there(folder, i, view) for view in views)]
    if missing:
        draw = partial(_render_to, folder, world_seed, domain, split, size, tuple(views))
        try:
            _describe(folder, world_seed, domain, split, size)
            in_processes(draw, missing, workers or cores(), f"rendering {domain} {split}" if progress else None)
        except BrokenProcessPool as error:
            raise UserError(f"a process that rendered into {folder} was killed; run the same command again") from error
    return folder


def in_processes(draw: Callable[[int], None], indices: Sequence[int], workers: int, title: str | None) -> None:
    """Call `draw` for every index in `workers` processes, with a progress bar if a title is given."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress_console(), disable=title is None) as bar:
        task = bar.add_task(title or "", total=len(indices))
        workers = min(workers, 2 * cores(), len(indices))  # more would be idle
        if workers == 1 or len(indices) < 4:
            for index in indices:
                draw(index)
                bar.advance(task)
            return
        # Spawned, not forked, because the parent may be a training process with threads.
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start)
        with _no_main(), pool:
            try:
                for _ in pool.map(draw, indices, chunksize=4):
                    bar.advance(task)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # a full disk stops all scenes at once
                raise


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hide the main module, which spawned processes would import together with PyTorch and Lightning.

    The renderer needs neither: 0.5 s and 55 MB per process instead of many seconds and 860 MB.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start() -> None:
    cv2.setNumThreads(0)  # parallelism is over processes


def _paths(folder: Path, index: int, view: str) -> list[Path]:
    """List the files of a view; the last one is written last."""
    suffix = "" if view == "left" else f"_{view}"
    kinds = ["depth", "label", "image"] if view == "left" else [f"image{suffix}"]
    return [folder / f"camera{suffix}" / f"{index:06d}.json", *(folder / kind / f"{index:06d}.png" for kind in kinds)]


def _is_there(folder: Path, index: int, view: str) -> bool:
    """Return whether a view is complete; deleting a damaged file causes the view to be rendered again."""
    return all(path.exists() for path in _paths(folder, index, view))


def _render_to(
    folder: Path, seed: int, domain: str, split: str, size: tuple[int, int], views: tuple[str, ...], index: int
) -> None:
    """Render and write all views of a scene."""
    for view in views:
        if _is_there(folder, index, view):
            continue
        camera, *paths = _paths(folder, index, view)
        frame = render(seed, domain, FIRST_INDEX[split] + index, size, view)
        planes: list[Picture] = [frame.image]
        if view == "left":
            planes = [encode_depth(frame.depth), frame.label, *planes]
        geometry = {"intrinsics": frame.intrinsics.tolist(), "camera_to_world": frame.pose.tolist()}
        write_text(camera, json.dumps(geometry), cure=CACHE)
        for path, plane in zip(paths, planes, strict=True):
            save_png(path, plane, cure=CACHE)


def encode_depth(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Encode metres [H, W] as uint16 in 1/256 m; 0 for unknown depth or depth out of range."""
    scaled = np.where(np.isfinite(depth), depth, 0) * DEPTH_SCALE
    return np.where(scaled < 65535.5, np.rint(scaled), 0).astype(np.uint16)


def _describe(folder: Path, seed: int, domain: str, split: str, size: tuple[int, int]) -> None:
    content = {
        "renderer": VERSION,
        "world_seed": seed,
        "domain": domain,
        "split": split,
        "size": list(size),
        "depth_scale": DEPTH_SCALE,
        "baseline": BASELINE,
        "frame_distance": STRIDE,
        "views": list(VIEWS),
    }
    write_text(folder / "world.json", json.dumps(content, indent=2) + "\n", cure=CACHE)
