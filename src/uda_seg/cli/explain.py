"""Pages of `--help NAME`: the options of a part of the configuration, with their values, defaults and meaning."""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from uda_seg.config.keys import belongs_to
from uda_seg.config.schema import Config, groups, has_target
from uda_seg.errors import UserError
from uda_seg.options.describe import Option, describe, describe_class, nested_in
from uda_seg.options.validate import class_of, nearest, plain_hints, shown

WIDTH = 100  # columns of a page
ALLOWED = 46  # column at which the allowed values begin


def explain(config: Config, topic: str) -> str:
    """Describe the options of one part of a composed configuration, grouped by the class that defines them.

    Args:
        config: the composed configuration, whose values are shown.
        topic: dotted key of the part (`method`, `optimizer`, `data.source`) or of a single option.

    Raises:
        UserError: there is no such part.
    """
    title, options, values = _part(config, topic)
    blocks = [title]
    for owner, own in itertools.groupby(options, key=lambda option: option.owner):
        lines = [line for option in own for line in _lines(option, values.get(option.name, option.default))]
        blocks.append("\n".join([_heading(owner), *lines]))
    others = f"--help NAME explains one of these: {', '.join(parts(config))}"
    return "\n\n".join([*blocks, textwrap.fill(others, WIDTH, subsequent_indent="  ", break_on_hyphens=False)])


def parts(config: Any, where: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration's parts and of the options that are in none."""
    for field in fields(config):
        value, hint = getattr(config, field.name), plain_hints(type(config))[field.name]
        key = f"{where}{field.name}"
        if not where or nested_in(hint) is not None:
            yield key
        if is_dataclass(value):
            yield from parts(value, f"{key}.")
        elif isinstance(value, Mapping):
            yield from (f"{key}.{name}" for name, node in value.items() if is_dataclass(node) or has_target(node))


def _part(config: Config, topic: str) -> tuple[str, list[Option], Mapping[str, Any]]:
    """Return the title, the options and the values of a part; those of a single option if it is one."""
    options: list[Option] = describe(type(config))
    values: Mapping[str, Any] = vars(config)
    title, keys = "", topic.split(".")
    for place, key in zip(itertools.accumulate(keys, "{}.{}".format), keys, strict=True):
        option = next((option for option in options if option.name == key), None)
        node = values.get(key)
        if option is None and node is None:
            said = belongs_to(topic, type(config))
            said = said or (
                f"is chosen among files, which --help alone lists: {topic}=NAME" if topic in groups() else None
            )
            hint = f"{topic} {said}" if said else f"there is no such part; {nearest(topic, parts(config))}"
            raise UserError(f"--help {shown(topic)}: {hint}")
        inside = _inside(node, option, place)
        if inside is None and option is not None and place == topic:
            return topic, [option], values
        title, options, values = _title(config, place, node), *(inside or ([], {}))
    return title, options, values


def _inside(node: Any, option: Option | None, place: str) -> tuple[list[Option], Mapping[str, Any]] | None:
    """Return the options and values inside a value; None if it has none."""
    if has_target(node):
        return describe_class(class_of(node["_target_"], place)), node
    if is_dataclass(node):
        return describe(type(node)), vars(node)
    values = node if isinstance(node, Mapping) else {}
    if option is not None and option.nested is not None:  # null, or several by name
        return describe(option.nested), values
    return ([], values) if values else None


def _title(config: Config, place: str, node: Any) -> str:
    choice = config.origin.choices.get(place) if config.origin is not None else None
    words = place if choice is None else f"{place}={choice}"
    return f"{words}: {node['_target_']}" if has_target(node) else words


def _heading(owner: type) -> str:
    summary = inspect.cleandoc(owner.__doc__ or "").partition("\n\n")[0]
    return textwrap.fill(f"{owner.__name__}: {' '.join(summary.split())}", WIDTH)


def _lines(option: Option, value: Any) -> Iterator[str]:
    """Yield `name = value (default ...)`, what is allowed, and the documentation."""
    head = f"  {option.name} = {plain(value)}"
    if option.default is not MISSING and value != option.default:
        head += f"  (default {plain(option.default)})"
    if len(head) < ALLOWED and ALLOWED + len(option.allowed) <= WIDTH:
        yield f"{head:<{ALLOWED}}{option.allowed}"
    else:
        yield head
        yield from _indented(option.allowed, ALLOWED)
    yield from _indented(option.doc, 6)


def _indented(text: str, columns: int) -> list[str]:
    space = " " * columns
    return textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


def plain(value: Any) -> str:
    """Format a value as it is written in YAML."""
    if value is MISSING:
        return "???"
    if is_dataclass(value) or has_target(value):
        return "..."
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    return shown(value, 60)
