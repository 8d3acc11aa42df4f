"""The repository's pages: their links, the version they state, and the site that is built from them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import uda_seg
from doc_lines import ROOT, documents
from uda_seg.config.schema import groups
from uda_seg.config.settings import CONF, Config
from uda_seg.data.custom import CustomData
from uda_seg.data.settings import DomainSettings
from uda_seg.methods.options.self_training import SelfTrainingOptions
from uda_seg.methods.options.t2sda import T2SDAOptions
from uda_seg.methods.settings import OptimizerSettings
from uda_seg.options.describe import describe, describe_class

HEADING = re.compile(r"(?m)^#+ (.+)$")


def anchors(text: str) -> set[str]:
    """Headings of a page as its links name them."""
    text = re.sub(r"(?s)```.*?```", "", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(text)}


@pytest.mark.parametrize("page", documents(), ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"(?s)```.*?```", "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page.name}: {target}"


def test_every_page_states_the_same_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.findall(r"(?m)^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text())[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {uda_seg.__version__, newest, citation["version"]} == {project["version"]}


def test_every_option_is_on_the_page_of_options_once_with_its_meaning(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    options_page = importlib.import_module("options_page")
    page = options_page.page()
    kinds = [*options_page.settings(), *options_page.methods()]
    assert {Config, OptimizerSettings, DomainSettings, CustomData, T2SDAOptions, SelfTrainingOptions} <= {*kinds}
    for kind in kinds:
        own = [option for option in describe(kind) if option.owner is kind]
        for option in own:
            assert re.search(r".{10}[.)]$", option.doc), f"{kind.__name__}.{option.name} has no docstring below it"
        assert page.count("\n".join(map(options_page.entry, own))) == 1 or not own, kind
    for kind, found in options_page.networks().items():
        assert found
        for option in describe_class(kind):
            assert option.doc, f"{kind.__name__}.{option.name} is not in the section Args of its class"
            assert options_page.entry(option) in page
    for group in groups():
        for file in (CONF / group).glob("*.yaml"):
            assert re.search(rf"(?m)^- `{file.stem}`", page), file
    assert "- `taps` = `null` (list of 1 to 4: whole number" in page
    assert "- `gta2cs`: " in page
    assert "- `queries` = `64` (whole number, between 1 and 65536): Pixels drawn per class and image (ours)" in page


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [*command, "docs", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in ("index", "recipes", "api/options", "api/uda_seg.methods.lcmsm"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
