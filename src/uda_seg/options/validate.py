"""Validation of values against annotations of the configuration's dataclasses and of the classes it names."""

from __future__ import annotations

import collections.abc
import difflib
import functools
import importlib
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from uda_seg.errors import UserError
from uda_seg.options.constraints import OneOf, is_path


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


Built = typing.TypeVar("Built")

# Arguments supplied by the code that builds the class.
GIVEN = ("segmentor", "plan", "num_classes", "channels")


def options(target: object, where: str) -> dict[str, Any]:
    """Return option -> annotated type of the class named by a `_target_` at the key `where`.

    Raises:
        UserError: there is no such class.
    """
    return {name: hint for name, (_, hint) in parameters(class_of(target, where)).items() if name not in GIVEN}


def parameters(found: type) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Return name -> parameter and annotated type of a class's constructor.

    A parameter `options` annotated by a dataclass stands for the dataclass's fields. Constructors with `**options` also
    take those of their base class. If all of them do, or there is no signature, the name `**` stands for any further
    option.
    """
    known: dict[str, tuple[inspect.Parameter, Any]] = {}
    for kind in found.__mro__:
        init = vars(kind).get("__init__") if kind is not object else None
        if init is None:
            continue
        hints, open_ended = _hints(init), False
        for name, parameter in list(_signature(init).items())[1:]:
            open_ended |= parameter.kind is inspect.Parameter.VAR_KEYWORD
            if name == "options" and is_dataclass(hints.get(name)):
                known |= _fields(hints[name])
            elif parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
                known.setdefault(name, (parameter, hints.get(name, Any)))
        if not open_ended:
            return known
    return known | {"**": (_ANYTHING, Any)}


def options_dataclass(found: type) -> type | None:
    """Return the dataclass that annotates the parameter `options` of a class's constructor; None without one."""
    hint = _hints(found.__init__).get("options")  # type: ignore[misc]
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _fields(kind: type) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Return a dataclass's fields as parameters that can be given by name alone."""
    hints, known = _hints(kind), {}
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        given = inspect.Parameter.empty if default is MISSING else default
        parameter = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=given)
        known[field.name] = (parameter, hints.get(field.name, Any))
    return known


def defaults(found: type) -> dict[str, Any]:
    """Return the options of a class that have a default, with it."""
    return {name: p.default for name, (p, _) in parameters(found).items() if p.default is not p.empty}


_ANYTHING = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)


def _signature(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return {"self": _ANYTHING, "options": _ANYTHING}


def plain_hints(kind: Any) -> Mapping[str, Any]:
    """Return field -> type of a dataclass, without constraints."""
    return _evaluated(kind, constraints=False)


@functools.cache
def _evaluated(annotated: Any, constraints: bool) -> Mapping[str, Any]:
    """Evaluate the annotations of a class or function, which takes long."""
    return typing.get_type_hints(annotated, include_extras=constraints)


def _hints(function: Any) -> Mapping[str, Any]:
    try:
        return _evaluated(function, constraints=True)
    except Exception:  # of another package: names that it imports for type checkers alone
        return {}


def class_of(target: object, where: str) -> type:
    """Import the class that a `_target_` at the key `where` names; raises UserError if there is none."""
    module, _, name = str(target).rpartition(".")
    key = f"{where}._target_={shown(target)}"
    if not module:
        raise UserError(f"{key} is no class that can be configured: give package.module.Class")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"{key}: there is no module {shown(error.name)} here: install its package, or name the folder of its "
                "YAML files, beside which it lies, in hydra.searchpath"
            ) from error
        raise UserError(f"{key}: {module} imports {error.name}, which is not installed: install it") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: {module} cannot be imported: {type(error).__name__}: {shown(error)}") from error
    found = getattr(imported, name, None)
    if not isinstance(found, type) or issubclass(found, BaseException):
        classes = [n for n, value in vars(imported).items() if isinstance(value, type) and n[0] != "_"]
        raise UserError(f"{key} is no class that can be configured; {nearest(name, classes)}")
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
        if key not in known and ("**" not in known or str(key).startswith("_")):
            raise UserError(f"{name} is unknown; {nearest(str(key), known)}")
        hint = known.get(key, Any)
        if isinstance(value, Mapping) and "_target_" in value:
            check_target(value, name, hint)
        elif re.search(r"\b_target_\b", str(value)):
            raise UserError(f"{name}={shown(value)}: a class can be configured at its own key only")
        elif (wrong := complaint(value, hint)) is not None:
            raise UserError(f"{name}={shown(value)} {wrong}")
    found = class_of(node["_target_"], where)
    for option, (parameter, _) in parameters(found).items():
        if parameter.default is parameter.empty and option not in (*GIVEN, *node, "**"):
            raise UserError(f"{where}.{option} is missing: {found.__name__} needs it")


def build(node: Mapping[str, Any], where: str, kind: type[Built]) -> Built:
    """Build an object from a node with a `_target_` and plain options.

    Raises:
        UserError: as `check_target`.
    """
    check_target(node, where, kind)
    built = class_of(node["_target_"], where)(**{name: value for name, value in node.items() if name != "_target_"})
    assert isinstance(built, kind)
    return built


def _check_kind(node: Mapping[str, Any], where: str, kind: Any) -> None:
    found = class_of(node["_target_"], where)
    builder = typing.get_origin(kind) is collections.abc.Callable
    if builder and not {"channels", "num_classes"} <= parameters(found).keys():
        raise UserError(f"{where}._target_={node['_target_']} is no head of a network")
    abstract = any(getattr(getattr(found, name, None), "__isabstractmethod__", False) for name in ("forward", "losses"))
    if not builder and (abstract or not _can_be(found, kind)):
        raise UserError(f"{where}._target_={node['_target_']} is no {_spell(kind)} that can be built")
    if node.get("_partial_", False) is not builder:
        raise UserError(f"{where}._partial_={shown(node.get('_partial_', 'null'))} must be {str(builder).lower()} here")


def _can_be(found: type, hint: Any) -> bool:
    """Check whether an instance of this class fits an annotation, as far as can be told."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _can_be(found, typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return any(_can_be(found, option) for option in typing.get_args(hint))
    kind = origin or hint
    if getattr(kind, "_is_protocol", False) or isinstance(kind, typing.TypeVar):
        return True
    return kind is Any or (isinstance(kind, type) and issubclass(found, kind))


def _is_ours(hint: Any) -> bool:
    return isinstance(hint, type) and hint.__module__.partition(".")[0] == "uda_seg"


def read(tree: Mapping[str, Any], kind: type[Built], where: str = "") -> Built:
    """Convert plain YAML values to a dataclass, nested ones included; none is converted to another type in silence.

    Args:
        tree: keys and values.
        kind: the dataclass.
        where: dotted name for messages, with a trailing dot.

    Raises:
        UserError: an unknown or missing key, or a value of the wrong type or out of range; the first of them.
    """
    adapter = _adapter(typing.cast(Any, kind))
    try:
        adapter.validate_json(_json(tree))  # strict
        found: Built = adapter.validate_python(tree, strict=False)  # the same, with the keys of free mappings as given
    except ValidationError as error:
        first = _foremost(error)
        place, value = _place(tree, first["loc"])
        key = f"{where}{place}"
        if first["type"] == "unexpected_keyword_argument":
            raise UserError(f"{key} is unknown; {nearest(key, (where + known for known in _keys(kind)))}") from error
        names = _names_at(kind, first["loc"]) if first["type"] == "string_type" else None
        wrong = None if names is None else names.complaint(str(value))  # 32 for 32-true: quotes would not help
        raise UserError(f"{key}={shown(value)} {wrong or _in_words(first)}") from error
    return found


def _names_at(kind: Any, loc: Sequence[int | str]) -> OneOf | None:
    """Return the names of which the text at a place has to be one; None if it may be any."""
    for part in loc:
        kind = _hints(kind).get(str(part)) if is_dataclass(kind) else None
    return next((found for found in getattr(kind, "__metadata__", ()) if isinstance(found, OneOf)), None)


def _place(tree: Any, loc: Sequence[int | str]) -> tuple[str, Any]:
    """Return the dotted key of an error's place and its value; a list is shown as a whole."""
    keys: list[str] = []
    for part in loc:
        if not isinstance(tree, Mapping) or part not in tree:
            missing = isinstance(tree, Mapping) and part != "[key]"
            return (".".join([*keys, str(part)]), None) if missing else (".".join(keys), tree)
        keys, tree = [*keys, str(part)], tree[part]
    return ".".join(keys), tree


def _keys(kind: type, where: str = "") -> Iterator[str]:
    for name, hint in plain_hints(kind).items():
        yield f"{where}{name}"
        for option in (hint, *typing.get_args(hint)):
            if is_dataclass(option):
                yield from _keys(typing.cast(type, option), f"{where}{name}.")


def expand_home(settings: Any, where: str = "") -> None:
    """Expand a leading `~` in all paths of a dataclass, including nested values.

    Classes to build are plain dicts, and their paths are known from the class's signature.

    Raises:
        UserError: `~name` of an unknown user.
    """
    if is_dataclass(settings):
        hints = _hints(type(settings))
        values = vars(settings)
    elif isinstance(settings, dict) and "_target_" in settings:
        hints, values = options(settings["_target_"], where), settings
    elif isinstance(settings, dict):
        hints, values = {}, settings
    else:
        return
    for name, value in values.items():
        key = f"{where}.{name}" if where else str(name)
        path = is_path(hints.get(name))
        if path and isinstance(value, str):
            values[name] = at_home(value, key)
        elif path and isinstance(value, list):
            values[name] = [at_home(item, key) for item in value]
        else:
            expand_home(value, key)


def at_home(path: str, key: str) -> str:
    """Expand a leading `~` or `~name` of a path; raises UserError for an unknown user."""
    found = os.path.expanduser(path)
    if path.startswith("~") and found == path:
        raise UserError(f"{key}={shown(path)}: there is no such home folder; write ./{path} for one so called")
    return found


def complaint(value: Any, hint: Any) -> str | None:
    """Describe why a plain YAML value does not fit its annotation, in words that follow it; None if it fits.

    What an annotation of another package means for YAML may be unknown; then every value fits.
    """
    try:
        adapter = _adapter(hint)
    except Exception:  # of pydantic or of the annotation's own package
        return None
    try:
        adapter.validate_json(_json(value))
    except ValidationError as error:
        first = _foremost(error)
        if first["type"] == "needs_python_object":  # an instance of a class
            known = any(map(_is_ours, (hint, *typing.get_args(hint))))
            return f"{_WRONG_TYPE} {_spell(hint)}" if known else None
        inside = isinstance(value, Mapping) and first["loc"]
        return f"holds {shown(first['input'])}, which {_in_words(first)}" if inside else _in_words(first)
    return None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Build the validator of an annotation; `| None` lets a dataclass take the configuration, and those inside it."""
    return TypeAdapter(hint | None if is_dataclass(hint) else hint, config=_STRICT)


# 7 is not true, true is no number and 1.10 no text. As JSON an int still fits a float, a list a tuple and a mapping a
# dataclass.
_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _foremost(error: ValidationError) -> ErrorDetails:
    """Choose the error to report: for a number that may be null, its range instead of a mismatch with null."""
    return min(error.errors(include_url=False), key=lambda one: one["type"].endswith("_type"))


_WRONG_TYPE = "is of the wrong type: expected"
_TEXT = "text; if it is meant, write \"key='...'\""
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": _TEXT,
    "list_type": "a list, [...]",
    "tuple_type": "a list, [...]",
    "dict_type": "keys with their values",
    "dataclass_type": "keys with their values",
    "none_required": "null",
    "callable_type": "a class to build, with its _target_",
}


def _in_words(error: ErrorDetails) -> str:
    """Translate an error to words that follow the value."""
    kind, context = error["type"].replace("_parsing", "_type"), error.get("ctx", {})  # parsing: of a mapping's key
    if kind == "limit":
        return str(context["wrong"])
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        names = re.split(", | or ", context["expected"].replace("'", ""))
        return OneOf(tuple(names)).complaint(error["input"]) or "is given as text"
    value = error["input"]
    if kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+.\d_e]+", value):
        cure = "of an environment variable: ${oc.decode:${oc.env:NAME}}"
        return f"{_WRONG_TYPE} {_EXPECTED[kind]}, not text; {cure}"
    return f"{_WRONG_TYPE} {_EXPECTED[kind]}" if kind in _EXPECTED else f"is wrong: {shown(error['msg'])}"


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        return _spell(typing.get_args(hint)[0])
    if typing.get_origin(hint) is collections.abc.Callable:
        return "a class to build, with its _target_"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
