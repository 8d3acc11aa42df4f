"""What every command does around its work: overrides in, one clear line out when something is wrong."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from uda_seg.config import CONF, Config, leaves, nearest, parse
from uda_seg.data.datasets import user_error
from uda_seg.errors import UserError

log = logging.getLogger(__name__)

# Overrides that do not change what is computed, or that have a place of their own in the folder's name.
_NOT_IN_NAME = re.compile(
    r"^(method|model|data|seed|resume|overwrite|trainer|logger|callbacks|hydra|debug|checkpoint)$"
    r"|^(trainer|logger|callbacks|hydra|bench|predict)\.|\.root$|\.workers$"
)


def variant(overrides: Sequence[str]) -> str:
    """The part of a run folder's name that says how a run differs from its method's defaults; empty for none."""
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if not _NOT_IN_NAME.search(key):
            value = Path(value).parent.parent.parent.name if key == "init" else value
            parts.append(f"{key}={value}")
    name = "".join("," + re.sub(r"[^\w.=+-]+", "-", part) for part in sorted(parts))
    if len(name) <= 80:
        return name
    return f"{name[:70]},{hashlib.sha256(name.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("variant", variant, replace=True)


def run(
    name: str, work: Callable[[Config, Path], Any], *, expand: Callable[[list[str]], list[str]] | None = None
) -> None:
    """Run a command: parse the command line, compose and check the configuration, call `work` with it and its folder.

    Args:
        name: primary config in `conf/`.
        work: the command; its result is what a sweeper minimises or maximises.
        expand: turns the given overrides into those to compose (`evaluate` adds a checkpoint's).

    Exits with code 1 and one line on standard error after a UserError.
    """
    failures: list[str] = []
    try:
        arguments = sys.argv[1:]
        overrides = [a for a in arguments if not a.startswith("-")]
        flags = [a for a in arguments if a.startswith("-")]
        if expand is not None and not {"--help", "-h"} & set(flags):
            overrides = expand(overrides)
        if not flags or {"-m", "--multirun"} & set(flags):
            check(name, overrides)
        sys.argv = [sys.argv[0], *flags, *overrides]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(_job(work, failures))()
    except UserError as error:
        fail(error)
    if failures:
        fail(UserError(f"{len(failures)} job(s) failed: {'; '.join(failures)}"))


def given_path(given: Sequence[str], key: str, usage: str, must_exist: bool = True) -> Path:
    """The path that an override `key=` gives.

    Raises:
        UserError: it was not given, or nothing is there.
    """
    values = [o.partition("=")[2] for o in given if o.partition("=")[0] == key]
    if not values:
        raise UserError(f"{key}= is missing: {usage}")
    path = Path(values[-1].strip("'\""))
    if must_exist and not path.exists():
        raise UserError(f"{key}={path}: there is no such file or folder")
    return path


def fail(error: UserError) -> None:
    """Print the line and leave with code 1."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1)


def is_multirun() -> bool:
    """Whether this job is one of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _job(work: Callable[[Config, Path], Any], failures: list[str]) -> Callable[[DictConfig], Any]:
    def job(raw: DictConfig) -> Any:
        multirun = is_multirun()
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            return work(parse(raw), folder)
        except Exception as error:
            found = user_error(error)
            if found is None:
                raise
            if not multirun:
                fail(found)
            failures.append(f"{folder.name}: {found}")
            log.error("%s", found)
            return float("nan")

    return job


def check(name: str, overrides: Sequence[str]) -> None:
    """Refuse misspelt keys and choices with the nearest valid one, before Hydra is asked.

    Raises:
        UserError: a line that cannot be parsed, an unknown key, or an unknown choice of a group.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"cannot read the overrides: {str(error).splitlines()[0]}") from error
    groups = {p.name for p in CONF.iterdir() if p.is_dir()}
    choices = [o for o in parsed if o.key_or_group in groups and not o.is_delete()]
    for override in choices:
        for choice in _values(override):
            _check_choice(override.key_or_group, choice)
    base = _compose(name, [f"{o.key_or_group}={_values(o)[0]}" for o in choices])
    known = [key for key, _ in leaves(base)] + sorted(groups)
    for override in parsed:
        key = override.key_or_group
        if key in known or override.is_add() or override.is_delete() or key.split(".")[0] == "hydra":
            continue
        raise UserError(f"{key} is no key of the configuration; {nearest(key, known)}")


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    value = override.value()
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _check_choice(group: str, choice: str) -> None:
    options = sorted(p.relative_to(CONF / group).with_suffix("").as_posix() for p in (CONF / group).rglob("*.yaml"))
    if choice not in options and choice not in ("None", "null"):
        raise UserError(f"{group}={choice}: there is no such {group}; {nearest(choice, options)}")


def _compose(name: str, overrides: Sequence[str]) -> Any:
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return OmegaConf.to_container(compose(name, list(overrides)))
    except HydraException as error:
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from error
    finally:
        GlobalHydra.instance().clear()


def composed(overrides: Sequence[str], name: str = "config") -> Config:
    """Compose and check a configuration without a command line (tests, notebooks, bench)."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose(name, list(overrides)))
