"""`python -m uda_seg.report runs=FOLDER`: compare many runs on one page.

`runs=` is a folder with runs, or with their `result.json` files alone, below it; several as `runs=[A,B]`. Written to
`out=` (default: `report` in the first folder): `index.html`, which needs nothing else, and its tables as `report.md`,
`report.csv` and `report.tex`. Shown are mean and standard deviation over seeds after the last step, differences to
the controls with 95 % intervals where runs share seeds, data and start weights, training curves, classes, confusions,
images, cost, and how well scores without labels choose. Runs that failed or have not finished are named.

`report.against=[dacs]` compares with other methods; `report.pictures=2` adds the predictions of the first seed's
`last.ckpt` on that many of the best and of the worst images, where checkpoints and data are at hand.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uda_seg.cli.arguments import as_override
from uda_seg.cli.command import run
from uda_seg.config.base_rows import base_rows
from uda_seg.config.commands import EvaluateConfig, ReportConfig
from uda_seg.config.compose import composed
from uda_seg.config.replay import replay
from uda_seg.data.domains import open_domain
from uda_seg.errors import UserError
from uda_seg.results.page import Section, score_cells
from uda_seg.results.reading import Run, find_results
from uda_seg.results.writing import build_sections, write_report
from uda_seg.runs.checkpoint import read_checkpoint
from uda_seg.runs.trained import load
from uda_seg.storage.files import first_line
from uda_seg.visualize.pictures import colorize

USAGE = "python -m uda_seg.report runs=outputs/streets"
WIDTH = 512  # pixels of a picture on the page

log = logging.getLogger(__name__)


def main() -> None:
    """Run the command."""
    run(ReportConfig, report, expand=expand)


def expand(given: list[str]) -> list[str]:
    """Keep Hydra from creating a folder of a run."""
    return ["hydra/job_logging=stdout", as_override("hydra.run.dir", "."), *given]


def report(config: ReportConfig, folder: Path) -> Path:
    """Write the report and return its page.

    Raises:
        UserError: no runs are given, or there is none.
    """
    if not config.runs:
        raise UserError(f"runs= is missing: {USAGE}")
    places = [str(place) for place in ([config.runs] if isinstance(config.runs, str) else config.runs)]
    found = find_results(*places)
    first = Path(places[0]).expanduser()
    out = Path(config.out).expanduser() if config.out else (first if first.is_dir() else Path("outputs")) / "report"
    settings = config.report
    sections = build_sections(found, base_rows(), settings.against, settings.draws)
    if settings.pictures:
        for section in sections:
            add_pictures(section, settings.pictures)
    for section in sections:
        score_cells(section).show()
    title = settings.title or f"Runs in {', '.join(places)}"
    return write_report(out, title, found, sections, settings.draws)


# ---------------------------------------------------------------------- pictures


def add_pictures(section: Section, number: int) -> None:
    """Add the best and worst images with their labels and predictions, from the first seed's last checkpoint.

    What cannot be shown, for whatever reason, is told on the page.
    """
    images = [name for name, _ in section.images]
    chosen = list(dict.fromkeys([*images[:number], *images[::-1][:number]]))
    missing = []
    for group in section.table.groups:
        left = set(chosen)
        try:
            for name, shown in _predicted(group.runs[0], section.table.target, chosen):
                pictures = section.pictures.setdefault(name, [])
                pictures += [(caption, _uri(p)) for caption, p in shown[: 2 if not pictures else 0]]
                pictures.append((group.label, _uri(shown[-1][1])))
                left.discard(name)
            if left:
                missing.append(f"{group.label} ({len(left)} of {len(chosen)} images are not in its data)")
        except Exception as error:  # pictures are an addition, without which the report is to be written
            log.debug("pictures of %s", group.label, exc_info=True)
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            missing.append(f"{group.label} ({said})")
    section.picture_note = f"No pictures of {'; '.join(missing)}." if missing else ""
    if missing:
        log.warning("%s: %s", section.table.title, section.picture_note)


def _predicted(run_: Run, target: str, names: list[str]) -> Iterator[tuple[str, list[tuple[str, NDArray[np.uint8]]]]]:
    """Yield each image's name with its pictures: image, label, prediction."""
    if run_.last is None:
        raise UserError("its checkpoints are not there")
    config = composed(replay(read_checkpoint(run_.last), [], EvaluateConfig), EvaluateConfig)
    model = load(run_.last)
    domain = config.data.validation[target]
    dataset = open_domain(domain, config.data, model.classes, f"data.validation.{target}", labeled=True)
    places = {name: i for i, name in enumerate(dataset.names)}
    for name in names:
        if name in places:
            sample = dataset.read(places[name])
            assert sample.label is not None
            shown = [("image", sample.image), ("label", colorize(sample.label, model.classes.palette))]
            yield name, [*shown, ("prediction", colorize(model.predict(sample.image), model.classes.palette))]


def _uri(picture: NDArray[np.uint8]) -> str:
    height, width = picture.shape[:2]
    scale = min(1.0, WIDTH / width)
    small = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    coded = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(coded.tobytes()).decode()}"


if __name__ == "__main__":
    main()
