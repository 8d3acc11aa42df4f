"""The page of all options, written from the dataclasses that define them when the site is built."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import yaml

from uda_seg.cli.explain import plain
from uda_seg.config.commands import COMMANDS
from uda_seg.config.schema import groups
from uda_seg.config.settings import CONF
from uda_seg.data.custom import CustomClasses, CustomData
from uda_seg.options.describe import Option, describe, describe_class
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


def networks() -> dict[type, list[str]]:
    """Return every class of a network, an encoder or a head -> the choices of `model=` with it."""
    found: dict[type, list[str]] = {}
    for file in sorted((CONF / "model").glob("*.yaml")):
        for target in dict.fromkeys(targets(yaml.safe_load(file.read_text()))):
            found.setdefault(class_of(target, "model"), []).append(f"`model={file.stem}`")
    return found


def targets(node: Any) -> Iterator[str]:
    """Yield the classes that a file names."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key == "_target_" else targets(value)


def choices() -> Iterator[str]:
    """Yield a list of the files of every group, each with the sentence that its first comment begins with."""
    yield "## Choices"
    yield "Files to choose from, `group=name`; on the command line they may be given in any order."
    for group in sorted(groups()):
        files = sorted((CONF / group).glob("*.yaml"))
        yield f"### `{group}=`"
        yield "\n".join(f"- `{file.stem}`{summary(file)}" for file in files)


def summary(file: Path) -> str:
    """Return what a file's first comment says, up to the first full stop, after a colon; nothing without one."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    said = " ".join(line.lstrip("# ") for line in lines if "@package" not in line).strip()
    return f": {re.split(r'(?<=[.:]) ', said)[0].rstrip('.:')}" if said else ""


def page() -> str:
    """Write the page: settings by key, options of networks and methods by class, and the files to choose from."""
    blocks = [_INTRODUCTION, "## Settings"]
    for kind, title in settings().items():
        blocks += section(kind, title)
    blocks.append("## Networks\n\nOptions of `model`, `model.encoder` and `model.head`, by the class of each.")
    for kind, found in networks().items():
        blocks += [f"### {kind.__name__}", f"{first_paragraph(kind)} ({', '.join(found)})"]
        blocks.append("\n".join(map(entry, describe_class(kind))) or "(no options)")
    blocks.append("## Methods\n\nA method has the options of its own class and of the classes that it inherits from.")
    for kind, found in methods().items():
        blocks += section(kind, kind.__name__, f" ({', '.join(found)})")
    blocks += choices()
    return "\n\n".join(blocks) + "\n"


_INTRODUCTION = """# Options

Every option of the configuration with its default, what it may be, its meaning and its source: *paper*, *released* (as
in the authors' released code) or *ours*. On the command line an option is written `key=value`, as in
`optimizer.lr=1e-3`; `--help optimizer` prints the same with the values of a configuration."""


def section(kind: type, title: str, choices: str = "") -> Iterator[str]:
    """Yield the blocks of a class: heading, summary, and the options that it defines itself; none if it has none."""
    own = [option for option in describe(kind) if option.owner is kind]
    if own:
        yield f"### {title}"
        yield first_paragraph(kind) + choices
        yield "\n".join(entry(option) for option in own)


def first_paragraph(kind: type) -> str:
    """Return the summary of a class on one line."""
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def entry(option: Option) -> str:
    """Format an option as an item of a list."""
    if option.nested is not None:
        return f"- `{option.name}`: {option.doc}"
    default = "" if option.default is MISSING else f" = `{plain(option.default)}`"
    return f"- `{option.name}`{default} ({option.allowed}): {option.doc}"
