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
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uda_seg.cli.arguments import parsed, read_arguments
from uda_seg.cli.ending import ended_by, ended_by_ctrl_c, fail, full_errors, hydra_raises
from uda_seg.cli.keys import Places, check_keys
from uda_seg.config import CONF, Config, groups, key_of, parse
from uda_seg.errors import Interrupted, UserError, outlive_readers, told
from uda_seg.jobs import SILENT, Jobs, Outcome
from uda_seg.launch import first_machine
from uda_seg.schema import leaves, nearest, shown
from uda_seg.threads import share_cores

log = logging.getLogger(__name__)

# Overrides that do not change what is computed, or that have a place of their own in the folder's path.
_NOT_IN_NAME = re.compile(
    r"^(method|model|data|seed|resume|overwrite|logger|callbacks|sweep|hydra|checkpoint|export)$"
    r"|^model\.(compile|compile_backend|channels_last)$|\.workers$|\.cache$|^depth\.supervision$"
    r"|^trainer\.(?!(accelerator|devices|num_nodes|precision|sync_batchnorm|overfit)$)"
    r"|^evaluator\.(windows_per_batch|teacher)$|^(logger|callbacks|hydra|bench|predict)[./]"
)
_LONGEST_NAME, _LONGEST_VALUE = 80, 40  # of the 255 bytes that a file system takes


def variant(overrides: Sequence[str]) -> str:
    """The part of a run folder's name that says how a run differs from its method's defaults; empty for none.

    Two that differ in what changes a result never have one name, be it in the folder of a path alone, in letters that
    no file name takes, or in upper and lower case, which some disks do not tell apart.
    """
    values = {key_of(o): "" if o.startswith("~") else _in_name(key_of(o), o.partition("=")[2]) for o in overrides}
    parts = [f"{k}={v}" for k, v in values.items() if is_named(k) and (k, v) != ("trainer", "auto")]
    name = "".join("," + _plain(part) for part in sorted(parts))
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:70]},{_digest(name)}"


def is_named(key: str) -> bool:
    """Whether a run's folder is named by what is given for this key."""
    return not _NOT_IN_NAME.search(key)


def _in_name(key: str, value: str) -> str:
    """A value as a folder's name shows it: of a path the last part, and a digest where that does not say it all."""
    value = shown = _unquoted(value)
    if "/" in value and value[0] not in "[{":
        value = value if "://" in value else os.path.normpath(value)
        shown = _short(key, value)
    # Brackets and commas become hyphens: of a flat list of numbers or words that leaves no doubt.
    plain = re.fullmatch(r"(?!-.*-$)[a-z0-9_.=+-]+|\[[a-z0-9_.]+(, ?[a-z0-9_.]+)*\]", shown)
    if plain and shown == value:
        return shown
    return f"{_plain(shown)[:_LONGEST_VALUE]}-{_digest(value)}"


def _short(key: str, path: str) -> str:
    """`<method>_<model>` of `<method>_<model>/seed<k>/checkpoints/last.ckpt`; the file's name of any other path."""
    parts = Path(path).parts
    if key == "init" and len(parts) >= 4 and parts[-2] == "checkpoints":
        return parts[-4]
    return parts[-1] if parts else path


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text, flags=re.ASCII)


def _unquoted(value: str) -> str:
    """A value without the quotes that the command line may have put around it."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\" + value[0], value[0])
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def plain_name(name: str) -> str:
    """A name as one part of a path, for names that a checkpoint brings: nothing else may choose where is written."""
    plain = _plain(name)[:_LONGEST_NAME]
    return plain if plain == name and plain.strip(".") else f"{plain.strip('.-')}-{_digest(name)}".lstrip("-")


OmegaConf.register_new_resolver("variant", variant, replace=True)
OmegaConf.register_new_resolver("plain_name", plain_name, replace=True)


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

    Exits with code 1 and one line on standard error after an error of any kind, 130 after Ctrl-C.
    """
    OmegaConf.register_new_resolver("usage", lambda: str(sys.modules[work.__module__].__doc__), replace=True)
    outlive_readers()
    jobs, loud = Jobs(), full_errors()
    ended: SystemExit | None = None
    try:
        with ended_by_ctrl_c(), hydra_raises():
            said = read_arguments(sys.argv[1:])
            overrides = said.overrides
            if not said.explains:
                refuse_two_weights(overrides)
                overrides = expand(overrides) if expand is not None else overrides
                overrides = check(said.name or name, overrides, said.folder, said.multirun)
            sys.argv = [sys.argv[0], *said.flags, f"hydra.job.name={work.__name__}", *overrides]
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(_job(work, jobs, loud))()
    except SystemExit as end:
        ended = end
    except (HydraException, OmegaConfBaseException) as error:  # of no job: these end otherwise
        ended = ended_by(told(as_user_error(error), None, loud))
    except Exception as error:
        ended = ended_by(told(error, None, loud))
    _sum_up(jobs, after, loud)
    if ended is not None:
        raise ended


def as_user_error(error: Exception) -> UserError:
    """What Hydra or OmegaConf say of a configuration, in one line."""
    if "hydra/launcher/submitit" in str(error):
        return UserError("sweep=slurm needs submitit: pip install '.[sweep]' in the checkout")
    said = [" ".join(str(e).split()) for e in (error, error.__cause__) if e is not None and str(e).strip()]
    words = said or [type(error).__name__]
    return UserError(f"configuration: {shown('; '.join(dict.fromkeys(words)), 400)}")


def _sum_up(jobs: Jobs, after: Callable[[Sequence[Outcome]], None] | None, loud: bool = False) -> None:
    """What is left to do and to say after the jobs of a multirun, be it that they were stopped."""
    outcomes = jobs.outcomes()
    jobs.forget()
    failures = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error is not None]
    said = [f"{len(failures)} job(s) failed: {'; '.join(failures)}"] if failures else []
    try:
        if outcomes and after is not None and not jobs.told_elsewhere:
            after(outcomes)
    except Exception as error:  # must not cost what is known of the jobs
        said.append(str(told(error, None, loud)))
    if said:
        fail(UserError("; ".join(said)))


def is_multirun() -> bool:
    """Whether this job is one of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _job(work: Callable[[Config, Path], Any], jobs: Jobs, loud: bool = False) -> Callable[[DictConfig], Any]:
    """`work` on Hydra's terms. In a sweep a failing job, whatever its error, must not take the others down."""

    def job(raw: DictConfig) -> Any:
        folder = Path(HydraConfig.get().runtime.output_dir)
        if is_multirun():
            jobs.note(folder, error=SILENT)
        try:
            config = parse(raw)
            jobs.told_elsewhere = not first_machine(config.trainer)
            share_cores()
            if is_multirun():
                jobs.take(folder)
            result = work(config, folder)
        except Interrupted as end:
            end.left_in(folder)
            raise
        except Exception as error:
            line = told(error, folder, loud)
            if not is_multirun():
                fail(line)
            log.error("%s: %s", folder, line)
            jobs.note(folder, error=str(line))
            return float("nan")
        if is_multirun():
            jobs.note(folder, result)
        return result

    return job


def check(name: str, overrides: Sequence[str], folder: Path | None = None, multirun: bool = True) -> list[str]:
    """Refuse misspelt keys and choices with the nearest valid one, before Hydra is asked.

    Args:
        name: of the primary configuration.
        overrides: as Hydra can read them.
        folder: of further files of the configuration (`--config-dir`).
        multirun: whether several values of an override are several runs.

    Returns:
        The overrides; one for an option that a class or the schema has and no file sets is marked as an addition.

    Raises:
        UserError: a line that cannot be parsed, an unknown key, an unknown choice of a group, or several values where
            one is meant.
    """
    read, places = parsed(overrides), Places.of(folder)
    if not multirun:
        _refuse_sweeps(name, read, places)
    for override in read:
        if override.value_type == ValueType.GLOB_CHOICE_SWEEP and override.key_or_group not in places.groups():
            raise UserError(f"{shown(override.input_line)} names no files to choose from: give the values one by one")
    choices = [o for o in read if o.key_or_group in places.groups() and not o.is_delete()]
    # Hydra answers for its own keys.
    keys = [o for o in read if o.key_or_group not in places.groups() and not o.key_or_group.startswith("hydra")]
    unset: set[str] = set()
    for chosen in itertools.product(*(_choices(o, places) for o in choices)):
        unset |= check_keys(_compose(name, chosen, places), keys, chosen)
    return [f"++{o}" if key_of(o) in unset and not o.startswith(("+", "~")) else o for o in overrides]


def refuse_two_weights(overrides: Sequence[str]) -> None:
    """Raise UserError where both settings are given that say what the encoder starts from: one would be lost."""
    keys = ("pretrained", "model.encoder.weights")
    given = {key_of(o): o.partition("=")[2] for o in overrides if key_of(o) in keys}
    if len(given) == 2 and len(set(given.values())) == 2:
        both = " and ".join(f"{key}={shown(given[key])}" for key in keys)
        raise UserError(f"{both} both say what the encoder starts from: leave one of them out")


def _refuse_sweeps(name: str, overrides: Sequence[Override], places: Places) -> None:
    """Raise UserError where an override has several values and nothing makes them several runs."""
    several = [o for o in overrides if o.is_sweep_override()]
    if not several:
        return
    single = [str(o.input_line) for o in overrides if o not in several]
    if _hydra_mode(name, single, places) != RunMode.MULTIRUN:
        line = shown(several[0].input_line)
        raise UserError(f"{line} has several values: add -m to run one after the other, or quote what is one value")


def _choices(override: Override, places: Places) -> list[str]:
    """`group=choice` of every choice that an override of a group names, sweeps included."""
    group, value = override.key_or_group, override.value()
    names = list(override.sweep_string_iterator()) if override.is_sweep_override() else value
    choices = [str(n) for n in (names if isinstance(names, list) else [names])]
    options = places.choices(group)
    for choice in choices:
        if choice.strip("'\"") not in options:
            hint = nearest(choice, options)
            raise UserError(f"{group}={shown(choice)}: there is no such {group}; {hint}")
    return [f"{group}={choice}" for choice in choices]


def _compose(name: str, overrides: Sequence[str], places: Places) -> Any:
    with _started():
        return OmegaConf.to_container(_composed(name, [*places.overrides(), *overrides]))


def _hydra_mode(name: str, overrides: Sequence[str], places: Places) -> RunMode | None:
    with _started():
        mode: RunMode | None = _composed(name, [*places.overrides(), *overrides], return_hydra_config=True).hydra.mode
    return mode


def _composed(name: str, overrides: Sequence[str], **options: Any) -> DictConfig:
    try:
        return compose(name, list(overrides), **options)
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise as_user_error(error) from error


def composed(overrides: Sequence[str], name: str = "config") -> Config:
    """Compose and check a configuration without a command line (tests, notebooks, bench)."""
    with _started():
        return parse(_composed(name, overrides))


def _started() -> AbstractContextManager[Any]:
    """A running job has Hydra at hand; elsewhere it has to be started."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    started: AbstractContextManager[Any] = initialize_config_dir(str(CONF), version_base="1.3")
    return started


# What a method's own file decides, and a data set's or the command line may decide otherwise.
RECIPE = ("steps", "pretrained", "running_statistics", "optimizer", "schedule", "teacher", "method")
STARTS = (".weights", ".allow_missing")


def departures(config: Config) -> list[str]:
    """What a run does otherwise than its method's file by itself: `key value (the method's value)`, sorted.

    `data=streets` is why there are any: a small network, from other weights, for minutes.
    """
    if not HydraConfig.initialized():
        return []
    chosen = HydraConfig.get().runtime.choices
    tree = _recipe(chosen["method"])
    own_model = tree.hydra.runtime.choices["model"]
    said = asdict(config)
    values = dict(leaves({key: said[key] for key in RECIPE}))
    values["evaluator.inference"] = config.evaluator.inference
    values["data.rare_class.enabled"] = config.data.rare_class.enabled
    found = [] if own_model == chosen["model"] else [f"model {chosen['model']} ({own_model})"]
    if not found:  # of another network each number would differ; and what its encoder starts from, `pretrained` says
        values |= {key: value for key, value in leaves({"model": said["model"]}) if not key.endswith(STARTS)}
    for key, value in values.items():
        own = OmegaConf.select(tree, key, default="not set")
        if not isinstance(value, Mapping) and own != value:
            found.append(f"{key} {value} ({own})")
    return sorted(found)


@functools.cache
def _recipe(method: str) -> DictConfig:
    """What a method's file says by itself, which is the same for all jobs of a sweep."""
    with _started():
        tree = compose("config", [f"method={method}", "~data"], return_hydra_config=True)
    return tree
