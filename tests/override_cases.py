"""Overrides made up from the schema: every key there is, with values that fit it nearly, not at all, or just so."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from hypothesis import strategies as st

from command_line import Everything, composition
from uda_seg.config.schema import _DESCRIBED
from uda_seg.options.constraints import FolderName, Interval, Length, OneOf, PixelSize
from uda_seg.options.validate import options

# What people, scripts and other programs put behind a '='; most of it is wrong nearly everywhere.
NASTY = (
    *("", " ", "null", "None", "~", "true", "True", "yes", "off", "maybe", "0", "-1", "1", "2", "7", "1.5", "-0.0"),
    *("1e-300", "1e30", "1e400", "inf", "-inf", "nan", "NaN", ".nan", "1_000", "007", "0x10", "1e3", "'5'", "'1e-3'"),
    *("2147483647", "2147483648", "9223372036854775808", "9" * 60, "9" * 5000, "-" + "9" * 60),
    *("[]", "[1]", "[1,2]", "[0,0]", "[-1,-1]", "[1,1]", "[32,32,32]", "[1.5,2]", "[a,b]", "[null,null]", "[[1],[2]]"),
    *("[true,false]", "[nan]", "[" * 30 + "]" * 30, "[" * 300, "{}", "{a: 1}", "{1: 2}", "{a: {b: {c: {d: 1}}}}", "{a"),
    *("{_target_: os.system, command: ls}", "os.system", "uda_seg.errors.UserError", "a,b", "1,2", "[1,2],[3,4]"),
    *("range(1,3)", "choice(1,2)", "choice(1", "interval(0,1)", "glob(*)", "shuffle(1,2)", "tag(a,1)", "int(5)"),
    *(
        "${steps}",
        "${nothing.there}",
        "${oc.env:NOBODY_HAS_THIS}",
        "${oc.env:HOME}",
        "${data}",
        "${",
        "${}",
        "$",
        "${a",
    ),
    *(
        "${oc.create:{a: 1}}",
        "${without:1}",
        "${choices:}",
        "${hydra:runtime.cwd}",
        "\\${x}",
        "???",
        "x=y",
        "a b",
        "it's",
    ),
    *("'", '"', "'open", "a'b\"c", "(", ")", "]", "a:b", "a,", ",", "../../x", "/", ".", "..", "~/x", "~nobody/x"),
    *(
        "Straße",
        "日本",
        "\u202e",
        "a\tb",
        "a\nb",
        "\x1b[31m",
        "\x7f",
        "%s",
        "{{x}}",
        "\\",
        "x" * 3000,
        "-",
        "--",
        "@",
        "#",
    ),
)


def leaves_of(kind: type, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a dataclass of settings, with its annotation; sets of images by the name `target`."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        key = f"{where}{name}"
        yield key, hint
        described = _DESCRIBED.get((kind, name), typing.get_type_hints(kind)[name])
        if typing.get_origin(described) is dict:
            described, key = typing.get_args(described)[1], f"{key}.target"
        nested = typing.get_args(described) if typing.get_origin(described) is types.UnionType else (described,)
        for option in nested:
            if is_dataclass(option):
                yield from leaves_of(typing.cast(type, option), f"{key}.")


@functools.cache
def keys(choices: tuple[str, ...]) -> dict[str, Any]:
    """Every key with its annotation: the schema's, and what the classes of these choices take."""
    tree = composition(choices)
    found = dict(leaves_of(Everything)) | {"data.class_set.subsets.few": Any, "data.source.custom.label_map.7": Any}
    for where in ("model", "model.encoder", "model.head", "method"):
        node = functools.reduce(lambda inner, name: inner[name], where.split("."), tree)
        found |= {f"{where}.{name}": hint for name, hint in options(node["_target_"], where).items()}
        found |= {f"{where}._target_": str, f"{where}._partial_": bool}
    return found


def near(hint: Any) -> Iterator[str]:
    """Values at, inside and just outside of what an annotation allows, as they are written behind a '='."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        for limit in arguments[1:]:
            yield from _at_limit(limit, arguments[0])
        yield from near(arguments[0])
    elif origin in (typing.Union, types.UnionType):
        for option in arguments:
            yield from near(option)
    elif origin is typing.Literal:
        yield from (str(name) for name in arguments)
    elif origin in (list, tuple, Sequence):
        yield from (f"[{','.join([value] * count)}]" for value in near(arguments[0]) for count in (1, 2, 3, 4))
    elif hint is type(None):
        yield "null"
    else:
        plain = {
            bool: ("true", "false"),
            int: ("1", "2", "3", "16"),
            float: ("0.5", "1", "1e-3"),
            str: ("name", "'x y'"),
        }
        yield from plain.get(hint, ())


def _at_limit(limit: Any, kind: Any) -> Iterator[str]:
    if isinstance(limit, Interval):
        step = 1 if kind is int else 1e-3
        for edge in (limit.low, limit.high):
            if abs(edge) != float("inf"):
                yield from (str(edge), str(edge - step), str(edge + step))
    elif isinstance(limit, OneOf):
        yield from ("null" if name is None else str(name).lower() for name in limit.names)
    elif isinstance(limit, PixelSize):
        yield from (
            "[32,32]",
            "[64,48]",
            "[1,1]",
            "[8,8]",
            "[0,32]",
            "[32768,32768]",
            "[32769,1]",
            *map(str, limit.words),
        )
    elif isinstance(limit, FolderName):
        yield from ("mine", "a/b", "..", "x" * 200)
    elif isinstance(limit, Length):
        yield from ("[]", "[2]")


@st.composite
def words(draw: st.DrawFn, known: Mapping[str, Any]) -> list[str]:
    """One to three overrides of known, misspelt or missing keys, in all their forms; now and then with a flag."""
    found = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        key = draw(st.sampled_from(sorted(known)))
        kind = draw(st.integers(0, 19))
        if kind == 0:
            key = key[:-1] + draw(st.sampled_from(["", "x", ".", ".0", "_", "=", "@a", "/b"]))
        near_values = list(near(known.get(key, Any)))
        value = draw(st.sampled_from(near_values if near_values and draw(st.booleans()) else NASTY))
        form = draw(st.sampled_from(["", "", "", "", "+", "++", "~"]))
        found.append(f"{form}{key}" if form == "~" and draw(st.booleans()) else f"{form}{key}={value}")
    flag = draw(st.sampled_from([[], [], [], [], [], ["-m"]]))
    return [*flag, *found]
