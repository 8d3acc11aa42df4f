"""Execution of a command: compose and check the configuration, run, report errors in one line."""

from __future__ import annotations

import itertools
import logging
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uda_seg.cli.arguments import Arguments, emptied, parsed, quoted, read_arguments
from uda_seg.cli.explain import explain
from uda_seg.cli.idle import refuse_places, refuse_two_ends, refuse_without_effect
from uda_seg.cli.keys import Places, check_files, check_keys
from uda_seg.config.compose import as_user_error, composed, composed_tree, hydra_initialized, is_multirun
from uda_seg.config.former import CHOICES
from uda_seg.config.keys import primary
from uda_seg.config.naming import plain_name, variant
from uda_seg.config.schema import CONF, Config, Origin, Parsed, groups, key_of, parse
from uda_seg.config.sources import make_importable, searched, searchpath_in, with_folder
from uda_seg.errors import Interrupted, UserError, outlive_readers
from uda_seg.errors.ending import ended_by, ended_by_ctrl_c, fail, full_errors, hydra_raises
from uda_seg.errors.known import told
from uda_seg.launch.rendezvous import first_machine
from uda_seg.launch.threads import share_cores
from uda_seg.options.validate import nearest, shown
from uda_seg.sweeps.outcomes import SILENT, Jobs, Outcome

log = logging.getLogger(__name__)


OmegaConf.register_new_resolver("variant", variant, replace=True)
OmegaConf.register_new_resolver("plain_name", plain_name, replace=True)


def listed_choices() -> str:
    """List every configuration group with its choices, for `--help`."""
    lines = []
    for group in sorted(groups()):
        names = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        lines += textwrap.wrap(f"{group}: {names}", 116, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


OmegaConf.register_new_resolver("choices", listed_choices, replace=True)


def swept(given: Sequence[str] = ()) -> list[str]:
    """List the keys of which a multirun has several values: those on the command line, and the sweeper's own."""
    return [*given, *(HydraConfig.get().sweeper.get("params") or ())]


OmegaConf.register_new_resolver("swept", swept, replace=True)


def run(
    kind: type[Parsed],
    work: Callable[[Parsed, Path], Any],
    *,
    expand: Callable[[list[str]], list[str]] | None = None,
    after: Callable[[Sequence[Outcome]], None] | None = None,
) -> None:
    """Run a command: parse the command line, compose and check the configuration, call `work` with it and its folder.

    Args:
        kind: schema of the command's configuration.
        work: the command; its result is the objective of a sweeper. `--help` shows its module's docstring, and with a
            method or the name of a part of the configuration its options.
        expand: maps the given overrides to those to compose (`evaluate` adds a checkpoint's).
        after: called with the outcomes when all jobs of a multirun are done.

    Exits with code 1 and one line on standard error after any error, and with 130 after Ctrl-C.
    """
    OmegaConf.register_new_resolver("usage", lambda: str(sys.modules[work.__module__].__doc__), replace=True)
    outlive_readers()
    jobs, loud = Jobs(), full_errors()
    ended: SystemExit | None = None
    try:
        with ended_by_ctrl_c(), hydra_raises():
            said = read_arguments(sys.argv[1:])
            overrides = said.overrides
            if said.topics:
                print(_explained(kind, said))
                return
            if not said.explains:
                overrides = _checked(kind, said, expand)
                several = [str(o.key_or_group) for o in parsed(overrides) if o.is_sweep_override()]
                OmegaConf.register_new_resolver("swept", partial(swept, several), replace=True)
            sys.argv = [sys.argv[0], *said.flags, f"hydra.job.name={work.__name__}", *overrides]
            job = _job(kind, work, jobs, loud)
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=primary(kind))(job)()
    except SystemExit as end:
        ended = end
    except (HydraException, OmegaConfBaseException) as error:  # outside of jobs, which handle their own errors
        ended = ended_by(told(as_user_error(error), None, loud))
    except Exception as error:
        ended = ended_by(told(error, None, loud))
    _sum_up(jobs, after, loud)
    if ended is not None:
        raise ended


def _checked(kind: type[Config], said: Arguments, expand: Callable[[list[str]], list[str]] | None) -> list[str]:
    """Expand and check the overrides; values, too, for a single job, before Hydra makes a folder for it."""
    refuse_two_weights(said.overrides)
    refuse_places(said)
    refuse_two_ends(said)
    overrides = said.overrides if expand is None else expand(with_folder(said.overrides, said.folder))
    overrides = check(overrides, kind, said.folder, said.multirun, {*map(key_of, said.overrides)})
    if said.is_one_job:
        composed(with_folder(overrides, said.folder), kind)
    return overrides


def _explained(kind: type[Config], said: Arguments) -> str:
    """Compose the configuration, and describe the parts of it that `--help` is asked about."""
    overrides = check(said.overrides, kind, said.folder, multirun=False)
    config = composed(with_folder(overrides, said.folder), kind)
    return "\n\n".join(explain(config, topic) for topic in said.topics)


def _sum_up(jobs: Jobs, after: Callable[[Sequence[Outcome]], None] | None, loud: bool = False) -> None:
    """Finish a multirun and report its outcomes, also after an interruption."""
    outcomes = jobs.outcomes()
    jobs.forget()
    failures = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error is not None]
    said = [f"{len(failures)} job(s) failed: {'; '.join(failures)}"] if failures else []
    try:
        if outcomes and after is not None and not jobs.told_elsewhere:
            after(outcomes)
    except Exception as error:  # must not hide the outcomes of the jobs
        said.append(str(told(error, None, loud)))
    if said:
        fail(UserError("; ".join(said)))


def _job(
    kind: type[Parsed], work: Callable[[Parsed, Path], Any], jobs: Jobs, loud: bool = False
) -> Callable[[DictConfig], Any]:
    """Wrap `work` for Hydra. In a sweep a failing job, whatever its error, must not stop the others."""

    def job(raw: DictConfig) -> Any:
        folder = Path(HydraConfig.get().runtime.output_dir)
        if is_multirun():
            jobs.note(folder, error=SILENT)
        try:
            make_importable(searched(list(HydraConfig.get().searchpath)))
            config = parse(raw, kind)
            jobs.told_elsewhere = not first_machine(config.trainer)
            share_cores()
            if is_multirun():
                _take_places(jobs, folder, config)
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


def _take_places(jobs: Jobs, folder: Path, config: Config) -> None:
    """Claim all places that a job of a multirun writes to; raises UserError if another job writes to one of them."""
    jobs.take(folder)
    for key, place in config.places().items():
        if place is not None:
            jobs.take(Path(place).expanduser(), f"give one {key}= for each, or run them one by one")


def check(
    overrides: Sequence[str],
    kind: type[Config] = Config,
    folder: Path | None = None,
    multirun: bool = True,
    typed: Set[str] | None = None,
) -> list[str]:
    """Refuse misspelt keys and choices, suggesting the nearest valid one, before calling Hydra.

    Args:
        overrides: overrides that Hydra can parse.
        kind: schema of the command's configuration.
        folder: folder of further configuration files (`--config-dir`).
        multirun: several values of an override mean several runs.
        typed: keys that stand on the command line, if a checkpoint has added others.

    Returns:
        The overrides, with `+` for options that a class or the schema has but no file sets.

    Raises:
        UserError: an override that cannot be parsed, an unknown key, an unknown choice of a group, several values
            instead of one, or a key without effect.
    """
    read, name = parsed(overrides), primary(kind)
    paths = searchpath_in(overrides)
    make_importable(searched(paths))
    places = Places.of(folder, paths)
    if not multirun:
        _refuse_sweeps(name, read, places)
    _refuse_values(read, places)
    choices = [o for o in read if o.key_or_group in places.groups() and not o.is_delete()]
    # Hydra checks its own keys.
    keys = [o for o in read if o.key_or_group not in places.groups() and not o.key_or_group.startswith("hydra")]
    known = [_choices(o, places) for o in choices]
    params = _params_of_sweep(name, read, places, multirun)
    given = {str(o.key_or_group) for o in (*choices, *keys)}
    known += [_choices(params[group], places) for group in _groups_of_sweep(params, given, places)]
    unset, trees = _unset_keys(name, known, keys, places, kind)
    refuse_without_effect({str(o.key_or_group) for o in keys} if typed is None else typed, keys, trees)
    return [_spelt(override, unset, params) for override in overrides]


def _params_of_sweep(
    name: str, overrides: Sequence[Override], places: Places, multirun: bool
) -> Mapping[str, Override]:
    """Return the overrides in `hydra.sweeper.params` of the chosen sweep, by key; none if this is a single run."""
    if not any(o.key_or_group == "sweep" and o.value() is not None for o in overrides):
        return {}
    own = (o for o in overrides if o.key_or_group == "sweep" or o.key_or_group.startswith("hydra"))
    deciding = [o for o in own if not o.is_sweep_override()]
    node = _hydra_node(name, [str(o.input_line) for o in deciding], places)
    if not multirun and node.mode != RunMode.MULTIRUN:
        return {}
    return {str(o.key_or_group): o for o in parsed([f"{k}={v}" for k, v in (node.sweeper.get("params") or {}).items()])}


def _groups_of_sweep(params: Mapping[str, Override], given: Set[str], places: Places) -> list[str]:
    """List the groups that the sweep chooses in and on which depends whether what the command line gives is valid.

    Args:
        params: overrides of the sweep's file, by key.
        given: keys and groups on the command line.
        places: search path of configuration files.
    """
    by_method = not given.isdisjoint({"quirks", "preset", "experiment"})
    return [
        group
        for group in params
        if group in places.groups() - given
        and ((group == "method" and by_method) or any(key.startswith(f"{group}.") for key in given))
    ]


def _unset_keys(
    name: str, choices: Sequence[Sequence[str]], keys: Sequence[Override], places: Places, kind: type[Config]
) -> tuple[set[str], list[Any]]:
    """Check keys with every combination of choices; return those that no file sets, and the files' values of each."""
    unset: set[str] = set()
    trees = []
    for chosen in itertools.product(*choices):
        tree, found = _compose(name, chosen, places)
        unset |= check_keys(tree, keys, chosen, kind)
        check_files(tree, found, keys, places)
        trees.append(tree)
    return unset, trees


def _spelt(override: str, unset: Set[str], params: Mapping[str, Override]) -> str:
    """Write an override as Hydra takes it: with `++` if no file sets the key.

    A key in the sweep's own file is written as it is there. Otherwise Hydra would take both for two settings, and
    combine their values.
    """
    key = key_of(override)
    if key in params and not override.startswith("~"):
        return f"{params[key].get_key_element()}={override.partition('=')[2]}"
    return f"++{override}" if key in unset and not override.startswith(("+", "~")) else override


def compose(*overrides: str, kind: type[Parsed] = Config) -> Parsed:  # type: ignore[assignment]
    """Compose and check a configuration in Python, from overrides as the command line takes them.

    Args:
        overrides: `key=value` each.
        kind: schema of the command's configuration, such as `PrepareConfig`; default: that of training.

    Raises:
        UserError: an unknown key or choice, with the nearest there is, or a value that cannot be.
    """
    return composed(check([quoted(emptied(override)) for override in overrides], kind, multirun=False), kind)


def refuse_two_weights(overrides: Sequence[str]) -> None:
    """Raise UserError if both settings of the encoder's initial weights are given, as one would be ignored."""
    keys = ("pretrained", "model.encoder.weights")
    given = {key_of(o): o.partition("=")[2] for o in overrides if key_of(o) in keys}
    if len(given) == 2 and len(set(given.values())) == 2:
        both = " and ".join(f"{key}={shown(given[key])}" for key in keys)
        raise UserError(f"{both} both set the encoder's initial weights: leave one of them out")


def _refuse_values(overrides: Sequence[Override], places: Places) -> None:
    """Raise UserError for a value that its key or group cannot have, whatever the configuration."""
    for override in overrides:
        if override.value_type == ValueType.GLOB_CHOICE_SWEEP and override.key_or_group not in places.groups():
            raise UserError(f"{shown(override.input_line)} names no files to choose from: give the values one by one")
        if override.key_or_group in ("method", "preset") and (override.is_delete() or _is_list(override)):
            raise UserError(
                f"{shown(override.input_line)}: a run has one {override.key_or_group}, neither none nor several"
            )
        if override.key_or_group == "sweep" and override.is_sweep_override():
            raise UserError(f"{shown(override.input_line)}: a multirun has one sweep: run them one after the other")


def _refuse_sweeps(name: str, overrides: Sequence[Override], places: Places) -> None:
    """Raise UserError if an override has several values outside of a multirun."""
    several = [o for o in overrides if o.is_sweep_override()]
    if not several:
        return
    # Choices of files and Hydra's own keys can ask for several runs; other keys may be ones that no file sets yet.
    deciding = (o for o in overrides if o.key_or_group in places.groups() or o.key_or_group.startswith("hydra"))
    mode = _hydra_node(name, [str(o.input_line) for o in deciding if o not in several], places).mode
    if mode != RunMode.MULTIRUN:
        line = shown(several[0].input_line)
        raise UserError(f"{line} has several values: add -m to run one after the other, or quote what is one value")


def _choices(override: Override, places: Places) -> list[str]:
    """List `group=choice` for every choice in an override of a group, including sweeps."""
    group, value = override.key_or_group, override.value()
    names = list(override.sweep_string_iterator()) if override.is_sweep_override() else value
    choices = ["null" if n is None else str(n) for n in (names if isinstance(names, list) else [names])]
    options = places.choices(group)
    for choice in choices:
        if choice.strip("'\"") not in options:
            now = CHOICES.get((group, choice))
            if now is not None:
                raise UserError(f"{group}={choice} is now {group}={now}")
            hint = nearest(choice, options)
            raise UserError(f"{group}={shown(choice)}: there is no such {group}; {hint}")
    if isinstance(value, list):  # several files of the group, merged
        return [f"{group}=[{','.join(choices)}]"]
    return [f"{group}={choice}" for choice in choices]


def _is_list(override: Override) -> bool:
    return not override.is_sweep_override() and isinstance(override.value(), list)


def _compose(name: str, overrides: Sequence[str], places: Places) -> tuple[Any, Mapping[str, str]]:
    """Return the plain values of the chosen files, and the choice in each group."""
    with hydra_initialized():
        raw = composed_tree(name, [*places.overrides(), *overrides], return_hydra_config=True)
    tree = OmegaConf.to_container(OmegaConf.masked_copy(raw, [str(key) for key in raw if key != "hydra"]))
    return tree, Origin.of(raw.hydra).choices


def _hydra_node(name: str, overrides: Sequence[str], places: Places) -> DictConfig:
    """Return Hydra's own part of the composed configuration."""
    with hydra_initialized():
        node: DictConfig = composed_tree(name, [*places.overrides(), *overrides], return_hydra_config=True).hydra
    return node
