"""Custom data sets and class sets, described in YAML: any folders, any label ids, any classes."""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from uda_seg.data.labels import CLASS_SETS, IGNORE, ClassSet, class_set
from uda_seg.data.settings import DataSettings
from uda_seg.errors import UserError
from uda_seg.options.constraints import OneOf
from uda_seg.options.validate import read, shown
from uda_seg.storage.files import read_yaml

# label_format -> largest raw id
FORMATS = {"gray": 65535, "palette": 255, "red": 65535, "color": 0xFFFFFF}
MERGE, MERGED = "data.merge", CLASS_SETS["cityscapes"]  # the setting, and the classes that it merges
Described = TypeVar("Described")


@dataclass
class CustomData:
    """File layout and label encoding of a custom data set."""

    images: str = "images/{split}"
    """Folder of the images; `{split}` stands for the split, `*` for any single folder, `.` for the root itself."""

    labels: str | None = "labels/{split}"
    """Folder of the labels, with the images' sub-folders and wildcards; null: no labels."""

    image_suffix: str = ".png"
    """Suffix of image names, case-insensitive; a final `.*` matches any image extension."""

    label_suffix: str = ".png"
    """Suffix that replaces it in the label's name."""

    label_format: Annotated[str, OneOf(tuple(FORMATS))] = "gray"
    """Encoding of the labels: `gray`, ids of 8 or 16 bits; `palette`, indices into a colour table; `red`, ids in the
    red channel of a colour PNG of 8 or 16 bits; `color`, one colour per class."""

    label_map: Any = None
    """Raw id -> class name, train id, or `ignore`, as a mapping or a list of pairs. Ids of `color` are
    `[R, G, B]`, `"R,G,B"` or `"#RRGGBB"`. null: files contain train ids, 255 = ignore; or the palette of the classes,
    with black = ignore unless it is a class's colour."""

    unlisted: Annotated[str, OneOf(("error", "ignore"))] = "error"
    """Treatment of ids that are not in the map: `error` or `ignore`."""


@dataclass
class CustomClasses:
    """A class set."""

    names: list[str] = field(default_factory=list)
    """Class names in the order of their train ids."""

    palette: list[list[int]] | None = None
    """[R, G, B] of each class, 0-255; null: distinct colours."""

    things: list[str] = field(default_factory=list)
    """Names of the countable classes, which DAFormer's feature distance is restricted to."""

    words: list[str] | None = None
    """Name of each class in a language model's prompt (LC-MSM); null: the class name."""

    subsets: dict[str, list[str]] = field(default_factory=dict)
    """Name -> class names of a reported mean, for `data.eval_classes`; `all` always exists."""


def classes_of(settings: DataSettings) -> ClassSet:
    """Return the class set named by `data.classes` or described by `data.class_set`.

    Raises:
        UserError: an unknown name, or an incomplete description.
    """
    key = "data.class_set"
    if settings.classes != "custom":
        for name, given in ((key, settings.class_set), ("data.merge", settings.merge)):
            if given is not None:
                raise UserError(
                    f"{name} is given, but data.classes={settings.classes}: set data.classes=custom to use it"
                )
        return class_set(settings.classes)
    said = custom_classes(settings)
    names = tuple(said.names)
    if not 1 < len(names) < IGNORE or len(set(names)) < len(names):
        cure = "; beside a single one the background is a class too" if len(names) == 1 else ""
        raise UserError(f"{key}.names={shown(said.names)}: give 2 to {IGNORE - 1} different class names{cure}")
    if "ignore" in names:
        raise UserError(f"{key}.names: ignore is what a label_map calls pixels of no class: name the class otherwise")
    for name, given in (("palette", said.palette), ("words", said.words)):
        if given is not None and len(given) != len(names):
            raise UserError(f"{key}.{name} has {len(given)} entries, but there are {len(names)} class names")
    if said.palette is not None and not all(len(c) == 3 and min(c) >= 0 and max(c) <= 255 for c in said.palette):
        raise UserError(f"{key}.palette={shown(said.palette)}: give [R, G, B] from 0 to 255 for each class")
    palette = said.palette or [list(colour) for colour in _colours(len(names))]
    subsets = {"all": list(names)} | said.subsets
    return ClassSet(
        "custom",
        names,
        tuple((c[0], c[1], c[2]) for c in palette),
        _train_ids(said.things, names, f"{key}.things"),
        tuple(said.words or names),
        {name: _train_ids(part, names, f"{key}.subsets.{name}") for name, part in subsets.items()},
        {} if settings.merge is None else {MERGED.name: merge_table(settings.merge, names)},
    )


def custom_classes(settings: DataSettings) -> CustomClasses:
    """Return the described classes: those of `data.class_set`, or without one those that `data.merge` names."""
    if settings.class_set is not None or settings.merge is None:
        return described(settings.class_set, CustomClasses, "data.class_set")
    merged = merge_pairs(settings.merge)
    names = [name for name in dict.fromkeys(merged.values()) if name != "ignore"]
    first = {name: MERGED.names.index(next(own for own, into in merged.items() if into == name)) for name in names}
    return CustomClasses(
        names=names,
        palette=[list(MERGED.palette[first[name]]) for name in names],
        things=[name for name in names if first[name] in MERGED.things],
        words=[MERGED.words[first[name]] for name in names],
    )


def merge_table(said: Any, names: Sequence[str]) -> dict[int, int]:
    """Build the table train id of Cityscapes -> train id of the class it becomes, 255 = ignore.

    Raises:
        UserError: not a map, or one that `merge_pairs` refuses; or a class that is none of `names`, or of which no
            class becomes any.
    """
    merged = merge_pairs(said)
    for own, into in merged.items():
        if into != "ignore" and into not in names:
            raise UserError(
                f"{MERGE}: {own} becomes {into}, which is none of the classes {', '.join(names)}; or ignore"
            )
    if empty := [name for name in names if name not in merged.values()]:
        raise UserError(f"{MERGE}: no class of {MERGED.name} becomes {', '.join(empty)}, so nothing can teach it")
    ids = {name: train for train, name in enumerate(names)} | {"ignore": IGNORE}
    return {MERGED.names.index(own): ids[into] for own, into in merged.items()}


def merge_pairs(said: Any) -> dict[str, str]:
    """Read `data.merge` in either of its forms as class of Cityscapes -> class that it becomes, in the given order.

    Raises:
        UserError: no map, an unknown class, a class given twice, or classes that are not named.
    """
    value = _parsed(said, MERGE) if isinstance(said, str) and said.startswith("{") else said
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{MERGE}={said} is no map: give {{road: street, sidewalk: street, ..., sky: ignore}}")
    merged: dict[str, str] = {}
    for key, entry in value.items():
        pairs = [(own, key) for own in entry] if isinstance(entry, list | tuple) else [(key, entry)]
        if not pairs:
            raise UserError(f"{MERGE}: no class of {MERGED.name} becomes {key}: name some, or leave it out")
        for own, into in pairs:
            if own not in MERGED.names:
                turned = f" (write {own}: [{into}] if {into} becomes {own})" if into in MERGED.names else ""
                raise UserError(f"{MERGE}: {own} is none of the classes {', '.join(MERGED.names)}{turned}")
            if own in merged:
                raise UserError(f"{MERGE}: {own} is given twice, as {merged[own]} and as {into}: give it once")
            merged[str(own)] = _class_name(into, own)
    if left := [name for name in MERGED.names if name not in merged]:
        raise UserError(f"{MERGE} does not say what becomes of {', '.join(left)}: name their classes, or ignore")
    return merged


def check_folders(said: CustomData, key: str) -> None:
    """Raise UserError for folders that are not below the root, or that hold other single braces than `{split}`."""
    for name, folder in (("images", said.images), ("labels", said.labels)):
        if folder is None:
            continue
        if folder.startswith(("/", "~/")):
            raise UserError(f"{key}.{name}={shown(folder)}: give a folder below the domain's root, without the root")
        if set("{}") & set(re.sub(r"\{split\}|\{\{|\}\}", "", folder)):
            raise UserError(f"{key}.{name}={shown(folder)}: write braces that are not {{split}} twice")


def _class_name(into: Any, own: str) -> str:
    name = "ignore" if into is None else str(into)
    if isinstance(into, bool):
        raise UserError(f"{MERGE}: {own} becomes {into}: yes, no, on, off, true and false are names in quotes only")
    if name != "ignore" and name.lower() == "ignore":
        raise UserError(f"{MERGE}: {own} becomes {name}: write ignore, in small letters, for no class")
    return name


def label_table(said: CustomData, classes: ClassSet, key: str) -> dict[int, int]:
    """Build the table raw id -> train id of the ids in `said`, in its order.

    Raises:
        UserError: not a map, an impossible id, a value that is not a class, an id of two classes, or a map without a
            class; the message starts with `key`.
    """
    colours = said.label_format == "color"
    if said.label_map is None:
        own = {c: c for c in range(len(classes))} | {IGNORE: IGNORE}
        return _palette_table(classes, key) if colours else own
    table: dict[int, int] = {}
    for raw, value in _pairs(said.label_map, key):
        identity = _colour(raw, key) if colours else _number(raw, FORMATS[said.label_format], key)
        train = _train_id(value, classes, f"{key}: {raw}")
        if table.setdefault(identity, train) != train:
            raise UserError(f"{key}: {raw} maps to two classes: give it once")
    if all(train == IGNORE for train in table.values()):
        raise UserError(
            f"{key} maps to no class, so there is nothing to train on: give the ids of {', '.join(classes.names)}"
        )
    return table


def _palette_table(classes: ClassSet, key: str) -> dict[int, int]:
    codes = [int.from_bytes(bytes(colour), "big") for colour in classes.palette]
    if len(set(codes)) < len(codes):
        raise UserError(f"{key} is not set, and two classes share a colour in the palette: give a label_map")
    table = {code: c for c, code in enumerate(codes)}
    return table | ({} if 0 in table else {0: IGNORE})


def _pairs(said: Any, key: str) -> list[tuple[Any, Any]]:
    pairs = list(said.items()) if isinstance(said, Mapping) else said
    if isinstance(pairs, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return [(raw, value) for raw, value in pairs]
    raise UserError(f"{key}={said} is no map: give {{7: road, 8: sidewalk}} or [[7, road], [8, sidewalk]]")


def _number(raw: Any, largest: int, key: str) -> int:
    """Parse a raw id; on the command line and in JSON, keys are strings."""
    number = int(raw) if isinstance(raw, str) and raw.isdecimal() else raw
    if isinstance(number, bool) or not isinstance(number, int):
        raise UserError(f"{key}: {raw} is no raw id: give a number (colours need label_format=color)")
    if not 0 <= number <= largest:
        raise UserError(f"{key}: the raw id {raw} is not between 0 and {largest}")
    return number


def _colour(raw: Any, key: str) -> int:
    """Parse a colour to its id 65536 R + 256 G + B."""
    if isinstance(raw, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", raw):
        return int(raw[1:], 16)
    parts = re.split(r"[\s,]+", raw.strip("()[] ")) if isinstance(raw, str) else raw
    if not isinstance(parts, list | tuple) or len(parts) != 3:
        raise UserError(f'{key}: {raw} is no colour: give [R, G, B], "R,G,B" or "#RRGGBB"')
    red, green, blue = (_number(part, 255, f"{key}: {raw}") for part in parts)
    return red << 16 | green << 8 | blue


def _train_id(value: Any, classes: ClassSet, where: str) -> int:
    """Parse a class name, a train id, or `ignore`; raises UserError for a number that could be both of two classes."""
    if value is None or value in (IGNORE, "ignore"):
        return IGNORE
    if str(value) in classes.names and classes.names.index(str(value)) != value and not isinstance(value, str):
        raise UserError(
            f"{where}: {value} is the name of one class and the train id of another: write '{value}', in quotes, for "
            "the name, or name classes with letters"
        )
    if value in classes.names:
        return classes.names.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes):
        return value
    raise UserError(
        f"{where}: {value} is no class; use a train id below {len(classes)}, ignore, or one of "
        f"{', '.join(classes.names)}"
    )


def contents(settings: DataSettings) -> dict[str, dict[str, Any]]:
    """Return all custom class sets and data sets of the settings as plain values by key, including those in files."""
    found = {}
    if settings.classes == "custom":
        said = asdict(custom_classes(settings))
        found["data.class_set"] = said | {"palette": [list(colour) for colour in classes_of(settings).palette]}
    for option, domain in settings.domains.items():
        of_class = isinstance(domain.custom, Mapping) and "_target_" in domain.custom
        if domain.dataset == "custom" and domain.custom is not None and not of_class:
            found[f"{option}.custom"] = asdict(described(domain.custom, CustomData, f"{option}.custom"))
    return found


def described(value: Any, kind: type[Described], key: str) -> Described:
    """Convert a mapping, a YAML file with one, or JSON text to the dataclass `kind`.

    Raises:
        UserError: nothing is given, the file cannot be read, or a key or value is invalid; names `key`.
    """
    if value is None:
        raise UserError(f"{key} is not set: give a mapping, or the YAML file that holds it (conf/data/custom.yaml)")
    if isinstance(value, str) and value.startswith("{"):
        value = _parsed(value, key)
    elif isinstance(value, str):
        key, value = f"{key}={value}", read_yaml(Path(value).expanduser(), key)
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is no mapping: see conf/data/custom.yaml for one")
    return read(value, kind, f"{key}.")


def _parsed(text: str, key: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{key} is no JSON: {error}") from error


def _train_ids(part: list[str], names: tuple[str, ...], key: str) -> tuple[int, ...]:
    for name in part:
        if name not in names:
            raise UserError(f"{key}: {name} is none of the classes {', '.join(names)}")
    return tuple(sorted(names.index(name) for name in part))


def _colours(count: int) -> list[tuple[int, int, int]]:
    """Generate `count` distinct colours: Cityscapes' first, then hues in steps of the golden ratio."""
    found = list(CLASS_SETS["cityscapes"].palette)[:count]
    for i in range(count - len(found)):
        r, g, b = colorsys.hsv_to_rgb((0.12 + i * 0.618034) % 1.0, 0.75, 0.95 - 0.5 * (i % 3) / 3)
        found.append((int(255 * r), int(255 * g), int(255 * b)))
    return found
