"""The report of many runs as files: a page, and its tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from uda_seg.results.intervals import DRAWS
from uda_seg.results.page import Section, build_section, latex, markdown, render, table_csv
from uda_seg.results.reading import Found
from uda_seg.results.tables import CONTROLS, build_tables
from uda_seg.storage.files import write_text

log = logging.getLogger(__name__)


def build_sections(
    found: Found, bases: Mapping[str, str], against: Sequence[str] = CONTROLS[:1], draws: int = DRAWS
) -> list[Section]:
    """Compute what the report shows of every table of the runs.

    Args:
        found: the runs.
        bases: sweep -> overrides of its base row, see `build_tables`.
        against: methods, labels or overrides of rows that the others are compared with, besides these and all controls.
        draws: bootstrap samples of an interval.
    """
    tables = build_tables(found.runs, bases)
    for said in against:
        if said not in CONTROLS and not any(table.named(said) for table in tables):
            log.warning("report.against: no run has the method, label or setting %s; nothing is compared with it", said)
    return [build_section(table, against, draws) for table in tables]


def write_report(out: Path, title: str, found: Found, sections: Sequence[Section], draws: int = DRAWS) -> Path:
    """Write `index.html`, `report.md`, `report.csv` and `report.tex`, log what they lack, and return the page.

    Args:
        out: folder of the files.
        title: title of the page.
        found: the runs, and what is not among them.
        sections: one for every table.
        draws: bootstrap samples that were drawn.

    Raises:
        UserError: a file cannot be written.
    """
    page = out / "index.html"
    write_text(page, render(title, found, sections, draws))
    write_text(out / "report.md", markdown(found, sections, draws))
    write_text(out / "report.csv", table_csv(sections))
    write_text(out / "report.tex", latex(sections))
    for place, why in found.unfinished.items():
        log.warning("%s: %s", place, why)
    for line in found.problems:
        log.warning("%s", line)
    log.info("report: %s", page)
    return page
