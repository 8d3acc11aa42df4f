"""Write the tables of docs/results.md from the kept results of the benchmarks, between its two marks.

    python scripts/results_tables.py

`tests/sweeps/test_kept_results.py` compares the page with what this writes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from uda_seg.results.result import Result, read_result
from uda_seg.storage.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"
BEGIN, END = "<!-- results: begin, by scripts/results_tables.py -->", "<!-- results: end -->"
NONE = "No results of a benchmark are in this checkout yet."
# Rows in the order of the page; others follow by name.
FIRST = ("source_only", "source_only_strong", "adabn", "adabn_strong", "dacs", "daformer", "mic", "lcmsm", "bicl")


def tables(results: Path) -> str:
    """Write one table for every benchmark and setting: rows by method, columns by target, mIoU in %."""
    found: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for path in sorted(results.glob("*/*/*/seed*.json")):
        benchmark, setting, row = path.parts[-4:-1]
        found.setdefault((benchmark, setting), {}).setdefault(row, []).append(read_result(path))
    parts = [_table(benchmark, setting, rows) for (benchmark, setting), rows in found.items()]
    return "\n\n".join(parts) if parts else NONE


def _table(benchmark: str, setting: str, rows: Mapping[str, Sequence[Result]]) -> str:
    names = list(next(iter(rows.values()))[0].targets)
    devices = sorted({run.device for runs in rows.values() for run in runs})
    lines = [
        f"`sweep={benchmark}`, `data={setting}`: mIoU in %, last iterate, mean ± standard deviation over seeds, on "
        f"{' and '.join(devices)}.",
        "",
        f"| run | seeds | {' | '.join(names)} |",
        f"|---|---:|{'---:|' * len(names)}",
    ]
    for row, runs in sorted(rows.items(), key=lambda item: (_place(item[0]), item[0])):
        cells = [_cell([100 * run.targets[name].miou for run in runs if name in run.targets]) for name in names]
        lines.append(f"| {row} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(row: str) -> int:
    method = row.partition(",")[0]
    return FIRST.index(method) if method in FIRST else len(FIRST)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def page(text: str, generated: str) -> str:
    """Put the tables between the page's marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} has no mark {BEGIN}"
    assert end, f"{PAGE} has no mark {END}"
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(), tables(RESULTS)))
