"""What the pages say of the code: functions beside equations, quoted messages, files of containers and of SLURM."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator

import pytest

from command_line import configured
from doc_lines import ROOT

LINK = re.compile(r"\[`(\w+)`\]\(\.\./src/([\w/]+)\.py\)")
TAG = re.compile(r"\\tag\{(\d+)\}")


def test_every_function_beside_an_equation_is_there():
    text = (ROOT / "docs/methods.md").read_text()
    links = LINK.findall(text)
    assert len(links) > 30
    for name, module in links:
        found = getattr(importlib.import_module(module.replace("/", ".")), name)
        assert found.__module__ == module.replace("/", "."), f"{name} is defined elsewhere"
        assert found.__doc__
    assert [int(number) for number in TAG.findall(text)] == [*range(1, 1 + len(TAG.findall(text)))]


def test_every_method_has_its_equations():
    text = (ROOT / "docs/methods.md").read_text()
    for name in ("DACS", "DAFormer", "MIC", "HRDA", "LC-MSM", "BiCL", "T2S-DA", "CorDA", "source_only", "adabn"):
        assert name in text


def texts() -> Iterator[str]:
    """Every text in the package's source, with a NUL where a value is put in."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"\{\w+\}", "\0", node.value)


def quoted() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    return re.findall(r"(?m)^> `(.+)`$", text)


def test_every_quoted_message_is_one_that_the_code_says():
    known = [*texts()]
    assert len(quoted()) > 20
    for message in quoted():
        assert any(says(text, message) for text in known), message


def says(text: str, message: str) -> bool:
    """Whether a text holds a message, in which `...` stands for anything."""
    parts = [part.strip() for part in message.split("...")]
    place = 0
    for part in (part for part in parts if len(part) > 3):
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def test_a_message_that_nobody_says_is_found():
    assert says("\0: fills \0 of \0 tensors", "...: fills ... of ... tensors")
    assert not says("\0: fills \0 of \0 tensors", "...: lacks ... of ... tensors")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(word, " ".join(rest.split())) for word, _, rest in (x.partition(" ") for x in text.splitlines()) if word]


def test_the_dockerfile_names_what_there_is():
    found = instructions()
    words = [word for word, _ in found]
    assert set(words) <= {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert dict(found)["ENTRYPOINT"] == '["python", "-m", "uda_seg.train"]'
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY"))
    assert dict(found)["USER"] not in ("root", "0")
    for word, rest in found:
        if word == "COPY":
            for name in (name for name in rest.split()[:-1] if not name.startswith("--")):
                assert (ROOT / name).exists(), name
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "outputs"} <= {*ignored}


def test_the_dockerfile_installs_extras_that_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [asked] = re.findall(r"\.\[([\w,]+)\]", " ".join(rest for word, rest in instructions() if word == "RUN"))
    assert set(asked.split(",")) <= set(extras)
    needed = {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "src", "conf"}
    copied = " ".join(rest for word, rest in instructions() if word == "COPY").split()
    assert needed <= {name.strip("./") if name.startswith("./") else name for name in copied}


SCRIPTS = sorted((ROOT / "examples/slurm").glob("*.sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_for_slurm_is_sound_and_composes(script, monkeypatch):
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text().replace("\\\n", " ")
    assert "#SBATCH --requeue" in text
    assert "--signal=SIGUSR1@" in text
    given = dict(re.findall(r"(?m)^export (\w+)=(\S+)", text))
    [line] = re.findall(r"(?m)^srun .*python -m uda_seg\.train (.*)$", text)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", re.findall(r"--ntasks-per-node=(\d+)", text)[0])
    words = [re.sub(r"\$\{?(\w+)\}?", lambda m: given.get(m[1], "1"), word) for word in shlex.split(line)]
    config = configured(*(word for word in words if word != "$@"))
    assert config.trainer.devices == int(re.findall(r"--ntasks-per-node=(\d+)", text)[0])
    assert config.data.source_batch * config.trainer.devices == 2, "the recipe's batch"
    assert config.seed == (1 if "--array" in text else 0)


def test_what_the_page_of_containers_says_composes():
    text = (ROOT / "docs/containers.md").read_text()
    runs = [line.partition(" uda_seg ")[2].split() for line in re.findall(r"(?m)^docker run (.*)$", text)]
    assert len(runs) == 3
    for words in runs:
        configured(*(word for word in words if word != "--help"))
    scripts = re.findall(r"(?m)^sbatch (\S+) ?(.*)$", text)
    assert {ROOT / name for name, _ in scripts} == {*SCRIPTS}
    for _, words in scripts:
        configured(*words.split())
