"""How values are held against annotations: those of the configuration's dataclasses and of the classes it names."""

from __future__ import annotations

import difflib
import inspect
import itertools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from hydra.utils import get_class

from uda_seg.errors import UserError
from uda_seg.limits import Interval, OneOf


def nearest(key: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or the list of what there is where nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known)[:12])}"


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of nested dicts, inner nodes included, with its value."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            name = f"{prefix}{key}"
            yield name, value
            yield from leaves(value, f"{name}.")


def options(target: object, where: str) -> dict[str, Any]:
    """Option -> annotated type of the class that a `_target_` at the key `where` names.

    Raises:
        UserError: there is no such class, or it is not one of this package.
    """
    wrong = UserError(f"{where}._target_={target}: only classes of uda_seg can be configured")
    if not isinstance(target, str):
        raise wrong
    try:
        found = get_class(target)
    except Exception as error:  # Hydra reports a missing module or class by errors of several kinds
        raise wrong from error
    if found.__module__.partition(".")[0] != "uda_seg":
        raise wrong
    hints = typing.get_type_hints(found.__init__, include_extras=True)  # type: ignore[misc]
    given = ("segmentor", "plan", "num_classes", "channels")  # by the code that builds it
    return {name: hints.get(name, Any) for name in inspect.signature(found).parameters if name not in given}


def check_target(node: Mapping[str, Any], where: str) -> None:
    """Check a `_target_` node against the signature of what it names: that signature is its schema.

    Args:
        node: keys and values, `_target_` among them; nested targets are checked too.
        where: dotted name for messages.

    Raises:
        UserError: a key the target does not take, or a value of another type or outside its limits.
    """
    known = options(node.get("_target_"), where)
    for key, value in node.items():
        name = f"{where}.{key}"
        if key in ("_target_", "_partial_"):
            continue
        if key not in known:
            raise UserError(f"{name} is unknown; {nearest(key, known)}")
        if isinstance(value, Mapping) and "_target_" in value:
            check_target(value, name)
        elif "_target_" in str(value):
            raise UserError(f"{name}={value}: a class can be configured at its own key only")
        elif (wrong := complaint(value, known[key])) is not None:
            raise UserError(f"{name}={value} {wrong}")


def check_settings(settings: Any, where: str = "") -> None:
    """Check a dataclass's values, those of nested ones too, against its annotations.

    Raises:
        UserError: a value of another type or outside its limits.
    """
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        value, key = getattr(settings, name), f"{where}{name}"
        nodes = {f"{key}.{label}": node for label, node in value.items()} if isinstance(value, dict) else {key: value}
        for inner, node in nodes.items():
            if is_dataclass(node):
                check_settings(node, f"{inner}.")
        if (wrong := complaint(value, hint)) is not None:
            raise UserError(f"{key}={value} {wrong}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain YAML value has the annotated type and limits; an int passes as a float, a list as a tuple."""
    return complaint(value, hint) is None


def complaint(value: Any, hint: Any) -> str | None:
    """What is wrong with a plain YAML value, in words that follow it; None where it fits the annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        limits = (limit for limit in arguments[1:] if isinstance(limit, Interval | OneOf))
        found = itertools.chain([complaint(value, arguments[0])], (limit.complaint(value) for limit in limits))
        return next((wrong for wrong in found if wrong is not None), None)
    if origin is typing.Literal:
        return OneOf(arguments).complaint(value)
    if origin in (typing.Union, types.UnionType):
        wrongs = [complaint(value, option) for option in arguments]
        # Of a number in the wrong place its range is worth saying, not that it is no null.
        return None if None in wrongs else min(wrongs, key=lambda wrong: str(wrong).startswith(_WRONG_TYPE))
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        return next((w for item in value if (w := complaint(item, arguments[0])) is not None), None)
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
    return origin not in (list, tuple, Sequence) and (not isinstance(hint, type) or isinstance(value, hint))


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        return _spell(typing.get_args(hint)[0])
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
