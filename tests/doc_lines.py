"""Every command line that the documentation shows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WORD = re.compile(r"""(?:[^\s'"`]|'[^']*'|"[^"]*")+""")
COMMAND = re.compile(
    r"(?P<program>python -m uda_seg\.\w+|python scripts/\w+\.py|uda-seg-\w+|wandb (?:sweep|agent)|pip install)"
    r"(?![\w.-])"
)
MAKE = re.compile(r"\bmake (?P<target>[a-z]+)\b(?!\.\w)")


class Line(NamedTuple):
    """A command line: the file and line it stands in, the program, and its words."""

    where: str
    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {' '.join((self.program, *self.words))}"


def an_argument(program: str, word: str) -> bool:
    if program.startswith("python -m"):
        return word in ("...", "-m") or bool(re.match(r"[~+]*[\w./@]+=", word)) or word.startswith(("--", "~"))
    return not word.startswith(("#", "and", "(", "["))


def unquoted(word: str) -> str:
    """The word that a shell would pass on."""
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == "'" else word


def found_in(text: str, where: str) -> Iterator[Line]:
    """The commands in a text of single lines, in which a backslash continues a line."""
    text = re.sub(r"\\\n[ #]*", "\x00", text)
    for match in COMMAND.finditer(text):
        number = 1 + len(re.findall("[\n\x00]", text[: match.start()]))
        rest = text[match.end() :].partition("\n")[0].replace("\x00", " ")
        rest = re.split(r"`|\s{2,}#|\s#|[;)] ", rest)[0] if "`" in rest or "#" in rest or ";" in rest else rest
        words = []
        for word in WORD.findall(rest):
            cleaned = word if word == "." or word.endswith("...") else word.rstrip(",;:).")
            bare = unquoted(cleaned) if match["program"].startswith("python -m") else cleaned
            if not an_argument(match["program"], bare) or (bare != cleaned and "..." in bare):
                break
            words.append(bare)
            if cleaned != word or match["program"] == "pip install":
                break
        yield Line(f"{where}:{number}", match["program"], tuple(words))


def markdown(path: Path) -> Iterator[Line]:
    """Commands in blocks of code and in spans; a span may be broken over two lines."""
    text = path.read_text()
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", lambda span: f"`{span[1].replace(chr(10), chr(0))}`", text)
    yield from found_in(text, path.name)
    for match in re.finditer(r"`\.\.\. ([\w./]+=[^`]*)`", text):  # in tables, below a whole command
        program = "python -m uda_seg.train" if "experiment=" in match[1] else "python -m uda_seg.prepare"
        number = 1 + len(re.findall("[\n\x00]", text[: match.start()]))
        yield Line(f"{path.name}:{number}", program, ("...", *match[1].split()))


def python(path: Path) -> Iterator[Line]:
    """Commands in the docstring of a module, which `--help` prints."""
    yield from found_in(ast.get_docstring(ast.parse(path.read_text())) or "", str(path.relative_to(ROOT)))


def yaml(path: Path) -> Iterator[Line]:
    """Commands in comments."""
    text = "\n".join(line.partition("#")[2] for line in path.read_text().splitlines())
    yield from found_in(text, str(path.relative_to(ROOT)))


def documents() -> list[Path]:
    return [
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]


def script_of_benchmarks() -> list[Line]:
    """What the shell script in the benchmarks' page calls, by running it with a `python` that tells its arguments."""
    text = (ROOT / "docs/benchmarks.md").read_text()
    [script] = [block for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) if "bench() {" in block]
    said = subprocess.run(
        ["bash", "-c", f'python() {{ echo "$*"; }}\n{script}'], capture_output=True, text=True, check=True
    ).stdout
    words = [line.split() for line in said.splitlines()]
    assert all(w[:2] == ["-m", "uda_seg.bench"] for w in words)
    return [Line("docs/benchmarks.md (script)", "python -m uda_seg.bench", tuple(w[2:])) for w in words]


def lines() -> list[Line]:
    """All of them, each once."""
    found = [line for path in documents() for line in markdown(path)]
    found += [line for path in sorted((ROOT / "src").rglob("*.py")) for line in python(path)]
    found += [line for path in sorted((ROOT / "scripts").glob("*.py")) for line in python(path)]
    for folder in ("conf", "sweeps"):
        found += [line for path in sorted((ROOT / folder).rglob("*.yaml")) for line in yaml(path)]
    found += script_of_benchmarks()
    once: dict[tuple[str, ...], Line] = {}
    for line in found:
        once.setdefault((line.program, *line.words), line)
    return list(once.values())


def shell_variables(line: Line) -> dict[str, str]:
    """What the block of code around a line assigns; nothing in files other than documents."""
    name, _, number = line.where.partition(":")
    text = next((path.read_text() for path in documents() if path.name == name), "")
    for block in re.finditer(r"```\n(.*?)```", text, re.DOTALL):
        first = 1 + text.count("\n", 0, block.start())
        if first < int(number) <= first + block[0].count("\n"):
            return dict(re.findall(r'(?m)^(\w+)="([^"]*)"', block[1]))
    return {}


def code_lines() -> Iterator[tuple[str, str]]:
    """(place, line) of every line of the documents' blocks of code, other languages' aside."""
    for path in documents():
        language, continued, quoted = None, False, False
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            fence = re.match(r"\s*```([\w{}]*)", line)
            if fence:
                language = None if language is not None else fence[1] or "shell"
                continue
            block = language == "shell" or (language is None and re.match(r"\s{4,}\S", line) is not None)
            if block and not continued:
                yield f"{path.name}:{number}", line.strip()
            quoted = block and (quoted if line.count('"') % 2 == 0 else not quoted)
            continued = block and (quoted or line.endswith("\\"))
