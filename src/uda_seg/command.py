"""What every command does around its work: overrides in, one clear line out when something is wrong."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from uda_seg.config import CONF, Config, accepted, groups, key_of, parse
from uda_seg.errors import UserError, user_error
from uda_seg.jobs import SILENT, Jobs, Outcome
from uda_seg.launch import first_machine, share_cores
from uda_seg.schema import leaves, nearest

log = logging.getLogger(__name__)

# Overrides that do not change what is computed, or that have a place of their own in the folder's name.
_NOT_IN_NAME = re.compile(
    r"^(method|model|data|seed|resume|overwrite|trainer|logger|callbacks|evaluator|sweep|hydra|checkpoint|export)$"
    r"|^model\.(compile|compile_backend|channels_last)$"
    r"|^(trainer|logger|callbacks|evaluator|hydra|bench|predict)[./]|\.root$|\.workers$|\.cache$|^depth\.supervision$"
)


def variant(overrides: Sequence[str]) -> str:
    """The part of a run folder's name that says how a run differs from its method's defaults; empty for none."""
    parts = []
    for override in overrides:
        key, value = key_of(override), override.partition("=")[2]
        if not _NOT_IN_NAME.search(key):
            value = _run_name(value) if key == "init" else value
            parts.append(f"{key}={value}")
    name = "".join("," + re.sub(r"[^\w.=+-]+", "-", part) for part in sorted(parts))
    if len(name) <= 80:
        return name
    return f"{name[:70]},{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _run_name(checkpoint: str) -> str:
    """`<method>_<model>` of `<method>_<model>/seed<k>/checkpoints/last.ckpt`; the file's name of any other path."""
    parts = Path(checkpoint.strip("'\"")).parts
    return parts[-4] if len(parts) >= 4 and parts[-2] == "checkpoints" else parts[-1]


OmegaConf.register_new_resolver("variant", variant, replace=True)


def listed_choices() -> str:
    """Every group of the configuration and what it can be, as `--help` shows them."""
    lines = []
    for group in sorted(groups()):
        names = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        lines += textwrap.wrap(f"{group}: {names}", 116, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


OmegaConf.register_new_resolver("choices", listed_choices, replace=True)
OmegaConf.register_new_resolver("differs", lambda value, other: value != other, replace=True)
OmegaConf.register_new_resolver("without", lambda file, value: value if file is None else 0.0, replace=True)


def run(
    name: str,
    work: Callable[[Config, Path], Any],
    *,
    expand: Callable[[list[str]], list[str]] | None = None,
    after: Callable[[Sequence[Outcome]], None] | None = None,
) -> None:
    """Run a command: parse the command line, compose and check the configuration, call `work` with it and its folder.

    Args:
        name: primary config in `conf/`.
        work: the command; its result is what a sweeper minimises or maximises. `--help` shows its module's docstring.
        expand: turns the given overrides into those to compose (`evaluate` adds a checkpoint's).
        after: called when all jobs of a multirun are done, with how they ended.

    Exits with code 1 and one line on standard error after a UserError.
    """
    OmegaConf.register_new_resolver("usage", lambda: str(sys.modules[work.__module__].__doc__), replace=True)
    arguments = sys.argv[1:]
    overrides = [a for a in arguments if ("=" in a or a.startswith("~")) and not a.startswith("-")]
    others = [a for a in arguments if a not in overrides]
    overrides = [quoted(emptied(override)) for override in overrides]
    jobs = Jobs()
    ended: SystemExit | None = None
    try:
        # Any flag but these asks Hydra to show something, a wrong configuration included.
        if not {a for a in others if a.startswith("-")} - {"-m", "--multirun"}:
            strays = [a for a in others if not a.startswith("-")]
            if strays:
                raise UserError(f"{strays[0]} is no override: write key=value, or --help")
            overrides = check(name, expand(overrides) if expand is not None else overrides)
        sys.argv = [sys.argv[0], *others, f"hydra.job.name={work.__name__}", *overrides]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(_job(work, jobs))()
    except UserError as error:
        fail(error)
    except SystemExit as end:
        ended = end
    _sum_up(jobs, after)
    if ended is not None:
        raise ended


def emptied(override: str) -> str:
    """An override, with null for a `data.validation={}`: Hydra would merge nothing into the sets that are there."""
    return "data.validation=null" if re.fullmatch(r"\+*data\.validation=\s*\{\s*\}", override) else override


def quoted(override: str) -> str:
    """An override, in quotes if its value is a path that is there and Hydra would read something else in it.

    Our own run folders have '=' and ',' in their names.
    """
    key, _, value = override.partition("=")
    if value[:1] in ("'", '"') or not re.search(r"[^\w./~+-]", value) or not os.path.exists(value):
        return override
    return f"{key}='" + value.replace("'", r"\'") + "'"


def _sum_up(jobs: Jobs, after: Callable[[Sequence[Outcome]], None] | None) -> None:
    """What is left to do and to say after the jobs of a multirun, be it that they were stopped."""
    outcomes = jobs.outcomes()
    jobs.forget()
    try:
        if outcomes and after is not None and not jobs.told_elsewhere:
            after(outcomes)
    except UserError as error:
        fail(error)
    failures = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error is not None]
    if failures:
        fail(UserError(f"{len(failures)} job(s) failed: {'; '.join(failures)}"))


def given_path(given: Sequence[str], key: str, usage: str, must_exist: bool = True) -> Path:
    """The path that an override `key=` gives.

    Raises:
        UserError: it was not given, or nothing is there.
    """
    values = [o.partition("=")[2] for o in given if key_of(o) == key]
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


def _job(work: Callable[[Config, Path], Any], jobs: Jobs) -> Callable[[DictConfig], Any]:
    """`work` on Hydra's terms. In a sweep a failing job, whatever its error, must not take the others down."""

    def job(raw: DictConfig) -> Any:
        folder = Path(HydraConfig.get().runtime.output_dir)
        if is_multirun():
            jobs.note(folder, error=SILENT)
        try:
            config = parse(raw)
            jobs.told_elsewhere = not first_machine(config.trainer)
            share_cores()
            result = work(config, folder)
        except Exception as error:
            said = user_error(error)
            if not is_multirun():
                if said is None:
                    raise
                fail(said)
            log.error("%s: %s", folder, said or error, exc_info=error if said is None else None)
            jobs.note(folder, error=str(said or repr(error)))
            return float("nan")
        if is_multirun():
            jobs.note(folder, result)
        return result

    return job


def check(name: str, overrides: Sequence[str]) -> list[str]:
    """Refuse misspelt keys and choices with the nearest valid one, before Hydra is asked.

    Returns:
        The overrides; one for an option that a class takes but its file leaves at the default is marked as an addition.

    Raises:
        UserError: a line that cannot be parsed, an unknown key, or an unknown choice of a group.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        cure = "put a value that has '=', ',' or brackets of its own in quotes: \"key='value'\""
        raise UserError(f"cannot read the overrides: {' '.join(str(error).split())}; {cure}") from error
    choices = [o for o in parsed if o.key_or_group in groups() and not o.is_delete()]
    # Hydra answers for its own keys, and the schema for what is explicitly added or deleted.
    keys = [o.key_or_group for o in parsed if o.type == OverrideType.CHANGE and not o.key_or_group.startswith("hydra")]
    unset: set[str] = set()
    for chosen in itertools.product(*(_choices(o) for o in choices)):
        tree = _compose(name, chosen)
        present = {key for key, _ in leaves(tree)} | groups()
        known = present.union(accepted(tree))
        for key in keys:
            if key not in known:
                where = f" with {' '.join(chosen)}" if chosen else ""
                raise UserError(f"{key} is no key of the configuration{where}; {nearest(key, known)}")
        unset |= set(keys) - present
    return [f"++{o}" if key_of(o) in unset and not o.startswith(("+", "~")) else o for o in overrides]


def _choices(override: Override) -> list[str]:
    """`group=choice` of every choice that an override of a group names, sweeps included."""
    group, value = override.key_or_group, override.value()
    names = list(override.sweep_string_iterator()) if override.is_sweep_override() else value
    choices = [str(n) for n in (names if isinstance(names, list) else [names])]
    options = sorted(p.relative_to(CONF / group).with_suffix("").as_posix() for p in (CONF / group).rglob("*.yaml"))
    for choice in choices:
        if choice not in options:
            raise UserError(f"{group}={choice}: there is no such {group}; {nearest(choice, options)}")
    return [f"{group}={choice}" for choice in choices]


def _compose(name: str, overrides: Sequence[str]) -> Any:
    try:
        with _started():
            return OmegaConf.to_container(compose(name, list(overrides)))
    except HydraException as error:
        if "hydra/launcher/submitit" in str(error):
            raise UserError("sweep=slurm needs submitit: pip install '.[sweep]' in the checkout") from error
        raise UserError(f"configuration: {' '.join(str(error).split())}") from error


def composed(overrides: Sequence[str], name: str = "config") -> Config:
    """Compose and check a configuration without a command line (tests, notebooks, bench)."""
    with _started():
        return parse(compose(name, list(overrides)))


def _started() -> AbstractContextManager[Any]:
    """A running job has Hydra at hand; elsewhere it has to be started."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    started: AbstractContextManager[Any] = initialize_config_dir(str(CONF), version_base="1.3")
    return started


# What a method's own file decides, and a data set's or the command line may decide otherwise.
RECIPE = ("steps", "pretrained", "running_statistics", "optimizer", "schedule", "teacher", "method")


def departures(config: Config) -> list[str]:
    """What a run does otherwise than its method's file by itself: `key value (the method's value)`, sorted.

    `data=streets` is why there are any: a small network, from other weights, for minutes.
    """
    if not HydraConfig.initialized():
        return []
    chosen = HydraConfig.get().runtime.choices
    tree = _recipe(chosen["method"])
    own_model = tree.hydra.runtime.choices["model"]
    found = [] if own_model == chosen["model"] else [f"model {chosen['model']} ({own_model})"]
    for key, value in leaves({key: asdict(config)[key] for key in RECIPE}):
        own = OmegaConf.select(tree, key)
        if not isinstance(value, Mapping) and own != value:
            found.append(f"{key} {value} ({own})")
    return sorted(found)


@functools.cache
def _recipe(method: str) -> DictConfig:
    """What a method's file says by itself, which is the same for all jobs of a sweep."""
    with _started():
        tree = compose("config", [f"method={method}", "~data"], return_hydra_config=True)
    return tree
