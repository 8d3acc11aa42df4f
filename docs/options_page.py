"""The page of all options, written from the dataclasses that define them when the site is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING

import yaml

from uda_seg.cli.explain import plain
from uda_seg.config.settings import COMMANDS, CONF
from uda_seg.data.custom import CustomClasses, CustomData
from uda_seg.options.describe import Option, describe
from uda_seg.options.validate import class_of, options_dataclass


def settings() -> dict[type, str]:
    """Return every dataclass of settings -> its title: the key of its place, as in `optimizer`, or the command."""
    found: dict[type, str] = {}
    for command, kind in COMMANDS.items():
        found[kind] = "All commands" if command == "config" else f"`python -m uda_seg.{command}`"
        for inner, place in nested(kind, ""):
            found.setdefault(inner, f"`{place}`")
    return found | {CustomClasses: "`data.class_set`", CustomData: "`data.source.custom`"}


def nested(kind: type, where: str) -> Iterator[tuple[type, str]]:
    """Yield the dataclasses inside another, with their keys."""
    for option in describe(kind):
        if option.nested is not None:
            yield option.nested, f"{where}{option.name}"
            yield from nested(option.nested, f"{where}{option.name}.")


def methods() -> dict[type, list[str]]:
    """Return every dataclass of a method's options -> the choices that have them, `quirks=` for a release's own."""
    found = choosing("method")
    return found | {kind: choices for kind, choices in choosing("quirks").items() if kind not in found}


def choosing(group: str) -> dict[type, list[str]]:
    """Return every dataclass of a method's options -> the choices of a group that choose a class with them."""
    found: dict[type, list[str]] = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        content = yaml.safe_load(file.read_text()) or {}
        target = content.get("method", {}).get("_target_")  # else it varies another file
        kind = None if target is None else options_dataclass(class_of(target, "method"))
        for base in () if kind is None else kind.__mro__[:-1]:
            found.setdefault(base, []).append(f"`{group}={file.stem}`")
    return found


def page() -> str:
    """Write the page: settings by their keys, then the options of methods, each under the class that defines it."""
    blocks = [_INTRODUCTION, "## Settings"]
    for kind, title in settings().items():
        blocks += section(kind, title)
    blocks.append("## Methods\n\nA method has the options of its own class and of the classes that it inherits from.")
    for kind, choices in methods().items():
        blocks += section(kind, kind.__name__, f" ({', '.join(choices)})")
    return "\n\n".join(blocks) + "\n"


_INTRODUCTION = """# Options

Every option of the configuration with its default, what it may be, its meaning and its source: *paper*, *released* (as
in the authors' released code) or *ours*. On the command line an option is written `key=value`, as in
`optimizer.lr=1e-3`; `--help optimizer` prints the same with the values of a configuration. The options of networks are
those of their classes in `uda_seg.models`."""


def section(kind: type, title: str, choices: str = "") -> Iterator[str]:
    """Yield the blocks of a class: heading, summary, and the options that it defines itself; none if it has none."""
    own = [option for option in describe(kind) if option.owner is kind]
    if own:
        yield f"### {title}"
        yield " ".join((kind.__doc__ or "").partition("\n\n")[0].split()) + choices
        yield "\n".join(entry(option) for option in own)


def entry(option: Option) -> str:
    """Format an option as an item of a list."""
    if option.nested is not None:
        return f"- `{option.name}`: {option.doc}"
    default = "" if option.default is MISSING else f" = `{plain(option.default)}`"
    return f"- `{option.name}`{default} ({option.allowed}): {option.doc}"
