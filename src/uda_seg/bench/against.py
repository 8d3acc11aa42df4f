"""Comparison of the configured training with another one that differs by `against.KEY=VALUE`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from uda_seg.bench.measure import Row
from uda_seg.bench.session import prepare, steps_of
from uda_seg.bench.turns import Trained, Turns
from uda_seg.cli.command import check
from uda_seg.config.commands import BenchConfig
from uda_seg.config.compose import composed
from uda_seg.config.schema import groups, key_of
from uda_seg.errors import UserError

PREFIX = "against."


def split(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split overrides into those of the configuration and those of the other one, without the prefix `against.`.

    Raises:
        UserError: an invalid override after `against.`, or one that does not fit the others.
    """
    own = [o for o in given if not key_of(o).startswith(PREFIX)]
    others = [o.replace(PREFIX, "", 1) for o in given if key_of(o).startswith(PREFIX)]
    if any(key_of(o) == "against" for o in own):
        raise UserError("against= needs a key of the other configuration: against.method=NAME, say")
    if others:
        check_rival(own, others)
    return own, others


def rival(given: Sequence[str], against: Sequence[str]) -> list[str]:
    """Return the other configuration's overrides: the given ones, except where `against` replaces them.

    Options of a group with a new choice are dropped: `method.temperature` does not exist in other methods.
    """
    said = {key_of(o) for o in against}
    anew = {key for key in said if key in groups()}
    kept = [o for o in given if key_of(o) not in said and key_of(o).partition(".")[0] not in {*anew, "hydra", "bench"}]
    return [*kept, *against]


def check_rival(given: Sequence[str], against: Sequence[str]) -> list[str]:
    """Return the other configuration's overrides, validated like those of a command.

    Raises:
        UserError: an unknown key or choice, with the nearest valid one.
    """
    try:
        return check(rival(given, against), BenchConfig)
    except UserError as error:
        raise UserError(f"against: {error}") from error


def measure_against(config: BenchConfig) -> list[Row]:
    """Time steps of the two configurations alternately, and report images/s and peak memory."""
    against = config.bench.against
    if not against:
        raise UserError("bench.what=against needs another configuration: against.KEY=VALUE, e.g. against.method=dacs")
    given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    said = {key_of(o) for o in against}
    own = ", ".join(o for o in given if key_of(o) in said) or "as configured"
    return beside(config, composed(check_rival(given, against), BenchConfig), (own, ", ".join(against)))


def beside(config: BenchConfig, other: BenchConfig, labels: tuple[str, str]) -> list[Row]:
    """Measure two configurations alternately, with `bench.pairs` and `bench.steps` of the first one."""
    bench, steps = config.bench, steps_of(config)
    with tempfile.TemporaryDirectory() as folder, Turns() as turns:
        for index, side in enumerate((config, other)):
            # one log call per block
            side = replace(side, logger=replace(side.logger, kind="csv", log_every=bench.steps))
            turns.add(_maker(side, Path(folder) / str(index), steps))
        return turns.compare(labels, bench.pairs, bench.steps).rows("against")


def _maker(config: BenchConfig, folder: Path, steps: int) -> Callable[[], Trained]:
    return lambda: Trained(prepare(config, folder, steps))
