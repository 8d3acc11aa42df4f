"""Who may import whom, as data: the layout that docs/architecture.md draws."""

from __future__ import annotations

import re
import runpy
import statistics
import tomllib

import pytest

from rooms import PACKAGE, ROOMS, cycle, functions, graph, imported_at_once, imports, modules, room, upward

# Networks and maths are of use without a trainer and without a configuration.
FREE = {"ops": ("pytorch_lightning", "hydra", "omegaconf"), "models": ("pytorch_lightning", "hydra", "omegaconf")}
COMMANDS = {"train", "evaluate", "predict", "prepare", "convert", "depth", "demo", "report", "export"}


def test_the_top_shows_the_commands_and_the_rooms_alone() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "conf")}
    assert files <= COMMANDS
    assert folders == set(ROOMS) - {"commands"}


def test_no_arrow_runs_up() -> None:
    assert not upward()


def test_functions_stay_short() -> None:
    """A page of code is read at once; the few that are longer hold a long docstring."""
    sizes = functions()
    assert statistics.mean(sizes.values()) < 10
    assert not [name for name, lines in sizes.items() if lines > 50]


def test_no_command_imports_another() -> None:
    found = graph()
    pairs = [(a, b) for a in found for b in found[a] if room(a) == room(b) == "commands"]
    assert not pairs


def test_no_module_comes_back_to_itself() -> None:
    assert cycle(graph()) is None
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize(("place", "frameworks"), FREE.items())
def test_networks_and_operations_know_no_framework(place: str, frameworks: tuple[str, ...]) -> None:
    found = {name: set(imports(path)) for name, path in modules().items() if room(name) == place}
    assert found
    assert not [n for n, names in found.items() for i in names if i.startswith(frameworks)]


def test_data_knows_no_method() -> None:
    assert not [(a, b) for a, others in graph().items() for b in others if room(a) == "data" and room(b) == "methods"]


def test_a_plain_install_and_a_start_need_neither_extras_nor_what_is_slow_to_import() -> None:
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    later = {re.split(r"[^\w-]", name)[0].replace("-", "_") for packages in extras.values() for name in packages}
    later.remove(project["name"])  # `dev` has the other extras by it
    assert {"av", "gradio", "onnx", "onnxruntime", "nbclient", "tensorboard"} <= later
    later |= {"matplotlib", "sklearn", "wandb", "jinja2"}  # of a plain install, but needed by few commands
    early = {name: found for name, path in modules().items() if (found := imported_at_once(path) & later)}
    assert early.keys() == {"uda_seg.sweeps.search", "uda_seg.sweeps.study"}, (
        early
    )  # which Hydra's plugin imports when a search begins


def test_what_prepare_alone_needs_is_imported_by_prepare_alone() -> None:
    place = "uda_seg.data.prepare"
    inside = {(a, b) for a, others in graph().items() for b in others if b.startswith(place)}
    assert {a for a, b in inside if not a.startswith(place)} == {"uda_seg.prepare"}


def test_the_picture_of_the_rooms_is_drawn_from_the_imports() -> None:
    root = PACKAGE.parents[1]
    drawn = runpy.run_path(str(root / "scripts" / "draw_rooms.py"))["page"]
    text = (root / "docs" / "architecture.md").read_text()
    assert drawn(text) == text, "python scripts/draw_rooms.py"
