"""`python -m uda_seg.demo`: train on the rendered Streets data set, adapt to its target, and show the gain.

Three trainings: method=source_only; then, starting from its weights and with equal steps, learning rate and schedule,
method=lcmsm, which adapts to the target, and method=source_only again, the control for the gain of longer training
without the target. They take about ten minutes on two cores and overwrite outputs/demo; the picture is
outputs/demo/before_after.png, the table is before_after.md next to it.

Overrides apply to all trainings, e.g. python -m uda_seg.demo steps=60 seed=1 For the available overrides see python -m
uda_seg.train --help
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uda_seg.config.replay import replay
from uda_seg.config.settings import Config
from uda_seg.data.batch import DomainBatch
from uda_seg.data.datamodule import UDADataModule
from uda_seg.errors import UserError
from uda_seg.errors.ending import one_line
from uda_seg.evaluation.tables import ABSENT, Table, percent
from uda_seg.models.segmentor import Segmentor
from uda_seg.runs.build import build_data, build_module
from uda_seg.runs.checkpoint import load_trained, read_checkpoint
from uda_seg.runs.record import read_metrics
from uda_seg.storage.files import save_png, write_text
from uda_seg.visualize.pictures import Captioned, Row, colorize, panel_grid

FOLDER = Path("outputs/demo")
SCENES = 4
TITLE = "target IoU in %, last iterates"
# Shorter than the defaults of data=streets: installation, rendering and all trainings must fit in ten minutes.
SHORT = ["steps=120", "data.source.count=300", "data.target.count=300"]
_UNSCORED = re.compile(r"^~data\.validation\b|^\+*data\.validation(\.\w+)?=(null|\{\})$")


@dataclass(frozen=True)
class Run:
    """One of the three runs.

    Attributes:
        name: name of its column and its folder.
        what: description.
    """

    name: str
    what: str

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return FOLDER / self.name

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the last step."""
        return self.folder / "checkpoints" / "last.ckpt"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Contents of the run's metrics.json."""
        return read_metrics(self.folder)

    @property
    def miou(self) -> float:
        """Score on the target: mIoU in [0, 1]."""
        return _or_nan(self.metrics["miou"])


def main() -> None:
    """Run the three trainings through their command line, then compare them."""
    overrides = sys.argv[1:]
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        return
    with one_line():
        for stray in (a for a in overrides if "=" not in a and not a.startswith("~")):
            raise UserError(f"{stray} is no override: write key=value, or --help")
        for unscored in filter(_UNSCORED.search, overrides):
            raise UserError(f"{unscored}: the demo compares scores, which need the validation images")
        before = train(Run("before", "source only"), "source_only", overrides)
        start = [f"init={before.checkpoint}", *overrides]
        control = train(Run("control", "source only, continued"), "source_only", start)
        after = train(Run("after", "adapted"), "lcmsm", start)
        picture = compare(before, control, after)
        print(f"\n{summary(before, control, after)}\n\nthe target before and after adaptation: {picture}")
        print(f"per class: {picture.with_suffix('.md')}")


def train(run: Run, method: str, overrides: Sequence[str]) -> Run:
    """Run `uda_seg.train` in a separate process.

    Raises:
        UserError: it failed (after printing its own error line).
    """
    where = ["data=streets", f"hydra.run.dir={run.folder}", "overwrite=true"]
    command = [sys.executable, "-m", "uda_seg.train", f"method={method}", *where, *SHORT, *overrides]
    print(f"\n$ python {shlex.join(command[1:])}", flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise UserError(f"the training {run.name} ({method}) did not finish")
    return run


def compare(*runs: Run) -> Path:
    """Draw validation images, labels and the networks' predictions, and write the per-class table."""
    data, networks = open_runs(runs)
    batch: DomainBatch = next(iter(next(iter(data.val_dataloader().values()))))
    assert batch.label is not None
    columns = [
        [Captioned("target", image.permute(1, 2, 0).numpy()) for image in batch.image],
        [Captioned("label", colorize(label.numpy(), data.classes.palette)) for label in batch.label],
    ]
    for run, network in zip(runs, networks, strict=True):
        with torch.no_grad():
            found = network.predict(batch.image[:SCENES].float() / 255).argmax(1)
        caption = f"{run.name}: {run.what}, mIoU {100 * run.miou:.1f} %"
        columns.append([Captioned(caption, colorize(p.numpy().astype(np.uint8), data.classes.palette)) for p in found])
    picture = FOLDER / "before_after.png"
    save_png(picture, panel_grid([Row("", pictures) for pictures in zip(*columns, strict=False)]))
    write_text(picture.with_suffix(".md"), per_class(*runs).markdown())
    return picture


def open_runs(runs: Sequence[Run]) -> tuple[UDADataModule, list[Segmentor]]:
    """Load the target's validation images, which all runs share, and the final network of each run."""
    from uda_seg.config.compose import composed

    networks = []
    for run in runs:
        content = read_checkpoint(run.checkpoint)
        config = composed(replay(content, []), Config)
        data = build_data(config)
        networks.append(load_trained(build_module(config, data), content, run.checkpoint))
    data.prepare_data()
    data.setup("validate")
    return data, networks


def per_class(before: Run, control: Run, after: Run) -> Table:
    """Tabulate the runs' IoU per class in percent; the gain is relative to the control, which was trained as long."""
    runs = (before, control, after)
    cells = [(name, *(_or_nan(run.metrics["per_class"][name]) for run in runs)) for name in before.metrics["per_class"]]
    cells.append(("**mIoU**", *(run.miou for run in runs)))
    rows = tuple((name, percent(a), percent(b), percent(c), _points(c - b)) for name, a, b, c in cells)
    return Table(("class", *(run.name for run in runs), f"gain over {control.name}"), rows, TITLE)


def summary(before: Run, control: Run, after: Run) -> str:
    """Format the three runs' mIoU, one per line, and the gain of adaptation."""
    lines = [f"{run.name:<8}{100 * run.miou:5.1f} %  {run.what}" for run in (before, control, after)]
    gain = f"{'gain':<8}{_points(after.miou - control.miou):>5}    by adaptation: over the control, trained as long"
    return "\n".join(["mIoU on the target", *lines, gain])


def _points(gain: float) -> str:
    return ABSENT if math.isnan(gain) else f"{100 * gain:+.1f}"


def _or_nan(score: float | None) -> float:
    """Convert the missing score of a class without pixels to NaN."""
    return math.nan if score is None else score


if __name__ == "__main__":
    main()
