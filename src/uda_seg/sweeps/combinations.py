"""Combinations of an ablation: one setting at a time instead of all with all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from uda_seg.errors import UserError

log = logging.getLogger(__name__)


def one_at_a_time(jobs: Sequence[Sequence[str]], around: str | None, base: str | None) -> list[Sequence[str]]:
    """Keep the base row, and the jobs that differ from a row in at most one setting.

    Only settings of which the jobs have several values count, so that a row can always be asked for by its overrides.

    Args:
        jobs: overrides of every job.
        around: overrides of that row, separated by blanks; None: all jobs stay.
        base: overrides of the base row, likewise, whose jobs stay; None: there is none.

    Raises:
        UserError: `around` or `base` is not made of overrides of single values, `around` has a setting that no job
            has, or no job is left.
    """
    if not around:
        return list(jobs)
    centre, reference = _settings("around", around), _settings("base", base or "")
    known = [_values(job) for job in jobs]
    for key in centre:
        if not any(key in job for job in known):
            raise UserError(f"hydra.launcher.around={around}: no job has a {key}; correct it, or leave it out")
    swept = [key for key in centre if any(job.get(key) != known[0].get(key) for job in known)]

    def stays(job: Mapping[str, Any]) -> bool:
        is_base = bool(reference) and all(job.get(key) == reference[key] for key in reference)
        return is_base or sum(job.get(key) != centre[key] for key in swept) <= 1

    left = [own for own, values in zip(jobs, known, strict=True) if stays(values)]
    if not left:
        raise UserError(
            f"every combination differs from {around} in more than one setting: take them all with "
            "hydra.launcher.around=null"
        )
    if len(left) < len(jobs):
        log.info(
            "%d jobs differ from %s in more than one setting and are left out (hydra.launcher.around=null takes them)",
            len(jobs) - len(left),
            around,
        )
    return left


def _settings(key: str, row: str) -> dict[str, Any]:
    try:
        return _values(row.split())
    except (HydraException, ValueError) as error:
        raise UserError(
            f"hydra.launcher.{key}={row} is not made of overrides of one value each, separated by blanks"
        ) from error


def _values(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse overrides, so that 0.5 and 5e-1, or none and 'none', are one value; raises ValueError for several."""
    found = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            raise ValueError(override.input_line)
        value = override.value()
        value = value.text if isinstance(value, QuotedString) else value
        found[str(override.key_or_group)] = (isinstance(value, bool), value)  # true is not 1
    return found
