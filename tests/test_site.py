"""The repository's pages: their links, the version they state, and the site that is built from them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import uda_seg
from doc_lines import ROOT, documents

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


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [*command, "docs", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in ("index", "recipes", "api/uda_seg.methods.lcmsm"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
