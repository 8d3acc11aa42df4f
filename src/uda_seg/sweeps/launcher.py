"""The launcher of benchmarks: which jobs there are, how many run at once, and the report at their end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict

from uda_seg.config.schema import Config, key_of, parse
from uda_seg.data.own_files import digest_of_own_files
from uda_seg.data.parallel import cores
from uda_seg.errors import UserError
from uda_seg.errors.ending import fail
from uda_seg.results.reading import find_results
from uda_seg.results.writing import build_sections, write_report
from uda_seg.runs.build import may_stop, method_class
from uda_seg.sweeps.benchmark import Job, is_finished, row_of, table, without_scores
from uda_seg.sweeps.combinations import one_at_a_time
from uda_seg.sweeps.speed import images_per_second
from uda_seg.sweeps.workers import Workers, budget, choose

log = logging.getLogger(__name__)

ON_GPU = 8  # processes that share a GPU unless told otherwise (ours): the networks of minutes do not fill one
_OF_JOBS = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra.job")


def launch(
    loader: ConfigLoader,
    config: DictConfig,
    overrides: Sequence[Sequence[str]],
    *,
    name: str,
    results: str,
    processes: Any,
    threads: Any,
    minutes: Any,
    report: bool,
    base: str | None = None,
    around: str | None = None,
) -> list[JobReturn]:
    """Run the jobs that are not finished, keep their results, and end with the table and the report.

    Args:
        loader: composes configurations.
        config: composed configuration of the multirun, including Hydra's node.
        overrides: overrides of every job.
        name: name of the benchmark, a folder of `results`.
        results: folder of the kept results.
        processes: number of runs at once, or `auto`: measured.
        threads: PyTorch's threads of each, or `auto`: an equal share of the cores.
        minutes: minutes after which running jobs are saved, to be continued by the same command; None: no limit.
        report: write the report of all kept results at the end, into `report` in the folder of the sweep.
        base: overrides of the row that the report compares the others with, separated by blanks; None: controls alone.
        around: overrides of a row, likewise, from which the others shall differ in one setting; None: all combinations.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    try:
        limit = None if minutes is None else _number("minutes", minutes, float)
        _refuse_batches(config)
        own = one_at_a_time(overrides, around, base)
        jobs = jobs_of(loader, config, own, Path(results) / _folder_name(name), swept_in(overrides))
        left = [job for job in jobs if not is_finished(job)]
        _say_what_is_missing([job for job in jobs if job not in left])
        at_once, each = _division(left, processes, threads)
        log.info("%s: %s", name, budget(jobs, left, at_once, each))
        workers = Workers(at_once, each, limit, _more(config))
        late = workers.run(left)
        table(jobs).show()
        if report:
            sweep = str(config.hydra.runtime.choices.get("sweep"))
            write_kept(Path(results) / name, Path(str(config.hydra.sweep.dir)), {sweep: base} if base else {})
    except UserError as error:
        fail(error)
    _conclude(len(late), len(jobs), workers.failed)
    return []


def _folder_name(name: str) -> str:
    if name in ("", ".", "..") or Path(name).name != name:
        raise UserError(f"hydra.launcher.name={name}: give the name of one folder, without /")
    return name


def _say_what_is_missing(kept: Sequence[Job]) -> None:
    """Tell of kept results without scores that are asked for: a score does not change what is trained."""
    for score, count in without_scores(kept).items():
        log.info(
            "%d kept results have no %s (evaluator.label_free); those that you delete are made again", count, score
        )


def _conclude(late: int, jobs: int, failed: Mapping[Job, str]) -> None:
    if late:
        log.info("%d of %d runs are left: the same command continues", late, jobs)
    if failed:
        fail(UserError(f"{len(failed)} job(s) failed: {said_of(failed)}"))


def _refuse_batches(config: DictConfig) -> None:
    """Raise UserError if the sweeper would launch some jobs at a time, as rows are told apart by those of all."""
    if config.hydra.sweeper.get("max_batch_size") is not None:
        raise UserError("hydra.sweeper.max_batch_size: these jobs are launched all at once; leave it out")


def _refuse_parts(settings: Config) -> None:
    """Raise UserError for a job that is no whole run on one device.

    Others would take the places of kept results, as the names of rows do not tell them apart.
    """
    import torch

    trainer = settings.trainer
    if settings.resume is not None:
        raise UserError("resume=: these jobs continue by themselves; leave it out")
    if trainer.max_steps is not None or trainer.overfit:
        key = "overfit" if trainer.overfit else "max_steps"
        raise UserError(f"trainer.{key}: kept results are of whole runs; leave it out, steps= makes runs shorter")
    if stopping := may_stop(settings):
        raise UserError(f"callbacks.{stopping[0]} may end a run early: kept results are of whole runs; leave it out")
    if trainer.devices not in (1, "1", "auto") or trainer.num_nodes != 1:
        raise UserError("trainer.devices, trainer.num_nodes: each of these jobs has one device; leave them out")
    on_gpu = trainer.accelerator in ("auto", "gpu", "cuda")
    if trainer.devices == "auto" and on_gpu and (count := torch.cuda.device_count()) > 1:
        raise UserError(f"trainer.devices=auto would train each of these jobs on {count} GPUs: say trainer.devices=1")


def said_of(failed: Mapping[Job, str]) -> str:
    """Tell each error once, with the jobs that have failed with it."""
    names: dict[str, list[str]] = {}
    for job, error in failed.items():
        names.setdefault(error, []).append(job.name)
    return "; ".join(f"{', '.join(those)}: {error}" for error, those in names.items())


def swept_in(overrides: Sequence[Sequence[str]]) -> set[str]:
    """Return the keys of which jobs have several values."""
    return {key for job in overrides[:1] for key in map(key_of, job) if len(_values(key, overrides)) > 1}


def jobs_of(
    loader: ConfigLoader, config: DictConfig, overrides: Sequence[Sequence[str]], results: Path, swept: Set[str]
) -> list[Job]:
    """Compose the jobs; those that differ in their seed alone are composed once.

    Args:
        loader: composes configurations.
        config: composed configuration of the multirun, including Hydra's node.
        overrides: overrides of every job.
        results: folder of the benchmark's kept results.
        swept: keys that name rows, besides those that the command line gives.

    Raises:
        UserError: two jobs would be kept in one file, a configuration that cannot be, or custom data that is not there.
    """
    named = swept | {key_of(str(o)) for o in config.hydra.overrides.task}
    fixed = {key for job in overrides[:1] for key in map(key_of, job)} - named
    composed: dict[tuple[str, ...], tuple[DictConfig, Config]] = {}
    files: dict[str, str] = {}
    found: dict[Path, Job] = {}
    for own in overrides:
        without = tuple(o for o in own if key_of(o) != "seed")
        if without not in composed or _depends_on_seed(composed[without][0]):
            tree = loader.load_sweep_config(config, list(own))
            composed[without] = tree, _parsed(tree)
            _refuse_parts(composed[without][1])
        tree, settings = composed[without]
        seed = next((_seed(o) for o in own if key_of(o) == "seed"), settings.seed)
        tree.seed = seed
        HydraConfig.instance().set_config(tree)
        own_files = _own_files(settings, seed, files)
        row = row_of(tree.hydra.runtime.choices["method"], own, fixed, custom=bool(own_files))
        name = Path(settings.data.name, row, f"seed{seed}")
        place, folder = results / f"{name}.json", Path(str(tree.hydra.sweep.dir)) / name
        job = Job(tuple(own), replace(settings, seed=seed), folder, place, own_files)
        if place in found:
            raise UserError(f"two jobs would both be kept as {place}: {_told_apart(found[place].overrides, own)}")
        found[place] = job
    HydraConfig.instance().set_config(config)
    return list(found.values())


def _own_files(settings: Config, seed: int, known: dict[str, str]) -> str:
    """Return the digest of a job's custom files; jobs that read the same ones share it in `known`."""
    target_labels = method_class(settings).supervised_target
    draws = any(domain.labelled is not None for domain in settings.data.targets.values())
    key = repr((settings.data, target_labels, seed if draws else None))
    if key not in known:
        known[key] = digest_of_own_files(settings.data, seed, target_labels=target_labels)
    return known[key]


def _seed(override: str) -> int:
    value = override.partition("=")[2]
    if not value.isdecimal() or int(value) >= 2**32:
        raise UserError(f"{override}: give whole numbers from 0 to 2**32 - 1")
    return int(value)


def _told_apart(first: Sequence[str], second: Sequence[str]) -> str:
    """Say how two jobs of one name may be told apart."""
    keys = sorted({key_of(override) for override in {*first} ^ {*second}})
    if not keys:
        return "give each value once"
    return f"names do not tell values of {', '.join(keys)} apart; give one of them, or files with different names"


def _depends_on_seed(tree: DictConfig) -> bool:
    """Return whether other settings of a job are made of its seed, such as a start of its own."""
    job = {key: value for key, value in OmegaConf.to_container(tree, resolve=False).items() if key != "hydra"}  # type: ignore[union-attr]
    return "${seed}" in repr(job)


def _values(key: str, overrides: Sequence[Sequence[str]]) -> set[str]:
    return {o for own in overrides for o in own if key_of(o) == key}


def _parsed(tree: DictConfig) -> Config:
    job = tree.copy()
    with open_dict(job):
        del job["hydra"]
    return parse(job, Config)


def _division(left: Sequence[Job], processes: Any, threads: Any) -> tuple[int, int]:
    """Return the numbers of runs at once, and of threads of each."""
    import torch

    at_once = None if processes == "auto" else _number("processes", processes, int)
    each = None if threads == "auto" else _number("threads", threads, int)
    if at_once is None and len(left) > 1:
        if torch.cuda.is_available() and left[0].config.trainer.accelerator in ("auto", "gpu", "cuda"):
            at_once = min(ON_GPU, max(1, cores() // (each or 1)))
        elif each is None:
            at_once, each = choose(cores(), images_per_second)
    at_once = at_once or max(1, cores() // (each or cores()))
    return at_once, each or max(1, cores() // at_once)


def _number(key: str, value: Any, kind: type[int] | type[float]) -> Any:
    whole = isinstance(value, int) or (kind is float and isinstance(value, float))
    if isinstance(value, bool) or not whole or value <= 0:
        auto = "" if key == "minutes" else ", or auto"
        raise UserError(f"hydra.launcher.{key}={value}: give a number above 0{auto}")
    return value


def _more(config: DictConfig) -> list[str]:
    """List the arguments that a job's own command needs: other places of configuration files."""
    hydra = config.hydra
    sources = [f"--config-dir={s.path}" for s in hydra.runtime.config_sources if s.provider == "command-line"]
    named = [f"--config-name={hydra.job.config_name}"] if hydra.job.config_name != "config" else []
    return [*sources, *named, *(str(o) for o in hydra.overrides.hydra if not key_of(str(o)).startswith(_OF_JOBS))]


def write_kept(results: Path, folder: Path, bases: Mapping[str, str]) -> None:
    """Write the report of all kept results of a benchmark into `report` in the folder of its runs, if there are any.

    Args:
        results: folder of the results.
        folder: folder of the runs.
        bases: sweep -> overrides of its base row, see `build_tables`.
    """
    try:
        found = find_results(results)
        write_report(folder / "report", f"Results in {results}", found, build_sections(found, bases))
    except UserError as error:  # the jobs' own outcome is still to be told
        log.warning("no report: %s", error)
