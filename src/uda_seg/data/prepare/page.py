"""Report of `prepare` as a single self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import rich.table
from numpy.typing import NDArray
from rich.markup import escape

from uda_seg.data.labels import ClassSet
from uda_seg.data.prepare.check import Problem

Shares = NDArray[np.float64]
SHOWN = 20  # problems shown in the terminal
LISTED = 200  # problems on the page; problems.txt has all of them
_RAREST = 1e-5  # share with a bar of length 0: the scale is logarithmic to make rare classes visible

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .15em .8em; text-align: left; border-bottom: 1px solid #dee2e6 }
td.n { text-align: right; font-variant-numeric: tabular-nums } .bar { height: .9em; border-radius: 2px }
.damage { color: #b02a37 } img { max-width: 100% } code { background: #f1f3f5; padding: .1em .3em }
"""


def problem_table(problems: Sequence[Problem]) -> rich.table.Table:
    """Tabulate the first problems for the terminal, with long paths folded to fit narrow ones."""
    more = f" ({len(problems) - SHOWN} more in problems.txt)" if len(problems) > SHOWN else ""
    table = rich.table.Table(title=f"problems{more}", title_justify="left", show_lines=True)
    for name in ("", "file", "what", "cure"):
        table.add_column(name, overflow="fold", no_wrap=not name)
    for problem in problems[:SHOWN]:
        kind = "damage" if problem.damage else "note"
        table.add_row(kind, *(escape(text) for text in (problem.file, problem.what, problem.cure)))
    return table


def page(
    title: str,
    counts: Sequence[Mapping[str, object]],
    shares: Mapping[str, Shares],
    classes: ClassSet,
    problems: Sequence[Problem],
    sheet: NDArray[np.uint8],
) -> str:
    """Render the page's HTML.

    Args:
        title: The data and the command.
        counts: A row of numbers per domain, all with the same keys.
        shares: Domain -> each class's share of the labelled pixels, [K].
        classes: Their names and colours.
        problems: All problems.
        sheet: The contact sheet, RGB uint8 [H, W, 3].
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _counts(counts), "<h2>Problems</h2>", _problems(problems)]
    parts += ["<h2>Class frequencies</h2>", "<p>Share of the labelled pixels; bars on a logarithmic scale.</p>"]
    parts += [_bars(name, share, classes) for name, share in shares.items()]
    parts += ["<h2>Contact sheet</h2>", _image(sheet)]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _counts(rows: Sequence[Mapping[str, object]]) -> str:
    names = list(rows[0]) if rows else []
    header = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    cells = ("".join(f"<td>{html.escape(str(row[name]))}</td>" for name in names) for row in rows)
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _problems(problems: Sequence[Problem]) -> str:
    if not problems:
        return "<p>None.</p>"
    rows = [
        f'<tr class="{"damage" if p.damage else "note"}"><td><code>{html.escape(p.file)}</code></td>'
        f"<td>{html.escape(p.what)}</td><td>{html.escape(p.cure)}</td></tr>"
        for p in problems[:LISTED]
    ]
    more = f"<p>{len(problems) - LISTED} more in problems.txt.</p>" if len(problems) > LISTED else ""
    return f"<table><tr><th>file</th><th>what</th><th>cure</th></tr>{''.join(rows)}</table>{more}"


def _bars(name: str, share: Shares, classes: ClassSet) -> str:
    rows = []
    for label, colour, value in zip(classes.names, classes.palette, share, strict=True):
        length = 100 * max(0.0, 1 - np.log(max(value, _RAREST)) / np.log(_RAREST))
        bar = f'<div class="bar" style="width: {length:.1f}%; background: rgb{tuple(colour)}"></div>'
        rows.append(
            f'<tr><td>{html.escape(label)}</td><td class="n">{100 * value:.3f} %</td>'
            f'<td style="width: 30em">{bar}</td></tr>'
        )
    return f"<h3>{html.escape(name)}</h3><table>{''.join(rows)}</table>"


def _image(sheet: NDArray[np.uint8]) -> str:
    coded = cv2.imencode(".jpg", np.ascontiguousarray(sheet[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return f'<img alt="images and labels" src="data:image/jpeg;base64,{base64.b64encode(coded.tobytes()).decode()}">'
