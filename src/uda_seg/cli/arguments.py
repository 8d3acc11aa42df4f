"""The words of a command line: Hydra's flags, and overrides in the form that Hydra's grammar can read."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uda_seg.config.schema import key_of
from uda_seg.errors import UserError
from uda_seg.options.validate import at_home, shown

LONGEST = 20_000  # of an override, in characters: reading takes longer than linearly
DEEPEST = 40  # brackets in brackets


@dataclass(frozen=True)
class Arguments:
    """What a person wrote behind the name of a command.

    Attributes:
        flags: Hydra's, as it reads them.
        overrides: in a form that it reads.
        multirun: whether values that are told apart by commas are to be run one after the other.
        explains: whether Hydra shows a text, which no configuration is needed for.
        name: of another primary configuration.
        folder: of further files of the configuration.
    """

    flags: list[str]
    overrides: list[str]
    multirun: bool = False
    explains: bool = False
    name: str | None = None
    folder: Path | None = None


def read_arguments(words: Sequence[str]) -> Arguments:
    """Tell flags and overrides apart, in whatever order they come.

    Raises:
        UserError: an unknown flag, flags that do not go together, or what is neither.
    """
    for word in words:
        if not word.isprintable() and any("\udc80" <= c <= "\udcff" for c in word):
            raise UserError(
                f"{shown(word)} is not UTF-8, in which everything here is recorded: rename the file or folder, or give "
                "a link to it"
            )
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    said = parser.parse_intermixed_args(list(words))
    _check_flags(said)
    explains = said.help or said.hydra_help or said.shell_completion
    overrides = [] if said.help or said.hydra_help else list(said.overrides)
    for word in overrides:
        if not explains and "=" not in word and not word.startswith("~"):
            raise UserError(f"{shown(word)} is no override: write key=value, or --help")
    folder = None if said.config_dir is None else _config_dir(said.config_dir)
    return Arguments(
        _flags(said, folder),
        overrides if explains else [quoted(emptied(word)) for word in overrides],
        multirun=said.multirun,
        explains=explains,
        name=said.config_name,
        folder=folder,
    )


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{shown(message)}; --help shows what there is")


def _check_flags(said: argparse.Namespace) -> None:
    if said.config_path is not None:
        raise UserError(
            "--config-path would leave out the package's own configuration: add files of yours with --config-dir=DIR"
        )
    if said.experimental_rerun is not None:
        raise UserError("--experimental-rerun reads a pickle, which can run code: start again with the run's overrides")
    asked = {"--cfg": said.cfg, "--info": said.info, "--run": said.run, "--multirun": said.multirun}
    several = [flag for flag, value in asked.items() if value]
    if len(several) > 1:
        raise UserError(f"{' and '.join(several)} do not go together: leave one of them out")
    for flag, value in (("--resolve", said.resolve), ("--package", said.package)):
        if value and said.cfg is None:
            raise UserError(f"{flag} is about what --cfg shows: add --cfg job, or leave it out")


def _config_dir(folder: str) -> Path:
    path = Path(at_home(folder, "--config-dir")).absolute()
    if not path.is_dir():
        raise UserError(f"--config-dir={shown(folder)}: there is no such folder")
    return path


def _flags(said: argparse.Namespace, folder: Path | None) -> list[str]:
    single = ("help", "hydra_help", "shell_completion", "resolve", "run", "multirun")
    flags = [f"--{name.replace('_', '-')}" for name in single if getattr(said, name)]
    valued = {"cfg": said.cfg, "info": said.info, "package": said.package, "config-name": said.config_name}
    return [*flags, *(f"--{name}={value}" for name, value in {**valued, "config-dir": folder}.items() if value)]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """What Hydra's grammar reads in overrides.

    Raises:
        UserError: one that it cannot read.
    """
    parser = OverridesParser.create()
    found = []
    for override in overrides:
        whole = override.partition("=")[2][:1] in ("'", '"')  # read in one piece
        if not whole and (len(override) > LONGEST or _depth(override) > DEEPEST):
            raise UserError(f"{shown(key_of(override))}: the value is too long or too deep for a command line")
        try:
            found += parser.parse_overrides([override])
        except (HydraException, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
            lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See http"))]
            cure = "put a value that has '=', ',' or brackets of its own in quotes: \"key='value'\""
            raise UserError(f"cannot read {shown(override, 80)}: {shown(' '.join(lines))}; {cure}") from error
    return found


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def emptied(override: str) -> str:
    """An override, with null for a `data.validation={}`: Hydra would merge nothing into the sets that are there."""
    return "data.validation=null" if re.fullmatch(r"\+*data\.validation=\s*\{\s*\}", override) else override


def quoted(override: str) -> str:
    """An override, in quotes if its value is plain text in which Hydra would read something else, or nothing at all.

    So is the path of what is there (our own run folders have '=' and ',' in their names), and what Hydra's grammar
    cannot read and has no look of a list, a mapping or a sweep. A leading `~` is the home folder.
    """
    key, equals, value = override.partition("=")
    if not equals or re.fullmatch(r"[\w./+-]*", value, re.ASCII) or value[0] in "'\"":
        return override
    if value[0] == "~":
        return as_override(key, at_home(value, key_of(override)))
    if _exists(value) or (value[0] not in "[{" and len(value) <= LONGEST and not _is_read(override)):
        return as_override(key, value)
    return override


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:
        return False


def _is_read(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError):
        return False
    return True


def as_override(key: str, text: str, then: str = "") -> str:
    """`key='text'`, with what Hydra or OmegaConf would read in the text made harmless.

    Args:
        key: of the override.
        text: plain text, which stays what it is.
        then: what follows it and may hold interpolations.
    """
    plain = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    return f"{key}={QuotedString(plain + then, Quote.single).with_quotes()}"


def text_of(override: str) -> str:
    """The value of an override as the configuration has it; interpolations may not look into the configuration."""
    value = parsed([override])[0].value()
    try:
        return str(OmegaConf.create({"value": value}).value)
    except OmegaConfBaseException as error:
        raise UserError(f"{shown(override)}: {shown(str(error).splitlines()[0])}") from error


def given_path(given: Sequence[str], key: str, usage: str, must_exist: bool = True) -> Path:
    """The path that an override `key=` gives.

    Raises:
        UserError: it was not given, or nothing is there.
    """
    values = [text_of(o) for o in given if key_of(o) == key]
    if not values or not values[-1]:
        raise UserError(f"{key}= is missing: {usage}")
    path = Path(at_home(values[-1], key))
    if must_exist and not _exists(str(path)):
        raise UserError(f"{key}={path}: there is no such file or folder")
    return path
