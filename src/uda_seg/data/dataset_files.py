"""The files of one split of a data set: its images, and the labels that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from uda_seg.data.folders import (
    composed,
    ends_in,
    files_below,
    fixed,
    holds,
    kinds_of,
    nearby_root,
    packed_files,
    twins,
    without_end,
)
from uda_seg.data.specs import CUSTOM, SPECS, DatasetSpec, LabelEncoding
from uda_seg.errors import UserError


@dataclass(frozen=True)
class _Place:
    """Folders of a split: those of images and labels under the root, and patterns of their first sub-folders."""

    images: str
    labels: str
    within: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """Prefix of its images' names if several splits are joined."""
        return f"{self.images}/" if self.images else ""

    @property
    def label_prefix(self) -> str:
        """Prefix of its labels' names if several splits are joined."""
        return f"{self.labels}/" if self.labels else ""

    def folders(self, root: Path) -> tuple[Path, Path]:
        """Return the folders of images and labels."""
        return root / self.images, root / self.labels


def splits_of(split: str) -> list[str]:
    """List the splits that a setting joins: `train+val` are two."""
    return split.split("+")


class DatasetFiles:
    """Images of one split, or of several joined ones, in the order of their names, and where their labels are.

    Args:
        spec: The data set.
        root: Its folder.
        split: One of `spec.splits`, or several joined by `+`; then names begin with the folder of their split.
        labeled: Search the labels too; if false, label files are not searched or required.
        include: Patterns of the images to use, of their names with or without sub-folders; empty: all.
        exclude: Patterns of images to leave out.
        count: Use the first `count` of these images; None: all.
        choose: Chooses the images to use among their names; None: all of them.
        option: The setting that `root` comes from, for messages.
        prepare: The command that prepares the data, for messages; empty if there is none.

    Attributes:
        names: The images in use, relative to `image_root`.
        left_out: Files next to the images that are not images, relative to their folder.
        found_encoding: Encoding of the labels; None unless `labeled`.

    Raises:
        UserError: no folder, no images, or images without a label.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        root: Path,
        split: str,
        *,
        labeled: bool,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        count: int | None = None,
        choose: Callable[[list[str]], list[str]] | None = None,
        option: str = "data.source",
        prepare: str = "",
    ) -> None:
        self.spec, self.root, self.split, self.option = spec, root, split, option
        self._prepare = prepare
        self._refuse_splits()
        then = f", then run {prepare}" if prepare else ""
        # An unlabelled target can still be adapted to.
        then += f"; to train without scores: '~{option}'" if option.startswith("data.validation.") else ""
        cure = f"set {option}.root to the folder that holds {spec.layout(splits_of(split)[0])}{then}"
        if labeled and not spec.encodings:
            how = f"describe them in {spec.key}.labels" if spec.title == CUSTOM else "take another data set"
            raise UserError(f"{option}: {spec.title} has no supported labels: {how}{then}")
        self._places = [self._find_folders(part, labeled, cure, then, prepare) for part in splits_of(split)]
        joined = len(self._places) > 1
        if len({(place.images, place.within) for place in self._places}) < len(self._places):
            folder = self._places[0].folders(root)[0]
            raise UserError(f"{option}.split={split}: several of these are the images {folder}: give one split")
        self.image_root, self.label_root = (root, root) if joined else self._places[0].folders(root)
        self._spelled: dict[str, str] = {}
        found, self.left_out = self._images_and_others()
        self.names = self._wanted(found, include, exclude)[:count]
        if choose is not None and self.names:
            self.names = choose(self.names)
        if not self.names:
            where = " or ".join("/".join((str(place.folders(root)[0]), *place.within)) for place in self._places)
            there = f", but {kinds_of(self.left_out)}" if self.left_out else ""
            raise UserError(f"{spec.title}: no image {where}/**/*{spec.image_suffix}{there}: {cure}")
        if labeled and (pair := twins(self.names, spec.image_suffix)):
            raise UserError(f"{self.image_root}: {pair[0]} and {pair[1]} would share one label: rename one of them")
        chosen = choose is not None
        self.found_encoding: LabelEncoding | None = self._find_encoding(found, cure, chosen) if labeled else None

    def __len__(self) -> int:
        return len(self.names)

    def _refuse_splits(self) -> None:
        """Raise UserError for a split that the data set does not have, or has been given twice."""
        parts = splits_of(self.split)
        if not {*parts} <= {*self.spec.splits}:
            known = ", ".join([*self.spec.splits[:-2], " and ".join(self.spec.splits[-2:])])
            raise UserError(f"{self.option}.split={self.split}: {self.spec.title} has {known} only")
        if len({*parts}) < len(parts):
            raise UserError(f"{self.option}.split={self.split} joins a split to itself: give each once")

    def _wanted(self, names: list[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
        """Return the images that `include` and `exclude` leave.

        Raises:
            UserError: a pattern that matches no image, or nothing that is left.
        """
        for key, patterns in (("include", include), ("exclude", exclude)):
            for pattern in patterns:
                if names and not any(self._matches(name, pattern) for name in names):
                    raise UserError(
                        f"{self.option}.{key}: no image of the {len(names)} in {self.image_root} is called {pattern}; "
                        f"the first is {names[0]} (* stands for any characters)"
                    )
        found = [
            name
            for name in names
            if (not include or any(self._matches(name, pattern) for pattern in include))
            and not any(self._matches(name, pattern) for pattern in exclude)
        ]
        if names and not found:
            given = f"include={list(include)} and exclude={list(exclude)}" if include else f"exclude={list(exclude)}"
            raise UserError(f"{self.option}: {given} leave none of the {len(names)} images of {self.image_root}")
        return found

    def _matches(self, name: str, pattern: str) -> bool:
        """Return whether an image's name in its split's folder, with or without sub-folders, matches a pattern."""
        parts = (place.prefix for place in self._places) if len(self._places) > 1 else ()
        own = next((name.removeprefix(prefix) for prefix in parts if name.startswith(prefix)), name)
        own, pattern = composed(own), composed(pattern)
        return fnmatchcase(own, pattern) or fnmatchcase(own.rpartition("/")[2], pattern)

    def _find_folders(self, split: str, labeled: bool, cure: str, then: str, prepare: str) -> _Place:
        """Find a split's folders of images and labels; raises UserError if one does not exist."""
        images, labels = self._place(split, labeled)
        (image_root, within), (label_root, _) = fixed(images), fixed(labels)
        place = _Place(image_root, label_root, within)
        for folder in place.folders(self.root) if labeled else place.folders(self.root)[:1]:
            if not folder.is_dir():
                right = nearby_root(self.spec, self.root, split, labeled)
                if right is not None:
                    cure = f"set {self.option}.root={right}, which holds {images}{then}"
                raise UserError(f"{self.spec.title}: no folder {folder}: {packed_files(self.root, prepare) or cure}")
        return place

    def _place(self, split: str, labeled: bool) -> tuple[str, str]:
        """Return the first existing pair of folder patterns, preferably with labels, as pairs may share images."""
        places = list(self.spec.places(split))
        whole = [place for place in places if holds(self.root, place, labeled=True)]
        images = [place for place in places if not labeled and holds(self.root, place, labeled=False)]
        return next(iter([*whole, *images, *places]))

    def image_path(self, index: int) -> Path:
        """Return the image file at `index`."""
        return self.image_root / self.names[index]

    def label_name(self, image_name: str, encoding: LabelEncoding) -> str:
        """Return the name of an image's label in this encoding, relative to the labels' folder."""
        name = without_end(image_name, self.spec.image_suffix) + encoding.suffix
        (theirs, own), (folder, slash, base) = encoding.prefix, name.rpartition("/")
        if base.startswith(theirs):
            name = f"{folder}{slash}{own}{base.removeprefix(theirs)}"
        if len(self._places) > 1:
            place = next(place for place in self._places if name.startswith(place.prefix))
            name = place.label_prefix + name.removeprefix(place.prefix)
        return self._spelled.get(name) or self._spelled.get(composed(name), name)

    def image_files(self) -> list[str]:
        """List all images of the split on disk, relative to `image_root`, sorted."""
        return self._images_and_others()[0]

    def _images_and_others(self) -> tuple[list[str], list[str]]:
        """List the images under `image_root` and the other files there, labels excluded."""
        found, suffix = [], self.spec.image_suffix
        for place in self._places:
            prefix = place.prefix if len(self._places) > 1 else ""
            found += [prefix + name for name in self._beside_labels(place)]
        images = [name for name in found if ends_in(name, suffix)]
        return images, [name for name in found if not ends_in(name, suffix)] if len(images) < len(found) else []

    def _beside_labels(self, place: _Place) -> list[str]:
        """List the files of a split's folder of images that are not labels."""
        image_root, label_root = place.folders(self.root)
        found, suffix = files_below(image_root, place.within), self.spec.image_suffix
        if label_root == image_root:
            ends = [e.suffix for e in self.spec.encodings if e.suffix.lower() != suffix.lower()]
            return [name for name in found if not any(ends_in(name, end) for end in ends)]
        if label_root.is_relative_to(image_root):
            below = f"{label_root.relative_to(image_root).as_posix()}/"
            return [name for name in found if not name.startswith(below)]
        return found

    def label_files(self, suffix: str) -> list[str]:
        """List all files of the split under `label_root` with this suffix, relative to it, sorted."""
        found = []
        for place in self._places:
            prefix = place.label_prefix if len(self._places) > 1 else ""
            images, labels = place.folders(self.root)
            nested = images != labels and images.is_relative_to(labels)  # labels in the root, for example
            there = files_below(labels, place.within, without=images if nested else None)
            found += [prefix + name for name in there if ends_in(name, suffix)]
        self._note_spelling(found)
        return found

    def _note_spelling(self, labels: list[str]) -> None:
        """Remember label names that differ from `label_name` in the suffix's case or the encoding of accents."""
        ends = [encoding.suffix for encoding in self.spec.encodings]
        present: set[str] | None = None
        for name in labels:
            for end in ends:
                if not ends_in(name, end) or (name.endswith(end) and name.isascii()):
                    continue
                present = set(labels) if present is None else present
                plain = without_end(name, end) + end
                for spelling in (plain, composed(plain)):
                    if name == spelling or spelling not in present:
                        self._spelled[spelling] = name

    def _find_encoding(self, images: list[str], cure: str, chosen: bool) -> LabelEncoding:
        """Find the encoding whose label files cover the most images.

        Raises:
            UserError: there are no labels, or an image without a label, or a label without an image.
        """
        kinds = self.spec.encodings
        missing = []
        for kind in kinds:
            present = set(self.label_files(kind.suffix))
            missing.append([name for name in self.names if self.label_name(name, kind) not in present])
        best = min(range(len(kinds)), key=lambda i: len(missing[i]))
        if missing[best]:
            first = missing[best][0]
            others = sorted(set(self.label_files("")) - set(self.names)) if self.label_root.is_dir() else []
            whole = len(missing[best]) == len(self)
            if whole and self.spec.key and (end := self._ending(missing[best], others)):
                cure = f"set {self.spec.key}.label_suffix={end}"
            elif chosen and (others or not whole):  # `exclude` would take images from the unlabelled target too
                cure = f"set {self.option}.labelled to a file with the names of images that have labels, one a line"
            elif not whole:
                cure = f"unpack the labels again, or set {self.option}.count to use the first images only"
                if self.spec.title == CUSTOM:
                    cure = f"label them, or leave them out: {self.option}.exclude, or move them elsewhere"
            there = f" ({kinds_of(others)} lie there)" if others and whole else ""
            label = self.label_root / self.label_name(first, kinds[best])
            raise UserError(
                f"{self.spec.title}: {len(missing[best])} of {len(self)} images have no label, the first is "
                f"{self.image_root / first} without {label}{there}: {cure}"
            )
        if self.spec is not SPECS["streets"]:  # it may still be rendering, labels first
            known = {self.label_name(name, kind) for name in images for kind in kinds}
            self._refuse_lonely([n for n in self.label_files(kinds[best].suffix) if n not in known])
        return kinds[best]

    def _ending(self, images: list[str], labels: list[str]) -> str | None:
        """Find the end of a name that, in place of their suffix, makes labels of all these images; None without one."""
        stems, there = [without_end(name, self.spec.image_suffix) for name in images], {*labels}
        ends = {name.removeprefix(stems[0]) for name in labels if name.startswith(stems[0])}
        return next((end for end in sorted(ends, key=len) if there.issuperset(stem + end for stem in stems)), None)

    def _refuse_lonely(self, labels: list[str]) -> None:
        if labels:
            raise UserError(
                f"{self.spec.title}: {len(labels)} labels have no image, the first is {self.label_root / labels[0]} "
                f"without a *{self.spec.image_suffix} of its name in {self.image_root}: unpack the images again, or "
                "move these labels elsewhere"
            )
