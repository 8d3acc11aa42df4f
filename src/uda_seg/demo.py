"""`python -m uda_seg.demo`: train on the built-in world, adapt to its target, and draw the target before and after.

Two trainings, method=source_only and then method=lcmsm from its weights: about ten minutes on two cores. They overwrite
outputs/demo; the picture is outputs/demo/before_after.png, the table before_after.md beside it.

Overrides are given to both trainings, e.g. python -m uda_seg.demo steps=60 seed=1
What can be overridden: python -m uda_seg.train --help
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from uda_seg.command import fail
from uda_seg.errors import UserError
from uda_seg.evaluation.tables import Table, percent
from uda_seg.files import save_png, write_text
from uda_seg.pictures import Captioned, Row, colorize, panel_grid
from uda_seg.runs import load_trained, read_checkpoint, replay
from uda_seg.train import build_data, build_module

FOLDER = Path("outputs/demo")
SCENES = 4
# Less than the defaults of data=streets: installing, rendering and both trainings have to fit into ten minutes.
SHORT = ["steps=120", "data.source.count=300", "data.target.count=300"]


def main() -> None:
    """Run the two trainings as a person would, then compare them."""
    overrides = sys.argv[1:]
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        return
    try:
        for stray in (a for a in overrides if "=" not in a and not a.startswith("~")):
            raise UserError(f"{stray} is no override: write key=value, or --help")
        before = train("source_only", overrides)
        after = train("lcmsm", [f"init={before}/checkpoints/last.ckpt", *overrides])
        picture = compare(before, after)
    except UserError as error:
        fail(error)
    print(
        f"\nthe target before and after adaptation: {picture}\nclass by class: {picture.with_name('before_after.md')}"
    )


def train(method: str, overrides: list[str]) -> Path:
    """Run `uda_seg.train` in a process of its own; returns the run's folder.

    Raises:
        UserError: it did not succeed (its own line stands above).
    """
    folder = FOLDER / method
    arguments = [f"method={method}", "data=streets", f"hydra.run.dir={folder}", "overwrite=true", *SHORT, *overrides]
    command = [sys.executable, "-m", "uda_seg.train", *arguments]
    print(f"\n$ python {shlex.join(command[1:])}", flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise UserError(f"training {method} did not finish")
    return folder


def compare(before: Path, after: Path) -> Path:
    """Draw validation images, labels and the two networks' predictions; write the per-class table beside it."""
    from uda_seg.command import composed  # after the trainings: composing here would keep Hydra's state

    rows: list[list[Captioned]] = [[] for _ in range(SCENES)]
    for name, folder in (("before: source only", before), ("after: adapted", after)):
        path = folder / "checkpoints" / "last.ckpt"
        content = read_checkpoint(path)
        config = composed(replay(content, []))
        data = build_data(config)
        data.prepare_data()
        data.setup("validate")
        network = load_trained(build_module(config, data), content, path)
        batch = next(iter(next(iter(data.val_dataloader().values()))))
        miou = json.loads((folder / "metrics.json").read_text())["miou"]
        with torch.no_grad():
            predicted = network.predict(batch.image[:SCENES].float() / 255).argmax(1)
        for row, image, label, prediction in zip(rows, batch.image, batch.label, predicted, strict=False):
            if not row:
                row.append(Captioned("target", image.permute(1, 2, 0).numpy()))
                row.append(Captioned("label", colorize(label.numpy(), data.classes.palette)))
            painted = colorize(prediction.numpy().astype(np.uint8), data.classes.palette)
            row.append(Captioned(f"{name}, mIoU {100 * miou:.1f} %", painted))
    picture = FOLDER / "before_after.png"
    save_png(picture, panel_grid([Row("", row) for row in rows]))
    write_text(picture.with_suffix(".md"), per_class(before, after).markdown())
    return picture


def per_class(before: Path, after: Path) -> Table:
    """IoU in percent of both runs, class by class."""
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (before, after))
    nan = float("nan")
    cells = [
        (
            name,
            *(nan if run["per_class"][name] is None else run["per_class"][name] for run in (first, second)),
        )
        for name in first["per_class"]
    ]
    rows = [(n, percent(a), percent(b), f"{100 * (b - a):+.1f}") for n, a, b in cells]
    a, b = first["miou"], second["miou"]
    rows.append(("**mIoU**", percent(a), percent(b), f"{100 * (b - a):+.1f}"))
    return Table(("class", "before", "after", "gain"), tuple(rows), "target IoU in %, last iterates")


if __name__ == "__main__":
    main()
