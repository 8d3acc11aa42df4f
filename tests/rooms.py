"""The rooms of the package, as its imports tell: for the test that keeps them and the script that draws them."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "uda_seg"

# From the top of the house to its cellar: a room may import from those below it alone.
ROOMS = {
    "commands": "parse, build, call",
    "bench": "where the time of a step goes",
    "cli": "overrides in, one line out",
    "exporting": "graphs, weights and model cards",
    "sweeps": "outcomes of jobs, table, search",
    "prediction": "images, videos and a page for trained networks",
    "runs": "from a configuration to a run; its folder and checkpoints",
    "results": "results of runs: their file, comparisons of many",
    "launch": "ranks and how they are started",
    "config": "schema, composing, replaying",
    "callbacks": "teacher EMA, checkpoints, panels",
    "visualize": "pictures and pages",
    "methods": "one paper, one file",
    "evaluation": "scores and submissions",
    "models": "networks: tensors in, tensors out",
    "data": "what reaches the step",
    "ops": "pure functions on tensors",
    "options": "constraints and their validation",
    "storage": "files written whole, the user's cache",
    "errors": "one line for whatever goes wrong",
}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Everything that a file imports, by its dotted name, wherever in the file the statement stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_once(path: Path) -> set[str]:
    """The top-level packages that a file imports when it is imported itself."""
    found = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [a.name for n in found if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in found if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    return {name.partition(".")[0] for name in names}


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    known = modules()

    def module(name: str) -> str | None:
        return name if name in known else module(name.rpartition(".")[0]) if "." in name else None

    found = {name: {m for i in imports(path) if (m := module(i)) not in (None, name)} for name, path in known.items()}
    return found | {PACKAGE.name: set()}  # it names what it exports for type checkers alone, and imports it when asked


def room(module: str) -> str | None:
    """The room that a module is in; None for the package itself."""
    _, *parts = module.split(".")
    if not parts:
        return None
    return parts[0] if parts[0] in ROOMS else "commands" if len(parts) == 1 else parts[0]


def cycle(arrows: Mapping[str, set[str]]) -> list[str] | None:
    """A path that returns to its beginning; None where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str] | None:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return None
        found = next((c for n in sorted(arrows.get(name, ())) if (c := walk(n, [*way, name]))), None)
        done.add(name)
        return found

    return next((c for name in sorted(arrows) if (c := walk(name, []))), None)


def upward() -> list[str]:
    """Imports from a lower room of something in a higher one."""
    order = list(ROOMS)
    return [
        f"{module} -> {other}"
        for module, others in graph().items()
        for other in others
        if (here := room(module)) is not None and (there := room(other)) is not None
        if order.index(there) < order.index(here)
    ]


def functions() -> dict[str, int]:
    """Function -> its length in lines, with its docstring and without decorators; nested ones count by themselves."""
    return {
        f"{name}.{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def figures() -> dict[str, str]:
    """The package in numbers: what is at its top, what its imports do, and the sizes of files and functions."""
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    longest = max(lines, key=lines.__getitem__)
    paper = max(("lcmsm", "bicl", "t2sda", "corda", "self_training"), key=lambda m: lines[f"uda_seg.methods.{m}"])
    sizes = functions()
    largest = max(sizes, key=sizes.__getitem__)
    return {
        "modules at the top": f"{len(list(PACKAGE.glob('*.py')))}, with __init__",
        "modules in all": f"{len(lines)}",
        "imports upwards": f"{len(upward())}",
        "cycle": " -> ".join(cycle(graph()) or ["none"]),
        "longest file of a paper's method": f"{paper}, {lines[f'uda_seg.methods.{paper}']} lines",
        "longest file": f"{longest}, {lines[longest]} lines",
        "functions": f"{len(sizes)}, mean {statistics.mean(sizes.values()):.1f} lines",
        "longest function": f"{largest}, {sizes[largest]} lines",
    }


if __name__ == "__main__":
    for name, value in figures().items():
        print(f"{name:34}{value}")
