"""Options are described by what their dataclass says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal

import pytest

from uda_seg.options.constraints import Count, FilePath, Interval, Name, OneOf, Size
from uda_seg.options.describe import Option, describe, describe_class, in_words


@dataclass
class First:
    """A base."""

    share: Annotated[float, Interval(0, 1)] = 0.5
    """Share of
    the whole (ours)."""

    given: int = field(kw_only=True)
    """One field without a default."""

    undocumented: list[Count] = field(default_factory=lambda: [1, 2])


@dataclass
class Second(First):
    """Inherited fields, with another default for the share."""

    own: Literal["a", "b"] | None = None
    """Its own."""

    share: Annotated[float, Interval(0, 1)] = 0.25


def test_options_come_with_the_class_that_defines_them_and_docs_through_their_bases():
    assert describe(Second) == [
        Option("share", "number, between 0 and 1", 0.25, "Share of the whole (ours).", Second),
        Option("own", "a | b, or null", None, "Its own.", Second),
        Option("given", "whole number", MISSING, "One field without a default.", First),
        Option("undocumented", "list of: whole number, at least 1", [1, 2], "", First),
    ]


def test_a_constructor_without_a_dataclass_is_described_by_its_arguments():
    class Old:
        """A class of another style.

        Args:
            width: number of channels,
                all told.
            kind (str): what it is.

        Raises:
            depth: not this.
        """

        def __init__(self, width: int, kind: str = "x", depth: float | None = None) -> None: ...

    assert describe_class(Old) == [
        Option("width", "whole number", MISSING, "number of channels, all told.", Old),
        Option("kind", "text", "x", "what it is.", Old),
        Option("depth", "number, or null", None, "", Old),
    ]


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (bool, "true | false"),
        (Any, "any value"),
        (Count | None, "whole number, at least 1, or null"),
        (Annotated[str | None, OneOf(("x", True, None))], "x | true | null"),
        (Size, "[height,width] in pixels, up to 32768 each"),
        (FilePath | None, "path, or null"),
        (Name, "name of a folder"),
        (dict[str, int], "keys with their values"),
        (First, "keys of its own"),
        (Callable[[int], int], "class to build, with its _target_"),
    ],
)
def test_allowed_values_in_words(hint, words):
    assert in_words(hint) == words
