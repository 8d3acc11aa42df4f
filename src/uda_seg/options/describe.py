"""Description of options, read from the dataclass that defines them: allowed values, default, documentation."""

from __future__ import annotations

import ast
import collections.abc
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any

from uda_seg.options.constraints import Length, Limit, is_path
from uda_seg.options.validate import GIVEN, options_dataclass, parameters


@dataclass(frozen=True)
class Option:
    """One field of a dataclass of options."""

    name: str
    """Its key."""
    allowed: str
    """Allowed values in words: type, range, choices."""
    default: Any
    """Default, in plain values; `dataclasses.MISSING` if it has to be given."""
    doc: str
    """Docstring, on one line; empty if there is none."""
    owner: type
    """The class that defines the option, or last redefined it."""
    nested: type | None = None
    """The dataclass that the value is one of, if it is."""


def describe(kind: type) -> list[Option]:
    """List the options of a dataclass, those of the class itself before those of its bases."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = [_option(kind, field, hints[field.name]) for field in fields(kind) if field.init]
    return sorted(found, key=lambda option: kind.__mro__.index(option.owner))


def _option(kind: type, field: Field[Any], hint: Any) -> Option:
    owner = next(base for base in kind.__mro__ if field.name in inspect.get_annotations(base))
    docs = (docstrings(base).get(field.name) for base in kind.__mro__)
    doc = next((doc for doc in docs if doc is not None), "")
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Option(field.name, in_words(hint), default, doc, owner, nested_in(hint))


def describe_class(found: type) -> list[Option]:
    """List the options of a class that a `_target_` names: of its dataclass of options, or of its constructor.

    A constructor's are documented by the section `Args:` of the class.
    """
    if (kind := options_dataclass(found)) is not None:
        return describe(kind)
    docs: dict[str, str] = {}
    for base in reversed(found.__mro__):
        docs |= _arguments(inspect.cleandoc(base.__doc__ or ""))
    known = {name: pair for name, pair in parameters(found).items() if name not in (*GIVEN, "**")}
    return [
        Option(name, in_words(hint), MISSING if p.default is p.empty else p.default, docs.get(name, ""), found)
        for name, (p, hint) in known.items()
    ]


def _arguments(doc: str) -> dict[str, str]:
    """Read the section `Args:` of a docstring."""
    section = re.search(r"(?ms)^Args:\n(.*?)(?=^\S|\Z)", doc)
    if section is None:
        return {}
    entries = re.findall(r"(?ms)^(\w+)(?: \([^)\n]*\))?: (.*?)(?=^\S|\Z)", textwrap.dedent(section[1]))
    return {name: " ".join(text.split()) for name, text in entries}


def nested_in(hint: Any) -> type | None:
    """Return the dataclass among the members of an annotation, if there is one."""
    members = (hint, *typing.get_args(hint))
    return next((member for member in members if isinstance(member, type) and is_dataclass(member)), None)


@functools.cache
def docstrings(kind: type) -> Mapping[str, str]:
    """Read the docstrings below a class's own attributes from its source; none if there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    found = {}
    for attribute, text in itertools.pairwise(body):
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name):
            match text:
                case ast.Expr(ast.Constant(str(doc))):
                    found[attribute.target.id] = " ".join(doc.split())
    return found


_NAMES: dict[Any, str] = {
    bool: "true | false",
    int: "whole number",
    float: "number",
    str: "text",
    Any: "any value",
    type(None): "null",
}


def in_words(hint: Any) -> str:
    """Name the values that an annotation allows.

    >>> in_words(Count | None)
    'whole number, at least 1, or null'
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _limited(arguments[0], arguments[1:])
    if origin is typing.Literal:
        return " | ".join("null" if name is None else str(name) for name in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(in_words(member) for member in arguments)
    if origin in (list, tuple, Sequence):
        return f"list of: {in_words(arguments[0])}"
    if origin in (dict, Mapping):
        return "keys with their values"
    if origin is collections.abc.Callable:
        return "class to build, with its _target_"
    if isinstance(hint, type) and is_dataclass(hint):
        return "keys of its own"
    return _NAMES[hint] if hint in _NAMES else str(getattr(hint, "__name__", hint))


def _limited(hint: Any, metadata: Sequence[Any]) -> str:
    if is_path(Annotated[hint, *metadata]):
        return "path"
    limits = [limit for limit in metadata if isinstance(limit, Limit) and str(limit)]
    words = in_words(hint)
    for limit in limits:
        if isinstance(limit, Length):
            words = words.replace("list of:", f"list of {limit}:", 1)
        elif hint in (int, float):
            words = f"{words}, {limit}"
        else:
            words = str(limit)
    return words
