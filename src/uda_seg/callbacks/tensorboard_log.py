"""TensorBoard as a dashboard: pictures with their label maps beside them, tables as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from uda_seg.callbacks.dashboards import RGB, Ending, Picture, Table
from uda_seg.visualize.pictures import Captioned, Row, bars, colorize, panel_grid


class TensorBoardLog(TensorBoardLogger):
    """Lightning's logger, which also shows pictures and bars (as images), tables (as text), and settings beside scores.

    Args:
        folder: folder of the run; TensorBoard writes into its `tensorboard`.
        settings: of the run, flat, for TensorBoard's table of hyper-parameters.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, name="", version="tensorboard", default_hp_metric=False)
        self.settings = settings

    @rank_zero_only
    def show_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Show the pictures as rows of one image, each beside its coloured label maps."""
        self.experiment.add_image(name, sheet(pictures), step, dataformats="HWC")

    @rank_zero_only
    def show_table(self, name: str, table: Table, step: int) -> None:
        """Show the table as Markdown, without columns of pictures, which text cannot hold."""
        kept = [i for i in range(len(table.columns)) if not any(isinstance(row[i], Picture) for row in table.rows)]
        lines = [[_cell(table.columns[i]) for i in kept], ["---"] * len(kept)]
        lines += [[_cell(row[i]) for i in kept] for row in table.rows]
        self.experiment.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    @rank_zero_only
    def show_bars(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Show the bars as an image."""
        self.experiment.add_image(name, bars(values), step, dataformats="HWC")

    @rank_zero_only
    def alert(self, title: str, text: str, step: int) -> None:
        """Write the alert as text; TensorBoard calls nobody."""
        self.experiment.add_text("alert", f"**{title}**: {text}", step)

    @rank_zero_only
    def close(self, ending: Ending) -> None:
        """Write the settings beside the scores, for the comparison of runs."""
        if ending.scores:
            self.log_hyperparams(dict(self.settings), {f"hparams/{k}": v for k, v in ending.scores.items()})
        self.experiment.flush()


def sheet(pictures: Sequence[Picture]) -> RGB:
    """Arrange pictures below each other, each followed by its coloured label maps; one without any stays as it is."""
    if len(pictures) == 1 and not pictures[0].masks:
        return pictures[0].image
    rows = []
    for picture in pictures:
        palette = picture.classes.palette if picture.classes else ()
        maps = [Captioned(name, colorize(mask, palette)) for name, mask in picture.masks.items()]
        rows.append(Row("", [Captioned(picture.caption, picture.image), *maps]))
    return panel_grid(rows)


def _cell(value: str | float | Picture) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
