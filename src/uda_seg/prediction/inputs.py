"""The images that `input=` stands for: a folder, an image, a glob, or a list of paths."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from uda_seg.config.commands import PredictConfig
from uda_seg.data.folders import composed, ends_in, files_below, is_clutter, kinds_of
from uda_seg.data.images import (
    HEAD,
    RAW,
    SUFFIXES,
    VIDEOS,
    is_heic,
    is_video,
    kind_of,
    may_be_deep,
    read_bytes,
    spread,
    used_bits,
    wrong_with,
)
from uda_seg.errors import UserError
from uda_seg.prediction.journal import NAME as JOURNAL
from uda_seg.runs.trained import trained_domain
from uda_seg.storage.files import read_text

log = logging.getLogger(__name__)

LIST = ".txt"  # suffix of a file that lists images


def exists(path: Path) -> bool:
    """Return whether a file or folder exists, also if its name cannot be one."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_glob(source: Path) -> bool:
    """Return whether `input=` is a pattern: it has a wildcard, and no file or folder has this name."""
    return glob.has_magic(str(source)) and not exists(source)


def is_film(source: Path) -> bool:
    """Return whether a path is a file with a video."""
    return source.is_file() and is_video(head_of(source), source.name)


def named_images(source: Path, output: Path) -> dict[Path, Path]:
    """Find the images of `input=`, each with the relative name of its pictures.

    Images are recognised by content, damaged ones by name. Other files of a folder or a pattern are logged, and so are
    earlier predictions in folders below it, which are left out too; a list's entries are all taken, so that one that is
    missing is reported like a damaged one.

    Args:
        source: a folder (searched with its sub-folders, without `output`), an image, a pattern, or a text file with one
            path per line, relative to its folder.
        output: folder of the results.

    Raises:
        UserError: there are no images, or `output` is their folder.
    """
    if is_glob(source):
        return _matching(source, output)
    if source.is_file() and source.suffix.lower() == LIST and kind_of(head_of(source)) is None:
        return _listed(source)
    if source.is_file():
        if not is_image(source):
            raise UserError(f"{source} {wrong_with(read_bytes(source), source.name)}")
        return {source: Path(source.name).with_suffix(".png")}
    if not source.is_dir():
        raise UserError(f"input={source} is a pipe or a device: give a folder or an image")
    if source.resolve() == output.resolve():
        raise _same_folder(output)
    files = [(source / name, name) for name in files_below(source, without=output)]
    return _images_among(source, _without_predictions(source, files))


def _matching(pattern: Path, output: Path) -> dict[Path, Path]:
    """Find the images that a pattern stands for, named relative to the folder before its first wildcard."""
    fixed = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))  # the folder is before it
    root, results = (Path(os.path.abspath(path)) for path in (Path(*pattern.parts[:fixed]), output))
    if root == results:
        raise _same_folder(output)
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    if results.is_relative_to(root):  # pictures of an earlier call are no images
        found = [path for path in found if not Path(os.path.abspath(path)).is_relative_to(results)]
    files = [path for path in found if path.is_file() and not is_clutter(path.name)]
    if not files:
        raise UserError(f"input={pattern} matches no file: check the pattern (** stands for any sub-folders)")
    named = [(path, str(Path(*path.parts[fixed:]))) for path in files]
    return _images_among(pattern, _without_predictions(root, named))


def _without_predictions(root: Path, files: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Leave out what an earlier call has predicted into folders below `root`, which its journal tells."""
    journals: dict[Path, bool] = {}

    def predicted(name: str) -> Path | None:
        for folder in Path(name).parents[:-1]:
            if folder not in journals:
                journals[folder] = (root / folder / JOURNAL).is_file()
            if journals[folder]:
                return folder
        return None

    found = [(file, predicted(file[1])) for file in files]
    if folders := sorted({str(folder) for _, folder in found if folder is not None}):
        log.warning("left out of %s, being earlier predictions: %s", root, ", ".join(folders))
    return [file for file, folder in found if folder is None]


def _same_folder(output: Path) -> UserError:
    return UserError(f"output={output} is the folder of the images: choose another, or one inside it")


def _images_among(source: Path, files: Sequence[tuple[Path, str]]) -> dict[Path, Path]:
    """Select the images among files with relative names, and log the others."""
    taken = [is_image(path) for path, _ in files]
    images = [file for file, is_taken in zip(files, taken, strict=True) if is_taken]
    others = sorted(name for (_, name), is_taken in zip(files, taken, strict=True) if not is_taken)
    if not images:
        there = f" but {kinds_of(others)}" if others else ""
        cure = (
            "; a video is predicted by itself: input=VIDEO" if any(n.lower().endswith(VIDEOS) for n in others) else ""
        )
        raise UserError(f"{source} holds no image ({', '.join(SUFFIXES)}){there}: check input={cure}")
    if others:
        log.warning("left out of %s, being no images: %s", source, kinds_of(others))
    names = picture_names([name for _, name in images])
    return {path: name for (path, _), name in zip(images, names, strict=True)}


def _listed(source: Path) -> dict[Path, Path]:
    """Read a list of paths, named relative to the folder that has them all.

    Raises:
        UserError: it is no text, or empty.
    """
    lines = [line.strip("\r") for line in read_text(source, "give a text file with one path per line").split("\n")]
    paths = [Path(os.path.abspath(source.parent / os.path.expanduser(line.strip("\ufeff")))) for line in lines if line]
    if not paths:
        raise UserError(f"input={source} is an empty list: write one path per line, or give a folder")
    unique = list(dict.fromkeys(paths))
    if len(unique) < len(paths):
        log.warning("%s lists %d paths twice: each image is predicted once", source, len(paths) - len(unique))
    root = os.path.commonpath([path.parent for path in unique])
    names = picture_names([str(path.relative_to(root)) for path in unique])
    return dict(zip(unique, names, strict=True))


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its content, or else by its name; a HEIC, which is refused, is one too."""
    if path.name.lower().endswith(RAW):
        return False
    head = head_of(path)
    return kind_of(head) is not None or ends_in(path.name, ".*") or is_heic(head, path.name)


def picture_names(names: Sequence[str]) -> list[Path]:
    """Build the pictures' names: `a.png` for `a.jpg`, but `a.jpg.png` to avoid duplicates.

    Names that differ only in case or in the encoding of accents count as duplicates, as they do on some file systems.
    """
    whole = [Path(f"{name}.png") for name in names]
    chosen = [Path(name).with_suffix(".png") for name in names]
    while len(count := Counter(map(_folded, chosen))) < len(chosen):
        kept = [short if count[_folded(short)] == 1 else long for short, long in zip(chosen, whole, strict=True)]
        if kept == chosen:  # whole names that differ only in case
            several = [count[_folded(path)] > 1 for path in chosen]
            return [path.with_suffix(f".{i}.png") if several[i] else path for i, path in enumerate(chosen)]
        chosen = kept
    return chosen


def _folded(path: Path) -> str:
    return composed(str(path)).casefold()


def input_bits(config: PredictConfig, images: Sequence[Path], found: object) -> int | None:
    """Determine the used bits per channel of 16-bit images: configured, as in training, or from the images."""
    deep = [path for path in images if may_be_deep(head_of(path))]
    if not deep or config.predict.bits is not None:
        return config.predict.bits
    said = trained_domain(config).bits or (found if isinstance(found, int) and found in range(8, 17) else None)
    if said is not None:
        log.info("predict.bits=%d: images of 16 bits a channel are scaled as in training", said)
        return said
    return used_bits([partial(read_bytes, path) for path in spread(deep)], "predict.bits")


def head_of(path: Path) -> bytes:
    """Read the start of a file; empty if it cannot be opened."""
    try:
        return read_bytes(path, HEAD)
    except UserError:
        return b""
