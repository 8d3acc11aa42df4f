"""Options of methods: stated once, explained and constrained, and each with an effect."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from dataclasses import asdict, fields

import pytest
from test_steps import fit

from uda_seg.config.compose import composed
from uda_seg.config.schema import CONF
from uda_seg.errors import UserError
from uda_seg.methods import bicl, corda, lcmsm, self_training, source_only, t2sda
from uda_seg.methods.corda import CorDA
from uda_seg.methods.lcmsm import LCMSM
from uda_seg.methods.options.base import MethodOptions, options_of
from uda_seg.methods.self_training import SelfTraining
from uda_seg.methods.source_only import SourceOnly
from uda_seg.methods.t2sda import T2SDA
from uda_seg.options.constraints import Limit
from uda_seg.runs.build import method_class

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
LONGEST = 150  # lines of a method: a paper from top to bottom


@pytest.mark.parametrize("module", [bicl, corda, lcmsm, self_training, source_only, t2sda])
def test_a_method_reads_like_its_paper(module):
    assert len(inspect.getsource(module).splitlines()) <= LONGEST


def every_options_class():
    """The options of all methods, and the classes that they inherit from."""
    kinds = {options_of(method_class(composed([f"method={name}", "data=streets"]))) for name in METHODS}
    return sorted(
        {base for kind in kinds for base in kind.__mro__ if base is not object}, key=lambda kind: kind.__name__
    )


def explained(kind: type) -> dict[str, str]:
    """The docstring below each field of a class's own."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = text.value.value
    return found


def is_constrained(hint: object) -> bool:
    """Booleans and literals are; so are annotations with a limit, and unions of these with None."""
    if typing.get_origin(hint) is typing.Annotated:
        return any(isinstance(part, Limit) for part in typing.get_args(hint)[1:])
    if typing.get_origin(hint) is typing.Literal or hint in (bool, type(None)):
        return True
    return bool(typing.get_args(hint)) and all(map(is_constrained, typing.get_args(hint)))


def test_every_option_is_explained_and_constrained():
    kinds = every_options_class()
    assert MethodOptions in kinds
    assert sum(len(fields(kind)) for kind in kinds) > 100
    for kind in kinds:
        own, hints = vars(kind).get("__annotations__", {}), typing.get_type_hints(kind, include_extras=True)
        assert explained(kind).keys() == own.keys(), kind
        assert all(len(text) > 20 and text.rstrip(" )\n").endswith(".") for text in explained(kind).values()), kind
        assert [name for name in own if not is_constrained(hints[name])] == [], kind


EVERYTHING = {"feature_distance": 0.01, "mask_weight": 1.0, "text": "file", "mask_block": 0.25, "width": 8}


@pytest.mark.parametrize("method", [SelfTraining, T2SDA, LCMSM, CorDA, SourceOnly])
def test_no_option_is_without_effect(method, make_segmentor, make_plan, make_batch):
    """A method reads every option that it inherits: in its constructor, its step or its optimiser."""
    plain = options_of(method)
    given = {name: value for name, value in EVERYTHING.items() if name in {field.name for field in fields(plain)}}
    asked = set()

    class Watched(plain):
        def __getattribute__(self, name):
            asked.add(name)
            return super().__getattribute__(name)

    options = Watched(**asdict(plain(**given)))
    asked.clear()
    fit(method(make_segmentor(pretrained=True), make_plan(), options), [make_batch(depth=True)])
    assert {field.name for field in fields(plain)} - asked == set()


def test_an_option_that_no_file_states_is_set_like_the_others():
    words = ["method=t2sda", "data=streets"]
    assert "temperature" not in (CONF / "method" / "t2sda.yaml").read_text()
    assert composed([*words, "method.temperature=0.3"]).method["temperature"] == 0.3
    with pytest.raises(UserError, match=r"method.temprature is unknown; did you mean temperature\?"):
        composed([*words, "method.temprature=0.3"])
