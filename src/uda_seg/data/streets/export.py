"""Export of Streets in the official layout and encoding of another data set, to test its whole data path."""

from __future__ import annotations

import json
import logging
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from uda_seg.data.parallel import cores
from uda_seg.data.settings import StreetsSettings
from uda_seg.data.streets.cache import FIRST_INDEX, VERSION, in_processes
from uda_seg.data.streets.layouts import LAYOUTS, Layout, Size
from uda_seg.data.streets.styles import style_of
from uda_seg.data.streets.world import render
from uda_seg.errors import UserError
from uda_seg.storage.files import read_json, write_text, write_whole

log = logging.getLogger(__name__)

DESCRIPTION = "streets.json"  # at the root of an exported tree
SMALL = 4  # small trees have images of 1/SMALL of the official height and width
ROOM = "make room or choose another folder with streets.out=..."


@dataclass(frozen=True)
class Scenes:
    """Settings of the processes that write scenes.

    Args:
        layout: a key of `LAYOUTS`.
        out: root of the tree.
        size: (H, W).
        seed: seed of the world.
        domains: domains, assigned to scenes in turn.
        views: views rendered besides the left one.
        split: split of the scenes.
    """

    layout: str
    out: Path
    size: Size
    seed: int
    domains: tuple[str, ...]
    views: tuple[str, ...]
    split: str


def export(settings: StreetsSettings, world_seed: int, *, progress: bool = True) -> Path:
    """Write the missing files of the tree and return its root.

    Every file is written under a temporary name and renamed, and a scene's image is written last, so that the same
    command continues an interrupted export and leaves a finished one unchanged.

    Raises:
        UserError: an unknown data set, no folder, a folder with other files, or files that cannot be written.
    """
    layout, size = check(settings)
    out = Path(str(settings.out)).expanduser()
    domains = (settings.domain,) if settings.domain else layout.domains
    views = layout.views if settings.views or layout.needs_views else ()
    _describe(out, layout, size, world_seed, domains, views)
    done = 0
    for split in layout.splits:
        scenes = Scenes(str(settings.export), out, size, world_seed, domains, views, split)
        count = {"train": settings.train, "val": settings.val}[split]
        missing = [index for index in range(count) if not (out / layout.image(split, index)).is_file()]
        title = f"{layout.title} {split}" if progress else None
        try:
            in_processes(partial(write_scene, scenes), missing, settings.workers or cores(), title)
        except BrokenProcessPool as error:
            raise UserError(f"a process that wrote into {out} was killed; run the same command again") from error
        done += len(missing)
    log.info("%s layout of streets in %s, %d new scenes", layout.title, out, done)
    return out


def check(settings: StreetsSettings) -> tuple[Layout, Size]:
    """Return the layout and the image size for the settings; raises UserError if they are invalid."""
    if settings.export not in LAYOUTS:
        raise UserError(f"streets.export={settings.export} is unknown; choose one of {', '.join(LAYOUTS)}")
    if settings.out is None:
        raise UserError(f"streets.out is not set: set streets.out=FOLDER, the root of the {settings.export} tree")
    if settings.domain is not None:
        style_of(settings.domain)
    layout, size = LAYOUTS[settings.export], settings.size
    if size == "official":
        return layout, layout.size
    if size == "small":
        return layout, (round(layout.size[0] / SMALL), round(layout.size[1] / SMALL))
    numbers = isinstance(size, list) and len(size) == 2 and all(type(n) is int and n >= 16 for n in size)
    if not numbers:
        raise UserError(f"streets.size={size}: give small, official, or [height,width] of at least 16 pixels")
    return layout, (size[0], size[1])


def write_scene(scenes: Scenes, index: int) -> None:
    """Render one scene and write its files."""
    domain, number = scenes.domains[index % len(scenes.domains)], FIRST_INDEX[scenes.split] + index
    frames = {view: render(scenes.seed, domain, number, scenes.size, view) for view in ("left", *scenes.views)}
    for path, content in LAYOUTS[scenes.layout].scene(scenes.split, index, frames):
        write_whole(scenes.out / path, content, cure=ROOM)


def _describe(
    out: Path, layout: Layout, size: Size, seed: int, domains: tuple[str, ...], views: tuple[str, ...]
) -> None:
    """Write the tree's description; raises UserError if the folder has a different one, or files but none."""
    said = {
        "layout": layout.title, "renderer": VERSION, "world_seed": seed, "domains": list(domains), "size": list(size),
        "views": list(views),
    }  # fmt: skip
    file = out / DESCRIPTION
    if file.is_file():
        found = read_json(file, "choose another folder with streets.out=...")
        if found != said:
            different = next(key for key in said if not isinstance(found, dict) or found.get(key) != said[key])
            raise UserError(
                f"{out} holds another export: {different} differs ({file}); choose another folder with streets.out=..."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and no export of streets: choose another folder with streets.out=...")
    write_text(file, json.dumps(said, indent=2) + "\n", cure=ROOM)
