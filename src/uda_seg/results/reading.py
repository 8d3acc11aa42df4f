"""Finding and reading the results of runs: folders of runs, or their JSON files alone."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uda_seg.errors import Damaged, UserError
from uda_seg.options.validate import leaves
from uda_seg.results.log import Series, read_log, validations_of
from uda_seg.results.result import CURE, RESULT, Best, Cost, Result, Start, TargetScores, read_result
from uda_seg.storage.files import first_line, open_file, read_json, read_yaml

RECORD = "run.yaml"
# Folders of a run in which no other run is looked for.
_INSIDE = {"checkpoints", "model_checkpoints", "panels", "profile", "pseudo_labels", "tensorboard", "wandb", "maps"}
_INSIDE |= {"evaluation", "replaced_run", "__pycache__"}


@dataclass(frozen=True)
class Run:
    """A result and where it was found.

    Attributes:
        result: the result.
        file: the file it was read from.
        folder: folder of the run; None for a JSON file alone.
        log: logged values by name, (step, value) in order; empty for a JSON file alone.
        former: whether an earlier version wrote the run, without counts per image.
    """

    result: Result
    file: Path
    folder: Path | None = None
    log: Series = field(default_factory=dict)
    former: bool = False

    @property
    def last(self) -> Path | None:
        """Checkpoint of the last step; None without one."""
        path = None if self.folder is None else self.folder / "checkpoints" / "last.ckpt"
        return path if path is not None and path.is_file() else None


@dataclass(frozen=True)
class Found:
    """What was found below one or more places.

    Attributes:
        runs: runs with a result, in the order of their paths.
        unfinished: folder -> why a run has no result: it failed, was stopped, or is still going.
        problems: lines about files that could not be read, in whole or in part.
    """

    runs: list[Run] = field(default_factory=list)
    unfinished: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find_results(*places: str | Path) -> Found:
    """Find the results of runs.

    Args:
        places: folders with runs somewhere below them, folders with JSON files of results, such files, or patterns of
            these (`outputs/*/lcmsm*`).

    Returns:
        Every result once, of a folder rather than of a copy of its JSON file, and what could not be read, line by line:
        a damaged file does not hide the others.

    Raises:
        UserError: a place does not exist, or there is no run in all of them.
    """
    found, seen = Found(), set[Path]()
    for place in places:
        for path in _matches(str(place)):
            for candidate in [path] if path.is_file() else _candidates(path):
                if (real := candidate.resolve()) not in seen:
                    seen.add(real)
                    _add(found, candidate, named=candidate == path)
    found.runs[:] = _once(found.runs)
    if not (found.runs or found.unfinished or found.problems):
        said = ", ".join(str(place) for place in places)
        raise UserError(f"{said}: no run and no {RESULT} in it; give the folder that runs were written to")
    return found


def _once(runs: Sequence[Run]) -> list[Run]:
    """Keep one of equal results, in the place of the first: the one with a folder, which knows most."""
    kept: dict[str, Run] = {}
    for run in runs:
        same = repr(run.result)  # in which, unlike in a comparison, NaN is NaN
        if same not in kept or (kept[same].folder is None and run.folder is not None):
            kept[same] = run
    return list(kept.values())


def _matches(place: str) -> list[Path]:
    path = Path(place).expanduser()
    if path.exists():
        return [path]
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise UserError(f"{place}: there is no such folder or file; give the folder that runs were written to")
    return [Path(match) for match in matches]


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs below a folder, itself included, and JSON files outside of them, in order."""
    for place, folders, files in os.walk(folder):
        here, run = Path(place), RECORD in files
        folders[:] = sorted(name for name in folders if name[0] != "." and not (run and name in _INSIDE))
        if run:
            yield here
        else:
            yield from (here / name for name in sorted(files) if name.endswith(".json") and name[0] != ".")


def _add(found: Found, path: Path, named: bool) -> None:
    """Read one run's folder or one file; files of other kinds are passed over unless they were given by name."""
    try:
        if path.is_dir():
            _add_folder(found, path)
        elif named or _looks_like_result(path):
            found.runs.append(Run(read_result(path), path))
    except UserError as error:
        found.problems.append(str(error))


def _looks_like_result(path: Path) -> bool:
    """Tell a result, or what is left of one, from other JSON files by its first bytes and by its keys."""
    try:
        with open_file(path) as file:
            head = file.read(64)
            if head.startswith(b'{\n"run": '):  # as `write_result` writes it
                return True
            content = json.loads(head + file.read())
    except (OSError, ValueError, RecursionError):
        return path.name == RESULT
    return isinstance(content, dict) and {"schema", "run", "targets"} <= content.keys()


def _add_folder(found: Found, folder: Path) -> None:
    log, problems = read_log(folder / "metrics.csv")
    found.problems.extend(problems)
    if os.path.lexists(folder / RESULT):
        found.runs.append(Run(read_result(folder / RESULT), folder / RESULT, folder, log))
    elif os.path.lexists(folder / "metrics.json"):
        found.runs.append(Run(_former(folder, log), folder / "metrics.json", folder, log, former=True))
    else:
        found.unfinished[str(folder)] = _why(folder, log)


def _why(folder: Path, log: Series) -> str:
    """Say how far a run without a result has come."""
    steps = [values[-1][0] for values in log.values() if values]
    reached = f"after step {max(steps)}" if steps else "before its first logged step"
    try:
        with open_file(folder / "error.log") as file:
            lines = file.read(2**20).decode(errors="replace").split("\n")
    except OSError:
        return f"not finished: stopped or still going, {reached}"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"failed {reached}: {last[:300]}"


# ---------------------------------------------------------------------- runs of earlier versions


def _former(folder: Path, log: Series) -> Result:
    """Put together what the files of an earlier version tell: there are no confusion matrices among them."""
    path = folder / "metrics.json"
    metrics, record = read_json(path, CURE), _record(folder)
    try:
        config = record["config"]
        overrides = [str(override) for override in record["overrides"]]
        chosen = dict(o.partition("=")[::2] for o in overrides)
        best = metrics.get("best")
        return Result(
            run="/".join(folder.absolute().parts[-3:]),
            method=chosen.get("method", str(config["method"]["_target_"]).rpartition(".")[2]),
            data=str(config["data"]["name"]),
            model=chosen.get("model", str(config["model"].get("_target_", "")).rpartition(".")[2]),
            seed=int(metrics["seed"]),
            step=int(metrics["step"]),
            steps=int(metrics.get("steps", config["steps"])),
            miou=_number(metrics["miou"]),
            targets=_former_targets(metrics),
            best=None if best is None else Best(_number(best["miou"]), int(best["step"])),
            validations=validations_of(log, metrics["targets"]),
            start=Start(pretrained=_base(config.get("pretrained")), init=_base(config.get("init"))),
            cost=_former_cost(metrics),
            overrides=overrides,
            settings={key: value for key, value in leaves(config) if not isinstance(value, Mapping)},
            versions={str(key): str(value) for key, value in record.get("versions", {}).items()},
            git=str(record.get("git", "unknown")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder} holds no run that can be read: {first_line(error)}; {CURE}") from error


def _former_targets(metrics: Mapping[str, Any]) -> dict[str, TargetScores]:
    """Return the scores by target; those of single classes were written of the first one alone."""
    found = {}
    for i, (name, miou) in enumerate(metrics["targets"].items()):
        per_class = {key: _number(value) if i == 0 else math.nan for key, value in metrics["per_class"].items()}
        means = {key: _number(value) for key, value in metrics["miou_over"].items()} if i == 0 else {}
        accuracy = _number(metrics.get("pixel_accuracy")) if i == 0 else math.nan
        teacher = metrics.get("teacher") if len(metrics["targets"]) == 1 else None
        found[name] = TargetScores(
            _number(miou), per_class, list(metrics["classes"]), accuracy, means=means, teacher_miou=teacher
        )
    return found


def _former_cost(metrics: Mapping[str, Any]) -> Cost:
    before, read = metrics.get("source_images_before", 0), metrics.get("source_images")
    return Cost(
        wall_s=_number(metrics.get("wall_s")),
        source_images=None if read is None else int(read) - int(before),
        source_images_before=int(before),
        labelled_target_images=int(metrics.get("labelled_target_images", 0)),
    )


def _record(folder: Path) -> Mapping[str, Any]:
    record = read_yaml(folder / RECORD)
    if not isinstance(record, Mapping):
        raise Damaged(f"{folder / RECORD} is no record of a run; {CURE}")
    return record


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _base(value: Any) -> str | None:
    return None if value is None else Path(str(value)).name
