"""Constraints of option values beyond their type, written in annotations and checked by pydantic.

They are classes of our own, and not pydantic's `Field`, for their words: the whole range, and the nearest name.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

LARGEST = 2**31 - 1  # limit of integers: libraries use 32-bit counters
PIXELS = 2**15  # limit of an image's side in OpenCV's warps


class Limit(ABC):
    """Base class of constraints."""

    @abstractmethod
    def complaint(self, value: Any) -> str | None:
        """Describe a violation in words that follow the value; None if it is valid."""

    @abstractmethod
    def __str__(self) -> str:
        """Name what is allowed, for lists of options; empty if the type says it all."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Have pydantic check a value's type first, then this."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if (wrong := self.complaint(value)) is not None:
            raise PydanticCustomError("limit", "{wrong}", {"wrong": wrong})
        return value


@dataclass(frozen=True)
class Interval(Limit):
    """Finite numbers from `low` to `high`, inclusive unless `open_low` or `open_high`."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def complaint(self, value: Any) -> str | None:
        """Describe a number out of range, NaN and infinity included; None if it is valid."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high or self.high == math.inf else value <= self.high
        if above and below:
            return None
        if above and self.high == math.inf:
            return "must be a finite number"
        if above and self.high == LARGEST:
            return f"must be at most {LARGEST}"
        return f"must lie {self}" if str(self).startswith("between") else f"must be {self}"

    def __str__(self) -> str:
        first, last = (str(end) if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        low = f"{'greater than' if self.open_low else 'at least'} {first}"
        if self.high in (math.inf, LARGEST):
            return low
        if not (self.open_low or self.open_high):
            return f"between {first} and {last}"
        return f"{low} and {'below' if self.open_high else 'at most'} {last}"


@dataclass(frozen=True)
class OneOf(Limit):
    """One of several names; None stands for null, and true is not 1."""

    names: tuple[str | bool | None, ...]

    def complaint(self, value: Any) -> str | None:
        """Describe an invalid name with the nearest valid one; None if it is valid."""
        if any(value == name and type(value) is type(name) for name in self.names):
            return None
        words = self._words()
        close = difflib.get_close_matches(str(value), words, n=1, cutoff=0.5)
        return f"is none of {', '.join(words)}" + (f"; did you mean {close[0]}?" if close else "")

    def __str__(self) -> str:
        return " | ".join(self._words())

    def _words(self) -> list[str]:
        return [_YAML[name] if name in (None, True, False) else str(name) for name in self.names]


_YAML: dict[Any, str] = {None: "null", True: "true", False: "false"}


@dataclass(frozen=True)
class Length(Limit):
    """Lists of `low` to `high` entries."""

    low: int
    high: int

    def complaint(self, value: Any) -> str | None:
        """Describe a list of wrong length; None if it is valid."""
        if self.low <= len(value) <= self.high:
            return None
        return f"must have {self} entries, not {len(value)}"

    def __str__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class PixelSize(Limit):
    """[height, width], or one of several words; None stands for null."""

    words: tuple[str | None, ...] = ()

    def complaint(self, value: Any) -> str | None:
        """Describe an invalid size; None if it is valid."""
        if value is None or isinstance(value, str):
            right = value in self.words
        else:
            right = isinstance(value, list | tuple) and len(value) == 2 and all(map(self._is_side, value))
        return None if right else f"is no size: give {self}"

    def __str__(self) -> str:
        others = "".join(f", or {'null' if word is None else word}" for word in self.words)
        return f"[height,width] in pixels, up to {PIXELS} each{others}"

    @staticmethod
    def _is_side(side: Any) -> bool:
        return isinstance(side, int) and not isinstance(side, bool) and 0 < side <= PIXELS


@dataclass(frozen=True)
class Budget(Limit):
    """A number of images from 1, a share of them in (0, 1], or the path of a list; None stands for null."""

    def complaint(self, value: Any) -> str | None:
        """Describe an invalid number, share or path; None if it is valid."""
        if isinstance(value, str):
            return Filled().complaint(value)
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST
        if value is None or whole or (isinstance(value, float) and 0 < value <= 1):
            return None
        return "is no number of images: give 1 or more, a share such as 0.0625, or the file that lists them"

    def __str__(self) -> str:
        return "a number of images, a share in (0, 1], or a file that lists them"


@dataclass(frozen=True)
class Filled(Limit):
    """Non-empty text."""

    def complaint(self, value: Any) -> str | None:
        """Describe an empty text; None if it is valid."""
        if not value.strip():
            return "is empty: leave it out, or write null for none"
        return "holds a zero byte" if "\0" in value else None

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class FolderName(Limit):
    """Valid name of a folder, which cannot refer to another location."""

    def complaint(self, value: Any) -> str | None:
        """Describe an invalid folder name; None if it is valid."""
        if not value.strip() or value in (".", "..") or len(value.encode()) > 100 or set(value) & set("/\\\0\n\r"):
            return "is no name for a folder: leave out slashes and line breaks, and keep it below 100 letters"
        return None

    def __str__(self) -> str:
        return "name of a folder"


@dataclass(frozen=True)
class OneOrMore(Limit):
    """Non-empty text, or a list of such texts."""

    def complaint(self, value: Any) -> str | None:
        """Describe an invalid text or list; None if it is valid."""
        texts = value if isinstance(value, list | tuple) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            return "is no path: give one, or a list of them, [A,B]"
        return next((said for text in texts if (said := Filled().complaint(text)) is not None), None)

    def __str__(self) -> str:
        return "a path, or a list of paths"


class _Path:
    """Marker of paths, in which `~` is expanded."""


class _Term:
    """Marker of loss weights among a method's options."""


Positive = Annotated[float, Interval(0, open_low=True)]
Fraction = Annotated[float, Interval(0, 1)]
PositiveFraction = Annotated[float, Interval(0, 1, open_low=True)]
FractionBelowOne = Annotated[float, Interval(0, 1, open_high=True)]
Count = Annotated[int, Interval(1, LARGEST)]
CountOrZero = Annotated[int, Interval(0, LARGEST)]
BitDepth = Annotated[int, Interval(8, 16)]
Rate = Annotated[float, Interval(1e-15, 1e3)]  # learning rates whose steps are representable in float32
Ratio = Annotated[float, Interval(1e-6, 1e6)]  # ratio to another number
Power = Annotated[float, Interval(0, 100)]
Temperature = Annotated[float, Interval(1e-4, 1e4)]
Channels = Annotated[int, Interval(1, 2**14)]
Blocks = Annotated[int, Interval(1, 1000)]  # blocks of a stage
Dilations = Annotated[Sequence[Annotated[int, Interval(1, 1024)]], Length(1, 32)]
Colour = Annotated[Sequence[Annotated[float, Interval(-1e3, 1e3)]], Length(3, 3)]
Deviation = Annotated[Sequence[Annotated[float, Interval(1e-6, 1e6)]], Length(3, 3)]
PixelPair = Annotated[Sequence[int], PixelSize()]
Size = Annotated[list[int], PixelSize()]
Text = Annotated[str, Filled()]
Name = Annotated[str, FolderName()]
FilePath = Annotated[str, Filled(), _Path]
FilePaths = Annotated[Any, OneOrMore(), _Path]
LabelBudget = Annotated[Any, Budget(), _Path]

# Searched by `sweep=optuna`, whatever the option's name.
LossWeight = Annotated[float, Interval(0, 1e6), _Term]


def is_loss_weight(annotation: Any) -> bool:
    """Return whether an option is annotated as a loss weight."""
    return _Term in getattr(annotation, "__metadata__", ())


def is_path(annotation: Any) -> bool:
    """Return whether an option is annotated as a path, including optional ones."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return any(_Path in getattr(option, "__metadata__", ()) for option in options)
