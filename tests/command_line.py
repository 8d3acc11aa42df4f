"""Commands called as a person calls them, but in this process, on data and networks of a few kilobytes."""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from omegaconf import DictConfig, OmegaConf

from data.trees import save
from uda_seg.cli import command
from uda_seg.config.commands import (
    BenchConfig,
    ConvertConfig,
    DepthConfig,
    EvaluateConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
)
from uda_seg.config.keys import primary
from uda_seg.config.schema import CONF, Config, Parsed, groups, key_of, parse


@dataclass
class Finished:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that begins with `error:`; there must be exactly one, and no stack of frames."""
        assert self.code == 1, self
        assert "Traceback" not in self.err + self.out, self.err + self.out
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


class CommandLine:
    """Calls entry points in this process, in a folder of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
        self.monkeypatch, self.capfd, self.folder = monkeypatch, capfd, folder

    def __call__(self, main: Callable[[], None], *arguments: str) -> Finished:
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setattr(sys, "argv", ["command", *arguments])
        self.monkeypatch.setattr(command, "_compose", composed_once)
        self.monkeypatch.setattr(Hydra, "get_mode", mode_once)
        self.capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Finished(code, *self.capfd.readouterr())


# What `check` holds overrides against; it only looks at it.
composed_once = functools.cache(command._compose)


@functools.cache
def hydras_groups() -> set[str]:
    """Groups of which a file sets something of Hydra's own."""
    return {group for group in groups() if any("hydra" in f.read_text() for f in (CONF / group).glob("*.yaml"))}


MODES: dict[tuple[str | None, ...], Any] = {}
GET_MODE = Hydra.get_mode


def mode_once(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """Tell whether there will be several runs, as Hydra does: from all files and its own keys."""
    decide = ("hydra.mode", "hydra.searchpath", "hydra/")
    chosen = [o for o in overrides if key_of(o) in hydras_groups() or key_of(o).startswith(decide)]
    key = (config_name, *chosen)
    if key not in MODES:
        MODES[key] = GET_MODE(self, config_name, chosen)
    return MODES[key]


def in_process_of_its_own(folder: Path, *arguments: str) -> Finished:
    """`python -m ARGUMENTS` in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def in_a_fork(folder: Path, module: str, *arguments: str) -> Finished:
    """The same without the seconds that imports take: a fork of this process runs the module anew as its main one."""

    def run() -> None:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
        os.chdir(folder)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    process = forked(run)
    process.join(600)
    assert process.exitcode is not None, f"{module} does not end"
    return Finished(process.exitcode, *(Path(f"{folder}.{name}").read_text() for name in ("stdout", "stderr")))


def forked(work: Callable[[], object]) -> BaseProcess:
    """`work` in a process that can be killed, without the seconds that imports take."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@dataclass
class Everything(EvaluateConfig, PredictConfig, DepthConfig, PrepareConfig, ConvertConfig, BenchConfig, ReportConfig):
    """The settings of all commands."""


@functools.cache
def composition(choices: tuple[str, ...], name: str = "config") -> DictConfig:
    """What the groups' files say; composing is what takes most of the time of a small run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, list(choices))
    OmegaConf.set_struct(config, False)
    return config


def configured(*overrides: str, kind: type[Parsed] = Config) -> Parsed:  # type: ignore[assignment]
    """The configuration of these overrides, as a command is given it."""
    overrides = tuple(o.lstrip("+") for o in overrides if not key_of(o).startswith("hydra"))
    choices = tuple(o for o in overrides if key_of(o) in groups())
    values = OmegaConf.from_dotlist([o for o in overrides if o not in choices])
    return parse(OmegaConf.merge(composition(choices, primary(kind)), values), kind)


# A network of a few hundred weights.
NETWORK = (
    "model=daformer_small",
    "model.encoder.weights=null",
    "model.encoder.widths=[4,4,4,4]",
    "model.encoder.blocks=[1,1,1,1]",
    "model.head.width=4",
    "model.head.dilations=[1]",
)


def small_run(data: Path, steps: int = 4) -> list[str]:
    """Overrides of a run on CamVid trees (source and target alike), which needs no rendering."""
    return [
        "data=streets2camvid",
        "data.source.dataset=camvid",
        "data.source.domain=null",
        f"data.source.root={data}",
        f"data.target.root={data}",
        "data.source.size=[32,48]",
        "data.target.size=[32,48]",
        "data.crop=[32,32]",
        "data.source_batch=2",
        "data.target_batch=2",
        "data.val_batch=4",
        f"steps={steps}",
        "statistics_batches=2",  # of 40 they would be most of the run
        "trainer=cpu",
        "logger.log_every=1",
        "callbacks.progress=false",
        "callbacks.panels=0",
        *NETWORK,
    ]


def with_depth(data: Path) -> list[str]:
    """Overrides of a run that learns from depth too: one street seen from a car for all images of `small_run`."""
    maps = data / "depth"
    if not maps.is_dir():
        rows = np.linspace(0, 1, 32)[:, None].repeat(48, 1)
        metres = 4 / np.clip(rows - 0.3, 0.05, None)  # flat ground under a camera, the nearest at the bottom
        for image in (data / "train").iterdir():
            save(maps / image.name, (100 * metres).astype(np.uint16))
    return [
        f"data.{domain}.{option}"
        for domain in ("source", "target")
        for option in (f"depth={maps}", "depth_encoding=centimetres")
    ]
