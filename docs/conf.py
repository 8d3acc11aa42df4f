"""Configuration of the documentation site, which `make docs` builds from docs/ and the docstrings."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parent)]

import options_page
from docutils import nodes
from latex2mathml.converter import convert

import uda_seg

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "uda_seg"
author = project_copyright = "the developers of uda_seg"
version = release = uda_seg.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.mermaid",
]
html_math_renderer = "mathml"
exclude_patterns = ["api/modules.rst"]
html_theme = "furo"
html_static_path = ["_static"]
html_title = f"uda_seg {version}"

highlight_language = "bash"

# Pages are Markdown that reads as well in the repository; a link to a heading that is not there is a warning.
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
myst_enable_extensions = ["dollarmath"]

# A page for each module, written to docs/api/ (not committed), so that one which moves or comes takes its page with it.
apidoc_modules = [
    {
        "path": "../src/uda_seg",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "exclude_patterns": [
            f"../src/uda_seg/{room}" for room in ("bench", "cli", "launch", "sweeps")
        ],  # of use here alone
        "automodule_options": {"members", "show-inheritance"},
    }
]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # what is public has two pages: the package's and its module's
default_role = "code"  # docstrings write `code` in single backticks, as Markdown has it


def plain(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Take docstrings for the plain text that they are: |x| and d* are formulas, columns in a command's help stay."""
    text = "\n".join(lines)
    if text.startswith("Alias for field number"):  # what NamedTuple says of its fields
        text = ""
    blocks = text.split("\n\n") if what == "module" else [text]
    lines[:] = "\n\n".join(block(part, what) for part in blocks).split("\n")


def block(text: str, what: str) -> str:
    """Convert a paragraph of a docstring to reStructuredText."""
    if what == "module" and re.search(r"(?m)\S {2,}\S|^ +python -m", text):
        return ".. code-block:: text\n\n" + textwrap.indent(text, "    ")
    if what == "module" and not text.startswith("- "):
        text = re.sub(r"(?m)^ +", "", text)
    return re.sub(r"(`[^`]*`)|([*|])", lambda match: match[1] or rf"\{match[2]}", text)


def once(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what a module hands on from another; the package's own page shows all that is public."""
    home, here = getattr(obj, "__module__", None) or "", app.env.current_document.autodoc_module
    return True if what == "module" and here != project and home.startswith(project) and home != here else None


def short(app: Sphinx, page: str, source: list[str]) -> None:
    """Title the pages of modules by their names below the package."""
    if page.startswith("api/"):
        source[0] = re.sub(r"\Auda\\_seg\.?(\S*) (?:package|module)\n", lambda m: f"{m[1] or project}\n", source[0])


SYMBOL = re.compile(r"\[`(\w+)`\]\(\.\./src/([\w/]+)\.py\)")


def linked(app: Sphinx, page: str, source: list[str]) -> None:
    """Lead links to functions in files, which the repository needs, to their descriptions on the site."""
    source[0] = SYMBOL.sub(lambda m: f"{{py:obj}}`{m[1]} <{m[2].replace('/', '.')}.{m[1]}>`", source[0])


def formula(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw without a script from the net; `tag` numbers it."""
    block = isinstance(node, nodes.math_block)
    text, number = re.subn(r"\\tag\{(\d+)\}", "", node.astext())
    tag = re.search(r"\\tag\{(\d+)\}", node.astext())
    made = convert(text, display="block" if block else "inline")
    if block:
        shown = f'<span class="number">({tag[1]})</span>' if number and tag else ""
        made = f'<div class="formula"><div>{made}</div>{shown}</div>'
    writer.body.append(made)
    raise nodes.SkipNode


def write_options(app: Sphinx) -> None:
    """Write the page of all options beside the modules' (not committed either), unless it is there as it would be."""
    file, text = Path(app.srcdir) / "api" / "options.md", options_page.page()
    file.parent.mkdir(exist_ok=True)
    if not file.is_file() or file.read_text() != text:
        file.write_text(text)


def setup(app: Sphinx) -> None:
    """Register the hooks (called by Sphinx); `plain` comes before napoleon, which adds its own markup."""
    app.connect("autodoc-process-docstring", plain, priority=100)
    app.connect("autodoc-skip-member", once)
    app.connect("source-read", short)
    app.connect("source-read", linked)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.add_css_file("site.css")
    app.connect("builder-inited", write_options)
