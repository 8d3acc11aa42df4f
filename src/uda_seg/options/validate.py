"""Validation of values against annotations of the configuration's dataclasses and of the classes it names."""

from __future__ import annotations

import collections.abc
import difflib
import importlib
import inspect
import itertools
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
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


Built = typing.TypeVar("Built")

# Arguments supplied by the code that builds the class.
_GIVEN = ("segmentor", "plan", "num_classes", "channels")


def options(target: object, where: str) -> dict[str, Any]:
    """Return option -> annotated type of the class named by a `_target_` at the key `where`.

    Raises:
        UserError: there is no such class.
    """
    return {name: hint for name, (_, hint) in parameters(_class(target, where)).items() if name not in _GIVEN}


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


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # of another package: names that it imports for type checkers alone
        return {}


def _class(target: object, where: str) -> type:
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
        elif (wrong := complaint(value, hint)) is not None and _understood(hint):
            raise UserError(f"{name}={shown(value)} {wrong}")
    found = _class(node["_target_"], where)
    for option, (parameter, _) in parameters(found).items():
        if parameter.default is parameter.empty and option not in (*_GIVEN, *node, "**"):
            raise UserError(f"{where}.{option} is missing: {found.__name__} needs it")


def build(node: Mapping[str, Any], where: str, kind: type[Built]) -> Built:
    """Build an object from a node with a `_target_` and plain options.

    Raises:
        UserError: as `check_target`.
    """
    check_target(node, where, kind)
    built = _class(node["_target_"], where)(**{name: value for name, value in node.items() if name != "_target_"})
    assert isinstance(built, kind)
    return built


def _check_kind(node: Mapping[str, Any], where: str, kind: Any) -> None:
    found = _class(node["_target_"], where)
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


def _understood(hint: Any) -> bool:
    """Check whether YAML values can be compared with an annotation; other packages have types that they cannot."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _understood(arguments[0])
    if origin is tuple:
        arguments = tuple({a for a in arguments if a is not ...})
    if origin in (typing.Union, types.UnionType, list, tuple, Sequence, dict, Mapping):
        return (origin is not tuple or len(arguments) == 1) and all(_understood(a) for a in arguments)
    callables = (collections.abc.Callable, typing.Literal)
    return origin in callables or hint in (Any, bool, int, float, str, list, dict, type(None)) or _is_ours(hint)


def _is_ours(hint: Any) -> bool:
    return isinstance(hint, type) and hint.__module__.partition(".")[0] == "uda_seg"


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
