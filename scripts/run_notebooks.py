"""Execute the notebooks, or strip them of what an execution leaves.

    python scripts/run_notebooks.py                        # all of them, into build/notebooks
    python scripts/run_notebooks.py quickstart STEPS=20    # one, with another value of a name in its first code cell
    python scripts/run_notebooks.py --strip                # before a commit: no outputs, counts and metadata

Every executed copy is written as .ipynb and, with its pictures inside, as .html; what the notebooks write lies in
outputs/ beside them. Settings are injected below the cell tagged `parameters`, as papermill does it. Exits with 1 if a
cell fails, which is named, but executes the remaining notebooks.
"""

from __future__ import annotations

import ast
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

SOURCE = Path(__file__).parents[1] / "notebooks"
OUT = Path("build/notebooks")
LIMIT_S = 1800  # of one cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# In the order in which they are best read; load_and_predict reads the run of quickstart if it is there.
ORDER = ("quickstart", "anatomy_of_a_step", "bring_your_own_data", "compare_runs", "load_and_predict")


def main(arguments: Sequence[str]) -> int:
    """Execute or strip notebooks and return the exit code."""
    if "--strip" in arguments:
        for path in sorted(SOURCE.glob("*.ipynb")):
            write(path, stripped(nbformat.read(path, as_version=4)))
        return 0
    settings = {key: literal(value) for key, _, value in (a.partition("=") for a in arguments if "=" in a)}
    names = [a.removesuffix(".ipynb") for a in arguments if "=" not in a] or [*ORDER]
    if unknown := [name for name in names if not (SOURCE / f"{name}.ipynb").is_file()]:
        print(f"error: there is no notebook {unknown[0]}: choose among {', '.join(ORDER)}", file=sys.stderr)
        return 1
    failed = [name for name in names if not run(SOURCE / f"{name}.ipynb", OUT, settings)]
    return int(bool(failed))


def run(path: Path, out: Path, settings: Mapping[str, Any]) -> bool:
    """Execute a notebook in `out`, write its copies there, print a line, and return whether all cells have succeeded.

    Args:
        path: the notebook.
        out: folder of the copies, and the kernel's working directory.
        settings: values of names in the cell tagged `parameters`.
    """
    notebook, error, start = nbformat.read(path, as_version=4), None, time.perf_counter()
    inject(notebook, settings)
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # of a bar that nobody draws here
    client = NotebookClient(
        notebook,
        timeout=LIMIT_S,
        startup_timeout=LIMIT_S,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # not that the kernel listens on loopback
        resources={"metadata": {"path": str(out)}},
    )
    try:
        client.execute()
    except CellExecutionError:
        pass  # it is among the outputs
    except (CellTimeoutError, DeadKernelError) as stopped:
        error = f"{last_begun(notebook)}: {str(stopped).splitlines()[0]}"
    error = error or failure(notebook)
    write(out / path.name, notebook)
    html, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    (out / path.name).with_suffix(".html").write_text(html, encoding="utf-8")
    seconds = time.perf_counter() - start
    if error is None:
        print(f"{path.stem:<22}{seconds:6.0f} s  {(out / path.name).with_suffix('.html')}", flush=True)
    else:
        print(f"error: {path.name}, cell {error}", file=sys.stderr, flush=True)
    return error is None


def inject(notebook: NotebookNode, settings: Mapping[str, Any]) -> None:
    """Add a cell with the settings below the one tagged `parameters`; names that it does not set are left out."""
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    known = {t.id for node in ast.walk(ast.parse(notebook.cells[place].source)) if isinstance(node, ast.Assign)
             for t in node.targets if isinstance(t, ast.Name)}  # fmt: skip
    lines = [f"{name} = {value!r}" for name, value in settings.items() if name in known]
    if lines:
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines), id="injected-parameters"))


def failure(notebook: NotebookNode) -> str | None:
    """Return `id: error` of the first cell with an error, also one of drawing its figures after it has succeeded."""
    found = ((cell, output) for cell in notebook.cells for output in cell.get("outputs", []))
    return next((f"{c.id}: {o.ename}: {o.evalue.strip()}" for c, o in found if o.output_type == "error"), None)


def last_begun(notebook: NotebookNode) -> str:
    """Return the id of the last cell that was executed."""
    begun = [cell for cell in notebook.cells if cell.get("execution_count")]
    return str((begun or notebook.cells)[-1].id)


def stripped(notebook: NotebookNode) -> NotebookNode:
    """Return a copy without outputs, execution counts and metadata, except for cells' tags."""
    kept = nbformat.v4.new_notebook(metadata=METADATA)
    for cell in notebook.cells:
        new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        tags = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        kept.cells.append(new(cell.source.strip(), id=cell.id, metadata=tags))
    return kept


def write(path: Path, notebook: NotebookNode) -> None:
    """Validate a notebook and write it."""
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")


def literal(text: str) -> Any:
    """Read a value as Python does, or else as a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
