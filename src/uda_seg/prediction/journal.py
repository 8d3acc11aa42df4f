"""The journal of an output folder: what is finished there, of which network and with which settings.

`predict.jsonl` has a line with the settings, and two per image: one before its files are written, and one after. A line
that a killed process left unfinished is ignored, and its image predicted again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uda_seg.config.commands import PredictConfig
from uda_seg.data.images import HEAD, may_be_deep
from uda_seg.errors import UserError
from uda_seg.options.validate import leaves, shown
from uda_seg.prediction.outputs import ROOM, Outputs
from uda_seg.runs.published import weights_of
from uda_seg.runs.trained import TrainedSegmentor
from uda_seg.storage.files import open_file, read_text, write_text

log = logging.getLogger(__name__)

NAME = "predict.jsonl"
_NO_CHANGE = tuple(  # settings that do not change a prediction
    f"evaluator.{name}" for name in ("times", "windows_per_batch", "label_free", "label_free_images", "choose_by")
)


def settings_of(config: PredictConfig, model: TrainedSegmentor, outputs: Outputs) -> dict[str, Any]:
    """Describe what a prediction depends on, as plain values."""
    fit = model.fit
    said = {
        "checkpoint": digest_of(weights_of(Path(str(config.checkpoint)))),
        "evaluator": asdict(config.evaluator),
        "size": None if fit is None else [*fit.box, "inside" if fit.keep_ratio else "stretched", fit.filter],
        "classes": list(model.classes.names),
        "palette": model.palette.tolist(),
        "ids": outputs.values.table.tolist(),
    }
    plain = json.loads(json.dumps(said))
    return {key: value for key, value in leaves(plain) if not isinstance(value, Mapping) and key not in _NO_CHANGE}


def digest_of(path: Path) -> str:
    """Compute the digest of a file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(content: bytes, bits: int | None) -> str:
    """Compute a short digest of an image's content and, if it has 16 bits per channel, of the number of used ones."""
    used = f" {bits}".encode() if may_be_deep(content[:HEAD]) else b""
    return hashlib.blake2b(content + used, digest_size=12).hexdigest()


class Journal:
    """What is finished in a folder; see the module.

    Args:
        outputs: folder and kinds of files.
        settings: result of `settings_of`.
        names: names of the pictures that will be written.
        overwrite: replace what was predicted with other settings or of other images, and files of other origin, instead
            of refusing it.

    Raises:
        UserError: the folder has predictions with other settings, or files of other origin that would be replaced, or
            the journal cannot be read or written.
    """

    def __init__(
        self, outputs: Outputs, settings: Mapping[str, Any], names: Iterable[Path] = (), overwrite: bool = False
    ) -> None:
        self.outputs, self.path, self.overwrite = outputs, outputs.folder / NAME, overwrite
        self.finished: dict[str, Mapping[str, Any]] = {}
        first, *lines = self._read() or [{}]
        before = first.get("settings")
        if not overwrite:
            ours = {str(file) for line in lines for file in line.get("files", [])} if before is not None else set()
            self._refuse_others(names, ours)
        begun: dict[str, Mapping[str, Any]] = {}
        if before == settings:
            self.finished = {str(line["name"]): line for line in lines if "name" in line}
            begun = {str(line["begun"]): line for line in lines if "begun" in line}
        elif before is not None:
            self._replace(before, settings, lines, overwrite)
        listed = {file for line in self.finished.values() for file in line.get("files", [])}
        left = [line for line in begun.values() if not listed.issuperset(line["files"])]
        kept = [{"settings": settings}, *self.finished.values(), *left]  # without a torn last line
        write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in kept), ROOM)

    def _read(self) -> list[dict[str, Any]]:
        """Read the lines that are whole."""
        if not self.path.is_file():
            return []
        found = []
        for line in read_text(self.path, "move it away to predict all images again").splitlines():
            with contextlib.suppress(ValueError):
                content = json.loads(line)
                found += [content] if isinstance(content, dict) else []
        return found

    def _replace(self, before: Any, now: Mapping[str, Any], lines: list[dict[str, Any]], overwrite: bool) -> None:
        """Remove the files of other settings, if this is wanted."""
        if not overwrite:
            raise UserError(
                f"output={self.outputs.folder} holds predictions of {_difference(before, now)}: choose another "
                "output=, or replace them with overwrite=true"
            )
        removed = 0
        for line in lines:
            for file in line.get("files", []):
                path = self.outputs.folder / str(file)
                if ".." not in path.parts and path.is_relative_to(self.outputs.folder):
                    with contextlib.suppress(OSError):
                        path.unlink()
                        removed += 1
        log.warning("overwrite=true: %d files predicted by %s are removed", removed, _difference(before, now))

    def _refuse_others(self, names: Iterable[Path], ours: Container[str]) -> None:
        """Refuse to replace files that were not predicted, e.g. the labels of a data set."""
        files = (file for name in names for file in self.outputs.files(name))
        there = [f for f in files if str(f.relative_to(self.outputs.folder)) not in ours and f.exists()]
        if there:
            more = f" and {len(there) - 1} more files" if len(there) > 1 else ""
            raise UserError(
                f"output={self.outputs.folder} has {there[0].relative_to(self.outputs.folder)}{more} of other origin: "
                "choose another output=, or replace them with overwrite=true"
            )

    def refuse_namesake(self, name: Path, digest: str, source: Path) -> None:
        """Refuse to replace the prediction of another image; one whose content has changed is the same image.

        Raises:
            UserError: the pictures of this name are those of an image elsewhere.
        """
        before = self.finished.get(str(name), {})
        other = before.get("source")
        if not self.overwrite and other not in (None, str(source.absolute())) and before.get("image") != digest:
            raise UserError(
                f"{source}: output={self.outputs.folder} holds the prediction of another image of this name, {other}: "
                "choose another output=, or replace it with overwrite=true"
            )

    def has(self, name: Path, digest: str) -> bool:
        """Return whether all files of an image with this content are finished."""
        line = self.finished.get(str(name), {})
        same = line.get("image") == digest and {*self.outputs.contents} <= {*line.get("contents", [])}
        return same and all(file.is_file() for file in self.outputs.files(name))

    def begin(self, name: Path) -> None:
        """Note which files of an image will be written: after a kill they are known not to be of other origin."""
        self._append({"begun": str(name), "files": self._files(name)})

    def add(self, name: Path, digest: str, source: Path) -> None:
        """Note that all files of an image, read from `source`, are written."""
        before = self.finished.get(str(name), {})
        kept = before if before.get("image") == digest else {}
        line = {
            "name": str(name),
            "source": str(source.absolute()),
            "image": digest,
            "contents": sorted({*self.outputs.contents, *kept.get("contents", [])}),
            "files": sorted({*self._files(name), *kept.get("files", [])}),
        }
        self._append(line)
        self.finished[str(name)] = line

    def _files(self, name: Path) -> list[str]:
        return [str(file.relative_to(self.outputs.folder)) for file in self.outputs.files(name)]

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}; {ROOM}") from error


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    """Name the settings that differ, in words."""
    if not isinstance(before, Mapping):
        return "other settings"
    changed = [key for key in now if before.get(key) != now[key]]
    words = ["another checkpoint"] if "checkpoint" in changed else []
    words += [
        f"{key}={shown(before.get(key))} (now {shown(now[key])})" if len(str(now[key])) < 40 else f"other {key}"
        for key in changed
        if key != "checkpoint"
    ]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "other settings"
