"""Command-line arguments: Hydra's flags, and overrides normalised for Hydra's grammar."""

from __future__ import annotations

import argparse
import difflib
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

LONGEST = 20_000  # maximum length of an override in characters, as parsing is super-linear
DEEPEST = 40  # maximum nesting of brackets


@dataclass(frozen=True)
class Arguments:
    """Parsed command-line arguments.

    Attributes:
        flags: Hydra's flags.
        overrides: overrides in a form that Hydra can parse.
        multirun: run comma-separated values as a sweep.
        explains: Hydra only shows a text, for which no configuration is needed.
        topics: parts of the configuration whose options are asked for: `--help NAME`, or `method=NAME --help`.
        folder: folder of further configuration files.
    """

    flags: list[str]
    overrides: list[str]
    multirun: bool = False
    explains: bool = False
    topics: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def is_one_job(self) -> bool:
        """True for a single job: neither for several nor for a look at the configuration."""
        several = self.multirun or any(key_of(o) in ("sweep", "hydra.mode") for o in self.overrides)
        return not several and not any(flag.startswith(("--cfg", "--info")) for flag in self.flags)


def read_arguments(words: Sequence[str]) -> Arguments:
    """Separate flags and overrides, in any order.

    Raises:
        UserError: an unknown flag, incompatible flags, or an argument that is neither.
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
    topics = _topics(said)
    explains = (said.help and not topics) or said.hydra_help or said.shell_completion
    overrides = [] if said.help or said.hydra_help else list(said.overrides)
    if topics:
        overrides = [word for word in said.overrides if word not in topics]
    for word in overrides:
        if not explains:
            _check_word(word)
    folder = None if said.config_dir is None else _config_dir(said.config_dir)
    return Arguments(
        _flags(said, folder),
        overrides if explains else [quoted(emptied(word)) for word in overrides],
        multirun=said.multirun,
        explains=explains,
        topics=topics,
        folder=folder,
    )


def _topics(said: argparse.Namespace) -> tuple[str, ...]:
    """Return the parts that `--help` is asked about; a chosen method's options if none is named."""
    if not said.help:
        return ()
    named = tuple(word for word in said.overrides if re.fullmatch(r"[\w.-]+", word))
    chosen = any(key_of(word) in ("method", "experiment") for word in said.overrides)
    return named or (("method",) if chosen else ())


def _check_word(word: str) -> None:
    """Raise UserError for what is no override, and for an output folder that an empty variable of a script has named.

    Hydra would take the folder of no name for the current one.
    """
    key, equals, value = word.partition("=")
    if not key.strip("+ ") or (not equals and not word.startswith("~")):
        raise UserError(f"{shown(word)} is no override: write key=value, or --help")
    if key_of(word) in ("hydra.run.dir", "hydra.sweep.dir") and not value.strip("'\" "):
        raise UserError(f"{key}= is empty: name the folder of the results, or leave it out")


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{shown(message)}; --help shows what there is")


def _check_flags(said: argparse.Namespace) -> None:
    if said.config_path is not None:
        raise UserError(
            "--config-path would leave out the package's own configuration: add files of yours with --config-dir=DIR"
        )
    if said.config_name is not None:
        raise UserError(
            "--config-name would leave out the package's own configuration: put your settings in DIR/experiment/NAME"
            ".yaml and say --config-dir=DIR experiment=NAME"
        )
    if said.experimental_rerun is not None:
        raise UserError("--experimental-rerun reads a pickle, which can run code: start again with the run's overrides")
    asked = {"--cfg": said.cfg, "--info": said.info, "--run": said.run, "--multirun": said.multirun}
    several = [flag for flag, value in asked.items() if value]
    if len(several) > 1:
        raise UserError(f"{' and '.join(several)} exclude each other: leave one of them out")
    for flag, value in (("--resolve", said.resolve), ("--package", said.package)):
        if value and said.cfg is None:
            raise UserError(f"{flag} only affects --cfg: add --cfg job, or leave it out")


def _config_dir(folder: str) -> Path:
    path = Path(at_home(folder, "--config-dir")).absolute()
    if not path.is_dir():
        raise UserError(f"--config-dir={shown(folder)}: there is no such folder")
    return path


def _flags(said: argparse.Namespace, folder: Path | None) -> list[str]:
    single = ("help", "hydra_help", "shell_completion", "resolve", "run", "multirun")
    flags = [f"--{name.replace('_', '-')}" for name in single if getattr(said, name)]
    valued = {"cfg": said.cfg, "info": said.info, "package": said.package}
    return [*flags, *(f"--{name}={value}" for name, value in {**valued, "config-dir": folder}.items() if value)]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar.

    Raises:
        UserError: an override that it cannot parse.
    """
    parser = OverridesParser.create()
    found = []
    for override in overrides:
        whole = override.partition("=")[2][:1] in ("'", '"')  # parsed as one token
        if not whole and (len(override) > LONGEST or _depth(override) > DEEPEST):
            raise UserError(f"{shown(key_of(override))}: the value is too long or too deep for a command line")
        try:
            found += parser.parse_overrides([override])
        except (HydraException, ValueError, RecursionError) as error:  # ValueError: a number with thousands of digits
            lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See http"))]
            cure = "put a value that has '=', ',' or brackets of its own in quotes: \"key='value'\""
            raise UserError(f"cannot read {shown(override, 80)}: {shown(' '.join(lines))}; {cure}") from error
        if not whole and (twice := _twice(override)) is not None:
            raise UserError(f"{shown(key_of(override))} names {shown(twice)} twice in one map: give it once")
    return found


# Texts in quotes, brackets, and keys of maps.
_OF_MAPS = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|([\[({])|([\])}])|(?<=[{,])\s*([^\s'",:()\[\]{}][^'",:()\[\]{}]*):"""
)


def _twice(override: str) -> str | None:
    """Find a key that a map of an override has twice, of which Hydra would take the last; None if there is none.

    Args:
        override: What Hydra's grammar can parse, in which keys of maps have no quotes, colons or brackets.
    """
    within: list[set[str] | None] = []  # keys of the maps around; None for a list or a call
    for found in _OF_MAPS.finditer(override.partition("=")[2]):
        opened, closed, key = found.groups()
        if opened:
            within.append(set() if opened == "{" else None)
        elif closed and within:
            within.pop()
        elif key and within and within[-1] is not None:
            if key.strip() in within[-1]:
                return str(key.strip())
            within[-1].add(key.strip())
    return None


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def emptied(override: str) -> str:
    """Replace `data.validation={}` by null, because Hydra would merge the empty mapping into the existing sets."""
    return "data.validation=null" if re.fullmatch(r"\+*data\.validation=\s*\{\s*\}", override) else override


def quoted(override: str) -> str:
    """Quote an override's value if it is plain text that Hydra would misread or reject.

    This applies to existing paths (our run folders have '=' and ',' in their names) and to text that Hydra's grammar
    cannot parse and that does not look like a list, mapping or sweep. A leading `~` is the home folder.
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
    """Build `key='text'`, escaping everything that Hydra or OmegaConf would interpret.

    Args:
        key: key of the override.
        text: literal text.
        then: appended text, which may contain interpolations.
    """
    plain = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    return f"{key}={QuotedString(plain + then, Quote.single).with_quotes()}"


def text_of(override: str) -> str:
    """Return the value of an override as text; interpolations must not refer to the configuration."""
    read = parsed([override])[0]
    if read.is_sweep_override():
        raise UserError(f"{shown(override)} has several values: give one, or quote what is one value")
    value = read.value()
    try:
        return str(OmegaConf.create({"value": value}).value)
    except OmegaConfBaseException as error:
        raise UserError(f"{shown(override)}: {shown(str(error).splitlines()[0])}") from error


def given_path(given: Sequence[str], key: str, usage: str, must_exist: bool = True) -> Path:
    """Return the path given by an override `key=`; a name on the hub (`hub:...`) need not exist.

    Raises:
        UserError: it is missing, or the path does not exist.
    """
    values = [text_of(o) for o in given if key_of(o) == key]
    if not values or not values[-1]:
        near = difflib.get_close_matches(key, map(key_of, given), n=1, cutoff=0.7)
        if near and near[0] != key:
            raise UserError(f"{shown(near[0])} is no option; did you mean {key}?")
        raise UserError(f"{key}= is missing: {usage}")
    path = Path(at_home(values[-1], key))
    if must_exist and not str(path).startswith("hub:") and not _exists(str(path)):
        raise UserError(f"{key}={path}: there is no such file or folder")
    return path
