"""`report`: pictures of predictions on its page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from results.invented import invented
from uda_seg import report
from uda_seg.errors import UserError
from uda_seg.results.page import build_section, render
from uda_seg.results.reading import Found, Run
from uda_seg.results.tables import build_tables


def test_pictures_that_cannot_be_shown_are_named_and_the_others_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    qualities = {"dacs": 0.8, "<b>mic</b>": 0.7, "lcmsm": 0.6, "source_only": 0.5}
    found = Found([Run(invented(method, 0, quality), Path(method)) for method, quality in qualities.items()])
    [section] = [build_section(table, ["source_only"], 100) for table in build_tables(found.runs)]

    def predicted(run: Run, target: str, names: list[str]):
        assert target == "target"
        if run.result.method == "<b>mic</b>":
            raise RuntimeError("out of paper\nand ink")
        if run.result.method == "lcmsm":
            raise UserError("its checkpoints are not there")
        kinds = ("image", "label", "prediction")
        shown = [(kind, np.full((8, 600, 3), 40 * i, np.uint8)) for i, kind in enumerate(kinds)]
        yield from ((name, shown) for name in names[: 1 if run.result.method == "source_only" else None])

    monkeypatch.setattr(report, "_predicted", predicted)
    report.add_pictures(section, 2)
    best, *_, worst = [name for name, _ in section.images]
    assert len(section.pictures) == 4
    assert [caption for caption, _ in section.pictures[best]] == ["image", "label", "dacs", "source_only"]
    assert [caption for caption, _ in section.pictures[worst]] == ["image", "label", "dacs"]
    assert section.picture_note == (
        "No pictures of <b>mic</b> (RuntimeError: out of paper); lcmsm (its checkpoints are not there); "
        "source_only (3 of 4 images are not in its data)."
    )
    page = render("Runs", found, [section])
    assert "lcmsm (its checkpoints are not there)" in page
    assert "<b>mic" not in page
    assert page.count("data:image/jpeg") == 13
