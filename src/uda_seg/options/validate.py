"""Validation of values against annotations of the configuration's dataclasses and of the classes it names."""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import importlib
import inspect
import itertools
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from uda_seg.errors import UserError
from uda_seg.options.constraints import Limit, OneOf, is_path


def nearest(key: str, known: Iterable[str]) -> str:
    """Suggest `did you mean X?`, or list the known keys if none is near."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known)[:12])}"


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of nested dicts, including inner nodes, with its value."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            name = f"{prefix}{key}"
            yield name, value
            yield from leaves(value, f"{name}.")


def shown(value: Any, longest: int = 160) -> str:
    """Format a value for messages: on one line, without control characters, and truncated."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


# Arguments supplied by the code that builds the class.
_GIVEN = ("segmentor", "plan", "num_classes", "channels")


def options(target: object, where: str) -> dict[str, Any]:
    """Return option -> annotated type of the class named by a `_target_` at the key `where`.

    Raises:
        UserError: there is no such class, or it is not part of this package.
    """
    found = _class(target, where)
    hints = typing.get_type_hints(found.__init__, include_extras=True)  # type: ignore[misc]
    return {name: hints.get(name, Any) for name in inspect.signature(found).parameters if name not in _GIVEN}


def _class(target: object, where: str) -> type:
    module, _, name = str(target).rpartition(".")
    found = None
    if module.partition(".")[0] == "uda_seg":  # nothing else is imported
        with contextlib.suppress(ImportError, ValueError):
            found = getattr(importlib.import_module(module), name, None)
    built_in = isinstance(found, type) and "__init__" not in vars(found) and issubclass(found, BaseException)
    if not isinstance(found, type) or built_in or found.__module__.partition(".")[0] != "uda_seg":
        raise UserError(f"{where}._target_={shown(target)}: only classes of uda_seg can be configured")
    return found


def check_target(node: Mapping[str, Any], where: str, kind: Any = Any) -> None:
    """Check a `_target_` node against the signature of its class, which serves as schema.

    Args:
        node: keys and values including `_target_`; nested targets are checked too.
        where: dotted name for messages.
        kind: expected annotation: a class, or a builder of modules, which requires `_partial_`.

    Raises:
        UserError: a class of another kind, an unknown or missing key, or a value of the wrong type or out of range.
    """
    known = options(node.get("_target_"), where)
    _check_kind(node, where, kind)
    for key, value in node.items():
        name = f"{where}.{key}"
        if key in ("_target_", "_partial_"):
            continue
        if key not in known:
            raise UserError(f"{name} is unknown; {nearest(str(key), known)}")
        if isinstance(value, Mapping) and "_target_" in value:
            check_target(value, name, known[key])
        elif re.search(r"\b_target_\b", str(value)):
            raise UserError(f"{name}={shown(value)}: a class can be configured at its own key only")
        elif (wrong := complaint(value, known[key])) is not None:
            raise UserError(f"{name}={shown(value)} {wrong}")
    found = _class(node["_target_"], where)
    for option, parameter in inspect.signature(found).parameters.items():
        if parameter.default is parameter.empty and option not in (*_GIVEN, *node):
            raise UserError(f"{where}.{option} is missing: {found.__name__} needs it")


def _check_kind(node: Mapping[str, Any], where: str, kind: Any) -> None:
    found = _class(node["_target_"], where)
    parameters = inspect.signature(found).parameters
    builder = typing.get_origin(kind) is collections.abc.Callable
    if builder and not {"channels", "num_classes"} <= parameters.keys():
        raise UserError(f"{where}._target_={node['_target_']} is no head of a network")
    abstract = any(getattr(getattr(found, name, None), "__isabstractmethod__", False) for name in ("forward", "losses"))
    if isinstance(kind, type) and kind is not Any and (abstract or not issubclass(found, kind)):
        raise UserError(f"{where}._target_={node['_target_']} is no {kind.__name__} that can be built")
    if node.get("_partial_", False) is not builder:
        raise UserError(f"{where}._partial_={shown(node.get('_partial_', 'null'))} must be {str(builder).lower()} here")


def check_settings(settings: Any, where: str = "") -> None:
    """Check a dataclass's values, including nested ones, against its annotations.

    Raises:
        UserError: a value of the wrong type or out of range.
    """
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        value, key = getattr(settings, name), f"{where}{name}"
        nodes = {f"{key}.{label}": node for label, node in value.items()} if isinstance(value, dict) else {key: value}
        for inner, node in nodes.items():
            if is_dataclass(node):
                check_settings(node, f"{inner}.")
        if (wrong := complaint(value, hint)) is not None:
            raise UserError(f"{key}={shown(value)} {wrong}")


def check_plain(tree: Mapping[str, Any], kind: type, where: str = "") -> None:
    """Refuse values that OmegaConf would silently convert: 7 to true, true or 1.10 to text.

    Args:
        tree: composed plain values.
        kind: the dataclass to convert to.
        where: dotted name for messages, with a trailing dot.

    Raises:
        UserError: names the key.
    """
    for name, hint in typing.get_type_hints(kind).items():
        value, key = tree.get(name), f"{where}{name}"
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        inner = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None
        kinds = {typing.get_origin(option) or option for option in options}
        if isinstance(value, Mapping) and is_dataclass(inner):
            for label, node in value.items():
                if isinstance(node, Mapping):
                    check_plain(node, typing.cast(type, inner), f"{key}.{label}.")
        elif nested := [o for o in options if is_dataclass(o)]:
            if isinstance(value, Mapping):
                check_plain(value, typing.cast(type, nested[0]), f"{key}.")
            elif name in tree and not (value is None and type(None) in options):
                raise UserError(f"{key}={shown(value)} {_WRONG_TYPE}: expected keys with their values")
        elif list in kinds and value is not None and not isinstance(value, list):
            raise UserError(f"{key}={shown(value)} {_WRONG_TYPE}: expected a list, [...]")
        elif isinstance(value, Mapping | list) and not kinds & {Any, dict, list}:
            raise UserError(f"{key}={shown(value)} {_WRONG_TYPE}: expected a single value")
        elif bool in options and isinstance(value, int | float) and not isinstance(value, bool):
            raise UserError(f"{key}={shown(value)} {_WRONG_TYPE}: expected true or false")
        elif str in options and isinstance(value, bool | float):
            raise UserError(f"{key}={shown(value)} {_WRONG_TYPE}: expected text; if it is meant, write \"{key}='...'\"")


def expand_home(settings: Any, where: str = "") -> None:
    """Expand a leading `~` in all paths of a dataclass, including nested values.

    Classes to build are plain dicts, and their paths are known from the class's signature.

    Raises:
        UserError: `~name` of an unknown user.
    """
    if is_dataclass(settings):
        hints = typing.get_type_hints(type(settings), include_extras=True)
        values = vars(settings)
    elif isinstance(settings, dict) and "_target_" in settings:
        hints, values = options(settings["_target_"], where), settings
    elif isinstance(settings, dict):
        hints, values = {}, settings
    else:
        return
    for name, value in values.items():
        key = f"{where}.{name}" if where else str(name)
        if isinstance(value, str) and value.startswith("~") and is_path(hints.get(name)):
            values[name] = at_home(value, key)
        else:
            expand_home(value, key)


def at_home(path: str, key: str) -> str:
    """Expand a leading `~` or `~name` of a path; raises UserError for an unknown user."""
    found = os.path.expanduser(path)
    if path.startswith("~") and found == path:
        raise UserError(f"{key}={shown(path)}: there is no such home folder; write ./{path} for one so called")
    return found


def fits(value: Any, hint: Any) -> bool:
    """Return whether a plain YAML value fits type and constraints; an int fits a float, a list a tuple."""
    return complaint(value, hint) is None


def complaint(value: Any, hint: Any) -> str | None:
    """Describe why a plain YAML value does not fit its annotation, in words that follow it; None if it fits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        limits = (limit for limit in arguments[1:] if isinstance(limit, Limit))
        found = itertools.chain([complaint(value, arguments[0])], (limit.complaint(value) for limit in limits))
        return next((wrong for wrong in found if wrong is not None), None)
    if origin is typing.Literal:
        return OneOf(arguments).complaint(value)
    if origin in (typing.Union, types.UnionType):
        wrongs = [complaint(value, option) for option in arguments]
        # For a number, report its range instead of a mismatch with null.
        return None if None in wrongs else min(wrongs, key=lambda wrong: str(wrong).startswith(_WRONG_TYPE))
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        return next((w for item in value if (w := complaint(item, arguments[0])) is not None), None)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        entries = ((item, option) for pair in value.items() for item, option in zip(pair, arguments, strict=True))
        return next((f"holds {shown(i)}, which {w}" for i, o in entries if (w := complaint(i, o)) is not None), None)
    return None if _has_type(value, hint) else f"{_WRONG_TYPE}: expected {_spell(hint)}"


_WRONG_TYPE = "is of the wrong type"


def _has_type(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if hint is type(None) or value is None:
        return hint is type(None) and value is None
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(hint, type) and isinstance(value, hint)


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        return _spell(typing.get_args(hint)[0])
    if typing.get_origin(hint) is collections.abc.Callable:
        return "a class to build, with its _target_"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
