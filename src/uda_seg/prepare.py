"""`python -m uda_seg.prepare data=...`: render or check a pair of domains, count classes, draw a contact sheet."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uda_seg.cache import user_cache
from uda_seg.command import run
from uda_seg.config import Config
from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.datasets import SegmentationDataset, open_domain
from uda_seg.data.labels import ClassSet
from uda_seg.data.settings import DomainSettings
from uda_seg.data.statistics import class_statistics
from uda_seg.data.streets.export import export
from uda_seg.evaluation.tables import Table
from uda_seg.files import save_png, write_text
from uda_seg.pictures import Captioned, Row, colorize, legend, panel_grid

log = logging.getLogger(__name__)

Shares = NDArray[np.float64]

SCENES = 6


def main() -> None:
    """Entry point."""
    run("config", prepare, expand=expand)


def expand(given: list[str]) -> list[str]:
    """What was made goes to a folder of its own, beside the runs on the same data."""
    return ["hydra.run.dir='outputs/${data.name}/prepared'", *given]


def prepare(config: Config, folder: Path) -> None:
    """Open every domain of `data=` (streets renders what its cache lacks), count classes, draw what is there."""
    if config.streets.export is not None:
        export(config.streets, config.data.world_seed, progress=config.callbacks.progress)
        return
    domains = {"data.source": config.data.source, "data.target": config.data.target}
    domains |= {f"data.validation.{name}": domain for name, domain in config.data.validation.items()}
    data = UDADataModule(config.data, steps=1, seed=config.seed)
    shares: dict[str, Shares] = {}
    rows: list[Row] = []
    for option, domain in domains.items():
        if domain is not None:
            dataset = open_domain(domain, config.data, data.classes, option, labeled=True)
            shares[option.removeprefix("data.")] = pixel_shares(dataset)
            rows += scenes(dataset, title(option, domain), data.classes)
    table = share_table(shares, data.classes)
    table.show()
    write_text(folder / "classes.md", table.markdown())
    sheet = panel_grid(rows)
    key = legend(data.classes.names, data.classes.palette, sheet.shape[1])
    save_png(folder / "contact_sheet.png", np.concatenate([sheet, key]))
    log.info("written: %s", folder)


def title(option: str, domain: DomainSettings) -> str:
    """What stands beside a domain's row."""
    return f"{option.removeprefix('data.')}: {domain.domain or domain.dataset}"


def scenes(dataset: SegmentationDataset, name: str, classes: ClassSet) -> list[Row]:
    """A row of images and a row of their labels, spread over the data set."""
    indices = np.linspace(0, len(dataset) - 1, SCENES).astype(int)
    samples = [dataset.read(int(index)) for index in indices]
    labels = [colorize(s.label, classes.palette) for s in samples if s.label is not None]
    return [Row(name, [Captioned("", s.image) for s in samples]), Row("", [Captioned("", label) for label in labels])]


def pixel_shares(dataset: SegmentationDataset) -> Shares:
    """Each class's share of the labelled pixels, [K], counted once and cached."""
    counts = class_statistics(dataset, user_cache()).pixels.sum(0)
    shares: Shares = counts / max(1, int(counts.sum()))
    return shares


def share_table(shares: dict[str, Shares], classes: ClassSet) -> Table:
    """Class by class, the share of pixels in percent in every domain."""
    rows = [(name, *(f"{100 * share[i]:.2f}" for share in shares.values())) for i, name in enumerate(classes.names)]
    return Table(("class", *shares), tuple(rows), "share of labelled pixels in %")


if __name__ == "__main__":
    main()
