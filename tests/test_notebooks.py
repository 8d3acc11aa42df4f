"""The notebooks: as they are committed, as they are executed, and what is said when one fails."""

from __future__ import annotations

import re
import runpy
from types import SimpleNamespace

import nbformat
import pytest

import uda_seg
from command_line import NETWORK, small_run
from doc_lines import ROOT
from uda_seg.train import train

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TOOL = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py")))

SIZES = [
    f"data.{name}.{key}" for name in ("source", "target", "validation.target") for key in ("size=[32,64]", "count=4")
]
TINY = ["data.crop=[32,32]", "data.source_batch=2", "data.target_batch=2", "statistics_batches=1", "trainer=cpu"]
SMALL = {"STEPS": 2, "ADAPT": 2, "IMAGES": 4, "SEEDS": [0, 1], "SIZE": [32, 64], "FIT": [32, 64]}
SMALL |= {"LABELLED": 24, "UNLABELLED": 4, "SCORED": 3, "MORE": [*TINY, *NETWORK, *SIZES]}
# Folders of files have no number of images to render, and all methods' steps need a little more room.
OWN = {"bring_your_own_data": [*TINY, *NETWORK]}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_what_an_execution_leaves(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len({*ids}) == len(ids)
    assert not [name for name in ids if not name.replace("-", "").islower()]  # words: they stay when cells move
    TOOL.write(tmp_path / path.name, TOOL.stripped(notebook))
    assert path.read_text() == (tmp_path / path.name).read_text(), "make format"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_what_it_shows_how_long_it_takes_and_its_settings(path):
    title, settings, *rest = nbformat.read(path, as_version=4).cells
    assert title.source.startswith("# ")
    assert re.search(r"(minute|minutes) on two CPU cores", title.source)
    assert settings.metadata.tags == ["parameters"]
    assert f"`outputs/{path.stem.partition('_of')[0]}" in title.source
    assert path.name in (FOLDER / "README.md").read_text()
    assert path.stem in TOOL.ORDER
    assert not [cell.id for cell in rest if cell.metadata.get("tags")]


def cells(name: str, **settings) -> list[str]:
    """The code of a notebook with other settings."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    TOOL.inject(notebook, settings)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_three_lines_load_and_predict(camvid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(uda_seg.compose("method=source_only", *small_run(camvid, 1)), tmp_path / "run")
    names: dict = {}
    for source in cells("load_and_predict", CHECKPOINT="run/checkpoints/last.ckpt", SIZE=[32, 64]):
        exec(source, names)
    assert names["labels"].shape == (32, 64)
    assert names["model"].class_names[0] == "sky"  # of CamVid
    assert names["confidence"].max() <= 1


@pytest.fixture
def two_notebooks(tmp_path):
    """One that succeeds and one that fails."""
    for name, last in (("good", "print(N)"), ("bad", "1 / (N - 7)")):
        settings = nbformat.v4.new_code_cell("N = 1", id="settings", metadata={"tags": ["parameters"]})
        heading, end = nbformat.v4.new_markdown_cell("# Title", id="title"), nbformat.v4.new_code_cell(last, id="end")
        TOOL.write(tmp_path / f"{name}.ipynb", nbformat.v4.new_notebook(cells=[heading, settings, end]))
    return tmp_path


def test_a_failing_cell_is_named_and_the_others_are_executed(two_notebooks, monkeypatch, capsys):
    scope = TOOL.main.__globals__
    monkeypatch.setitem(scope, "SOURCE", two_notebooks)
    monkeypatch.setitem(scope, "OUT", two_notebooks / "build")
    assert TOOL.main(["bad", "good", "N=7", "STEPS=3"]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == ["error: bad.ipynb, cell end: ZeroDivisionError: division by zero"]
    assert said.out.startswith("good ")
    assert len(said.out.splitlines()) == 1
    done = nbformat.read(two_notebooks / "build" / "good.ipynb", as_version=4)
    assert done.cells[-1].outputs[0].text == "7\n"
    assert "division by zero" in (two_notebooks / "build" / "bad.html").read_text()
    assert TOOL.main(["worse"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no notebook worse: choose among quickstart, ")


def test_an_error_of_drawing_after_a_cell_has_succeeded_is_found_too():
    error = nbformat.v4.new_output("error", ename="ParseException", evalue="Expected end of text\n")
    cells = [nbformat.v4.new_code_cell("plot", id="plot", outputs=[error]), nbformat.v4.new_code_cell("1", id="end")]
    assert TOOL.failure(nbformat.v4.new_notebook(cells=cells)) == "plot: ParseException: Expected end of text"
    assert TOOL.failure(nbformat.v4.new_notebook(cells=cells[1:])) is None


def test_stripping_leaves_sources_ids_and_tags(two_notebooks, monkeypatch):
    scope = TOOL.main.__globals__
    monkeypatch.setitem(scope, "SOURCE", two_notebooks)
    before = (two_notebooks / "good.ipynb").read_text()
    notebook = nbformat.reads(before, as_version=4)
    notebook.metadata["widgets"] = {}
    notebook.cells[2].update(execution_count=3, outputs=[nbformat.v4.new_output("stream", text="1\n")])
    notebook.cells[2].metadata["collapsed"] = True
    TOOL.write(two_notebooks / "good.ipynb", notebook)
    assert TOOL.main(["--strip"]) == 0
    assert nbformat.read(two_notebooks / "good.ipynb", as_version=4).cells == nbformat.reads(before, as_version=4).cells


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_a_kernel_with_small_settings(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    settings = SMALL | {"MORE": OWN.get(path.stem, SMALL["MORE"])}
    assert TOOL.run(path, tmp_path / "build", settings), capsys.readouterr().err
    done = nbformat.read(tmp_path / "build" / path.name, as_version=4)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o.text for o in outputs if o.get("name") == "stderr" and ("Warning" in o.text or "\x1b" in o.text)]
